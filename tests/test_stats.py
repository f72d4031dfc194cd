import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from cir.errors import InputError
from cir.stats import bootstrap, paired


def test_bootstrap_equals_the_loop_written_out():
    values = np.random.default_rng(1).random((50, 2))
    found = bootstrap({"a": values[:, 0], "b": values[:, 1]}, n=200, seed=7)
    drawn = np.random.default_rng(7).integers(50, size=(200, 50))
    for column, name in enumerate(("a", "b")):
        means = [np.mean([values[i, column] for i in row]) for row in drawn]  # the same draws for both metrics
        assert found[name].mean == pytest.approx(values[:, column].mean())
        assert found[name].low == pytest.approx(np.quantile(means, 0.025))
        assert found[name].high == pytest.approx(np.quantile(means, 0.975))
        assert found[name].queries == 50


def test_the_interval_has_the_width_of_the_normal_theory():
    values = np.random.default_rng(0).random(4000)
    found = bootstrap({"a": values}, n=2000)["a"]
    half = norm.ppf(0.975) * values.std() / np.sqrt(4000)
    assert found.high - found.mean == pytest.approx(half, rel=0.08)
    assert found.mean - found.low == pytest.approx(half, rel=0.08)


def test_chunks_of_resamples_change_nothing_but_the_draws(monkeypatch):
    values = {"a": np.random.default_rng(2).random(100)}
    whole = bootstrap(values, n=300)
    monkeypatch.setattr("cir.stats._CHUNK", 700)
    assert bootstrap(values, n=300) == whole  # the generator is read in the same order


def test_strata_give_the_unweighted_mean_over_strata():
    values = np.array([1.0] * 10 + [0.0] * 90)
    strata = ["dress"] * 10 + ["shirt"] * 90
    found = bootstrap({"R@10": values}, strata)["R@10"]
    assert (found.mean, found.low, found.high) == (0.5, 0.5, 0.5)  # each stratum is constant, whatever is drawn
    plain = bootstrap({"R@10": values})["R@10"]
    assert plain.mean == pytest.approx(0.1) and plain.low < 0.1 < plain.high


def test_strata_are_resampled_within_themselves():
    random = np.random.default_rng(3)
    values, strata = random.random(60), ["a"] * 20 + ["b"] * 40
    found = bootstrap({"x": values}, strata, n=500, seed=4)["x"]
    generator = np.random.default_rng(4)
    first, second = generator.integers(20, size=(500, 20)), generator.integers(40, size=(500, 40))
    means = (values[:20][first].mean(axis=1) + values[20:][second].mean(axis=1)) / 2
    assert found.low == pytest.approx(np.quantile(means, 0.025))
    assert found.high == pytest.approx(np.quantile(means, 0.975))


def test_nan_means_no_part_in_the_metric():
    values = np.array([0.2, np.nan, 0.8, np.nan, 0.5])
    found = bootstrap({"tag": values, "all": np.ones(5), "none": np.full(5, np.nan)}, n=400)
    assert found["tag"].mean == pytest.approx(0.5) and found["tag"].queries == 3
    assert 0.2 <= found["tag"].low <= found["tag"].high <= 0.8
    parts = bootstrap({"tag": values}, ["x", "y", "x", "y", "x"], n=50)["tag"]
    assert parts.mean == pytest.approx(0.5)  # nobody in y carries the tag
    assert found["all"].low == found["all"].high == 1
    assert np.isnan(found["none"].mean) and found["none"].queries == 0


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.integers(0, 5))
def test_property_intervals_lie_within_the_values_and_repeat(values, seed):
    table = {"a": np.array(values)}
    found = bootstrap(table, n=50, seed=seed)["a"]
    assert min(values) - 1e-12 <= found.low <= found.high <= max(values) + 1e-12
    assert bootstrap(table, n=50, seed=seed)["a"] == found


def test_recall_gets_the_exact_mcnemar_test():
    a = np.array([1.0] * 9 + [0.0] * 1 + [1.0] * 20)
    b = np.array([0.0] * 9 + [1.0] * 1 + [1.0] * 20)
    found = paired(a, b)
    assert (found.won, found.tied, found.lost, found.test) == (9, 20, 1, "exact McNemar")
    assert found.p_value == pytest.approx(2 * (1 + 10) / 2**10)  # 0 or 1 of 10, both tails
    assert found.difference == pytest.approx(8 / 30) and found.low > 0


def test_average_precision_gets_every_sign_flip():
    change = np.array([0.5, 0.2, 0.1, -0.05, 0.3])
    b = np.full(5, 0.4)
    found = paired(b + change, b)
    flips = [sum((1 - 2 * s) * c for s, c in zip(signs, change, strict=True)) for signs in np.ndindex(2, 2, 2, 2, 2)]
    expected = 2 * sum(f >= change.sum() - 1e-12 for f in flips) / 32
    assert found.test == "sign-flip permutation" and found.p_value == pytest.approx(expected)
    assert (found.won, found.tied, found.lost) == (4, 0, 1)


def test_sampled_sign_flips_find_an_effect_and_find_none():
    random = np.random.default_rng(0)
    base, noise = random.random(300) * 0.8, random.normal(0, 0.02, 300)
    assert paired(base + 0.1 + noise, base).p_value < 0.001
    assert paired(base + noise - noise.mean(), base).p_value > 0.9
    assert paired(base, base).p_value == 1.0 and paired(base, base).tied == 300


def test_a_strong_effect_in_the_smaller_stratum_counts_in_full():
    a, b = np.array([1.0] * 10 + [0.5] * 90), np.array([0.0] * 10 + [0.5] * 90)
    found = paired(a, b, strata=["s"] * 10 + ["l"] * 90)
    assert found.difference == pytest.approx(0.5) and found.test == "sign-flip permutation"
    assert found.p_value == pytest.approx(2 / 2**10)


def test_two_runs_swap_into_the_opposite():
    random = np.random.default_rng(5)
    a, b = random.random(40), random.random(40)
    one, two = paired(a, b), paired(b, a)
    assert one.difference == -two.difference and (one.won, one.lost) == (two.lost, two.won)
    assert one.p_value == pytest.approx(two.p_value, abs=0.02)


def test_clear_errors():
    with pytest.raises(InputError, match="different numbers of queries"):
        bootstrap({"a": np.ones(3), "b": np.ones(4)})
    with pytest.raises(InputError, match="2 strata for 3"):
        bootstrap({"a": np.ones(3)}, ["x", "y"])
    with pytest.raises(InputError, match="level"):
        bootstrap({"a": np.ones(3)}, level=95.0)
    with pytest.raises(InputError, match="same queries"):
        paired(np.ones(3), np.ones(4))
    with pytest.raises(InputError, match="same order"):
        paired(np.ones(2), np.ones(2), (["a", "b"], ["b", "a"]))
    with pytest.raises(InputError, match="NaN"):
        paired(np.array([np.nan]), np.ones(1))


def test_one_changed_query_decides_nothing():
    """With a single difference either sign is as likely: p is 1."""
    a = np.array([0.5, 0.25, 0.0])
    found = paired(a, np.array([0.5, 0.0, 0.0]))
    assert found.p_value == 1.0 and (found.won, found.tied, found.lost) == (1, 2, 0)
