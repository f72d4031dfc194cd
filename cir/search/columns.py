"""From ids to columns of the gallery: targets, candidates, and pairs that do not take part."""

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Int64

from cir.errors import InputError


class Banned:
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

    def without(self, columns: Int64[np.ndarray, "q c"]) -> Int64[np.ndarray, "q c"]:
        """Put -1 in the place of the listed gallery columns that are excluded for their query."""
        return np.where(self.among(columns), -1, columns)


def positions(ids: Sequence[str]) -> dict[str, int]:
    """Map ids to rows."""
    return {name: index for index, name in enumerate(ids)}


def columns(
    query_ids: Sequence[str], names: Sequence[Sequence[str]], positions: Mapping[str, int], what: str
) -> Int64[np.ndarray, "q n"]:
    """Look names up in the gallery, a row per query, -1 behind the shorter ones; neighbours may share a list."""
    if len(names) != len(query_ids):
        raise InputError(f"{what}: expected one list per query, {len(query_ids):,}, got {len(names):,}")
    counts = np.array([len(listed) for listed in names], dtype=np.int64)
    table = np.full((len(names), counts.max(initial=0)), -1, dtype=np.int64)
    last: Sequence[str] = ()
    for row, listed in enumerate(names):
        if listed is last and row:
            table[row] = table[row - 1]
            continue
        last = listed
        table[row, : len(listed)] = [positions.get(name, -1) for name in listed]
        if len(listed) and table[row, : len(listed)].min() < 0:
            absent = [name for name in listed if name not in positions]
            raise InputError(f"query {query_ids[row]!r}: {what} {absent[:3]} are not in the gallery searched")
    return table


def refuse_excluded(
    query_ids: Sequence[str], gallery_ids: Sequence[str], wanted: Int64[np.ndarray, "q m"], banned: Banned
) -> None:
    """Refuse a target that is excluded for its own query: its rank would mean nothing."""
    rows, slots = np.nonzero(banned.among(wanted))
    if len(rows):
        name = gallery_ids[wanted[rows[0], slots[0]]]
        raise InputError(f"query {query_ids[rows[0]]!r}: target {name!r} is excluded from its ranking")
