"""The nouns refuse what cannot be true of them; each rule is broken once."""

from dataclasses import FrozenInstanceError
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cir.errors import InputError
from cir.schema import Benchmark, Embeddings, Prompt, Query, Ranking, Scores

ONE = Query("q", "a", ("redder",), ("b",))


def benchmark(queries=(ONE,), gallery=("a", "b", "c"), **changes) -> Benchmark:
    paths = {name: f"{name}.png" for name in gallery}
    return Benchmark("x/val", "1", "val", "cirr", tuple(queries), tuple(gallery), Path("."), paths, **changes)


def test_queries_list_a_target_or_a_graded_label_once():
    with pytest.raises(InputError, match="targets: 1 ids occur more than once"):
        Query("q", "a", ("t",), ("b", "b"))
    with pytest.raises(InputError, match="graded labels"):
        Query("q", "a", ("t",), soft=(("b", 1.0), ("b", 0.5)))
    assert Query("q", "a", ("t",), (), ("b", "c", "b")).candidates == ("b", "c", "b")  # both compete


@pytest.mark.parametrize(
    ("query", "named"),
    [
        (Query("q", "z", ("t",), ("b",)), "z"),
        (Query("q", "a", ("t",), ("z",)), "z"),
        (Query("q", "a", ("t",), ("b",), ("a", "z")), "z"),
    ],
)
def test_a_benchmark_holds_what_its_queries_name(query, named):
    with pytest.raises(InputError, match=rf"names \['{named}'\], absent from the gallery of 3 images"):
        benchmark([query])


def test_references_may_lie_outside_only_where_declared():
    query = Query("q", "z", ("t",), ("b",))
    assert benchmark([query], open_references=True).queries == (query,)


def test_ids_are_unique():
    query = Query("q", "a", ("t",), ("b",))
    with pytest.raises(InputError, match="queries"):
        benchmark([query, query])
    with pytest.raises(InputError, match="gallery"):
        benchmark(gallery=("a", "b", "b"))


def test_hidden_labels_show():
    assert benchmark().labelled and not benchmark([Query("q", "a", ("t",))]).labelled


def test_the_fingerprint_follows_what_numbers_depend_on_and_nothing_else():
    base = benchmark()
    moved = Benchmark("x/val", "1", "val", "cirr", base.queries, base.gallery, Path("/elsewhere"), {"a": "other.jpg"})
    assert moved.fingerprint == base.fingerprint == benchmark(notes=("seen",)).fingerprint
    others = [
        benchmark([Query("q", "a", ("redder",), ("c",))]),
        benchmark([Query("q", "a", ("bluer",), ("b",))]),
        benchmark(gallery=("b", "a", "c")),
    ]
    assert len({base.fingerprint, *(other.fingerprint for other in others)}) == 4


def prompt(slots, ends=(3, 4)) -> Prompt:
    return Prompt(np.zeros((2, 5), np.int64), np.array(slots, np.int64), np.array(ends, np.int64))


def test_slots_lie_before_end_of_text():
    assert len(prompt([[1, 2], [3, -1]])) == 2
    for slots in ([[3], [1]], [[1], [4]], [[-2], [1]]):
        with pytest.raises(InputError, match="slot"):
            prompt(slots)
    with pytest.raises(InputError, match="end-of-text"):
        prompt([[1], [1]], ends=(3, 5))


def test_selecting_rows_keeps_them_whole():
    whole = prompt([[1, 2], [3, -1]])
    assert whole[1:].slots.tolist() == [[3, -1]] and whole[np.array([1, 0])].ends.tolist() == [4, 3]


def test_embeddings_are_unit_finite_and_aligned():
    good = np.eye(3, dtype=np.float32)[:, None]
    assert Embeddings(("a", "b", "c"), good).fusion == "max"
    with pytest.raises(InputError, match="2 ids but 3 vectors"):
        Embeddings(("a", "b"), good)
    with pytest.raises(InputError, match="more than once"):
        Embeddings(("a", "b", "a"), good)
    with pytest.raises(InputError, match="unit length"):
        Embeddings(("a", "b", "c"), good * np.float32(1.01))
    for bad in (np.nan, np.inf):
        broken = good.copy()
        broken[1, 0, 2] = bad
        with pytest.raises(InputError, match="'b' is not finite"):
            Embeddings(("a", "b", "c"), broken)


def ranking(order, scores) -> Ranking:
    order = np.array(order, np.int64)
    return Ranking(tuple(map(str, range(len(order)))), ("a", "b", "c"), order, np.array(scores, np.float32))


def test_rankings_fall_in_score_with_ties_in_gallery_order():
    assert ranking([[2, 0, 1]], [[0.9, 0.5, 0.5]]).row(0) == ["c", "a", "b"]
    assert ranking([[1, -1]], [[0.5, -np.inf]]).row(0) == ["b"]
    for order, scores in (([[0, 1]], [[0.1, 0.2]]), ([[1, 0]], [[0.5, 0.5]])):
        with pytest.raises(InputError, match="ties in gallery order"):
            ranking(order, scores)
    with pytest.raises(InputError, match="twice"):
        ranking([[0, 1, 0]], [[0.9, 0.8, 0.7]])
    with pytest.raises(InputError, match="outside the gallery"):
        ranking([[3]], [[0.9]])


@given(st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=30))
def test_a_stable_sort_is_always_a_ranking(scores):
    column = np.array(scores, np.float32)
    order = np.argsort(-column, kind="stable")
    names = tuple(map(str, range(len(scores))))
    assert Ranking(("q",), names, order[None], column[order][None]).row(0) == [names[i] for i in order]


def test_scores_are_fractions_of_every_query():
    with pytest.raises(InputError, match="fractions, not percentages"):
        Scores(("a", "b"), {"R@1": np.array([0.0, 100.0])})
    with pytest.raises(InputError, match="1 values for 2 queries"):
        Scores(("a", "b"), {"R@1": np.array([0.0])})


def test_nouns_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        Query("q", "a", ("t",)).id = "other"  # type: ignore[misc]
