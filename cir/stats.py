"""How sure a mean is, and whether two runs differ: bootstrap intervals and paired tests over per-query values.

Tests over queries answer "on this set of queries"; whether training again would show the same is asked over seeds.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from cir.errors import InputError

_CHUNK = 2**21  # random draws held at a time
_SAME = 1e-12  # a spread below it is rounding: values are fractions or percent


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and its bootstrap percentile interval, in the unit of the values (fractions)."""

    mean: float
    low: float
    high: float
    queries: int
    """How many queries the mean is over."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two runs on the same queries: `difference` is mean(a) - mean(b), with its interval.

    `won`, `tied` and `lost` count the queries where a is above, equal to and below b; `p_value` is two-sided, by
    the test named in `test`.
    """

    difference: float
    low: float
    high: float
    p_value: float
    won: int
    tied: int
    lost: int
    test: str


@dataclass(frozen=True, slots=True)
class SeedComparison:
    """Two methods trained with the same seeds: mean difference with its t interval, in the unit of the values.

    `p_value` is two-sided, by the paired t-test on `seeds` - 1 degrees of freedom.
    """

    difference: float
    low: float
    high: float
    p_value: float
    seeds: int


def bootstrap(
    values: Mapping[str, Float64[np.ndarray, " q"]],
    strata: Sequence[Hashable] | None = None,
    *,
    n: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Interval]:
    """Estimate, per metric, the mean over queries and its percentile interval (Efron and Tibshirani, 1993, ch. 13).

    Queries are drawn with replacement `n` times, the same draws for all metrics. With `strata` (one per query)
    each stratum is resampled by itself and the mean is the unweighted mean of the strata's means, as over
    FashionIQ's categories. NaN means that a query has no part in a metric (it does not carry the tag): the mean is
    over the others, a stratum without any has no part either. A metric without any query is NaN throughout.
    """
    _check_options(n, level)
    names = list(values)
    length = len(values[names[0]]) if names else 0
    if any(np.shape(values[name]) != (length,) for name in names):
        raise InputError("bootstrap: the metrics have different numbers of queries; expected one value per query each")
    parts = _strata(strata, length)
    table = np.stack([np.asarray(values[name], dtype=np.float64) for name in names], axis=1) if names else np.empty(0)
    if not names or not length:
        return {name: Interval(np.nan, np.nan, np.nan, 0) for name in names}
    generator = np.random.default_rng(seed)
    means = _present_mean(np.stack([_resample(table[part], n, generator) for part in parts]))
    centre = _present_mean(np.stack([_means(np.ones((1, len(part))), table[part]) for part in parts]))[0]
    return {
        name: _interval(float(centre[column]), means[:, column], int((~np.isnan(table[:, column])).sum()), level)
        for column, name in enumerate(names)
    }


def paired(
    a: Float64[np.ndarray, " q"],
    b: Float64[np.ndarray, " p"],
    ids: tuple[Sequence[str], Sequence[str]] | None = None,
    *,
    strata: Sequence[Hashable] | None = None,
    n: int = 2000,
    permutations: int = 9999,
    seed: int = 0,
    level: float = 0.95,
) -> Comparison:
    """Compare two runs query by query. `ids`, the query ids of both, must agree, order included.

    Values that are all 0 or 1 (recall) get the exact McNemar test: a binomial test on the queries where the runs
    differ. Others (average precision), and means over strata, get a sign-flip permutation test of the difference of
    means, the number that is printed; Wilcoxon's test would ask about ranks of differences instead. Both only assume
    that, without an effect, a query's two values could as well be exchanged.
    """
    _check_options(n, level)
    if a.shape != b.shape or not len(a):
        raise InputError(f"paired: {len(a):,} values against {len(b):,}; expected the same queries in both runs")
    if np.isnan(a).any() or np.isnan(b).any():
        raise InputError("paired: a value is NaN; compare runs on the queries that both have scored")
    if ids is not None and (list(ids[0]) != list(ids[1]) or len(ids[0]) != len(a)):
        raise InputError("paired: the runs do not have the same queries in the same order; expected equal ids")
    change = a - b
    interval = bootstrap({"change": change}, strata, n=n, seed=seed, level=level)["change"]
    binary = bool(np.isin(a, (0.0, 1.0)).all() and np.isin(b, (0.0, 1.0)).all())
    won, lost = int((change > 0).sum()), int((change < 0).sum())
    if binary and strata is None:
        p_value, test = _mcnemar(won, lost), "exact McNemar"
    else:
        weighted = change * _weights(strata, len(change))
        p_value, test = _sign_flips(weighted[change != 0], permutations, seed), "sign-flip permutation"
    tied = len(change) - won - lost
    return Comparison(interval.mean, interval.low, interval.high, p_value, won, tied, lost, test)


def stratified_mean(values: Float64[np.ndarray, " q"], strata: Sequence[Hashable] | None = None) -> float:
    """Average values over queries; with strata, the unweighted mean of the strata's means."""
    return float(_weights(strata, len(values)) @ values)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for being asked together, in the order given (Holm, 1979: step-down Bonferroni).

    The k-th smallest of m is multiplied by m - k + 1, and none falls below a smaller one's: rejecting where the result
    is at most alpha keeps the chance of any false rejection at alpha, however the tests depend on one another.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    if any(not 0 <= p <= 1 for p in p_values):
        raise InputError(f"holm: expected p-values between 0 and 1, got {list(p_values)}")
    adjusted, floor = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        floor = max(floor, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = floor
    return adjusted


def effect_size(
    a: Float64[np.ndarray, " q"], b: Float64[np.ndarray, " q"], strata: Sequence[Hashable] | None = None
) -> float:
    """Cohen's d_z (Cohen, 1988, section 2.3.5): mean change over queries in standard deviations of the change.

    With strata, queries weigh as in their unweighted mean. 0 where nothing changes, infinite where all queries change
    by the same amount.
    """
    if a.shape != b.shape or len(a) < 2:
        raise InputError(f"effect size: {len(a):,} values against {len(b):,}; expected the same two or more queries")
    change, weights = a - b, _weights(strata, len(a))
    mean = float(weights @ change)
    spread = math.sqrt(float(weights @ (change - mean) ** 2) * len(a) / (len(a) - 1))
    return mean / spread if spread > _SAME else math.copysign(math.inf, mean) if abs(mean) > _SAME else 0.0


def deviation(values: Sequence[float]) -> float | None:
    """Estimate the standard deviation (n - 1), as of means over seeds; None for fewer than two."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def seed_units(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Difference of two means over seeds in units of their pooled standard deviation (Cohen's d over seeds).

    None where there is no spread to measure in: fewer than two seeds on a side, or all equal.
    """
    if len(a) < 2 or len(b) < 2:
        return None
    squares = (len(a) - 1) * np.var(a, ddof=1) + (len(b) - 1) * np.var(b, ddof=1)
    pooled = math.sqrt(squares / (len(a) + len(b) - 2))
    return float(np.mean(a) - np.mean(b)) / pooled if pooled > _SAME else None


def over_seeds(a: Sequence[float], b: Sequence[float], *, level: float = 0.95) -> SeedComparison | None:
    """Compare the means that two methods reach with the same seeds, aligned: paired t-test (Student, 1908).

    Paired, because a seed fixes what both share (initial weights, order of the data, the base of a wrapper). None for
    fewer than three seeds, and where every seed changes by the same amount: neither says how far training spreads.
    """
    from scipy.stats import t

    if len(a) != len(b):
        raise InputError(f"over seeds: {len(a)} values against {len(b)}; expected the same seeds of both")
    change = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    if len(change) < 3 or np.ptp(change) <= _SAME:
        return None
    mean, error = float(change.mean()), float(change.std(ddof=1)) / math.sqrt(len(change))
    half = float(t.ppf((1 + level) / 2, len(change) - 1)) * error
    p_value = 2 * float(t.sf(abs(mean) / error, len(change) - 1))
    return SeedComparison(mean, mean - half, mean + half, p_value, len(change))


def _resample(table: Float64[np.ndarray, "q c"], n: int, generator: np.random.Generator) -> Float64[np.ndarray, "n c"]:
    """Average `n` resamples of the rows: how often each row was drawn, times the rows."""
    rows, done = len(table), []
    step = max(1, _CHUNK // rows)
    for start in range(0, n, step):
        size = min(step, n - start)
        drawn = generator.integers(rows, size=(size, rows)) + rows * np.arange(size)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=size * rows).reshape(size, rows)
        done.append(_means(counts.astype(np.float64), table))
    return np.concatenate(done)


def _means(counts: Float64[np.ndarray, "n q"], table: Float64[np.ndarray, "q c"]) -> Float64[np.ndarray, "n c"]:
    """Average rows by their counts, leaving NaN out; NaN where nothing is left."""
    present = ~np.isnan(table)
    total, number = counts @ np.where(present, table, 0.0), counts @ present.astype(np.float64)
    return np.divide(total, number, out=np.full(total.shape, np.nan), where=number > 0)


def _present_mean(parts: Float64[np.ndarray, "s n c"]) -> Float64[np.ndarray, "n c"]:
    """Average over strata, leaving NaN out; NaN where nothing is left."""
    present = ~np.isnan(parts)
    total, number = np.where(present, parts, 0.0).sum(axis=0), present.sum(axis=0)
    return np.divide(total, number, out=np.full(total.shape, np.nan), where=number > 0)


def _interval(mean: float, means: Float64[np.ndarray, " n"], queries: int, level: float) -> Interval:
    """Take the percentiles of the resamples that drew at least one query."""
    drawn = means[~np.isnan(means)]
    if not len(drawn):
        return Interval(mean, np.nan, np.nan, queries)
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(mean, float(low), float(high), queries)


def _strata(strata: Sequence[Hashable] | None, length: int) -> list[Int64[np.ndarray, " n"]]:
    """List the rows of each stratum, in order of first appearance."""
    if strata is None:
        return [np.arange(length)]
    if len(strata) != length:
        raise InputError(f"bootstrap: {len(strata):,} strata for {length:,} queries; expected one each")
    table: dict[Hashable, list[int]] = {}
    for row, stratum in enumerate(strata):
        table.setdefault(stratum, []).append(row)
    return [np.array(rows) for rows in table.values()]


def _weights(strata: Sequence[Hashable] | None, length: int) -> Float64[np.ndarray, " q"]:
    """Weigh queries so that the weighted sum is the unweighted mean over strata."""
    parts = _strata(strata, length)
    weights = np.empty(length)
    for part in parts:
        weights[part] = 1 / (len(parts) * len(part))
    return weights


def _mcnemar(won: int, lost: int) -> float:
    """Two-sided exact binomial test of won against lost (McNemar, 1947, in its exact form)."""
    from scipy.stats import binomtest

    return float(binomtest(won, won + lost).pvalue) if won + lost else 1.0


def _sign_flips(change: Float64[np.ndarray, " q"], permutations: int, seed: int) -> float:
    """Two-sided permutation test of a sum under exchange of the runs; exhaustive where that is no more work."""
    from scipy.stats import permutation_test

    if len(change) < 2:  # one changed query is as likely either way
        return 1.0
    result = permutation_test(
        (change,),
        lambda sample, axis: np.sum(sample, axis=axis),
        permutation_type="samples",
        n_resamples=permutations,
        batch=max(1, _CHUNK // len(change)),
        vectorized=True,
        random_state=np.random.default_rng(seed),
    )
    return float(result.pvalue)


def _check_options(n: int, level: float) -> None:
    """Refuse options that give no interval."""
    if n < 1 or not 0 < level < 1:
        raise InputError(f"bootstrap: expected n >= 1 and a level between 0 and 1, got n={n}, level={level}")
