"""A second look at the first images, against the whole gallery sorted by hand."""

import numpy as np
import pytest

from cir.errors import InputError
from cir.schema import Embeddings
from cir.search import moved, reorder, restricted, search, target_ranks

QUERIES, GALLERY, TOP = 7, 12, 5


def unit(rng: np.random.Generator, rows: int, vectors: int) -> np.ndarray:
    drawn = rng.standard_normal((rows, vectors, 6))
    return (drawn / np.linalg.norm(drawn, axis=-1, keepdims=True)).astype(np.float32)


@pytest.fixture
def sides() -> tuple[Embeddings, Embeddings]:
    rng = np.random.default_rng(0)
    queries = Embeddings(tuple(f"q{i}" for i in range(QUERIES)), unit(rng, QUERIES, 1))
    return queries, Embeddings(tuple(f"g{i}" for i in range(GALLERY)), unit(rng, GALLERY, 3))


def by_hand(first: list[str], scores: dict[str, float], ids: tuple[str, ...]) -> list[str]:
    """Sort the head by score, equal ones in gallery order, and leave the tail."""
    head = sorted(first[:TOP], key=lambda name: (-scores[name], ids.index(name)))
    return head + first[TOP:]


@pytest.mark.parametrize("levels", [100, 2])  # with two levels most of the head is tied
def test_order_ranks_and_subset_are_those_of_the_list_sorted_by_hand(
    sides: tuple[Embeddings, Embeddings], levels: int
) -> None:
    queries, gallery = sides
    rng = np.random.default_rng(levels)
    exclude = {name: [f"g{i}"] for i, name in enumerate(queries.ids)}
    whole = search(queries, gallery, GALLERY, exclude)
    table = rng.integers(0, levels, (QUERIES, GALLERY)) / levels
    head = whole.order[:, :TOP]
    after, places = reorder(whole, np.take_along_axis(table, head, axis=1).astype(np.float32))
    wanted = [[f"g{(i + 3) % GALLERY}", f"g{(i + 7) % GALLERY}"] for i in range(QUERIES)]
    rivals = [[f"g{(i + step) % GALLERY}" for step in (3, 5, 6, 7, 9)] for i in range(QUERIES)]
    ranks = moved(target_ranks(queries, gallery, wanted, exclude), places)
    subset = restricted(moved(target_ranks(queries, gallery, rivals, exclude), places), rivals, wanted)
    for row in range(QUERIES):
        scores = dict(zip(gallery.ids, table[row], strict=True))
        listed = by_hand(whole.row(row), scores, gallery.ids)
        assert after.row(row) == listed
        assert ranks.ranks[row].tolist() == [listed.index(name) + 1 for name in wanted[row]]
        group = [name for name in listed if name in rivals[row]]
        assert subset.ranks[row].tolist() == [group.index(name) + 1 for name in wanted[row]]
    assert (after.scores[:, :TOP] >= 2).all() and (after.scores[:, TOP : GALLERY - 1] <= 1).all()


def test_rows_that_ran_out_of_images_keep_their_holes(sides: tuple[Embeddings, Embeddings]) -> None:
    queries, gallery = sides
    exclude = {"q0": gallery.ids[2:]}
    before = search(queries, gallery, TOP, exclude)
    after, places = reorder(before, np.where(before.order >= 0, 0.5, 0).astype(np.float32))
    assert after.order[0, 2:].tolist() == [-1] * (TOP - 2)
    assert sorted(after.row(0)) == ["g0", "g1"] and sorted(places[0].tolist()) == list(range(1, TOP + 1))


def test_targets_behind_the_head_stay_where_they_were(sides: tuple[Embeddings, Embeddings]) -> None:
    queries, gallery = sides
    before = search(queries, gallery, GALLERY)
    last = [[before.row(row)[-1]] for row in range(QUERIES)]
    _, places = reorder(before, np.random.default_rng(0).random((QUERIES, TOP), dtype=np.float32))
    assert moved(target_ranks(queries, gallery, last), places).ranks.ravel().tolist() == [GALLERY] * QUERIES


@pytest.mark.parametrize("bad", [np.nan, -0.1, 1.5])
def test_scores_that_are_no_probabilities_are_refused(sides: tuple[Embeddings, Embeddings], bad: float) -> None:
    ranking = search(*sides, TOP)
    with pytest.raises(InputError, match=r"\[0, 1\]"):
        reorder(ranking, np.full((QUERIES, TOP), bad, dtype=np.float32))
    with pytest.raises(InputError, match="no more columns"):
        reorder(ranking, np.zeros((QUERIES, TOP + 1), dtype=np.float32))
