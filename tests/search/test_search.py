import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cir.errors import InputError
from cir.schema import Embeddings
from cir.search import blocks as room
from cir.search import scores, search, target_ranks, tolerance


def unit(n, d, seed=0, t=1):
    vectors = np.random.default_rng(seed).standard_normal((n, t, d))
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def embed(vectors, prefix):
    vectors = vectors if vectors.ndim == 3 else vectors[:, None]
    return Embeddings(tuple(f"{prefix}{i}" for i in range(len(vectors))), vectors)


def exact_score(query, image):
    """The score written out: whole numbers on the grid, no rounding before the last step."""
    best = -math.inf
    for a in query:
        for b in image:
            whole = sum(round(float(x) * 2**26) * round(float(y) * 2**26) for x, y in zip(a, b, strict=True))
            best = max(best, float(np.float32(whole / 2**52)))
    return best


def full_sort(queries, gallery, exclude=None):
    """Every query's whole ranking by Python's stable sort: (score, image) pairs, best first."""
    rankings = []
    for name, query in zip(queries.ids, queries.vectors, strict=True):
        gone = set((exclude or {}).get(name, ()))
        scored = [
            (exact_score(query, image), other)
            for other, image in zip(gallery.ids, gallery.vectors, strict=True)
            if other not in gone
        ]
        rankings.append(sorted(scored, key=lambda pair: -pair[0]))
    return rankings


def assert_equals_sort(queries, gallery, k, exclude=None):
    expected = full_sort(queries, gallery, exclude)
    found = search(queries, gallery, k, exclude)
    assert found.order.shape == (len(queries.ids), k)
    for row, whole in enumerate(expected):
        assert found.row(row) == [name for _, name in whole[:k]]
        kept = found.scores[row, : len(whole)]
        assert kept.tolist() == [score for score, _ in whole[:k]]
        assert (found.order[row, len(whole) :] == -1).all() and np.isneginf(found.scores[row, len(whole) :]).all()
    return expected


def assert_ranks_equal_sort(queries, gallery, targets, exclude=None, within=None):
    expected = full_sort(queries, gallery, exclude)
    found = target_ranks(queries, gallery, targets, exclude, within)
    for row, whole in enumerate(expected):
        rivals = whole if within is None else [pair for pair in whole if pair[1] in within[row]]
        names = [name for _, name in rivals]
        scores = dict((name, score) for score, name in rivals)
        values = list(scores.values())
        ranks = [names.index(target) + 1 for target in targets[row]]
        assert found.ranks[row].tolist() == ranks + [0] * (found.ranks.shape[1] - len(ranks))
        assert found.tied[row] == any(values.count(scores[target]) > 1 for target in targets[row])
    return found


def cases(kind, seed=0):
    """Vectors that are random, that take few directions, that repeat, or that are all one."""
    queries, gallery = unit(7, 5, seed), unit(23, 5, seed + 1)
    random = np.random.default_rng(seed)
    if kind == "tied":
        corners = np.eye(5, dtype=np.float32)[:, None]
        return embed(corners[[0, 1, 2, 0]], "q"), embed(corners[random.integers(0, 5, 23)], "g")
    if kind == "duplicated":
        gallery = gallery[random.integers(0, 6, 23)]
    if kind == "constant":
        gallery = np.repeat(gallery[:1], 23, axis=0)
    if kind == "several":
        queries, gallery = unit(7, 5, seed, t=2), unit(23, 5, seed + 1, t=3)[random.integers(0, 15, 23)]
    return embed(queries, "q"), embed(gallery, "g")


KINDS = ("random", "tied", "duplicated", "constant", "several")


@pytest.fixture(params=[(512, 1024), (3, 4), (1, 1), (2, 7)], ids=str)
def blocks(request, monkeypatch):
    monkeypatch.setattr(room, "QUERY_BLOCK", request.param[0])
    monkeypatch.setattr(room, "GALLERY_BLOCK", request.param[1])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [1, 6, 23, 26])
def test_search_equals_a_full_stable_sort(blocks, kind, k):
    assert_equals_sort(*cases(kind), k)


@pytest.mark.parametrize("kind", KINDS)
def test_excluded_ids_are_absent_and_short_rows_are_filled(blocks, kind):
    queries, gallery = cases(kind, seed=3)
    exclude = {"q0": ["g0"], "q1": {"g3", "g21", "unknown"}, "q2": gallery.ids[1:], "q3": gallery.ids}
    assert_equals_sort(queries, gallery, 4, exclude)


@pytest.mark.parametrize("kind", KINDS)
def test_ranks_equal_places_in_a_full_stable_sort(blocks, kind):
    queries, gallery = cases(kind, seed=5)
    targets = [[gallery.ids[(3 * i + j) % 23] for j in range(i % 4)] for i in range(len(queries.ids))]
    exclude = {name: [gallery.ids[(3 * i + 7) % 23]] for i, name in enumerate(queries.ids)}
    assert_ranks_equal_sort(queries, gallery, targets, exclude)
    within = [[*t, *(gallery.ids[(5 * i + j) % 23] for j in range(4))] for i, t in enumerate(targets)]
    within = [list(dict.fromkeys(names)) for names in within]
    assert_ranks_equal_sort(queries, gallery, targets, exclude, within)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dense", [0.0, 1.0])
def test_both_ways_to_the_exact_score_agree(monkeypatch, kind, dense):
    monkeypatch.setattr(room, "DENSE", dense)
    queries, gallery = cases(kind, seed=9)
    assert_equals_sort(queries, gallery, 6)
    assert_ranks_equal_sort(queries, gallery, [["g4", "g11"]] * len(queries.ids))


def test_vectors_a_rounding_apart_are_ordered_by_arithmetic_not_by_the_matrix_product(monkeypatch):
    """Sixty images that differ in the last bits of some components: float32 sums cannot order them."""
    width, random = 400, np.random.default_rng(0)
    base = unit(1, width, seed=1)[0, 0]
    gallery = base * (1 + np.float32(2**-22) * random.integers(-2, 3, (60, width)).astype(np.float32))
    queries, gallery = embed(np.stack([base, *unit(9, width)[:, 0]]), "q"), embed(gallery, "g")
    fast = queries.vectors[:, 0] @ gallery.vectors[:, 0].T
    order = [[int(name[1:]) for _, name in whole] for whole in full_sort(queries, gallery)]
    assert (np.argsort(-fast, axis=1, kind="stable") != order).any(axis=1).all()  # the product alone is wrong
    assert np.ptp(fast, axis=1).max() < tolerance(width)
    for shape in ((512, 1024), (2, 25)):
        monkeypatch.setattr(room, "QUERY_BLOCK", shape[0])
        monkeypatch.setattr(room, "GALLERY_BLOCK", shape[1])
        assert_equals_sort(queries, gallery, 8)
        assert_ranks_equal_sort(queries, gallery, [[f"g{5 * i}", f"g{59 - i}"] for i in range(10)])


@pytest.mark.parametrize("width", [1, 7, 64, 767, 768])
def test_equal_vectors_tie_wherever_they_stand_in_a_block(width):
    """Two pictures, over and over, across blocks and at their edges: every copy gets the same score, bit for bit."""
    random, images = np.random.default_rng(width), unit(2, width, seed=2)
    which = random.integers(0, 2, room.GALLERY_BLOCK + 37)
    which[:2] = 0, 1
    queries, gallery = embed(unit(5, width, seed=3), "q"), embed(images[which], "g")
    found = search(queries, gallery, len(which))
    for row in range(5):
        scores = np.empty(len(which), dtype=np.float32)
        scores[found.order[row]] = found.scores[row]
        assert len(set(scores[which == 0])) == len(set(scores[which == 1])) == 1
    targets = [[f"g{i}", f"g{len(which) - 1 - i}"] for i in range(5)]
    ranks = target_ranks(queries, gallery, targets)
    places = [[found.row(row).index(name) + 1 for name in targets[row]] for row in range(5)]
    assert ranks.ranks.tolist() == places and ranks.tied.all()


def test_results_do_not_depend_on_the_block_bit_for_bit(monkeypatch):
    queries, gallery = embed(unit(40, 64), "q"), embed(unit(500, 64, seed=1)[np.arange(500) % 470], "g")
    targets = [[f"g{i}", f"g{480 + i % 20}"] for i in range(40)]
    whole = search(queries, gallery, 30), target_ranks(queries, gallery, targets)
    for shape in ((1, 1000), (40, 1), (17, 33), (64, 64)):
        monkeypatch.setattr(room, "QUERY_BLOCK", shape[0])
        monkeypatch.setattr(room, "GALLERY_BLOCK", shape[1])
        found, ranks = search(queries, gallery, 30), target_ranks(queries, gallery, targets)
        assert found.order.tobytes() == whole[0].order.tobytes()
        assert found.scores.tobytes() == whole[0].scores.tobytes()
        assert ranks.ranks.tobytes() == whole[1].ranks.tobytes() and (ranks.tied == whole[1].tied).all()


def test_a_batch_of_queries_is_its_rows():
    queries, gallery = embed(unit(9, 32), "q"), embed(unit(80, 32, seed=1), "g")
    whole = search(queries, gallery, 10)
    for row, name in enumerate(queries.ids):
        alone = search(Embeddings((name,), queries.vectors[row : row + 1]), gallery, 10)
        assert alone.order[0].tolist() == whole.order[row].tolist()
        assert alone.scores[0].tobytes() == whole.scores[row].tobytes()


@pytest.mark.parametrize("width", [1, 3, 64, 768, 2048])
@pytest.mark.parametrize("sign", ["same", "random"])
def test_the_fast_product_stays_within_its_tolerance(width, sign):
    vectors = unit(40, width, seed=width)
    vectors = np.abs(vectors) if sign == "same" else vectors  # no cancellation: sums are largest
    vectors *= np.float32(1.0009)  # as far from unit length as embeddings may be
    queries, gallery = vectors[:20], vectors[20:]
    rows, columns = np.divmod(np.arange(400), 20)
    exact = scores.exact_pairs(queries, rows, gallery, columns, "max").reshape(20, 20)
    written_out = [[exact_score(q, g) for g in gallery[:3]] for q in queries[:3]]
    assert exact[:3, :3].tolist() == written_out
    assert np.abs(scores.products(queries, gallery, "max") - exact).max() < tolerance(width)


@pytest.mark.parametrize("dense", [0.0, 1.0])
@pytest.mark.parametrize(("left", "right"), [(2, 1), (3, 2)])
def test_products_of_similarities_equal_a_full_sort(monkeypatch, dense, left, right):
    """Every score written out: per query vector its best inner product, exact; multiplied, rounded once."""
    monkeypatch.setattr(room, "DENSE", dense)
    queries = Embeddings(tuple("abcdefg"), unit(7 * left, 12, seed=1).reshape(7, left, 12), "product")
    vectors = unit(60 * right, 12, seed=2).reshape(60, right, 12)
    vectors[40:50] = vectors[:10]  # duplicates must tie
    gallery = Embeddings(tuple(str(i) for i in range(60)), vectors)
    found = search(queries, gallery, 60)
    ranks = target_ranks(queries, gallery, [[str(i) for i in range(0, 60, 7)]] * 7)
    for row, query in enumerate(queries.vectors):
        scores = []
        for image in vectors:
            factors = []
            for a in query:
                wholes = [sum(round(float(x) * 2**26) * round(float(y) * 2**26) for x, y in zip(a, b, strict=True))
                          for b in image]  # fmt: skip
                factors.append(max(wholes) / 2**52)
            scores.append(float(np.float32(np.multiply.reduce(np.array(factors)))))
        order = sorted(range(60), key=lambda i: (-scores[i], i))
        assert found.order[row].tolist() == order
        assert found.scores[row].tolist() == [scores[i] for i in order]
        assert ranks.ranks[row].tolist() == [order.index(i) + 1 for i in range(0, 60, 7)]


def test_memory_is_bounded_by_the_block_not_by_the_gallery():
    """Twelve times the gallery, the same peak: neither the scores (20 MB) nor the gallery is held at once."""
    queries, peaks = embed(unit(128, 32), "q"), []
    for images in (3_400, 40_800):
        gallery = embed(unit(images, 32, seed=1), "g")
        targets = [[gallery.ids[5 * i]] for i in range(128)]
        for run in (lambda g=gallery: search(queries, g, 50), lambda g=gallery, t=targets: target_ranks(queries, g, t)):
            tracemalloc.start()
            run()
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    index = 40_800 * 120  # what looking names up may cost, per name
    assert peaks[2] < peaks[0] + index and peaks[3] < peaks[1] + index
    assert max(peaks) < 128 * 40_800 * 4  # one full float32 matrix of scores


def test_a_half_precision_memory_map_is_converted_block_by_block(tmp_path, monkeypatch):
    monkeypatch.setattr(room, "GALLERY_BLOCK", 16)
    half = unit(70, 48, seed=4).astype(np.float16)
    np.save(tmp_path / "gallery.npy", half)
    mapped = np.load(tmp_path / "gallery.npy", mmap_mode="r")
    queries, gallery = embed(unit(6, 48), "q"), embed(half.astype(np.float32), "g")
    stored = Embeddings(gallery.ids, gallery.vectors)
    object.__setattr__(stored, "vectors", mapped)
    assert search(queries, stored, 9).scores.tobytes() == search(queries, gallery, 9).scores.tobytes()
    targets = [[f"g{7 * i}"] for i in range(6)]
    assert (target_ranks(queries, stored, targets).ranks == target_ranks(queries, gallery, targets).ranks).all()


def test_queries_without_targets_have_rank_zero():
    queries, gallery = cases("random")
    found = target_ranks(queries, gallery, [[] for _ in queries.ids])
    assert found.ranks.shape == (7, 0) and not found.tied.any()
    mixed = target_ranks(queries, gallery, [["g1", "g2"], *([] for _ in queries.ids[1:])])
    assert (mixed.ranks[0] > 0).all() and (mixed.ranks[1:] == 0).all()


def test_clear_errors():
    queries, gallery = cases("random")
    with pytest.raises(InputError, match="5 wide, the gallery 4"):
        search(queries, embed(unit(3, 4), "g"), 1)
    with pytest.raises(InputError, match="k must be at least 1"):
        search(queries, gallery, 0)
    with pytest.raises(InputError, match="one list per query, 7, got 1"):
        target_ranks(queries, gallery, [["g1"]])
    with pytest.raises(InputError, match=r"'q0': targets \['nobody'\] are not in the gallery"):
        target_ranks(queries, gallery, [["nobody"]] * 7)
    with pytest.raises(InputError, match="'q0': target 'g1' is excluded"):
        target_ranks(queries, gallery, [["g1"]] * 7, {"q0": ["g1"]})
    with pytest.raises(InputError, match="'q0': the target is not among its candidates"):
        target_ranks(queries, gallery, [["g1"]] * 7, within=[["g2", "g3"]] * 7)


# --- properties ------------------------------------------------------------------------------------------------

directions = st.lists(st.integers(0, 7), min_size=2, max_size=24)


def corners(indices):
    """Few directions make many ties: corners of a cube and its diagonals."""
    table = np.concatenate([np.eye(4), np.ones((1, 4)) / 2, np.array([[1, 1, -1, -1], [1, -1, 0, 0], [0, 1, 1, 0]])])
    table = (table / np.linalg.norm(table, axis=1, keepdims=True)).astype(np.float32)
    return table[indices]


@settings(max_examples=60, deadline=None)
@given(directions, directions, st.integers(1, 30), st.integers(1, 5), st.integers(1, 9))
def test_property_any_block_equals_the_full_sort(left, right, k, height, width):
    queries, gallery = embed(corners(left), "q"), embed(corners(right), "g")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room, "QUERY_BLOCK", height)
        patch.setattr(room, "GALLERY_BLOCK", width)
        assert_equals_sort(queries, gallery, k)
        assert_ranks_equal_sort(queries, gallery, [[gallery.ids[i % len(right)]] for i in range(len(left))])


@settings(max_examples=40, deadline=None)
@given(directions, st.integers(0, 2**32 - 1), st.integers(1, 24))
def test_property_permuting_the_gallery_changes_no_score_and_no_untied_id(right, seed, k):
    queries, gallery = embed(unit(3, 4, seed=seed % 1000), "q"), embed(corners(right), "g")
    mixed = np.random.default_rng(seed).permutation(len(right))
    other = Embeddings(tuple(gallery.ids[i] for i in mixed), gallery.vectors[mixed])
    first, second = search(queries, gallery, k), search(queries, other, k)
    assert first.scores.tobytes() == second.scores.tobytes()
    whole = full_sort(queries, gallery)
    for row in range(3):
        values = [score for score, _ in whole[row]]
        pairs = zip(first.row(row), second.row(row), first.scores[row].tolist(), strict=False)
        assert all(a == b for a, b, score in pairs if values.count(score) == 1)


@settings(max_examples=40, deadline=None)
@given(directions, st.data())
def test_property_excluding_an_id_equals_removing_it(right, data):
    queries, gallery = embed(unit(2, 4, seed=len(right)), "q"), embed(corners(right), "g")
    gone = data.draw(st.integers(0, len(right) - 1))
    target = data.draw(st.sampled_from([i for i in range(len(right)) if i != gone]))
    keep = [i for i in range(len(right)) if i != gone]
    smaller = Embeddings(tuple(gallery.ids[i] for i in keep), gallery.vectors[keep])
    exclude = {name: [gallery.ids[gone]] for name in queries.ids}
    without, removed = search(queries, gallery, len(keep), exclude), search(queries, smaller, len(keep))
    assert [without.row(i) for i in range(2)] == [removed.row(i) for i in range(2)]
    targets = [[gallery.ids[target]]] * 2
    a, b = target_ranks(queries, gallery, targets, exclude), target_ranks(queries, smaller, targets)
    assert a.ranks.tolist() == b.ranks.tolist() and a.tied.tolist() == b.tied.tolist()


@settings(max_examples=40, deadline=None)
@given(directions, st.integers(0, 23))
def test_property_ranks_are_places_in_the_search(right, seed):
    queries, gallery = embed(unit(3, 4, seed=seed), "q"), embed(corners(right), "g")
    found = search(queries, gallery, len(right))
    ranks = target_ranks(queries, gallery, [list(gallery.ids)] * 3)
    for row in range(3):
        assert [found.row(row)[rank - 1] for rank in ranks.ranks[row]] == list(gallery.ids)
