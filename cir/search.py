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

from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int64

from cir.errors import InputError
from cir.schema import Embeddings, Ranking, TargetRanks

QUERY_BLOCK, GALLERY_BLOCK = 512, 1024
"""Rows and columns of one block of scores: 2 MiB in float32."""
DENSE = 1 / 24
"""Share of undecided pairs from which the float64 product of a whole block costs less than pair by pair."""
_TO_GRID = 1.5 * 2.0**26  # adding and subtracting it rounds float64 to multiples of 2^-26
_PAIR_ELEMENTS = 2**17  # float64 numbers gathered at a time when pairs are scored one by one


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
    positions = _positions(gallery.ids)
    banned = _Banned(queries.ids, positions, exclude)
    if within is not None:
        rivals = _columns(queries.ids, [list(dict.fromkeys(names)) for names in within], positions, "candidates")
        return _search_within(queries, gallery, k, np.where(banned.among(rivals), -1, rivals))
    order = np.full((len(queries.ids), k), -1, dtype=np.int64)
    best = np.full((len(queries.ids), k), -np.inf, dtype=np.float32)
    for rows, columns in _blocks(queries, gallery, least=k):  # so that a full ranking is sorted once
        block = _Block(queries.vectors[rows], gallery.vectors[columns], banned.inside(rows, columns), queries.fusion)
        _absorb(block, columns.start, order[rows], best[rows])
    return Ranking(queries.ids, gallery.ids, order, best)


def target_ranks(
    queries: Embeddings,
    gallery: Embeddings,
    targets: Sequence[Sequence[str]],
    exclude: Mapping[str, Collection[str]] | None = None,
    within: Sequence[Sequence[str]] | None = None,
) -> TargetRanks:
    """Rank every target in the full ranking of its query by counting what stands above it; nothing is sorted.

    `targets` runs along the queries. `within` lets only the given images compete (CIRR's subset of six), still
    without the excluded ones and with ties in gallery order. A query without targets has rank 0 throughout.
    Raises InputError for a target that is unknown, excluded, or not among its competitors.
    """
    _same_width(queries, gallery)
    positions = _positions(gallery.ids)
    wanted = _columns(queries.ids, targets, positions, "targets")
    banned = _Banned(queries.ids, positions, exclude)
    _refuse_excluded(queries.ids, gallery.ids, wanted, banned)
    if within is None:
        above, tied = _count_all(queries, gallery, wanted, banned)
    else:
        rivals = _columns(queries.ids, within, positions, "candidates")
        above, tied = _count_within(queries, gallery, wanted, rivals, banned)
    return TargetRanks(queries.ids, np.where(wanted >= 0, above + 1, 0), tied)


# --- scores ----------------------------------------------------------------------------------------------------


def tolerance(width: int) -> float:
    """Bound how far a float32 product of unit vectors may lie from the score, whatever order it was summed in.

    Rounding of `width` products and sums (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1),
    of both vectors to the grid, of the score and of a threshold to float32; norms may be off by 1e-3.
    """
    return 1.01 * ((width + 8) * 2.0**-24 + width**0.5 * 2.0**-26)


def _on_grid(vectors: Float[np.ndarray, "..."]) -> Float64[np.ndarray, "..."]:
    """Round components to multiples of 2^-26, in float64."""
    exact = vectors.astype(np.float64)
    exact += _TO_GRID
    exact -= _TO_GRID
    return exact


def _products(
    queries: Float[np.ndarray, "q tq d"], gallery: Float[np.ndarray, "g tg d"], fusion: str
) -> Float[np.ndarray, "q g"]:
    """Multiply all with all, and make one score of the vectors of both sides."""
    (q, tq, d), (g, tg, _) = queries.shape, gallery.shape
    scores = queries.reshape(q * tq, d) @ gallery.reshape(g * tg, d).T
    return scores if tq == tg == 1 else _fuse(scores.reshape(q, tq, g, tg).max(axis=3), fusion)


def _fuse(scores: Float[np.ndarray, "n t ..."], fusion: str) -> Float[np.ndarray, "n ..."]:
    """Make one score of those of a query's vectors; factors are multiplied in their order."""
    return scores.max(axis=1) if fusion == "max" else np.multiply.reduce(scores, axis=1)


def _exact_pairs(
    queries: Float[np.ndarray, "q tq d"],
    rows: Int64[np.ndarray, " n"],
    gallery: Float[np.ndarray, "g tg d"],
    columns: Int64[np.ndarray, " n"],
    fusion: str,
) -> Float32[np.ndarray, " n"]:
    """Score listed pairs exactly, a few at a time."""
    scores = np.empty(len(rows), dtype=np.float32)
    step = max(1, _PAIR_ELEMENTS // (queries[:1].size + gallery[:1].size or 1))
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        left, right = _on_grid(queries[rows[part]]), _on_grid(gallery[columns[part]])
        scores[part] = _fuse(np.einsum("ntd,nud->ntu", left, right).max(axis=2), fusion)
    return scores


class _Block:
    """Scores of a few queries and a few images: fast ones within `slack` of the truth, exact ones on demand."""

    def __init__(
        self,
        queries: Float[np.ndarray, "q tq d"],
        gallery: Float[np.ndarray, "g tg d"],
        banned: tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]],
        fusion: str,
    ) -> None:
        self.fusion = fusion
        self.queries, self.banned = queries.astype(np.float32, copy=False), banned
        self.gallery = gallery.astype(np.float32, copy=False)
        factors = queries.shape[1] if fusion == "product" else 1  # |ab - a'b'| <= |a - a'||b| + |b - b'||a'|
        self.slack = np.float32(1.01 * factors * tolerance(queries.shape[-1]))
        self.fast = _products(self.queries, self.gallery, fusion)
        self.fast[banned] = -np.inf
        self._exact: Float32[np.ndarray, "q g"] | None = None

    def exact(self, rows: Int64[np.ndarray, " n"], columns: Int64[np.ndarray, " n"]) -> Float32[np.ndarray, " n"]:
        """Score pairs exactly; many at once by the product of the whole block."""
        if self._exact is None and len(rows) <= DENSE * self.fast.size:
            return _exact_pairs(self.queries, rows, self.gallery, columns, self.fusion)
        if self._exact is None:
            self._exact = _products(_on_grid(self.queries), _on_grid(self.gallery), self.fusion).astype(np.float32)
        return self._exact[rows, columns]


# --- the k best ------------------------------------------------------------------------------------------------


def _absorb(block: _Block, offset: int, order: Int64[np.ndarray, "q k"], best: Float32[np.ndarray, "q k"]) -> None:
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


def _entry(block: _Block, floor: Float32[np.ndarray, " q"], k: int) -> Float32[np.ndarray, " q"]:
    """Say from which fast score on an image may be among the `k` best."""
    entry = floor - block.slack
    waiting, width = np.flatnonzero(np.isneginf(floor)), block.fast.shape[1]
    if len(waiting) and k <= width:
        kth = np.partition(block.fast[waiting], width - k, axis=1)[:, width - k]
        entry[waiting] = kth - 2 * block.slack  # both the k-th and the rival may be off
    return np.maximum(entry, np.float32(-2))  # below any score, above what is excluded


def _search_within(queries: Embeddings, gallery: Embeddings, k: int, rivals: Int64[np.ndarray, "q c"]) -> Ranking:
    """Sort each query's own few images."""
    scores = np.full(rivals.shape, -np.inf, dtype=np.float32)
    rows, slots = np.nonzero(rivals >= 0)
    scores[rows, slots] = _exact_pairs(queries.vectors, rows, gallery.vectors, rivals[rows, slots], queries.fusion)
    first = np.lexsort((rivals, -scores))[:, :k]  # by score, then in gallery order; unused columns last
    order, best = (np.take_along_axis(table, first, 1) for table in (rivals, scores))
    short = max(0, k - order.shape[1])
    order, best = (
        np.pad(order, ((0, 0), (0, short)), constant_values=-1),
        np.pad(best, ((0, 0), (0, short)), constant_values=-np.inf),
    )
    return Ranking(queries.ids, gallery.ids, order, best)


# --- ranks by counting -----------------------------------------------------------------------------------------


def _count_all(
    queries: Embeddings, gallery: Embeddings, wanted: Int64[np.ndarray, "q m"], banned: "_Banned"
) -> tuple[Int64[np.ndarray, "q m"], Bool[np.ndarray, " q"]]:
    """Count the images above each target in the whole gallery; mark queries with a tied target."""
    own_rows, own_slots = np.nonzero(wanted >= 0)
    own = np.zeros(wanted.shape, dtype=np.float32)
    columns_of_own = wanted[own_rows, own_slots]
    own[own_rows, own_slots] = _exact_pairs(queries.vectors, own_rows, gallery.vectors, columns_of_own, queries.fusion)
    above, tied = np.zeros(wanted.shape, dtype=np.int64), np.zeros(len(wanted), dtype=bool)
    for rows, columns in _blocks(queries, gallery):
        block = _Block(queries.vectors[rows], gallery.vectors[columns], banned.inside(rows, columns), queries.fusion)
        for slot in range(wanted.shape[1]):
            mine = np.flatnonzero(wanted[rows, slot] >= 0)
            place = wanted[rows, slot][mine] - columns.start
            count, tie = _count_block(block, mine, own[rows, slot][mine], place)
            above[rows, slot][mine] += count
            tied[rows][mine] |= tie
    return above, tied


def _count_block(
    block: _Block, rows: Int64[np.ndarray, " n"], own: Float32[np.ndarray, " n"], place: Int64[np.ndarray, " n"]
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


def _count_within(
    queries: Embeddings,
    gallery: Embeddings,
    wanted: Int64[np.ndarray, "q m"],
    rivals: Int64[np.ndarray, "q c"],
    banned: "_Banned",
) -> tuple[Int64[np.ndarray, "q m"], Bool[np.ndarray, " q"]]:
    """Count the competitors above each target among the rivals of its query; mark queries with a tied target."""
    rivals = np.where(banned.among(rivals), -1, rivals)
    rows, slots = np.nonzero(rivals >= 0)
    scores = np.full(rivals.shape, -np.inf, dtype=np.float32)
    scores[rows, slots] = _exact_pairs(queries.vectors, rows, gallery.vectors, rivals[rows, slots], queries.fusion)
    above, tied = np.zeros(wanted.shape, dtype=np.int64), np.zeros(len(wanted), dtype=bool)
    for slot in range(wanted.shape[1]):
        mine = np.flatnonzero(wanted[:, slot] >= 0)
        itself = rivals[mine] == wanted[mine, slot, None]
        if not itself.any(axis=1).all():
            lost = queries.ids[mine[np.argmin(itself.any(axis=1))]]
            raise InputError(f"query {lost!r}: the target is not among its candidates; expected it in the subset")
        own = scores[mine][itself][:, None]
        higher, equal = _compare(scores[mine], own, rivals[mine] < wanted[mine, slot, None])
        above[mine, slot] = (higher & ~itself).sum(axis=1)
        tied[mine] |= (equal & ~itself).any(axis=1)
    return above, tied


def _compare(
    scores: Float32[np.ndarray, "..."], own: Float32[np.ndarray, "..."], earlier: Bool[np.ndarray, "..."]
) -> tuple[Bool[np.ndarray, "..."], Bool[np.ndarray, "..."]]:
    """Say which images stand above a target, and which share its score: the rule for ties, in one place."""
    equal = scores == own
    return (scores > own) | (equal & earlier), equal


# --- ids and blocks --------------------------------------------------------------------------------------------


class _Banned:
    """Pairs of query row and gallery column that do not take part; sorted by row."""

    def __init__(
        self, query_ids: Sequence[str], positions: Mapping[str, int], exclude: Mapping[str, Collection[str]] | None
    ) -> None:
        named = exclude or {}
        pairs = [
            (row, positions[name])
            for row, query in enumerate(query_ids)
            for name in set(named.get(query, ()))
            if name in positions
        ]
        self.rows, self.columns = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
        self.width = len(positions)

    def inside(self, rows: slice, columns: slice) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
        """List the pairs of one block, counted from its corner."""
        part = slice(*np.searchsorted(self.rows, [rows.start, rows.stop]))
        own_rows, own_columns = self.rows[part], self.columns[part]
        here = (own_columns >= columns.start) & (own_columns < columns.stop)
        return own_rows[here] - rows.start, own_columns[here] - columns.start

    def among(self, columns: Int64[np.ndarray, "q c"]) -> Bool[np.ndarray, "q c"]:
        """Mark the listed gallery columns that are excluded for their query."""
        listed = np.arange(len(columns))[:, None] * self.width + columns
        return np.isin(listed, self.rows * self.width + self.columns) & (columns >= 0)


def _positions(ids: Sequence[str]) -> dict[str, int]:
    """Map ids to rows."""
    return {name: index for index, name in enumerate(ids)}


def _columns(
    query_ids: Sequence[str], names: Sequence[Sequence[str]], positions: Mapping[str, int], what: str
) -> Int64[np.ndarray, "q n"]:
    """Look names up in the gallery, a row per query, -1 behind the shorter ones."""
    if len(names) != len(query_ids):
        raise InputError(f"{what}: expected one list per query, {len(query_ids):,}, got {len(names):,}")
    counts = np.array([len(listed) for listed in names], dtype=np.int64)
    table = np.full((len(names), counts.max(initial=0)), -1, dtype=np.int64)
    found = [positions.get(name, -1) for listed in names for name in listed]
    table[np.arange(table.shape[1]) < counts[:, None]] = found  # row by row, as they were listed
    if found and min(found) < 0:
        row = int(np.repeat(np.arange(len(names)), counts)[found.index(-1)])
        absent = [name for name in names[row] if name not in positions]
        raise InputError(f"query {query_ids[row]!r}: {what} {absent[:3]} are not in the gallery searched")
    return table


def _refuse_excluded(
    query_ids: Sequence[str], gallery_ids: Sequence[str], wanted: Int64[np.ndarray, "q m"], banned: _Banned
) -> None:
    """Refuse a target that is excluded for its own query: its rank would mean nothing."""
    rows, slots = np.nonzero(banned.among(wanted))
    if len(rows):
        name = gallery_ids[wanted[rows[0], slots[0]]]
        raise InputError(f"query {query_ids[rows[0]]!r}: target {name!r} is excluded from its ranking")


def _same_width(queries: Embeddings, gallery: Embeddings) -> None:
    """Refuse vectors of different spaces."""
    if queries.vectors.shape[-1] != gallery.vectors.shape[-1]:
        widths = queries.vectors.shape[-1], gallery.vectors.shape[-1]
        raise InputError(f"search: queries are {widths[0]} wide, the gallery {widths[1]}; expected one space")


def _blocks(queries: Embeddings, gallery: Embeddings, least: int = 1) -> Iterator[tuple[slice, slice]]:
    """Cut queries and gallery into blocks of bounded size, `least` columns or more, gallery outermost and in order."""
    left, right = (side.vectors.shape[1] or 1 for side in (queries, gallery))
    width = max(1, min(max(least, GALLERY_BLOCK // right), len(gallery.ids)))
    height = max(1, min(QUERY_BLOCK, QUERY_BLOCK * GALLERY_BLOCK // (width * left * right)))
    for start in range(0, len(gallery.ids), width):
        columns = slice(start, min(start + width, len(gallery.ids)))
        for top in range(0, len(queries.ids), height):
            yield slice(top, min(top + height, len(queries.ids))), columns
