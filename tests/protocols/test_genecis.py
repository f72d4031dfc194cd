"""GeneCIS against the official evaluation, written out again, on seeded features over the real annotations."""

import functools
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from cir.data import BENCHMARKS, GROUPS, genecis, load
from cir.protocols import PROTOCOLS, mean_over
from cir.schema import Benchmark, Embeddings, Query, Scores
from cir.score import aligned, rank_and_score, score

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
REAL = pytest.mark.skipif(
    not (SHARED / "GeneCIS").is_dir(), reason="needs the benchmarks' annotation files in ../shared/data"
)
RULE = PROTOCOLS["genecis"]


def bench(*queries, images=16):
    gallery = tuple(f"i{n}" for n in range(images))
    return Benchmark("genecis/x", "v0", "x", "genecis", queries, gallery, Path("."), {}, open_references=True)


def asked(name, target, *distractors):
    return Query(name, "elsewhere", ("red",), (target,), (target, *distractors))


def scored(benchmark, similarities):
    """Score a query whose similarity to each image of the gallery is given."""
    rows = np.asarray(similarities, dtype=np.float32)
    side = np.eye(len(benchmark.gallery) + 1, dtype=np.float32)
    images = np.stack([s * side[0] + np.sqrt(1 - s * s) * side[n + 1] for n, s in enumerate(rows)]).astype(np.float32)
    queries = Embeddings(tuple(q.id for q in benchmark.queries), np.stack([side[:1]] * len(benchmark.queries)))
    return rank_and_score(benchmark, RULE, queries, Embeddings(benchmark.gallery, images[:, None]))


def test_only_candidates_compete():
    """Image 15 is best of all, and a candidate of nobody."""
    similarities = np.arange(16) / 20
    outcome = scored(
        bench(asked("a", "i5", "i1", "i2"), asked("b", "i5", "i9", "i2"), asked("c", "i0", "i1", "i2", "i3")),
        similarities,
    )
    assert outcome.ranks.ranks[:, 0].tolist() == [1, 2, 4] and outcome.tied == ()
    assert {name: value.tolist() for name, value in outcome.scores.values.items()} == {
        "R@1": [1, 0, 0], "R@2": [1, 1, 0], "R@3": [1, 1, 0]
    }  # fmt: skip


def test_a_distractor_listed_twice_competes_twice():
    outcome = scored(bench(asked("a", "i5", "i9", "i2", "i9"), asked("b", "i5", "i2", "i2")), np.arange(16) / 20)
    assert outcome.ranks.ranks[:, 0].tolist() == [3, 1]


def test_ties_go_by_gallery_order_and_are_counted():
    similarities = np.zeros(16)
    similarities[[3, 5, 9]] = 0.5
    outcome = scored(
        bench(
            asked("a", "i5", "i3", "i9"), asked("b", "i3", "i5"), asked("c", "i9", "i1"), asked("d", "i9", "i3", "i5")
        ),
        similarities,
    )
    assert outcome.ranks.ranks[:, 0].tolist() == [2, 1, 1, 3] and outcome.tied == ("a", "b", "d")


def test_ranks_stay_between_the_optimistic_and_the_pessimistic_one():
    """Similarities of five values only: ties everywhere, each counted, none resolved beyond its bounds."""
    rng = np.random.default_rng(3)
    names = [f"i{n}" for n in range(40)]
    queries = [asked(f"q{n}", *rng.permutation(names)[:10].tolist()) for n in range(200)]
    similarities = rng.integers(0, 5, 40) / 8
    outcome = scored(bench(*queries, images=40), similarities)
    for query, rank in zip(queries, outcome.ranks.ranks[:, 0].tolist(), strict=True):
        own, *others = (similarities[int(name[1:])] for name in query.candidates)
        above, equal = sum(s > own for s in others), sum(s == own for s in others)
        assert above + 1 <= rank <= above + equal + 1 and (query.id in outcome.tied) == (equal > 0)
    assert 0 < len(outcome.tied) < 200


def test_the_mean_over_tasks_is_unweighted():
    def part(n):
        return Scores(tuple(map(str, range(n))), {"R@1": (np.arange(n) < 3).astype(np.float64)})

    assert mean_over({str(n): part(n) for n in (3, 6, 12, 30)})["R@1"] == pytest.approx(
        (1 + 1 / 2 + 1 / 4 + 1 / 10) / 4
    )


def test_the_wrong_condition_is_called_wrong():
    released = PROTOCOLS[genecis.RELEASED]
    assert "WRONG" in released.definition and "constant" in released.definition and released.metrics == RULE.metrics
    assert all(BENCHMARKS[name].protocols == ("genecis", genecis.RELEASED) for name in GROUPS["genecis"])


# --- the official evaluation on the real files -----------------------------------------------------------------


def name_of(image):
    if "val_image_id" in image:
        return image["val_image_id"]
    return f"{image['image_id']}:{','.join(json.dumps(edge) for edge in image['instance_bbox'])}"


class Features:
    """A unit vector per image of one task's file, float64, the same for the same image."""

    def __init__(self, rows, width=24):
        names = dict.fromkeys(name_of(x) for row in rows for x in (row["target"], row["reference"], *row["gallery"]))
        self.ids = list(names)
        self.at = {name: place for place, name in enumerate(self.ids)}
        rng = np.random.default_rng(7)
        self.vectors = rng.standard_normal((len(names), width))
        noise = rng.standard_normal((len(rows), width))
        self.queries = np.stack([self.of(row["target"]) for row in rows]) * 0.45 + noise

    def of(self, image):
        return self.vectors[self.at[name_of(image)]]


def released_evaluation(rows, features):
    """Target first, then the distractors; normalise, multiply, add up, sort downwards, look where slot 0 went."""
    hits = {1: 0, 2: 0, 3: 0}
    for row, query in zip(rows, torch.tensor(features.queries), strict=True):
        gallery = torch.tensor(np.stack([features.of(image) for image in (row["target"], *row["gallery"])]))
        gallery = torch.nn.functional.normalize(gallery, dim=-1)
        order = (query[None] * gallery).sum(dim=-1).sort(descending=True, stable=True).indices
        for k in hits:
            hits[k] += bool((order[:k] == 0).any())
    return {f"R@{k}": 100 * count / len(rows) for k, count in hits.items()}


@functools.cache
def real(task):
    """One task as it is loaded, and as its file has it."""
    rows = json.loads((SHARED / "GeneCIS/genecis" / f"{task}.json").read_text())
    return load(f"genecis/{task}", SHARED), rows


@REAL
@pytest.mark.parametrize("task", genecis.TASKS)
def test_the_released_evaluation_gives_the_same_numbers(task):
    benchmark, rows = real(task)
    features = Features(rows)
    images = np.stack([features.vectors[features.at[int(x) if x.isdigit() else x]] for x in benchmark.gallery])
    ids = [query.id for query in benchmark.queries]
    queries = aligned(ids, features.queries[:, None], ids)
    outcome = rank_and_score(benchmark, RULE, queries, aligned(benchmark.gallery, images[:, None], benchmark.gallery))
    found = {name: 100 * value.mean() for name, value in outcome.scores.values.items()}
    expected = released_evaluation(rows, features)
    assert found == pytest.approx(expected, abs=1e-9) and outcome.tied == ()
    assert 10 < expected["R@1"] < expected["R@2"] < expected["R@3"] < 95


@REAL
@pytest.mark.parametrize("protocol", ["genecis", genecis.RELEASED])
def test_vectors_from_files_are_scored_under_both_protocols(protocol, tmp_path):
    """Image ids are integers, query ids have no zeros before their numbers, and rows come in any order."""
    _, rows = real("change_object")
    features = Features(rows)
    listed = dict.fromkeys(name_of(image) for row in rows for image in (row["target"], *row["gallery"]))
    images = np.random.default_rng(1).permutation(list(listed))
    np.savez(tmp_path / "g.npz", ids=images, vectors=features.vectors[[features.at[x] for x in images.tolist()]])
    np.savez(tmp_path / "q.npz", ids=[f"change_object/{n}" for n in range(len(rows))], vectors=features.queries)
    found = score(
        "genecis/change_object", SHARED, tmp_path / "q.npz", tmp_path / "g.npz", protocol=protocol, resamples=20
    )
    means = {name: cell["mean"] for name, cell in found["scores"].items()}
    assert means == pytest.approx(released_evaluation(rows, features), abs=1e-9)
    assert found["tied_queries"] == 0 and found["protocol"]["name"] == protocol
    assert ("WRONG" in found["protocol"]["definition"]) == (protocol == genecis.RELEASED)


@REAL
@pytest.mark.parametrize("task", genecis.TASKS)
def test_collapsed_features_are_ties_and_give_about_chance(task):
    """The official code finds the target first every time then: its slot is 0, and small sorts keep the order.

    The object tasks ask for the same few images again and again, so where a hash puts those moves them from chance.
    """
    benchmark, _ = real(task)
    one = np.ones((1, 1, 4), dtype=np.float32) / 2
    queries = Embeddings(tuple(q.id for q in benchmark.queries), np.repeat(one, len(benchmark.queries), axis=0))
    images = Embeddings(benchmark.gallery, np.repeat(one, len(benchmark.gallery), axis=0))
    outcome = rank_and_score(benchmark, RULE, queries, images)
    assert len(outcome.tied) == len(benchmark.queries)
    size = len(benchmark.queries[-1].candidates)
    for k in (1, 2, 3):
        assert outcome.scores.values[f"R@{k}"].mean() == pytest.approx(k / size, abs=0.04)
