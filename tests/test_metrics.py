import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cir.errors import InputError
from cir.metrics import (
    any_at,
    average_precision,
    average_precision_at,
    average_precision_trapezoid,
    graded_at,
    hits_at,
    ndcg_at,
    precision_at,
    recall_at,
    share_at,
)


def ranks(*rows):
    width = max(map(len, rows))
    return np.array([[*row, *[0] * (width - len(row))] for row in rows], dtype=np.int64)


def precision_sum(ranking, targets, k):
    """AP@K as CIRCO's paper writes it: walk down the list, add the precision at every hit."""
    hits, total = 0, 0.0
    for place, image in enumerate(ranking[:k], start=1):
        if image in targets:
            hits += 1
            total += hits / place
    return total / min(len(targets), k)


@pytest.mark.parametrize("k", [1, 2, 3, 5, 10, 50])
def test_average_precision_equals_the_walk_down_the_list(k):
    random = np.random.default_rng(k)
    for _ in range(30):
        ranking = random.permutation(40).tolist()
        targets = random.choice(40, size=random.integers(1, 15), replace=False).tolist()
        places = ranks([ranking.index(target) + 1 for target in targets], [1])
        assert average_precision_at(places, k)[0] == pytest.approx(precision_sum(ranking, targets, k), abs=1e-15)


def test_average_precision_by_hand():
    cases = ranks([1], [2], [1, 2, 3], [2, 5], [7, 8], [3, 1, 2])
    assert average_precision_at(cases, 5).tolist() == [1, 0.5, 1, (1 / 2 + 2 / 5) / 2, 0, 1]
    assert average_precision_at(ranks([1, 2, 3, 4]), 2).tolist() == [1.0]  # over min(4, 2), not over 4
    assert average_precision_at(ranks([1, 30, 40]), 10).tolist() == [1 / 3]  # over min(3, 10), not over the hit


def test_recall_counts_the_first_target_only_and_hit_any():
    cases = ranks([11, 1], [10], [1, 99])
    assert recall_at(cases, 10).tolist() == [0, 1, 1]
    assert any_at(cases, 10).tolist() == [1, 1, 1]
    assert hits_at(cases, 10).tolist() == [[False, True], [True, False], [True, False]]


def walk(ranking, targets):
    """Walk down a whole ranking: per place, whether it is a target and the precision so far."""
    hits = 0
    for place, image in enumerate(ranking, start=1):
        hits += image in targets
        yield image in targets, hits / place


def plain(ranking, targets, k):
    """Every other metric as its definition says, from the list of images; `targets` may be empty."""
    n, top = len(targets), ranking[:k]
    hits = len(set(top) & set(targets))
    area, before, passed = 0.0, 1.0, 0
    for hit, precision in walk(ranking, targets):
        passed += hit
        if hit:  # a trapezoid between the precision one place earlier and the one here, 1/n wide
            area += (before + precision) / 2 / (n + 1e-5)
        before = precision
    gains = [1 / math.log2(place + 1) for place, image in enumerate(top, start=1) if image in targets]
    return {
        "share": hits / (n + 1e-5),
        "any": float(hits > 0),
        "precision": hits / k,
        "precision of least": hits / (min(k, n) + 1e-5),
        "trapezoid": area,
        "mean of precisions": n and sum(precision for hit, precision in walk(ranking, targets) if hit) / n,
        "ndcg": n and sum(gains) / sum(1 / math.log2(place + 1) for place in range(1, min(n, k) + 1)),
    }


def ours(places, k):
    """The same from ranks; those that ask for targets are left out where there are none."""
    table = ranks(places)
    values = {
        "share": share_at(table, k),
        "any": any_at(table, k),
        "precision": precision_at(table, k),
        "precision of least": precision_at(table, k, of="least"),
        "trapezoid": average_precision_trapezoid(table),
        "mean of precisions": average_precision(table) if places else np.zeros(1),
        "ndcg": ndcg_at(table, k) if places else np.zeros(1),
    }
    return {name: value[0] for name, value in values.items()}


@pytest.mark.parametrize("k", [1, 2, 3, 5, 10, 50])
def test_every_metric_equals_its_definition_on_the_list_of_images(k):
    random = np.random.default_rng(k)
    for _ in range(30):
        ranking = random.permutation(40).tolist()
        targets = random.choice(40, size=random.integers(0, 15), replace=False).tolist()
        expected = plain(ranking, targets, k)
        found = ours([ranking.index(target) + 1 for target in targets], k)
        assert found == pytest.approx(expected, abs=1e-14)


def test_trapezoids_equal_the_formula_with_places_counted_from_zero():
    """Target j at place r, both from 0: (j / r + (j + 1) / (r + 1)) / 2 over n + 1e-5, where j / r is 1 at r = 0."""
    random = np.random.default_rng(0)
    for _ in range(30):
        places = np.sort(random.choice(100, size=random.integers(1, 30), replace=False))
        expected = 0.0
        for j, r in enumerate(places.tolist()):
            before = 1.0 if r == 0 else j / r
            expected += (before + (j + 1) / (r + 1)) * (1 / (len(places) + 1e-5)) / 2.0
        mixed = random.permutation(places + 1)[None]
        assert average_precision_trapezoid(mixed)[0] == pytest.approx(expected, abs=1e-14)


def test_many_targets_by_hand():
    """Ranks 1, 2, 5 of three targets; then of none."""
    table, n = ranks([5, 1, 2], []), 3 + 1e-5
    assert share_at(table, 2).tolist() == [2 / n, 0]
    assert any_at(table, 1).tolist() == [1, 0]
    assert precision_at(table, 4).tolist() == [0.5, 0]
    assert precision_at(table, 2, of="least").tolist() == [2 / (2 + 1e-5), 0]
    assert precision_at(table, 9, of="least").tolist() == [3 / n, 0]
    areas = (1 + 1) / 2, (1 + 1) / 2, (2 / 4 + 3 / 5) / 2
    assert average_precision_trapezoid(table).tolist() == pytest.approx([sum(areas) / n, 0], abs=1e-15)
    assert average_precision(table[:1]).tolist() == pytest.approx([(1 + 1 + 3 / 5) / 3], abs=1e-15)
    ideal = 1 + 1 / math.log2(3) + 1 / 2
    assert ndcg_at(table[:1], 5)[0] == pytest.approx((1 + 1 / math.log2(3) + 1 / math.log2(6)) / ideal, abs=1e-15)
    assert ndcg_at(table[:1], 2).tolist() == [1.0]
    single = ranks([2])  # the two kinds of average precision part most clearly here
    assert average_precision(single)[0] == 0.5
    assert average_precision_trapezoid(single)[0] == 0.25 / (1 + 1e-5)


def test_graded_labels_by_hand():
    table = ranks([1, 3, 2], [4, 1], [9, 2, 1], [1], [])
    grades = np.array([[0.2, 1.0, 0.5], [1.0, -1.0, 9.0], [1.0, 0.5, -1.0], [-1.0, 9.0, 9.0], [9.0, 9.0, 9.0]])
    assert graded_at(table, grades, 1).tolist() == [0.2, 0, 0, 0, 0]  # unused columns carry 9 and never count
    assert graded_at(table, grades, 2).tolist() == [0.5, 0, 0.5, 0, 0]
    assert graded_at(table, grades, 3).tolist() == [1.0, 0, 0.5, 0, 0]
    assert graded_at(table, grades, 9).tolist() == [1.0, 1.0, 1.0, 0, 0]


@pytest.mark.parametrize("k", [1, 3, 8])
def test_graded_labels_equal_a_walk_down_the_list(k):
    random = np.random.default_rng(k)
    for _ in range(30):
        ranking = random.permutation(20).tolist()
        labels = {int(image): random.choice([1.0, 0.5, 0.2, -1.0]) for image in random.choice(20, 6, replace=False)}
        best = max([0.0, *(labels[image] for image in ranking[:k] if image in labels)])
        places = ranks([ranking.index(image) + 1 for image in labels])
        assert graded_at(places, np.array([list(labels.values())]), k)[0] == best


def test_hidden_labels_are_an_error_not_a_zero():
    with pytest.raises(InputError, match="no target"):
        average_precision(ranks([1], []))
    for metric in (any_at, share_at, precision_at):
        with pytest.raises(InputError, match="at least 1"):
            metric(ranks([1]), 0)
    for metric in (recall_at, average_precision_at, ndcg_at):
        with pytest.raises(InputError, match="no target"):
            metric(ranks([1], [0]), 5)
        with pytest.raises(InputError, match="at least 1"):
            metric(ranks([1]), 0)
        with pytest.raises(InputError, match="no target"):
            metric(np.empty((3, 0), dtype=np.int64), 5)


places = st.lists(st.integers(1, 60), min_size=1, max_size=14, unique=True)


@settings(deadline=None)
@given(st.lists(places, min_size=1, max_size=5))
def test_property_metrics_never_fall_as_the_cut_grows_and_end_at_one(rows):
    table = ranks(*rows)
    for metric in (recall_at, any_at):
        values = np.stack([metric(table, k) for k in range(1, 61)])
        assert (np.diff(values, axis=0) >= 0).all() and (values[-1] == 1).all()


@settings(deadline=None)
@given(places, st.integers(1, 60))
def test_property_average_precision_is_one_exactly_when_targets_fill_the_top(row, k):
    value = average_precision_at(ranks(row), k)[0]
    assert 0 <= value <= 1
    assert (value == 1) == (sorted(row)[: min(k, len(row))] == list(range(1, min(k, len(row)) + 1)))


@settings(deadline=None)
@given(places, st.integers(1, 60), st.randoms(use_true_random=False))
def test_property_average_precision_does_not_care_which_target_is_which(row, k, random):
    other = random.sample(row, len(row))
    assert average_precision_at(ranks(row), k) == average_precision_at(ranks(other), k)


@settings(deadline=None)
@given(places, st.integers(1, 60))
def test_property_a_distractor_below_everything_changes_nothing(row, k):
    ranking = [0] * 61
    for target, place in enumerate(row, start=1):
        ranking[place - 1] = target
    longer = [*ranking, -1]
    for images in (ranking, longer):
        found = ranks([images.index(target) + 1 for target in range(1, len(row) + 1)])
        assert average_precision_at(found, k) == average_precision_at(ranks(row), k)


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(1, 60), max_size=14, unique=True), min_size=1, max_size=5), st.integers(1, 60))
def test_property_fractions_stay_between_zero_and_one_and_queries_without_targets_get_zero(rows, k):
    table = ranks(*rows)
    for values in (
        share_at(table, k), any_at(table, k), precision_at(table, k), precision_at(table, k, of="least"),
        average_precision_trapezoid(table),
    ):  # fmt: skip
        assert values.shape == (len(rows),) and (values >= 0).all() and (values <= 1).all()
        assert not values[[not row for row in rows]].any()
    labelled = ranks(*rows, [1])[[*(bool(row) for row in rows), True]]
    for values in (average_precision(labelled), ndcg_at(labelled, k)):
        assert (values >= 0).all() and (values <= 1).all()


@settings(deadline=None)
@given(places, st.integers(1, 60))
def test_property_perfect_rankings_get_one_and_the_trapezoid_never_more_than_the_mean(row, k):
    table, perfect = ranks(row), ranks(list(range(1, len(row) + 1)))
    assert average_precision(perfect)[0] == ndcg_at(perfect, k)[0] == 1
    assert average_precision_trapezoid(perfect)[0] == len(row) / (len(row) + 1e-5)
    assert average_precision_trapezoid(table)[0] <= average_precision(table)[0]
    assert average_precision(table)[0] == pytest.approx(average_precision_at(table, 60)[0], rel=1e-12)
    assert share_at(table, k)[0] <= any_at(table, k)[0]
