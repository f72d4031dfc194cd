"""MTEB's metrics against trec_eval's definitions written out, and the keys of its `TaskResult`."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from cir import records
from cir.archive import mteb
from cir.errors import InputError


def slow(rankings, relevant, cut):
    """The five measures of trec_eval and the hit rate, from rankings as lists of names."""
    found = {name: [] for name in ("ndcg", "map", "recall", "precision", "mrr", "hit_rate")}
    for ranking, right in zip(rankings, relevant, strict=True):
        hits = [name in right for name in ranking[:cut]]
        places = [place for place, hit in enumerate(hits, 1) if hit]
        best = sum(1 / math.log2(place + 1) for place in range(1, min(cut, len(right)) + 1))
        found["ndcg"].append(sum(1 / math.log2(place + 1) for place in places) / best)
        found["map"].append(sum(number / place for number, place in enumerate(places, 1)) / len(right))
        found["recall"].append(len(places) / len(right))
        found["precision"].append(len(places) / cut)
        found["mrr"].append(1 / places[0] if places else 0.0)
        found["hit_rate"].append(float(bool(places)))
    return {f"{name}_at_{cut}": np.mean(values) for name, values in found.items()}


def test_the_standard_metrics_are_those_of_trec_eval():
    generator = np.random.default_rng(0)
    rankings, relevant, ranks = [], [], np.zeros((25, 6), dtype=np.int64)
    for row in range(25):
        ranking = [f"i{name}" for name in generator.permutation(40)]
        right = [f"i{name}" for name in generator.permutation(40)[: 1 + row % 6]]
        rankings.append(ranking), relevant.append(set(right))
        ranks[row, : len(right)] = [ranking.index(name) + 1 for name in right]
    found = mteb.standard(ranks)
    wanted = {name: value for cut in mteb.CUTS for name, value in slow(rankings, relevant, cut).items()}
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert found[name] == pytest.approx(value, abs=1e-12), name


def test_queries_without_a_target_have_no_part():
    ranks = np.array([[2, 0], [0, 0], [1, 3]])
    assert mteb.standard(ranks) == mteb.standard(ranks[[0, 2]])
    assert mteb.standard(ranks[[1]]) == {}


def test_a_result_has_the_keys_of_a_task_result(make, tmp_path):
    path = make("a", ["seed=2"])
    record = records.read(path)
    place = mteb.write(path, record, tmp_path / "mteb")
    assert place == tmp_path / "mteb/lincir-seed-2" / ("d" * 16) / "cir-world-circo-val-circo-v1.json"
    found = json.loads(place.read_text())
    assert found == mteb.result(path, record)
    assert set(found) == {
        "dataset_revision", "task_name", "mteb_version", "scores", "evaluation_time", "kg_co2_emissions", "date",
    }  # fmt: skip
    assert found["task_name"] == "cir/world/circo/val/circo-v1" and found["mteb_version"] is None
    (scores,) = found["scores"]["val"]
    assert (scores["hf_subset"], scores["languages"]) == ("default", ["eng-Latn"])
    assert scores["main_score"] == scores["mAP@5"]
    for name, mean in record.means.items():
        assert 100 * scores[name] == pytest.approx(mean.mean, abs=1e-9)
    assert scores["recall_at_5"] == pytest.approx((1 + 0 + 0.5 + 0) / 4)  # targets at 1 and 3; 7; 2 and 20; 40 and 6
    assert scores["R@5"] == pytest.approx(2 / 4)
    assert scores["map_at_5"] == pytest.approx((5 / 3 / 2 + 0 + 1 / 4 + 0) / 4)
    assert all(0 <= value <= 1 for key, value in scores.items() if "@" in key or "_at_" in key)


def test_graded_protocols_have_no_standard_metrics(make):
    path = make("a", benchmark="cirr/val", protocol=("cirr/soft", 1))
    (scores,) = mteb.result(path, records.read(path))["scores"]["val"]
    assert "R@5" in scores and not any("_at_" in name for name in scores)


def test_groups_and_records_without_values_are_refused(make):
    path = make("a")
    record = records.read(path)
    group = replace(record, benchmark=replace(record.benchmark, parts=["a/val", "b/val"]))
    with pytest.raises(InputError, match="a mean over a/val, b/val"):
        mteb.result(path, group)
    with pytest.raises(InputError, match="holds no per-query values"):
        mteb.result(path, replace(record, per_query=None))
