"""Retrieval metrics as pure functions of the targets' ranks: 1 is best, 0 marks an unused column.

A rank says everything these metrics need; no ranking is sorted or stored. All return one float64 fraction per
query, so that subsets, intervals and paired tests can be computed from them later.
"""

import numpy as np
from jaxtyping import Bool, Float64, Int64

from cir.errors import InputError


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


def hit_at(ranks: Int64[np.ndarray, "q m"], k: int) -> Float64[np.ndarray, " q"]:
    """Say whether *any* target is among the first `k`: 1.0 or 0.0.

    >>> hit_at(np.array([[3, 1], [4, 0]]), k=1)
    array([1., 0.])
    """
    _require_target(ranks)
    return np.any(hits_at(ranks, k), axis=1).astype(np.float64)


def average_precision_at(ranks: Int64[np.ndarray, "q m"], k: int) -> Float64[np.ndarray, " q"]:
    """Sum the precisions at the ranks of the targets among the first `k`, over min(number of targets, k).

    CIRCO's AP@K (Baldrati et al., ICCV 2023, arXiv:2303.15247, section 4). Other denominators go by the same
    name: dividing by all targets is too low for small K, by the hits found much too high.

    Two of three targets found, at ranks 1 and 4: (1/1 + 2/4) / 3.

    >>> average_precision_at(np.array([[4, 1, 9]]), k=5)
    array([0.5])
    """
    _require_target(ranks)
    found = np.sort(np.where(hits_at(ranks, k), ranks, k + 1), axis=1)  # found ones first, best first
    precision = np.arange(1, ranks.shape[1] + 1) / found
    count = (ranks >= 1).sum(axis=1)
    return np.where(found <= k, precision, 0.0).sum(axis=1) / np.minimum(count, k)


def _require_target(ranks: Int64[np.ndarray, "q m"]) -> None:
    """Refuse queries whose first target has no rank: hidden labels give no score, not zero."""
    if len(ranks) and (ranks.shape[1] == 0 or (ranks[:, 0] < 1).any()):
        raise InputError("metrics: a query has no target; the labels of this split are hidden")
