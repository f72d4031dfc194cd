"""Retrieval metrics as pure functions of the targets' ranks: 1 is best, 0 marks an unused column.

A rank says everything these metrics need; no ranking is sorted or stored. All return one float64 fraction per
query, so that subsets, intervals and paired tests can be computed from them later.
"""

from typing import Literal

import numpy as np
from jaxtyping import Bool, Float64, Int64

from cir.errors import InputError

GUARD = 1e-5
"""What Pic2Word's and FreeDom's evaluations add to the number of targets, so that none does not divide by zero."""


def hits_at(ranks: Int64[np.ndarray, "q m"], k: int) -> Bool[np.ndarray, "q m"]:
    """Say which targets stand among the first `k`.

    >>> hits_at(np.array([[1, 7, 0]]), k=5)
    array([[ True, False, False]])
    """
    if k < 1:
        raise InputError(f"metrics: the cut must be at least 1, got {k}")
    return (ranks >= 1) & (ranks <= k)


def recall_at(ranks: Int64[np.ndarray, "q m"], k: int) -> Float64[np.ndarray, " q"]:
    """Say whether *the* target, the first of each query, is among the first `k`: 1.0 or 0.0.

    The R@K of FashionIQ, CIRR (its Rs@K too, on ranks within the subset) and CIRCO, where further targets do not
    count. It is not "any target" and not the share of targets found.

    >>> recall_at(np.array([[3, 1], [4, 0]]), k=3)
    array([1., 0.])
    """
    _require_target(ranks)
    return hits_at(ranks[:, :1], k)[:, 0].astype(np.float64)


def any_at(ranks: Int64[np.ndarray, "q m"], k: int) -> Float64[np.ndarray, " q"]:
    """Say whether *any* target is among the first `k`: 1.0 or 0.0; a query without targets misses.

    MagicLens's recall on ImageNet-R (Zhang et al., ICML 2024, arXiv:2403.19651), and that of MIT-States.

    >>> any_at(np.array([[3, 1], [4, 0], [0, 0]]), k=1)
    array([1., 0., 0.])
    """
    return np.any(hits_at(ranks, k), axis=1).astype(np.float64)


def share_at(ranks: Int64[np.ndarray, "q m"], k: int) -> Float64[np.ndarray, " q"]:
    """Give the share of the targets that are among the first `k`: found / (all + 1e-5), 0 without targets.

    Pic2Word's R@K on ImageNet-R (Saito et al., CVPR 2023, arXiv:2302.03084, and its released evaluation) and FreeDom's.
    A query with more than `k` targets cannot reach 1.

    >>> share_at(np.array([[3, 1], [4, 0], [0, 0]]), k=3).round(4)
    array([1., 0., 0.])
    """
    return hits_at(ranks, k).sum(axis=1) / (_count(ranks) + GUARD)


def precision_at(ranks: Int64[np.ndarray, "q m"], k: int, of: Literal["k", "least"] = "k") -> Float64[np.ndarray, " q"]:
    """Give the share of the first `k` that are targets, 0 without targets.

    Over `k` as it stands (Pic2Word's P@K), or with `of="least"` over min(k, number of targets) + 1e-5 (FreeDom's,
    Efthymiadis et al., WACV 2025, arXiv:2412.03297), which few targets can fill.

    >>> precision_at(np.array([[3, 1], [4, 0]]), k=4)
    array([0.5 , 0.25])
    >>> precision_at(np.array([[3, 1], [4, 0]]), k=4, of="least").round(4)
    array([1., 1.])
    """
    found = hits_at(ranks, k).sum(axis=1)
    return found / (np.minimum(_count(ranks), k) + GUARD if of == "least" else k)


def average_precision_at(ranks: Int64[np.ndarray, "q m"], k: int) -> Float64[np.ndarray, " q"]:
    """Sum the precisions at the ranks of the targets among the first `k`, over min(number of targets, k).

    CIRCO's AP@K (Baldrati et al., ICCV 2023, arXiv:2303.15247, section 4). Other denominators go by the same
    name: dividing by all targets is too low for small K, by the hits found much too high.

    Two of three targets found, at ranks 1 and 4: (1/1 + 2/4) / 3.

    >>> average_precision_at(np.array([[4, 1, 9]]), k=5)
    array([0.5])
    """
    _require_target(ranks)
    found = _found(ranks, k)
    precision = np.where(found > 0, _precisions(found), 0.0)
    return precision.sum(axis=1) / np.minimum(_count(ranks), k)


def average_precision(ranks: Int64[np.ndarray, "q m"]) -> Float64[np.ndarray, " q"]:
    """Average the precisions at the ranks of all targets, over the whole ranking.

    PatternCom's AP (Psomas et al., IGARSS 2024, arXiv:2405.15587, and its released evaluation).

    Two targets, at ranks 2 and 4: (1/2 + 2/4) / 2.

    >>> average_precision(np.array([[4, 2, 0]]))
    array([0.5])
    """
    _require_target(ranks)
    found = _found(ranks)
    return np.where(found > 0, _precisions(found), 0.0).sum(axis=1) / _count(ranks)


def average_precision_trapezoid(ranks: Int64[np.ndarray, "q m"]) -> Float64[np.ndarray, " q"]:
    """Measure the area under the precision-recall curve by trapezoids, 0 without targets.

    The AP of landmark retrieval (Philbin et al., CVPR 2007) and of FreeDom (arXiv:2412.03297): the i-th target found,
    at rank r, adds the mean of the precisions before it, (i - 1) / (r - 1), and at it, i / r, over the number of
    targets + 1e-5. Before rank 1 precision is 1. It is below `average_precision` unless targets fill the top.

    One target at rank 2: (0/1 + 1/2) / 2.

    >>> average_precision_trapezoid(np.array([[2, 0], [1, 2], [0, 0]])).round(4)
    array([0.25, 1.  , 0.  ])
    """
    found = _found(ranks)
    place = np.arange(found.shape[1])
    before = np.where(found > 1, place / np.maximum(found - 1, 1), 1.0)
    areas = np.where(found > 0, (before + _precisions(found)) / 2, 0.0)
    return areas.sum(axis=1) / (_count(ranks) + GUARD)


def ndcg_at(ranks: Int64[np.ndarray, "q m"], k: int) -> Float64[np.ndarray, " q"]:
    """Sum 1 / log2(rank + 1) over the targets among the first `k`, over what the best ranking would get.

    Binary gains (Järvelin and Kekäläinen, TOIS 2002); nDCG@10 is what MTEB's retrieval tasks report.

    >>> ndcg_at(np.array([[1, 0], [3, 0], [2, 1]]), k=10)
    array([1. , 0.5, 1. ])
    """
    _require_target(ranks)
    found = _found(ranks, k)
    gains = np.where(found > 0, 1 / np.log2(np.maximum(found, 1) + 1), 0.0)
    ideal = np.cumsum(1 / np.log2(np.arange(1, ranks.shape[1] + 1) + 1))
    if not len(ranks):
        return np.zeros(0)
    # Both are running sums in one order, so that rounding cannot lift a perfect ranking above 1.
    return np.cumsum(gains, axis=1)[:, -1] / ideal[np.minimum(_count(ranks), k) - 1]


def graded_at(ranks: Int64[np.ndarray, "q m"], grades: Float64[np.ndarray, "q m"], k: int) -> Float64[np.ndarray, " q"]:
    """Give the highest grade among the first `k`, never below 0; `grades` stand as `ranks` do.

    CIRR's recall by soft labels as CIRPLANT scores it (Liu et al., ICCV 2021, arXiv:2108.04024, released evaluation):
    labels of -1 earn nothing, those of 0.2 and 0.5 count partly.

    >>> graded_at(np.array([[1, 2], [6, 1], [7, 1]]), np.array([[0.5, 1.0], [1.0, -1.0], [1.0, 0.2]]), k=5)
    array([1. , 0. , 0.2])
    """
    return np.where(hits_at(ranks, k), grades, 0.0).max(axis=1, initial=0.0)


def _count(ranks: Int64[np.ndarray, "q m"]) -> Int64[np.ndarray, " q"]:
    """Count each query's targets."""
    return (ranks >= 1).sum(axis=1)


def _found(ranks: Int64[np.ndarray, "q m"], k: int | None = None) -> Int64[np.ndarray, "q m"]:
    """Put the ranks of the targets (among the first `k`) in order, best first, 0 behind them."""
    last = np.iinfo(np.int64).max
    ordered = np.sort(np.where(ranks >= 1 if k is None else hits_at(ranks, k), ranks, last), axis=1)
    return np.where(ordered == last, 0, ordered)


def _precisions(found: Int64[np.ndarray, "q m"]) -> Float64[np.ndarray, "q m"]:
    """Say which share of what stands down to each target are targets, its own place included; meaningless behind."""
    return np.arange(1, found.shape[1] + 1) / np.maximum(found, 1)


def _require_target(ranks: Int64[np.ndarray, "q m"]) -> None:
    """Refuse queries whose first target has no rank: hidden labels give no score, not zero."""
    if len(ranks) and (ranks.shape[1] == 0 or (ranks[:, 0] < 1).any()):
        raise InputError("metrics: a query has no target; the labels of this split are hidden")
