"""The `k` best images of every query, in the gallery or among a few of its own."""

import numpy as np
from jaxtyping import Float32, Int64

from cir.schema import Embeddings, Ranking
from cir.search.blocks import Block, blocks
from cir.search.columns import Banned
from cir.search.scores import exact_table


def best_of_all(queries: Embeddings, gallery: Embeddings, k: int, banned: Banned) -> Ranking:
    """Go through the gallery block by block; what may be among the `k` best is scored exactly."""
    order = np.full((len(queries.ids), k), -1, dtype=np.int64)
    best = np.full((len(queries.ids), k), -np.inf, dtype=np.float32)
    for rows, columns in blocks(queries, gallery, least=k):  # so that a full ranking is sorted once
        block = Block(queries.vectors[rows], gallery.vectors[columns], banned.inside(rows, columns), queries.fusion)
        _absorb(block, columns.start, order[rows], best[rows])
    return Ranking(queries.ids, gallery.ids, order, best)


def best_within(
    queries: Embeddings, gallery: Embeddings, k: int, rivals: Int64[np.ndarray, "q c"], banned: Banned
) -> Ranking:
    """Sort each query's own few images, distinct in a row and -1 where there are none."""
    rivals = banned.without(rivals)
    scores = exact_table(queries.vectors, gallery.vectors, rivals, queries.fusion)
    first = np.lexsort((rivals, -scores))[:, :k]  # by score, then in gallery order; unused columns last
    order = np.full((len(rivals), k), -1, dtype=np.int64)
    best = np.full((len(rivals), k), -np.inf, dtype=np.float32)
    for table, kept in ((order, rivals), (best, scores)):
        table[:, : first.shape[1]] = np.take_along_axis(kept, first, axis=1)
    return Ranking(queries.ids, gallery.ids, order, best)


def _absorb(block: Block, offset: int, order: Int64[np.ndarray, "q k"], best: Float32[np.ndarray, "q k"]) -> None:
    """Merge one block into the `k` best so far, in place; blocks come in gallery order."""
    floor = best[:, -1]
    rows, columns = np.nonzero(block.fast >= _entry(block, floor, best.shape[1])[:, None])
    scores = block.exact(rows, columns)
    better = scores > floor[rows]  # an equal score stands later in the gallery and loses
    rows, columns, scores = rows[better], columns[better] + offset, scores[better]
    if not len(rows):
        return
    counts = np.bincount(rows, minlength=len(order))
    place = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    new_scores = np.full((len(order), counts.max()), -np.inf, dtype=np.float32)
    new_order = np.full(new_scores.shape, -1, dtype=np.int64)
    new_scores[rows, place], new_order[rows, place] = scores, columns
    all_scores, all_order = np.hstack([best, new_scores]), np.hstack([order, new_order])
    first = np.argsort(-all_scores, axis=1, kind="stable")[:, : order.shape[1]]
    best[:], order[:] = np.take_along_axis(all_scores, first, 1), np.take_along_axis(all_order, first, 1)


def _entry(block: Block, floor: Float32[np.ndarray, " q"], k: int) -> Float32[np.ndarray, " q"]:
    """Say from which fast score on an image may be among the `k` best."""
    entry = floor - block.slack
    waiting, width = np.flatnonzero(np.isneginf(floor)), block.fast.shape[1]
    if len(waiting) and k <= width:
        kth = np.partition(block.fast[waiting], width - k, axis=1)[:, width - k]
        entry[waiting] = kth - 2 * block.slack  # both the k-th and the rival may be off
    return np.maximum(entry, np.float32(-2))  # below any score, above what is excluded
