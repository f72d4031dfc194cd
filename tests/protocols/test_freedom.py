"""FreeDom's numbers: by hand, and against the authors' arithmetic written out over the real lists."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cir.data import load
from cir.protocols import PROTOCOLS, mean_over
from cir.schema import Benchmark, Embeddings, Query, TargetRanks
from cir.score import rank_and_score

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
REAL = pytest.mark.skipif(not SHARED.is_dir(), reason="needs the benchmarks' annotation files in ../shared/data")
RULE = PROTOCOLS["freedom"]


def bench(*targets):
    gallery = tuple(f"i{n}" for n in range(200))
    queries = tuple(Query(f"q{i}", "i199", ("Archive",), names) for i, names in enumerate(targets))
    return Benchmark(
        "freedom/ltll/New-Old", "1", "New-Old", "freedom", queries, gallery, Path("."),
        dict.fromkeys(gallery, "x.png"), open_targets=True,
    )  # fmt: skip


def scored(rows, *targets):
    ranks = TargetRanks(tuple(f"q{i}" for i in range(len(rows))), np.array(rows), np.zeros(len(rows), dtype=bool))
    return {name: value.tolist() for name, value in RULE.score(bench(*targets), ranks).values.items()}


def test_by_hand():
    """Ranks from 1 here, from 0 in the formula: (2), (1, 4), none."""
    found = scored([[2, 0], [4, 1], [0, 0]], ("i0",), ("i1", "i2"), ())
    one = (0 / 1 + 1 / 2) / 2 / (1 + 1e-5)
    two = ((1 + 1 / 1) + (1 / 3 + 2 / 4)) / 2 / (2 + 1e-5)
    assert found["mAP"] == pytest.approx([one, two, 0], abs=1e-15)
    assert found["R@5"] == [1 / (1 + 1e-5), 2 / (2 + 1e-5), 0]
    assert found["P@5"] == [1 / (1 + 1e-5), 2 / (2 + 1e-5), 0]  # min(n, K), not K
    late = scored([[11, 6, 1, 2, 3, 4]], tuple(f"i{n}" for n in range(6)))
    assert late["P@5"] == [4 / (5 + 1e-5)] and late["R@5"] == [4 / (6 + 1e-5)]
    assert late["P@10"] == late["R@10"] == [5 / (6 + 1e-5)]
    assert list(found) == ["mAP", "R@5", "R@10", "R@50", "R@100", "P@5", "P@10", "P@50", "P@100"]


def test_a_perfect_ranking_is_almost_one_and_the_reference_takes_its_place():
    best = scored([list(range(1, 8))], tuple(f"i{n}" for n in range(7)))
    assert best["mAP"] == pytest.approx([7 / (7 + 1e-5)]) and best["mAP"][0] < 1
    second = scored([list(range(2, 9))], tuple(f"i{n}" for n in range(7)))  # the reference before them
    assert second["mAP"][0] < 0.9 and RULE.excluded(Query("q", "i0", ("x",))) == ()


def read(collection):
    files = ("full_files.csv",) * 2 if collection == "ltll" else ("query_files.csv", "database_files.csv")
    return [
        [tuple(line.split(" ")) for line in (SHARED / "freedom" / collection / file).read_text().splitlines()]
        for file in files
    ]


def features(rows, names, seed, width=20):
    """Unit vectors that know something of class and domain."""
    known = np.random.default_rng(5).standard_normal((200, width))
    rng = np.random.default_rng(seed)
    vectors = np.stack([0.8 * known[names.index(kind)] + 0.4 * known[names.index(domain)] for _, domain, kind in rows])
    vectors += rng.standard_normal(vectors.shape)
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def area(places, n):
    """The area under the curve, position by position; places from 0."""
    total = 0.0
    for j, r in enumerate(places):
        before = 1.0 if r == 0 else j / r
        total += (before + (j + 1) / (r + 1)) / 2 / (n + 1e-5)
    return total


@REAL
@pytest.mark.parametrize(
    ("collection", "source", "target", "step"),
    [("ltll", "New", "Old", 1), ("ltll", "Old", "New", 1), ("nico", "rock", "dim", 45)],
)
def test_all_numbers_equal_the_authors_arithmetic_written_out(collection, source, target, step):
    asking, database = read(collection)
    asking = [row for row in asking if row[1] == source][::step]
    names = sorted({name for row in database for name in row[1:]})
    images = features(database, names, seed=6)
    queries = features([(None, target, kind) for _, _, kind in asking], names, seed=7)

    found = load(f"freedom/{collection}/{source}-{target}", SHARED)
    found = replace(found, queries=found.queries[::step])
    assert [q.reference for q in found.queries] == [image for image, _, _ in asking]
    ids = tuple(q.id for q in found.queries)
    outcome = rank_and_score(
        found, RULE, Embeddings(ids, queries[:, None]), Embeddings(found.gallery, images[:, None])
    ).scores.values

    left, right = (np.rint(side * 2.0**26) / 2.0**26 for side in (queries.astype(float), images.astype(float)))
    scores = (left @ right.T).astype(np.float32)  # what `cir.search` calls the score: two of 80,134 may tie
    order = np.argsort(-scores, axis=1, kind="stable")
    domains, kinds = (np.array([row[column] for row in database]) for column in (1, 2))
    for row, (_, _, kind) in enumerate(asking):
        right = ((domains == target) & (kinds == kind))[order[row]]
        n = int(right.sum())
        assert outcome["mAP"][row] == pytest.approx(area(np.flatnonzero(right).tolist(), n), abs=1e-12)
        for k in (5, 10, 50, 100):
            hits = int(right[:k].sum())
            assert outcome[f"R@{k}"][row] == pytest.approx(hits / (n + 1e-5), abs=1e-12)
            assert outcome[f"P@{k}"][row] == pytest.approx(hits / (min(n, k) + 1e-5), abs=1e-12)
    assert 0.02 < outcome["mAP"].mean() < 0.9  # neither noise nor perfect


@REAL
def test_a_set_s_mean_is_the_mean_of_its_domains_means():
    """Pairs weigh the same, however many queries they have."""
    parts = {}
    for name in ("New-Old", "Old-New"):
        found = load(f"freedom/ltll/{name}", SHARED)
        most = max(len(q.targets) for q in found.queries)
        start = 1 if name == "New-Old" else 40
        ranks = np.array([[start + i if i < len(q.targets) else 0 for i in range(most)] for q in found.queries])
        given = TargetRanks(tuple(q.id for q in found.queries), ranks, np.zeros(len(ranks), dtype=bool))
        parts[name] = RULE.score(found, given)
    each = [part.values["mAP"].mean() for part in parts.values()]
    assert each[0] > 0.99 > 0.2 > each[1]
    assert mean_over(parts)["mAP"] == pytest.approx(sum(each) / 2)
