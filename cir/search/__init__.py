"""Exact search by inner product, in blocks: memory is bounded by a block, results by arithmetic alone.

A float32 matrix product rounds differently at the edges of a tile, with another block shape, thread count or
BLAS, so two equal vectors could get unequal scores. Here it only *filters*: whatever lies within its certified
error of a decision is scored again without any rounding, and that score decides.

The score of a pair is the inner product of both vectors on a grid of 2^-26, rounded once to float32. Grid
products are multiples of 2^-52 and, by Cauchy-Schwarz, every partial sum for unit vectors stays below 2, so float64
holds all of them: the sum is exact in any order, on any machine. Equal vectors therefore always tie, ties go by
gallery order, and `search` and `target_ranks` agree with each other and with a full stable sort, whatever the
blocks. With several vectors per item the score is the maximum over both sides' vectors, or, where the queries ask for
it (`Embeddings.fusion`), the product over the query's vectors: one more rounding of exact factors, the same anywhere.
"""

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from cir.errors import InputError
from cir.schema import Embeddings, Ranking, TargetRanks
from cir.search.best import best_of_all, best_within
from cir.search.columns import Banned, columns, positions, refuse_excluded
from cir.search.ranks import ranks_by_counting, ranks_by_sorting, ranks_within
from cir.search.scores import tolerance
from cir.search.second import moved, reorder, restricted

__all__ = ["MANY", "moved", "reorder", "restricted", "search", "target_ranks", "tolerance"]

MANY = 12
"""Targets per query, on average, from which sorting a row of the gallery costs less than going through it for each."""


def search(
    queries: Embeddings,
    gallery: Embeddings,
    k: int,
    exclude: Mapping[str, Collection[str]] | None = None,
    within: Sequence[Sequence[str]] | None = None,
) -> Ranking:
    """Find the `k` best gallery images of every query, best first, ties in gallery order.

    `exclude` maps query ids to image ids that do not take part: they are absent, a row that runs out of images is
    filled with -1. `within` lists per query the only images that compete (GeneCIS's own galleries); one listed twice
    is ranked once. Raises InputError for unequal widths or `k` below one.
    """
    _same_width(queries, gallery)
    if k < 1:
        raise InputError(f"search: k must be at least 1, got {k}")
    places = positions(gallery.ids)
    banned = Banned(queries.ids, places, exclude)
    if within is None:
        return best_of_all(queries, gallery, k, banned)
    rivals = columns(queries.ids, [list(dict.fromkeys(names)) for names in within], places, "candidates")
    return best_within(queries, gallery, k, rivals, banned)


def target_ranks(
    queries: Embeddings,
    gallery: Embeddings,
    targets: Sequence[Sequence[str]],
    exclude: Mapping[str, Collection[str]] | None = None,
    within: Sequence[Sequence[str]] | None = None,
) -> TargetRanks:
    """Rank every target in the full ranking of its query: by counting what stands above it, or, where queries have
    many targets, by sorting the scores of a few queries at a time. Both give the same ranks, bit for bit.

    `targets` runs along the queries. `within` lets only the given images compete (CIRR's subset of six), still
    without the excluded ones and with ties in gallery order; an image listed twice competes twice, a target listed
    twice not with itself. A query without targets has rank 0 throughout. Raises InputError for a target that is
    unknown, excluded, or not among its competitors.
    """
    _same_width(queries, gallery)
    places = positions(gallery.ids)
    wanted = columns(queries.ids, targets, places, "targets")
    banned = Banned(queries.ids, places, exclude)
    refuse_excluded(queries.ids, gallery.ids, wanted, banned)
    if within is not None:
        rivals = columns(queries.ids, within, places, "candidates")
        ranks, tied = ranks_within(queries, gallery, wanted, rivals, banned)
    elif np.count_nonzero(wanted >= 0) >= MANY * max(1, len(wanted)):
        ranks, tied = ranks_by_sorting(queries, gallery, wanted, banned)
    else:
        ranks, tied = ranks_by_counting(queries, gallery, wanted, banned)
    return TargetRanks(queries.ids, ranks, tied)


def _same_width(queries: Embeddings, gallery: Embeddings) -> None:
    """Refuse vectors of different spaces."""
    if queries.vectors.shape[-1] != gallery.vectors.shape[-1]:
        widths = queries.vectors.shape[-1], gallery.vectors.shape[-1]
        raise InputError(f"search: queries are {widths[0]} wide, the gallery {widths[1]}; expected one space")
