"""Variants of CIRR, CIRCO and FashionIQ: small cases by hand, and the released evaluations' arithmetic written anew.

The twins sort whole rows of similarities, as the codebases do; nothing of this project's search is in them.
"""

from pathlib import Path

import numpy as np
import pytest

from cir.data import load
from cir.protocols import PROTOCOLS
from cir.schema import Benchmark, Embeddings, Query, TargetRanks
from cir.score import rank_and_score

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
REAL = pytest.mark.skipif(not SHARED.is_dir(), reason="needs the benchmarks' annotation files in ../shared/data")


# --- by hand ---------------------------------------------------------------------------------------------------

GROUP = ("i0", "i1", "i2", "i3", "i4", "i5")
SOFT = {
    "the hard target counts in full": (("i1", 1.0),),
    "another image counts in part": (("i1", 1.0), ("i2", 0.5)),
    "a label of -1 never counts": (("i1", -1.0), ("i3", 0.2)),
    "the hard target is left out": (("i0", 1.0),),
    "outside the group": (("i1", 1.0), ("i9", 1.0)),
    "no label": (),
}


def cirr(protocol):
    queries = [Query(f"q{n}", "i0", ("text",), ("i1",), GROUP, soft=soft) for n, soft in enumerate(SOFT.values())]
    gallery = tuple(f"i{n}" for n in range(12))
    return Benchmark("cirr/val", "rc2", "val", protocol, tuple(queries), gallery, Path("."), {})


def ranked(rows):
    width = max(map(len, rows))
    table = np.array([[*row, *[0] * (width - len(row))] for row in rows], dtype=np.int64)
    return TargetRanks(tuple(f"q{n}" for n in range(len(rows))), table, np.zeros(len(rows), dtype=bool))


def test_what_is_relevant_by_graded_labels():
    soft, covr = PROTOCOLS["cirr/soft"], PROTOCOLS["cirr/covr"]
    wanted = [("i1",), ("i1", "i2"), ("i1", "i3"), ("i1",), ("i1", "i9"), ("i1",)]
    inside = [("i1",), ("i1", "i2"), ("i1", "i3"), ("i1",), ("i1",), ("i1",)]
    queries = cirr("cirr/soft").queries
    assert [soft.relevant(query) for query in queries] == wanted
    assert [soft.relevant_within(query) for query in queries] == inside
    assert [covr.relevant(query) for query in queries] == [("i1",)] * 6
    assert [covr.relevant_within(query) for query in queries] == inside


def test_soft_labels_by_hand():
    """The hard target at rank 2 or 6 of the gallery, the other label before it; in the group at 2, the other at 1."""
    ranks = ranked([[2], [6, 1], [1, 6], [1], [6, 3], [1]])
    within = ranked([[1], [2, 1], [1, 2], [1], [3], [1]])
    values = PROTOCOLS["cirr/soft"].score(cirr("cirr/soft"), ranks, within).values
    assert values["R@1"].tolist() == [0, 0.5, 0, 0, 0, 0]
    assert values["R@5"].tolist() == [1, 0.5, 0, 0, 1, 0]
    assert values["R@10"].tolist() == [1, 1, 0.2, 0, 1, 0]
    assert values["Rs@1"].tolist() == [1, 0.5, 0, 0, 0, 0]
    assert values["Rs@2"].tolist() == [1, 1, 0.2, 0, 0, 0]
    assert values["Rs@3"].tolist() == [1, 1, 0.2, 0, 1, 0]
    assert values["Avg"].tolist() == [1, 0.5, 0, 0, 0.5, 0]
    hard = ranked([row[:1] for row in ([2], [6], [1], [1], [6], [1])])
    mixed = PROTOCOLS["cirr/covr"].score(cirr("cirr/covr"), hard, within).values
    assert mixed["R@1"].tolist() == [0, 0, 1, 1, 0, 1] and mixed["R@5"].tolist() == [1, 0, 1, 1, 0, 1]
    assert mixed["Rs@2"].tolist() == values["Rs@2"].tolist()


@pytest.mark.parametrize("name", ["circo/reference-removed", "fashioniq/reference-removed"])
def test_a_query_that_is_its_reference_finds_the_next_image_once_it_is_removed(name):
    gallery = tuple(f"i{n}" for n in range(60))
    images = np.random.default_rng(0).standard_normal((60, 8)).astype(np.float32)
    images /= np.linalg.norm(images, axis=1, keepdims=True)
    nearest = int(np.argsort(-(images @ images[3]))[1])
    query = Query("q", "i3", ("text",), (f"i{nearest}",))
    kept = name.split("/")[0] if name.startswith("circo") else "fashioniq/original"
    vectors = Embeddings(("q",), images[3][None, None]), Embeddings(gallery, images[:, None])
    found = {}
    for protocol in (kept, name):
        bench = Benchmark("x/val", "1", "val", protocol, (query,), gallery, Path("."), {})
        found[protocol] = rank_and_score(bench, PROTOCOLS[protocol], *vectors).ranks.ranks.tolist()
    assert found == {kept: [[2]], name: [[1]]}


# --- the real annotations --------------------------------------------------------------------------------------


def clustered(bench, seed, width=32, noise=(0.3, 2.5)):
    """Unit vectors: a random gallery, queries between target and reference, with noise; rates far from 0 and 100."""
    generator = np.random.default_rng(seed)
    gallery = generator.standard_normal((len(bench.gallery), width))
    row = {name: index for index, name in enumerate(bench.gallery)}
    target = gallery[[row[query.targets[0]] for query in bench.queries]]
    reference = gallery[[row[query.reference] for query in bench.queries]]
    blur = generator.standard_normal(target.shape) * generator.uniform(*noise, (len(target), 1))
    return unit(target + 0.8 * reference + blur), unit(gallery)


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def ours(bench, queries, gallery):
    asked = Embeddings(tuple(query.id for query in bench.queries), queries[:, None])
    images = Embeddings(bench.gallery, gallery[:, None])
    return rank_and_score(bench, PROTOCOLS[bench.protocol], asked, images).scores.values


def similarities(queries, gallery):
    """Yield a row per query, in float32."""
    images = gallery.astype(np.float64)
    for query in queries.astype(np.float64):
        yield (images @ query).astype(np.float32)


def as_cirplant(bench, queries, gallery):
    """Graded labels in gallery and group; the reference's score becomes the lowest of its row."""
    position = {name: index for index, name in enumerate(bench.gallery)}
    rows = []
    for query, scores in zip(bench.queries, similarities(queries, gallery), strict=True):
        scores[position[query.reference]] = scores.min()
        names = [bench.gallery[i] for i in np.argsort(-scores)]
        rows.append(_earned(query, names, [n for n in names if n in query.candidates], soft_recall=True))
    return {metric: np.array([row[metric] for row in rows]) for metric in rows[0]}


def as_covr(bench, queries, gallery):
    """Hard labels in the gallery, graded ones in the group; the reference scores -100, ties fall in reverse order."""
    position = {name: index for index, name in enumerate(bench.gallery)}
    rows = []
    for query, scores in zip(bench.queries, similarities(queries, gallery), strict=True):
        scores[position[query.reference]] = -100
        names = [bench.gallery[i] for i in np.argsort(scores)[::-1]]
        rows.append(_earned(query, names, [n for n in names if n in query.candidates], soft_recall=False))
    return {metric: np.array([row[metric] for row in rows]) for metric in rows[0]}


def _earned(query, names, group, soft_recall):
    def highest(listed):
        best = 0.0
        for name, weight in query.soft:
            if name in listed:
                best = max(best, weight)
        return best

    row = {f"Rs@{k}": highest(group[:k]) for k in (1, 2, 3)}
    for k in (1, 5, 10, 50):
        row[f"R@{k}"] = highest(names[:k]) if soft_recall else float(query.targets[0] in names[:k])
    return row


@REAL
@pytest.mark.usefixtures("unchecked")
def test_soft_recall_equals_cirplants_arithmetic():
    bench = load("cirr/val", SHARED, protocol="cirr/soft")
    vectors = clustered(bench, seed=0)
    found, expected = ours(bench, *vectors), as_cirplant(bench, *vectors)
    assert 0.1 < expected["R@1"].mean() < 0.9
    for metric, values in expected.items():
        assert found[metric].tolist() == values.tolist(), metric


@REAL
@pytest.mark.usefixtures("unchecked")
def test_how_many_queries_soft_labels_can_move():
    """42 queries have a hard target worth less than 1, 96 another image worth something; all others stay."""
    soft, hard = (load("cirr/val", SHARED, protocol=name) for name in ("cirr/soft", "cirr"))
    vectors = clustered(hard, seed=1)
    change = {m: v - ours(hard, *vectors)[m] for m, v in ours(soft, *vectors).items()}
    lower = np.any([value < 0 for value in change.values()], axis=0)
    higher = np.any([value > 0 for value in change.values()], axis=0)
    assert 0 < lower.sum() <= 42 and 0 < higher.sum() <= 96


@REAL
@pytest.mark.usefixtures("unchecked")
def test_the_bounds_of_soft_labels_are_reached():
    """With every hard target first 42 queries fall; with every query's best other label first 96 rise."""
    soft, hard = (load("cirr/val", SHARED, protocol=name) for name in ("cirr/soft", "cirr"))
    _, gallery = clustered(hard, seed=3)
    row = {name: index for index, name in enumerate(hard.gallery)}
    perfect = gallery[[row[query.targets[0]] for query in hard.queries]]
    assert ours(hard, perfect, gallery)["R@1"].all()
    assert (ours(soft, perfect, gallery)["R@1"] < 1).sum() == 42
    others = [max((q.soft or (("", 0.0),)), key=lambda x, q=q: x[1] * (x[0] not in (q.reference, *q.targets)))[0]
              for q in soft.queries]  # fmt: skip
    best = gallery[[row[name] for name in others]]
    assert (ours(soft, best, gallery)["R@1"] > ours(hard, best, gallery)["R@1"]).sum() == 96
    named = [query for query in soft.queries if query.reference in dict(query.soft)]
    assert len(named) == 37 and all(query.targets[0] not in dict(query.soft) for query in named)


@REAL
@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", ["cirr/folder", "cirr/covr"])
def test_the_folder_gallery_equals_covrs_arithmetic(dev_folder, name):
    bench = load("cirr/val", dev_folder, protocol=name)
    assert len(bench.gallery) == 8102
    queries, gallery = clustered(bench, seed=4)
    found = ours(bench, queries, gallery)
    graded = load("cirr/val", dev_folder, protocol="cirr/covr")
    first = Benchmark("x/val", "1", "val", name, graded.queries[:500], graded.gallery, Path("."), {})
    expected = as_covr(first, queries[:500], gallery)
    for metric, values in expected.items():
        if name == "cirr/covr" or metric.startswith("R@"):
            assert found[metric][:500].tolist() == values.tolist(), metric
    hard = load("cirr/val", dev_folder)
    small = ours(hard, queries, gallery[: len(hard.gallery)])
    assert found["R@1"].mean() < small["R@1"].mean() - 0.02  # a larger gallery, the split's images first in it
    if name == "cirr/folder":
        assert all(found[f"Rs@{k}"].tolist() == small[f"Rs@{k}"].tolist() for k in (1, 2, 3))


@REAL
@pytest.mark.usefixtures("unchecked")
def test_the_reference_removed_from_fashioniq_equals_covrs_arithmetic():
    bench = load("fashioniq/dress/val", SHARED, protocol="fashioniq/reference-removed")
    queries, gallery = clustered(bench, seed=5)
    position = {name: index for index, name in enumerate(bench.gallery)}
    hits = {10: [], 50: []}
    for query, scores in zip(bench.queries, similarities(queries, gallery), strict=True):
        scores[position[query.reference]] = -10
        names = np.array(bench.gallery)[np.argsort(1 - scores, kind="stable")]
        for k, row in hits.items():
            row.append(float(query.targets[0] in names[:k]))
    found = ours(bench, queries, gallery)
    kept = ours(load("fashioniq/dress/val", SHARED), queries, gallery)
    for k, row in hits.items():
        assert found[f"R@{k}"].tolist() == row
        assert (found[f"R@{k}"] >= kept[f"R@{k}"]).all() and found[f"R@{k}"].mean() > kept[f"R@{k}"].mean()


@REAL
@pytest.mark.usefixtures("unchecked")
def test_the_reference_removed_from_circo_equals_covrs_arithmetic():
    bench = load("circo/val", SHARED, protocol="circo/reference-removed")
    queries, gallery = clustered(bench, seed=6, width=24, noise=(0.1, 0.8))
    position = {name: index for index, name in enumerate(bench.gallery)}
    expected = {f"{metric}@{k}": [] for metric in ("mAP", "R") for k in (5, 10, 25, 50)}
    for query, scores in zip(bench.queries, similarities(queries, gallery), strict=True):
        scores[position[query.reference]] -= 100
        top = np.array(bench.gallery)[np.argsort(scores)[::-1][:50]]
        right = np.isin(top, query.targets)
        precision = np.cumsum(right) * right / np.arange(1, 51)
        for k in (5, 10, 25, 50):
            expected[f"mAP@{k}"].append(precision[:k].sum() / min(len(query.targets), k))
            expected[f"R@{k}"].append(float(query.targets[0] in top[:k]))
    found = ours(bench, queries, gallery)
    kept = ours(load("circo/val", SHARED), queries, gallery)
    for metric, values in expected.items():
        assert found[metric] == pytest.approx(np.array(values), abs=1e-12), metric
        assert (found[metric] >= kept[metric]).all()
    assert found["mAP@5"].mean() > kept["mAP@5"].mean() > 0.01
