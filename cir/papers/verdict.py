"""Ours beside theirs, cell by cell, with a verdict: equal as printed, within a tolerance, different, or why none."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from cir.papers import ours as found_here
from cir.papers.ours import Ours
from cir.papers.table import KINDS, Column, Reported, Row, Table, Value


class Verdict(Enum):
    """What can be said of a cell."""

    EQUAL = "equal"
    WITHIN = "within tolerance"
    DIFFERS = "differs"
    NO_RECORD = "no record"
    NOT_HERE = "not runnable here"
    RECALLED = "not checked (recalled)"
    NOT_REPORTED = "not reported"


CHECKED = (Verdict.EQUAL, Verdict.WITHIN, Verdict.DIFFERS)
"""The verdicts of cells where a number of ours was held against a printed one."""


@dataclass(frozen=True)
class Cell:
    """One cell: our number where there is one, what was reported, the verdict, and what there is to say about it."""

    row: Row
    column: Column
    ours: Ours | None
    theirs: tuple[Reported, ...]
    verdict: Verdict
    reason: str = ""
    tolerance: float = 0.0
    """In points of percent; the widest of those that apply."""

    @property
    def values(self) -> tuple[tuple[Value, Reported], ...]:
        """The values reported for this cell with their sources, those seen first, each distinct one once."""
        distinct: dict[Value, Reported] = {}
        for one in self.theirs:
            distinct.setdefault(one.values[self.column], one)
        return tuple(distinct.items())

    def __str__(self) -> str:
        return f"{self.row.name} on {self.column}"


@dataclass(frozen=True)
class Comparison:
    """A table with its cells, by row, in the order of its columns."""

    table: Table
    cells: tuple[tuple[Cell, ...], ...]

    @property
    def flat(self) -> list[Cell]:
        """All cells."""
        return [cell for row in self.cells for cell in row]

    @property
    def differing(self) -> list[Cell]:
        """The checked cells whose number is not the printed one."""
        return [cell for cell in self.flat if cell.verdict is Verdict.DIFFERS]


def compare(table: Table, folders: Sequence[Path] = ()) -> Comparison:
    """Hold the records in `folders` (none: those that the table names) against what was reported.

    Raises InputError for a record that was altered after it was written.
    """
    found = found_here.gather(folders or table.records)
    cells = []
    for row in table.rows:
        numbers = found_here.of_row(table, row, found)
        cells.append(tuple(judge(row, column, numbers.get(column)) for column in table.columns))
    return Comparison(table, tuple(cells))


def judge(row: Row, column: Column, ours: Ours | None) -> Cell:
    """Judge one cell. Of several sources that were seen the nearest to ours decides; recalled values decide nothing."""
    theirs = row.says(column)
    seen = [one for one in theirs if one.seen]
    if not theirs:
        return Cell(row, column, ours, theirs, Verdict.NOT_REPORTED)
    if not seen:
        return Cell(row, column, ours, theirs, Verdict.RECALLED, "recalled, seen in no citable place: never checked")
    if ours is None:
        runnable, reason = found_here.why_none(column, row)
        return Cell(row, column, None, theirs, Verdict.NO_RECORD if runnable else Verdict.NOT_HERE, reason)
    verdicts = [_against(ours.mean, one.values[column], one.digits, _tolerance(row, column, one)) for one in seen]
    widest = max(_tolerance(row, column, one) for one in seen)
    return Cell(row, column, ours, theirs, min(verdicts, key=CHECKED.index), "", widest)


def _tolerance(row: Row, column: Column, reported: Reported) -> float:
    """Return the points of percent that are close: the row's, else the source's; at least a printed deviation."""
    own = KINDS[reported.kind] if row.tolerance is None else row.tolerance
    return max(own, reported.values[column].spread)


def _against(mean: float, value: Value, digits: int, tolerance: float) -> Verdict:
    """Compare a mean with a printed value: as printed first, then within the tolerance (the last digit is rounded)."""
    if f"{mean:.{digits}f}" == f"{value.mean:.{digits}f}":
        return Verdict.EQUAL
    rounding = 0.5 * 10**-digits
    return Verdict.WITHIN if abs(mean - value.mean) <= tolerance + rounding else Verdict.DIFFERS
