"""Ranks of many targets by sorting: equal to counting, and to whole rankings written out, bit for bit."""

import tracemalloc
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cir import search as room
from cir.errors import InputError
from cir.schema import Embeddings
from cir.search import blocks, ranks, search, target_ranks


def unit(n, d, seed=0, t=1):
    vectors = np.random.default_rng(seed).standard_normal((n, t, d))
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def embed(vectors, prefix, fusion="max"):
    return Embeddings(tuple(f"{prefix}{i}" for i in range(len(vectors))), vectors, fusion)


def score(query, image, fusion):
    """Write a score out in whole numbers, rounded where `cir.search` says it is."""
    best = []
    for a in query:
        dots = [
            sum(round(float(x) * 2**26) * round(float(y) * 2**26) for x, y in zip(a, b, strict=True)) for b in image
        ]
        best.append(max(dots) / 2**52)
    return float(np.float32(max(best) if fusion == "max" else np.multiply.reduce(np.array(best))))


@cache
def table(case):
    """All scores of a case."""
    left, right, fusion = CASES[case]()
    return [[score(query, image, fusion) for image in right] for query in left]


def walked(case, targets, exclude):
    """Rank targets by walking down each query's whole list; say which queries have a tied target."""
    rows, tied = [], []
    for row, (values, wanted) in enumerate(zip(table(case), targets, strict=True)):
        scores = {f"g{i}": value for i, value in enumerate(values) if f"g{i}" not in exclude.get(f"q{row}", ())}
        order = sorted(scores, key=lambda image, scores=scores: -scores[image])
        rows.append([order.index(image) + 1 for image in wanted])
        tied.append(any(list(scores.values()).count(scores[image]) > 1 for image in wanted))
    return rows, tied


CASES = {
    "random": lambda: (unit(6, 5), unit(31, 5, 1), "max"),
    "duplicated": lambda: (unit(6, 5), unit(9, 5, 1)[np.random.default_rng(0).integers(0, 9, 31)], "max"),
    "constant": lambda: (unit(6, 5), np.repeat(unit(1, 5, 1), 31, axis=0), "max"),
    "axes": lambda: (
        np.concatenate([np.eye(5), -np.eye(5)[:1]]).astype(np.float32)[:, None],
        np.concatenate([np.eye(5), -np.eye(5)] * 4)[:31].astype(np.float32)[:, None],
        "max",
    ),  # scores 1, 0, -1, and the zeros of both signs
    "several": lambda: (unit(6, 5, t=2), unit(20, 5, 1, t=3)[np.arange(31) % 20], "max"),
    "product": lambda: (unit(6, 5, t=2), unit(20, 5, 1)[np.arange(31) % 20], "product"),
    "product of several": lambda: (unit(6, 5, t=3), unit(20, 5, 1, t=2)[np.arange(31) % 20], "product"),
}


@pytest.fixture(params=["counting", "sorting"])
def way(request, monkeypatch):
    """Go one of the two ways, however many targets there are."""
    monkeypatch.setattr(room, "MANY", 0 if request.param == "sorting" else np.inf)
    other = "ranks_by_counting" if request.param == "sorting" else "ranks_by_sorting"
    monkeypatch.setattr(room, other, lambda *_: pytest.fail("the other way was taken"))


@pytest.fixture(params=[(512, 1024, 2**24), (2, 7, 62), (3, 4, 100), (1, 1, 1)], ids=str)
def sizes(request, monkeypatch):
    for place, name, value in zip(
        (blocks, blocks, ranks), ("QUERY_BLOCK", "GALLERY_BLOCK", "STRIP"), request.param, strict=True
    ):
        monkeypatch.setattr(place, name, value)


@pytest.mark.parametrize("case", CASES)
def test_both_ways_equal_the_walk_down_the_list(way, sizes, case):
    left, right, fusion = CASES[case]()
    queries, gallery = embed(left, "q", fusion), embed(right, "g")
    targets = [[f"g{(5 * i + 7 * j) % 31}" for j in range(n)] for i, n in enumerate([0, 1, 2, 9, 20, 27])]
    exclude = {f"q{i}": [f"g{(5 * i + 7 * j) % 31}" for j in range(28, 31)] for i in range(5)}
    found = target_ranks(queries, gallery, targets, exclude)
    expected, tied = walked(case, targets, exclude)
    assert [row[:n].tolist() for row, n in zip(found.ranks, map(len, targets), strict=True)] == expected
    assert all(not row[n:].any() for row, n in zip(found.ranks, map(len, targets), strict=True))
    assert found.tied.tolist() == tied


@pytest.mark.parametrize("case", CASES)
def test_targets_of_a_whole_gallery_are_the_ranking(way, case):
    left, right, fusion = CASES[case]()
    queries, gallery = embed(left, "q", fusion), embed(right, "g")
    found = target_ranks(queries, gallery, [gallery.ids] * 6)
    assert (np.argsort(found.ranks, axis=1) == search(queries, gallery, 31).order).all()


def test_zeros_of_both_signs_tie(way):
    """Six factors of 2^-26, or seven of -2^-26, are less than float32 holds: 0, and -0."""
    query = np.tile(np.array([1, 2.0**-26], dtype=np.float32), (7, 1))[None]
    gallery = embed(np.array([[0, -1], [1, 0], [0, 1], [0, -1], [0, 1]], dtype=np.float32)[:, None], "g")
    for factors in (6, 7):
        queries = embed(query[:, :factors], "q", "product")
        assert [score(queries.vectors[0], image, "product") for image in gallery.vectors] == [0, 1, 0, 0, 0]
        found = target_ranks(queries, gallery, [gallery.ids])
        assert found.ranks.tolist() == [[2, 1, 3, 4, 5]] and found.tied.all()


@pytest.mark.parametrize(
    ("scores", "target", "rank", "tied"),
    [
        ([1, 0.8, 0.8], 0, 1, False),
        ([1, 0.8, 0.8], 1, 2, True),
        ([1, 0.8, 0.8], 2, 3, True),
        ([0.8, 0.8, 0], 0, 1, True),
        ([0.8, 0.8, 0], 1, 2, True),
        ([0.8, 0.8, 0], 2, 3, False),
        ([0.8], 0, 1, False),
    ],
)
def test_ties_at_both_ends_of_the_list(way, scores, target, rank, tied):
    vectors = np.array([[[x, np.sqrt(1 - x**2)]] for x in scores], dtype=np.float32)
    query = np.array([[[1, 0]]], dtype=np.float32)
    found = target_ranks(embed(query, "q"), embed(vectors, "g"), [[f"g{target}"]])
    assert found.ranks.tolist() == [[rank]] and found.tied.tolist() == [tied]


@pytest.mark.parametrize("spread", [1.0, 1e-3])
def test_both_ways_agree_at_a_size_with_several_strips(monkeypatch, spread):
    """Vectors all over the sphere, and close together, where float32 products order hardly any pair."""
    monkeypatch.setattr(ranks, "STRIP", 4000)
    random = np.random.default_rng(5)
    centre = random.standard_normal(64)
    gallery = centre + spread * random.standard_normal((1300, 64)) if spread < 1 else random.standard_normal((1300, 64))
    gallery[random.integers(0, 1300, 200)] = gallery[0]
    gallery = (gallery / np.linalg.norm(gallery, axis=1, keepdims=True)).astype(np.float32)[:, None]
    queries, gallery = embed(unit(40, 64, 3), "q"), embed(gallery, "g")
    targets = [[f"g{j}" for j in random.choice(1200, random.integers(0, 90), replace=False)] for _ in range(40)]
    exclude = {f"q{i}": [f"g{1200 + i}", "nobody"] for i in range(0, 40, 3)}
    found = []
    for many in (0, np.inf):
        monkeypatch.setattr(room, "MANY", many)
        found.append(target_ranks(queries, gallery, targets, exclude))
    assert found[0].ranks.tobytes() == found[1].ranks.tobytes() and (found[0].tied == found[1].tied).all()
    assert found[0].tied.any() and not found[0].tied.all()


def test_many_targets_are_sorted_and_few_are_counted(monkeypatch):
    queries, gallery, taken = embed(unit(4, 8), "q"), embed(unit(60, 8, 1), "g"), []
    for name in ("ranks_by_counting", "ranks_by_sorting"):
        one = getattr(ranks, name)
        monkeypatch.setattr(room, name, lambda *a, name=name, one=one: (taken.append(name), one(*a))[1])
    for count in (1, room.MANY - 1, room.MANY, 60):
        target_ranks(queries, gallery, [gallery.ids[:count]] * 4)
    target_ranks(queries, gallery, [gallery.ids[:30], [], [], []])  # few on average
    assert [name.removeprefix("ranks_by_") for name in taken] == [
        "counting", "counting", "sorting", "sorting", "counting",
    ]  # fmt: skip


def test_sorting_holds_a_strip_not_all_scores(monkeypatch):
    """The gallery is gone through for each strip; neither it nor the table of scores is held in float64."""
    monkeypatch.setattr(ranks, "STRIP", 2**18)
    queries, gallery = embed(unit(300, 32), "q"), embed(unit(20_000, 32, 1), "g")
    targets = [gallery.ids[:15]] * 300
    tracemalloc.start()
    target_ranks(queries, gallery, targets)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20_000 * 120 + 4 * 2**18 + 20_000 * 8 * 8 + 2**20  # names, a strip, one row's keys, the rest
    assert peak < 300 * 20_000 * 4 / 3  # far from the float32 table, 24 MB


directions = st.lists(st.integers(0, 7), min_size=2, max_size=24)


def corners(indices):
    """Take few directions, so that many tie."""
    table = np.concatenate([np.eye(4), np.ones((1, 4)) / 2, np.array([[1, 1, -1, -1], [1, -1, 0, 0], [0, 1, 1, 0]])])
    table = (table / np.linalg.norm(table, axis=1, keepdims=True)).astype(np.float32)
    return table[indices][:, None]


@settings(max_examples=60, deadline=None)
@given(directions, directions, st.integers(1, 80), st.integers(1, 9), st.data())
def test_property_sorting_equals_counting_and_the_search(left, right, strip, width, data):
    queries, gallery = embed(corners(left), "q"), embed(corners(right), "g")
    targets = [data.draw(st.lists(st.sampled_from(gallery.ids), unique=True, max_size=12)) for _ in left]
    order = search(queries, gallery, len(right)).order
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranks, "STRIP", strip)
        patch.setattr(blocks, "GALLERY_BLOCK", width)
        for many in (0, np.inf):
            patch.setattr(room, "MANY", many)
            found = target_ranks(queries, gallery, targets)
            for row, wanted in enumerate(targets):
                assert [f"g{order[row, rank - 1]}" for rank in found.ranks[row, : len(wanted)]] == wanted


# --- a few images per query ------------------------------------------------------------------------------------


def smaller(gallery, names):
    """A gallery of only these images, in the large one's order."""
    kept = [i for i, name in enumerate(gallery.ids) if name in names]
    return Embeddings(tuple(gallery.ids[i] for i in kept), gallery.vectors[kept])


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("k", [1, 4, 40])
def test_search_within_equals_search_in_a_gallery_of_the_candidates(case, k):
    left, right, fusion = CASES[case]()
    queries, gallery = embed(left, "q", fusion), embed(right, "g")
    random = np.random.default_rng(2)
    within = [[f"g{j}" for j in random.choice(31, n, replace=False)] for n in (1, 3, 9, 31, 0, 5)]
    within[2] += within[2][:4]  # listed twice, ranked once
    exclude = {"q1": within[1][:1], "q3": within[3][5:9], "q5": within[5]}
    found = search(queries, gallery, k, exclude, within)
    assert found.order.shape == (6, k)
    for row, names in enumerate(within):
        own = smaller(gallery, names)
        alone = Embeddings((queries.ids[row],), queries.vectors[row : row + 1], fusion)
        expected = search(alone, own, k, exclude) if names else None
        ranked = expected.row(0) if expected else []
        assert found.row(row) == ranked
        assert found.scores[row, : len(ranked)].tolist() == (
            expected.scores[0, : len(ranked)].tolist() if names else []
        )
        assert (found.order[row, len(ranked) :] == -1).all() and np.isneginf(found.scores[row, len(ranked) :]).all()


def test_ranks_within_count_a_repeated_distractor_twice_and_a_repeated_target_once():
    """q1 . g: 0.8, 0.6, 0, 0.6; the ranks by hand."""
    gallery = embed(np.array([[0.8, 0.6], [0.6, 0.8], [0, 1], [0.6, 0.8]], dtype=np.float32)[:, None], "g")
    queries = embed(np.array([[1, 0]] * 6, dtype=np.float32)[:, None], "q")
    within = [
        ["g0", "g1", "g2"], ["g0", "g0", "g1", "g2"], ["g0", "g1", "g1"], ["g1", "g3"], ["g3", "g1"], ["g3", "g3"],
    ]  # fmt: skip
    targets = [["g1", "g2"], ["g1", "g2"], ["g1", "g0"], ["g3", "g1"], ["g3", "g1"], ["g3"]]
    found = target_ranks(queries, gallery, targets, within=within)
    assert found.ranks.tolist() == [[2, 3], [3, 4], [2, 1], [2, 1], [2, 1], [1, 0]]
    assert found.tied.tolist() == [False, False, False, True, True, False]


def test_search_within_refuses_what_the_gallery_lacks():
    queries, gallery = embed(unit(2, 4), "q"), embed(unit(5, 4, 1), "g")
    with pytest.raises(InputError, match=r"'q1': candidates \['x'\] are not in the gallery"):
        search(queries, gallery, 3, within=[["g1"], ["g2", "x"]])
    with pytest.raises(InputError, match="one list per query, 2, got 1"):
        search(queries, gallery, 3, within=[["g1"]])
    with pytest.raises(InputError, match="k must be at least 1"):
        search(queries, gallery, 0, within=[["g1"], ["g2"]])
