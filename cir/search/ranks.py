"""The ranks of targets: by counting what stands above each, or by sorting rows of exact scores.

Counting goes through a block of fast scores once per target and settles with exact scores what these cannot. Sorting
needs every score exact, twice the price of a fast one, and then as good as nothing per target. All functions return
ranks "q m" (1 best, 0 for unused columns) and the queries one of whose targets is tied.
"""

import numpy as np
from jaxtyping import Bool, Float32, Int64

from cir.errors import InputError
from cir.schema import Embeddings
from cir.search.blocks import Block, blocks, strips
from cir.search.columns import Banned
from cir.search.scores import exact_table, on_grid, products

Ranks = tuple[Int64[np.ndarray, "q m"], Bool[np.ndarray, " q"]]

STRIP = 2**24
"""Scores held at a time while rows are sorted: 64 MiB in float32."""


def ranks_by_counting(
    queries: Embeddings, gallery: Embeddings, wanted: Int64[np.ndarray, "q m"], banned: Banned
) -> Ranks:
    """Count the images above each target in the whole gallery."""
    own = exact_table(queries.vectors, gallery.vectors, wanted, queries.fusion)
    above, tied = np.zeros(wanted.shape, dtype=np.int64), np.zeros(len(wanted), dtype=bool)
    for rows, columns in blocks(queries, gallery):
        block = Block(queries.vectors[rows], gallery.vectors[columns], banned.inside(rows, columns), queries.fusion)
        for slot in range(wanted.shape[1]):
            mine = np.flatnonzero(wanted[rows, slot] >= 0)
            place = wanted[rows, slot][mine] - columns.start
            count, tie = _count_block(block, mine, own[rows, slot][mine], place)
            above[rows, slot][mine] += count
            tied[rows][mine] |= tie
    return np.where(wanted >= 0, above + 1, 0), tied


def _count_block(
    block: Block, rows: Int64[np.ndarray, " n"], own: Float32[np.ndarray, " n"], place: Int64[np.ndarray, " n"]
) -> tuple[Int64[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
    """Count, for some rows of a block, the images above a target of score `own` at column `place`."""
    fast = block.fast if len(rows) == len(block.fast) else block.fast[rows]
    surely = fast > (own + block.slack)[:, None]
    count = np.count_nonzero(surely, axis=1)
    at, columns = np.divmod(np.flatnonzero(surely ^ (fast >= (own - block.slack)[:, None])), fast.shape[1])
    other = columns != place[at]
    at, columns = at[other], columns[other]
    higher, equal = _compare(block.exact(rows[at], columns), own[at], columns < place[at])
    count += np.bincount(at[higher], minlength=len(rows))
    return count, np.bincount(at[equal], minlength=len(rows)) > 0


def ranks_by_sorting(
    queries: Embeddings, gallery: Embeddings, wanted: Int64[np.ndarray, "q m"], banned: Banned
) -> Ranks:
    """Score a few queries exactly with the whole gallery, sort each row, and look all its targets up."""
    ranks, tied = np.zeros(wanted.shape, dtype=np.int64), np.zeros(len(wanted), dtype=bool)
    for rows, parts in strips(queries, gallery, STRIP):
        left = on_grid(queries.vectors[rows])
        scores = np.empty((rows.stop - rows.start, len(gallery.ids)), dtype=np.float32)
        for part in parts:
            scores[:, part] = products(left, on_grid(gallery.vectors[part]), queries.fusion)
        scores[banned.inside(rows, slice(0, len(gallery.ids)))] = -np.inf
        for row, values in enumerate(scores, rows.start):
            mine = wanted[row] >= 0
            ranks[row, mine], tied[row] = _look_up(_keys(values), wanted[row, mine])
    return ranks, tied


def _keys(scores: Float32[np.ndarray, " g"]) -> Int64[np.ndarray, " g"]:
    """Give each image of a row a number of its own that falls with its score and, of equal ones, rises by column.

    The bits of a float, read as an integer, rise with it where it is positive, and fall where it is negative.
    """
    bits = (scores + np.float32(0)).view(np.int32)  # the sum makes -0 the same number as 0
    rising = np.where(bits < 0, bits ^ np.int32(0x7FFFFFFF), bits)
    return (-rising.astype(np.int64) << 32) + np.arange(len(scores))


def _look_up(keys: Int64[np.ndarray, " g"], wanted: Int64[np.ndarray, " m"]) -> tuple[Int64[np.ndarray, " m"], bool]:
    """Rank the images of the wanted columns, and say whether one of them shares its score."""
    own = keys[wanted]
    ordered = np.sort(keys)
    place = np.searchsorted(ordered, own)
    before, behind = ordered[np.maximum(place - 1, 0)] >> 32, ordered[np.minimum(place + 1, len(keys) - 1)] >> 32
    equal = (before == own >> 32) & (place > 0) | (behind == own >> 32) & (place < len(keys) - 1)
    return place + 1, bool(equal.any())


def ranks_within(
    queries: Embeddings,
    gallery: Embeddings,
    wanted: Int64[np.ndarray, "q m"],
    rivals: Int64[np.ndarray, "q c"],
    banned: Banned,
) -> Ranks:
    """Count the competitors above each target among the rivals of its query."""
    rivals = banned.without(rivals)
    scores = exact_table(queries.vectors, gallery.vectors, rivals, queries.fusion)
    above, tied = np.zeros(wanted.shape, dtype=np.int64), np.zeros(len(wanted), dtype=bool)
    for slot in range(wanted.shape[1]):
        mine = np.flatnonzero(wanted[:, slot] >= 0)
        itself = rivals[mine] == wanted[mine, slot, None]
        if not itself.any(axis=1).all():
            lost = queries.ids[mine[np.argmin(itself.any(axis=1))]]
            raise InputError(f"query {lost!r}: the target is not among its candidates; expected it in the subset")
        own = np.take_along_axis(scores[mine], itself.argmax(axis=1)[:, None], axis=1)
        higher, equal = _compare(scores[mine], own, rivals[mine] < wanted[mine, slot, None])
        above[mine, slot] = (higher & ~itself).sum(axis=1)
        tied[mine] |= (equal & ~itself).any(axis=1)
    return np.where(wanted >= 0, above + 1, 0), tied


def _compare(
    scores: Float32[np.ndarray, "..."], own: Float32[np.ndarray, "..."], earlier: Bool[np.ndarray, "..."]
) -> tuple[Bool[np.ndarray, "..."], Bool[np.ndarray, "..."]]:
    """Say which images stand above a target, and which share its score: the rule for ties, in one place."""
    equal = scores == own
    return (scores > own) | (equal & earlier), equal
