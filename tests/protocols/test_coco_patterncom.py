"""COCO composition and PatternCom: small cases by hand, AP against the definition written out."""

from pathlib import Path

import numpy as np
import pytest

from cir.protocols import PROTOCOLS
from cir.schema import Benchmark, Embeddings, Query, TargetRanks
from cir.score import rank_and_score

GALLERY = tuple(f"i{n}" for n in range(30))


def benchmark(targets, protocol, references=None):
    references = references or ["i29"] * len(targets)
    queries = tuple(
        Query(f"q{i}", reference, ("text",), t)
        for i, (t, reference) in enumerate(zip(targets, references, strict=True))
    )
    return Benchmark(
        f"{protocol}/x", "1", "x", protocol, queries, GALLERY, Path("."), dict.fromkeys(GALLERY, "x.png"),
        open_references=True, open_targets=True,
    )  # fmt: skip


def scored(bench, ranks):
    table = np.array(ranks, dtype=np.int64)
    ids = tuple(query.id for query in bench.queries)
    return PROTOCOLS[bench.protocol].score(bench, TargetRanks(ids, table, np.zeros(len(ids), dtype=bool))).values


def test_coco_by_hand():
    values = scored(benchmark([("i0",), ("i1",), ("i2",)], "coco"), [[1], [6], [10]])
    assert values["R@1"].tolist() == [1, 0, 0] and values["R@5"].tolist() == [1, 0, 0]
    assert values["R@10"].tolist() == [1, 1, 1]


def test_patterncom_by_hand():
    """Three positives at ranks 2, 6 and 11; one at rank 1; none."""
    values = scored(benchmark([("i0", "i1", "i2"), ("i3",), ()], "patterncom"), [[6, 2, 11], [1, 0, 0], [0, 0, 0]])
    assert values["mAP"].tolist() == pytest.approx([(1 / 2 + 2 / 6 + 3 / 11) / 3, 1, 0], abs=1e-15)
    assert values["P@5"].tolist() == [1 / 5, 1 / 5, 0] and values["P@15"].tolist() == [3 / 15, 1 / 15, 0]
    assert values["R@5"].tolist() == [1 / 3, 1, 0] and values["R@10"].tolist() == [2 / 3, 1, 0]
    assert values["R@15"].tolist() == [1, 1, 0] == values["R@20"].tolist()  # all found is 1, exactly


def test_the_reference_competes():
    assert PROTOCOLS["patterncom"].excluded(Query("q", "i0", ("x",))) == ()
    vectors = np.eye(30, dtype=np.float32)
    asked = Embeddings(("q0",), (0.8 * vectors[4] + 0.6 * vectors[0])[None, None])
    found = rank_and_score(
        benchmark([("i0",)], "patterncom", ["i4"]),
        PROTOCOLS["patterncom"],
        asked,
        Embeddings(GALLERY, vectors[:, None]),
    )
    assert found.scores.values["mAP"].tolist() == [0.5]  # behind the reference


@pytest.mark.parametrize("seed", range(4))
def test_ap_is_the_mean_of_precisions_over_the_whole_ranking(seed):
    """Also with duplicated images: the stated order, between the best and the worst order of ties."""
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((30, 4)).astype(np.float32)
    vectors[20:26] = vectors[:6]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    targets = [tuple(GALLERY[i] for i in rng.permutation(30)[: 1 + 3 * n]) for n in range(6)]
    asked = rng.standard_normal((6, 4)).astype(np.float32)
    asked /= np.linalg.norm(asked, axis=1, keepdims=True)
    bench = benchmark(targets, "patterncom")
    gallery = Embeddings(GALLERY, vectors[:, None])
    found = rank_and_score(
        bench, PROTOCOLS["patterncom"], Embeddings(tuple(q.id for q in bench.queries), asked[:, None]), gallery
    )
    for row, (query, right) in enumerate(zip(asked, targets, strict=True)):
        scores = np.round(vectors.astype(np.float64) @ query, 6)

        def average(kind, scores=scores, right=right):
            order = sorted(range(30), key=lambda i: (-scores[i], kind * (GALLERY[i] not in right), i))
            hits = [GALLERY[i] in right for i in order]
            return np.mean([sum(hits[: k + 1]) / (k + 1) for k in range(30) if hits[k]])

        best, worst = average(1), average(-1)
        assert worst - 1e-12 <= found.scores.values["mAP"][row] <= best + 1e-12
        assert found.scores.values["mAP"][row] == pytest.approx(average(0), abs=1e-12)
