"""Several comparisons at once, how large an effect is, and what seeds say."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ttest_rel

from cir.errors import InputError
from cir.stats import deviation, effect_size, holm, over_seeds, seed_units, stratified_mean


def rejected(p_values, alpha):
    """Holm's procedure as it is told: go up from the smallest, stop at the first that is too large."""
    left, out = list(enumerate(p_values)), set()
    while left:
        index, p = min(left, key=lambda pair: pair[1])
        if p * len(left) > alpha:
            break
        out.add(index)
        left.remove((index, p))
    return out


def test_holm_scored_by_hand():
    # sorted: 0.004 x 4, 0.011 x 3, 0.02 x 2, 0.3 x 1
    assert holm([0.02, 0.3, 0.004, 0.011]) == pytest.approx([0.04, 0.3, 0.016, 0.033])
    # 0.03 x 1 is less than 0.02 x 2 before it, and 0.9 x 2 more than 1
    assert holm([0.03, 0.02]) == pytest.approx([0.04, 0.04])
    assert holm([0.9, 0.95]) == [1.0, 1.0]
    assert holm([]) == [] and holm([0.2]) == [0.2]


@given(st.lists(st.integers(0, 100), max_size=7), st.integers(0, 99))
def test_property_an_adjusted_value_says_at_which_level_the_procedure_rejects(hundredths, level):
    p_values, alpha = [p / 100 for p in hundredths], (level + 0.5) / 100  # between the values that may occur
    assert {index for index, p in enumerate(holm(p_values)) if p <= alpha} == rejected(p_values, alpha)


@pytest.mark.parametrize("wrong", [[-0.1], [1.1], [math.nan]])
def test_holm_takes_p_values_only(wrong):
    with pytest.raises(InputError, match="between 0 and 1"):
        holm([0.5, *wrong])


def test_effect_size_scored_by_hand():
    # changes 0.1, 0.3, 0.2, 0.2: mean 0.2, squares 0.01 + 0.01 over 3
    a, b = np.array([0.5, 0.7, 0.4, 0.6]), np.array([0.4, 0.4, 0.2, 0.4])
    assert effect_size(a, b) == pytest.approx(0.2 / math.sqrt(0.02 / 3))
    assert effect_size(b, a) == -effect_size(a, b)


def test_effect_size_over_strata_weighs_them_alike():
    # weights 1/4 for the two of one stratum, 1/2 for the single of the other: mean 0.3, squares 0.01, 0.01, 0
    a, b = np.array([0.2, 0.4, 0.3]), np.zeros(3)
    spread = math.sqrt((0.01 / 4 + 0.01 / 4) * 3 / 2)
    assert effect_size(a, b, ["x", "x", "y"]) == pytest.approx(0.3 / spread)
    whole = np.random.default_rng(0).random((2, 30))
    assert effect_size(whole[0], whole[1], ["x"] * 30) == pytest.approx(effect_size(whole[0], whole[1]))


def test_effect_size_without_spread():
    ones = np.ones(4)
    assert effect_size(ones, ones) == 0 and effect_size(ones, 0 * ones) == math.inf
    with pytest.raises(InputError, match="two or more queries"):
        effect_size(np.ones(1), np.ones(1))


def test_difference_in_units_of_the_seeds():
    # variances 4 and 1 over three seeds each: pooled 2.5
    assert seed_units([10.0, 12.0, 14.0], [7.0, 8.0, 9.0]) == pytest.approx(4 / math.sqrt(2.5))
    # variances 4 (three seeds) and 2 (two): (2 * 4 + 1 * 2) / 3
    assert seed_units([10.0, 12.0, 14.0], [7.0, 9.0]) == pytest.approx(4 / math.sqrt(10 / 3))
    assert seed_units([1.0], [1.0, 2.0]) is None and seed_units([1.0, 1.0], [2.0, 2.0]) is None
    assert deviation([10.0, 12.0, 14.0]) == 2 and deviation([3.0]) is None


def test_seeds_get_the_paired_t_test():
    a, b = [56.1, 56.5, 56.3], [55.0, 55.9, 55.1]
    found, expected = over_seeds(a, b), ttest_rel(a, b)
    assert found.p_value == pytest.approx(expected.pvalue) and found.seeds == 3
    interval = expected.confidence_interval(0.95)
    assert (found.low, found.high) == (pytest.approx(interval.low), pytest.approx(interval.high))
    assert found.difference == pytest.approx(2.9 / 3)
    # by hand: changes 1, 2, 3: t = 2 / (1 / sqrt 3) on two degrees of freedom, p = 1 - t / sqrt(2 + t^2)
    t = 2 * math.sqrt(3)
    assert over_seeds([1.0, 2.0, 3.0], [0.0, 0.0, 0.0]).p_value == pytest.approx(1 - t / math.sqrt(2 + t**2))


def test_seeds_that_say_nothing():
    assert over_seeds([1.0, 2.0], [0.0, 0.0]) is None
    assert over_seeds([1.1, 2.1, 3.1], [1.0, 2.0, 3.0]) is None  # every seed changes by the same amount
    with pytest.raises(InputError, match="same seeds"):
        over_seeds([1.0], [1.0, 2.0])


def test_a_mean_over_strata():
    values = np.array([1.0, 0.0, 0.5])
    assert stratified_mean(values) == 0.5 and stratified_mean(values, ["x", "y", "y"]) == 0.625
