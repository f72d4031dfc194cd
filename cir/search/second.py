"""A second look: the first images of every ranking in another order, and what becomes of ranks.

A re-ranker sees a query and an image together and is too slow for a gallery. It orders the first `r` images anew, the
others stay behind them as they were. So recall@k for k <= r is that of the whole gallery, re-ranked.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32, Int64

from cir.errors import InputError
from cir.schema import Ranking, TargetRanks

ABOVE = np.float32(2)
"""Added to the second look's scores, from 0 to 1, so that they stand above any inner product of unit vectors."""


def reorder(ranking: Ranking, scores: Float32[np.ndarray, "q r"]) -> tuple[Ranking, Int64[np.ndarray, "q r"]]:
    """Sort the first r images of every row by new scores, ties in gallery order; the rest keeps its place.

    Returns the ranking, in which those images have 2 + score, and their places: `places[q, i]` is the new rank, from 1,
    of what was at rank i + 1. Scores lie in [0, 1]; those of unfilled places (-1) are ignored.
    """
    kept = scores.shape[1]
    if scores.shape[0] != len(ranking.order) or kept > ranking.order.shape[1]:
        raise InputError(f"rerank: scores {scores.shape} for rankings {ranking.order.shape}; expected no more columns")
    head = ranking.order[:, :kept]
    filled = head >= 0
    if filled.any() and not (scores[filled].min() >= 0 and scores[filled].max() <= 1):
        raise InputError("rerank: scores must be finite and lie in [0, 1]")
    above = np.where(filled, scores.astype(np.float32) + ABOVE, np.float32(-np.inf))
    first = np.lexsort((head, -above))  # by score, then in gallery order; unfilled places stay last
    order, values = ranking.order.copy(), ranking.scores.copy()
    order[:, :kept] = np.take_along_axis(head, first, axis=1)
    values[:, :kept] = np.take_along_axis(above, first, axis=1)
    places = np.empty_like(first)
    np.put_along_axis(places, first, np.broadcast_to(np.arange(1, kept + 1), first.shape), axis=1)
    return Ranking(ranking.query_ids, ranking.gallery_ids, order, values), places


def moved(ranks: TargetRanks, places: Int64[np.ndarray, "q r"]) -> TargetRanks:
    """Say where targets stand after the second look: those among the first r take their new places."""
    inside = (ranks.ranks > 0) & (ranks.ranks <= places.shape[1])
    new = np.take_along_axis(places, np.where(inside, ranks.ranks - 1, 0), axis=1) if places.size else ranks.ranks
    return TargetRanks(ranks.query_ids, np.where(inside, new, ranks.ranks), ranks.tied)


def restricted(ranks: TargetRanks, rivals: Sequence[Sequence[str]], targets: Sequence[Sequence[str]]) -> TargetRanks:
    """Rank targets among the rivals of their query, whose ranks in the whole gallery are given, a column each.

    CIRR's subset recall: the whole ranking, restricted to the group. Every target must be a rival.
    """
    table = np.zeros((len(targets), max(map(len, targets), default=0)), dtype=np.int64)
    for row, (names, wanted) in enumerate(zip(rivals, targets, strict=True)):
        own = dict(zip(names, ranks.ranks[row], strict=False))
        for column, name in enumerate(wanted):
            table[row, column] = sum(rank <= own[name] for rank in own.values())
    return TargetRanks(ranks.query_ids, table, ranks.tied)
