import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from cir.data import load
from cir.errors import InputError
from cir.protocols import PROTOCOLS, mean_over, pooled
from cir.schema import Benchmark, Query, Scores, TargetRanks

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


def benchmark(queries, name="cirr/val", protocol="cirr"):
    gallery = tuple(f"i{n}" for n in range(20))
    return Benchmark(name, "1", "val", protocol, tuple(queries), gallery, Path("."), dict.fromkeys(gallery, "x.png"))


def ranked(rows, tied=None):
    table = np.array(rows, dtype=np.int64)
    return TargetRanks(tuple(f"q{i}" for i in range(len(rows))), table, np.zeros(len(rows), dtype=bool))


def queries(*targets, tags=()):
    tags = tags or [()] * len(targets)
    return [
        Query(f"q{i}", f"i{19 - i}", ("text",), t, t, g) for i, (t, g) in enumerate(zip(targets, tags, strict=True))
    ]


ONE = queries(("i0",), ("i1",), ("i2",))


@pytest.mark.parametrize("name", list(PROTOCOLS))
def test_contract(name):
    protocol = PROTOCOLS[name]
    assert protocol.id == name and protocol.version >= 1 and len(protocol.definition) > 40
    assert protocol.headline in protocol.metrics and protocol.aspect_metric in protocol.metrics
    bench = benchmark(ONE, protocol=name)
    ranks = ranked([[1], [7], [20]])
    scores = protocol.score(bench, ranks, ranked([[1], [2], [3]]))
    assert tuple(scores.values) == protocol.metrics and scores.query_ids == ("q0", "q1", "q2")
    assert all(value.dtype == np.float64 and value.shape == (3,) for value in scores.values.values())
    alone = [
        protocol.score(
            benchmark([query], protocol=name),
            TargetRanks((query.id,), ranks.ranks[i : i + 1], ranks.tied[:1]),
            TargetRanks((query.id,), np.array([[i + 1]]), ranks.tied[:1]),
        )
        for i, query in enumerate(ONE)
    ]
    for metric in protocol.metrics:
        assert [one.values[metric][0] for one in alone] == scores.values[metric].tolist()


@pytest.mark.parametrize("name", list(PROTOCOLS))
def test_hidden_labels_and_foreign_ranks_are_errors(name):
    protocol = PROTOCOLS[name]
    ranks = ranked([[1], [7], [20]])
    with pytest.raises(InputError, match="labels are hidden"):
        protocol.score(benchmark(queries((), (), ())), ranks, ranks)
    with pytest.raises(InputError, match="not of its 3 queries"):
        protocol.score(benchmark(ONE), ranked([[1], [7]]), ranks)
    with pytest.raises(InputError, match="not of its 3 queries"):
        protocol.score(benchmark(ONE), ranks, ranked([[1]]))


def test_cirr_by_hand():
    """Ranks 1, 7 and 20 in the gallery, 1, 2 and 3 in the subset."""
    protocol = PROTOCOLS["cirr"]
    scores = protocol.score(benchmark(ONE), ranked([[1], [7], [20]]), ranked([[1], [2], [3]])).values
    assert scores["R@1"].tolist() == [1, 0, 0] and scores["R@5"].tolist() == [1, 0, 0]
    assert scores["R@10"].tolist() == [1, 1, 0] and scores["R@50"].tolist() == [1, 1, 1]
    assert scores["Rs@1"].tolist() == [1, 0, 0] and scores["Rs@2"].tolist() == [1, 1, 0]
    assert scores["Rs@3"].tolist() == [1, 1, 1] and scores["Avg"].tolist() == [1, 0, 0]
    split = protocol.score(benchmark(ONE), ranked([[1], [7], [20]]), ranked([[2], [1], [3]])).values
    assert split["Avg"].tolist() == [0.5, 0.5, 0]
    with pytest.raises(InputError, match="candidates"):
        protocol.score(benchmark(ONE), ranked([[1], [7], [20]]))


def test_only_cirr_deletes_the_reference_and_variants_that_say_so():
    for name, protocol in PROTOCOLS.items():
        deleted = name.split("/")[0] == "cirr" or name.endswith("/reference-removed")
        assert protocol.excluded(ONE[0]) == (("i19",) if deleted else ()), name


def test_circo_by_hand():
    """The single target is the first: found second, found late while another is first, not found."""
    bench = benchmark(queries(("i0", "i1"), ("i2", "i3", "i4"), ("i5",)), "circo/val", "circo")
    scores = PROTOCOLS["circo"].score(bench, ranked([[2, 9, 0], [30, 1, 4], [60, 0, 0]])).values
    assert scores["mAP@5"].tolist() == [(1 / 2) / 2, (1 + 2 / 4) / 3, 0]
    assert scores["mAP@10"].tolist() == [(1 / 2 + 2 / 9) / 2, 0.5, 0]
    assert scores["mAP@50"].tolist() == [(1 / 2 + 2 / 9) / 2, (1 + 2 / 4 + 3 / 30) / 3, 0]
    assert scores["R@5"].tolist() == [1, 0, 0] and scores["R@50"].tolist() == [1, 1, 0]


def test_aspects_list_the_queries_that_carry_a_tag():
    bench = benchmark(queries(("i0",), ("i1",), ("i2",), tags=[("b", "a", "b"), (), ("b",)]), "circo/val", "circo")
    protocol = PROTOCOLS["circo"]
    scores = protocol.score(bench, ranked([[1], [2], [4]]))
    found = protocol.aspects(bench, scores)
    assert {tag: rows.tolist() for tag, rows in found.items()} == {"a": [0], "b": [0, 2]}
    assert scores.values[protocol.aspect_metric][found["b"]].mean() == (1 + 1 / 4) / 2


def test_means_over_categories_are_not_weighted():
    def part(name, values):
        ids = tuple(f"{name}/{i}" for i in range(len(values)))
        return Scores(ids, {"R@10": np.array(values), "R@50": np.ones(len(values))})

    parts = {"dress": part("dress", [1.0, 0.0]), "shirt": part("shirt", [1.0] * 8), "toptee": part("toptee", [0.0])}
    assert mean_over(parts) == {"R@10": 0.5, "R@50": 1.0}
    scores, strata = pooled(parts)
    assert len(scores.query_ids) == 11 and strata.count("shirt") == 8
    with pytest.raises(InputError, match="cannot be averaged"):
        mean_over({**parts, "other": Scores(("x",), {"R@1": np.ones(1)})})
    with pytest.raises(InputError, match="nothing to pool"):
        pooled({})


def test_the_world_says_so():
    bench = benchmark(ONE)
    assert PROTOCOLS["cirr"].label(bench) == "cirr (v1)"
    assert PROTOCOLS["cirr"].label(dataclasses.replace(bench, name="world/cirr/val")) == "world/cirr (v1)"


def test_the_shipped_circo_example_scores_what_the_official_script_prints():
    example = SHARED / "CIRCO" / "submission_examples" / "submission_val.json"
    if not example.is_file():
        pytest.skip("needs the benchmarks' annotation files in ../shared/data")
    bench = load("circo/val", SHARED)
    submitted = json.loads(example.read_text())
    ranks = np.zeros((220, 14), dtype=np.int64)
    for row, query in enumerate(bench.queries):
        listed = [str(image) for image in submitted[query.id]]
        for slot, target in enumerate(query.targets):
            ranks[row, slot] = listed.index(target) + 1 if target in listed else 51  # the list ends at 50
    found = TargetRanks(tuple(q.id for q in bench.queries), ranks, np.zeros(220, dtype=bool))
    scores = PROTOCOLS["circo"].score(bench, found).values
    printed = {name: f"{100 * value.mean():.2f}" for name, value in scores.items()}
    assert printed == {
        "mAP@5": "0.49", "mAP@10": "0.52", "mAP@25": "0.54", "mAP@50": "0.60",
        "R@5": "0.91", "R@10": "0.91", "R@25": "1.36", "R@50": "3.64",
    }  # fmt: skip
