import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cir.errors import InputError
from cir.metrics import average_precision_at, hit_at, hits_at, recall_at


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
    assert hit_at(cases, 10).tolist() == [1, 1, 1]
    assert hits_at(cases, 10).tolist() == [[False, True], [True, False], [True, False]]


def test_hidden_labels_are_an_error_not_a_zero():
    for metric in (recall_at, hit_at, average_precision_at):
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
    for metric in (recall_at, hit_at):
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
