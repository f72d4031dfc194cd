"""Records to one table: runs as rows, `benchmark:metric` as columns, intervals, best in bold, footnotes.

Only equal things share a column: same benchmark, same data, same protocol at the same version. Several seeds
of a run become their mean and standard deviation. What a run has no record for stays empty. What training cost
stands in columns of its own, where asked for (`cir.report.costs`).
"""

import csv
import io
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from cir.errors import InputError, nearest
from cir.records import Mean, Record
from cir.report import costs
from cir.report.markup import escape_pipes, pipes, tex

BOUND = "oracle_"
"""How the names of rows begin that are told the answer."""


class Column(NamedTuple):
    """One metric of one benchmark under one protocol on one state of the data; or a cost, under `costs.TRAIN`."""

    benchmark: str
    metric: str
    protocol: str
    version: int
    data: str

    @property
    def is_cost(self) -> bool:
        """Whether the column holds what training cost, in place of a metric in percent."""
        return self.benchmark == costs.TRAIN


@dataclass(frozen=True)
class Cell:
    """One number: an interval over queries (one seed) or a deviation over seeds (several); costs have no interval."""

    mean: float
    low: float | None = None
    high: float | None = None
    deviation: float | None = None
    seeds: int = 1


@dataclass(frozen=True)
class Table:
    """Rows by run name, columns in print order, cells where a record exists, and what must be said below."""

    rows: tuple[str, ...]
    columns: tuple[Column, ...]
    cells: Mapping[tuple[str, Column], Cell]
    notes: tuple[str, ...]

    def header(self, column: Column) -> str:
        """Print a column as `benchmark:metric`, with the data's fingerprint where two states of it are shown."""
        states = {(c.data, c.version) for c in self.columns if c[:3] == column[:3]}
        return f"{column.benchmark}:{column.metric}" + (f" [{column.data[:6]}]" if len(states) > 1 else "")

    def best(self, column: Column) -> float:
        """Return the highest mean of a column, as printed; rows that are told the answer bound it, they do not win."""
        cells = {run: cell for (run, other), cell in self.cells.items() if other == column}
        honest = {run: cell for run, cell in cells.items() if not run.startswith(BOUND)} or cells
        return max(round(cell.mean, 2) for cell in honest.values())

    def leads(self, run: str, column: Column) -> bool:
        """Say whether a cell is set in bold: the best as printed, where there is something to compare with."""
        if column.is_cost:
            return False
        told = run.startswith(BOUND) and any(not other.startswith(BOUND) for other in self.rows)
        return len(self.rows) > 1 and not told and round(self.cells[run, column].mean, 2) == self.best(column)


def build(records: Iterable[Record], metrics: Sequence[str] = (), cost: bool = False) -> Table:
    """Arrange records as a table; `metrics` picks columns as `R@10` or `cirr/val:R@10` (none: all).

    `cost` adds what training cost behind them; single costs are picked as `train:minutes`. Rows and columns stand in
    order of first appearance. Of several records for the same run, seed and column the newest counts, and a note says
    how many others there were.
    """
    records = list(records)
    if not records:
        raise InputError("table: no records; run `cir evaluate` first, or name the folder that holds them")
    newest, superseded = _newest(records)
    known = [*dict.fromkeys(column for (_, column, _) in newest)]
    columns = _chosen(known, metrics)
    columns += [column for column in known if cost and column.is_cost and column not in columns]
    rows = tuple(dict.fromkeys(run for (run, _, _) in newest))
    cells = {}
    for run in rows:
        for column in columns:
            seeds = [_value(record, column) for (r, c, _), record in newest.items() if (r, c) == (run, column)]
            if seeds:
                cells[run, column] = _cell(seeds)
    rows = tuple(run for run in rows if any((run, column) in cells for column in columns))
    return Table(rows, tuple(columns), cells, _notes(newest.values(), columns, cells, superseded))


def markdown(table: Table, intervals: bool = True) -> str:
    """Render a pipe table; the best of each column is bold, footnotes follow as a list."""
    header = ["Run", *(table.header(column) for column in table.columns)]
    lines = [pipes(header), pipes(["---", *("---:" for _ in table.columns)])]
    for run in table.rows:
        cells = [_markdown_cell(table, run, column, intervals) for column in table.columns]
        lines.append(pipes([escape_pipes(run), *cells]))
    return "\n".join([*lines, "", *(f"- {note}" for note in table.notes)]) + "\n"


def latex(table: Table, intervals: bool = True) -> str:
    r"""Render a `tabular` for booktabs; needs `\usepackage{booktabs}` and nothing else."""
    lines = [
        r"\begin{tabular}{l" + "r" * len(table.columns) + "}",
        r"\toprule",
        " & ".join(["Run", *(tex(table.header(column)) for column in table.columns)]) + r" \\",
        r"\midrule",
    ]
    for run in table.rows:
        cells = [_latex_cell(table, run, column, intervals) for column in table.columns]
        lines.append(" & ".join([tex(run), *cells]) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}", *(rf"\par\footnotesize {tex(note)}" for note in table.notes)]
    return "\n".join(lines) + "\n"


def csv_text(table: Table) -> str:
    """Render one line per number, for other programs: full precision, percent (costs as their names say)."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        ["run", "benchmark", "metric", "mean", "low", "high", "sd", "seeds", "protocol", "protocol_version", "data"]
    )
    for (run, column), cell in table.cells.items():
        numbers = [cell.mean, cell.low, cell.high, cell.deviation]
        shown = ["" if number is None else repr(number) for number in numbers]
        writer.writerow([run, column.benchmark, column.metric, *shown, cell.seeds, *column[2:]])
    return out.getvalue()


def conditions(record: Record) -> str:
    """Say in one line what a number of the record rests on: benchmark, protocol, counts, data."""
    protocol, bench = record.protocol, record.benchmark
    counts = f"{bench.queries:,} queries, {bench.gallery:,} images, data {bench.fingerprint[:6]}"
    return f"{bench.name}: protocol {protocol.name} v{protocol.version} ({counts}). {protocol.definition}"


FORMATS = {"md": markdown, "latex": latex, "csv": csv_text}


def _newest(records: list[Record]) -> tuple[dict[tuple[str, Column, int], Record], int]:
    """Keep the newest record per run, column and seed, and count the others."""
    newest: dict[tuple[str, Column, int], Record] = {}
    lost = set()
    for record in records:
        for metric in record.means:
            protocol = record.protocol
            column = Column(
                record.benchmark.name, metric, protocol.name, protocol.version, record.benchmark.fingerprint
            )
            key = (record.run, column, record.seed)
            other = newest.get(key)
            if other is not None:
                lost.add(min(record, other, key=lambda r: r.created).fingerprint)
            if other is None or record.created >= other.created:
                newest[key] = record
    for metric in costs.COSTS:
        column = Column(costs.TRAIN, metric, "", 0, "")
        for record in sorted(records, key=lambda r: r.created):
            if costs.read(record, metric) is not None:
                newest[record.run, column, record.seed] = record
    return newest, len(lost)


def _value(record: Record, column: Column) -> Mean:
    """Look up a number; a cost is one without an interval."""
    if not column.is_cost:
        return record.means[column.metric]
    value = costs.read(record, column.metric)
    assert value is not None
    return Mean(value, value, value, 0)


def _chosen(columns: list[Column], metrics: Sequence[str]) -> list[Column]:
    """Pick columns in the order asked for."""
    if not metrics:
        return [column for column in columns if not column.is_cost]
    chosen: list[Column] = []
    for wanted in metrics:
        matching = [c for c in columns if wanted in (c.metric, f"{c.benchmark}:{c.metric}")]
        if not matching:
            known = {c.metric for c in columns} | {f"{c.benchmark}:{c.metric}" for c in columns}
            raise InputError(f"table: no record has {wanted!r}; {nearest(wanted, known)}")
        chosen += [column for column in matching if column not in chosen]
    return chosen


def _cell(seeds: list[Mean]) -> Cell:
    if len(seeds) == 1:
        return Cell(seeds[0].mean, seeds[0].low, seeds[0].high) if seeds[0].queries else Cell(seeds[0].mean)
    means = [seed.mean for seed in seeds]
    return Cell(statistics.fmean(means), deviation=statistics.stdev(means), seeds=len(seeds))


def _notes(
    records: Iterable[Record], columns: list[Column], cells: Mapping[tuple[str, Column], Cell], superseded: int
) -> tuple[str, ...]:
    """Say under which protocols and on which data the numbers stand, and what limits them."""
    shown = {column.data for column in columns}
    records = list(records)
    unique = {record.fingerprint: record for record in records if record.benchmark.fingerprint in shown}.values()
    spent = [column.metric for column in columns if column.is_cost]
    spread = _spread(cells.values())
    notes = [f"Percent. {spread}".strip() if len(spent) < len(columns) else spread]
    notes += [conditions(r) for r in unique]
    limits: dict[tuple[str, str], dict[str, None]] = {}  # the runs of each, in order and once
    for r in unique:
        stale = [f"stale, {r.stale}"] if r.stale else []
        for limit in [*(f"not comparable, {stamp}" for stamp in r.benchmark.stamps), *stale]:
            limits.setdefault((r.benchmark.name, limit), {})[r.run] = None
    notes += [f"{', '.join(runs)} on {benchmark}: {limit}." for (benchmark, limit), runs in limits.items()]
    notes += costs.notes((r for r in records if r.run in {run for run, _ in cells}), spent) if spent else []
    if superseded:
        notes.append(f"{superseded} older records of the same run, seed and data were left out.")
    return tuple(dict.fromkeys(note for note in notes if note))


def _spread(cells: Iterable[Cell]) -> str:
    cells = list(cells)
    parts = []
    if any(cell.low is not None for cell in cells):
        parts.append("In brackets: 95 % bootstrap interval over queries.")
    counts = sorted({cell.seeds for cell in cells if cell.seeds > 1})
    if counts:
        parts.append(f"±: standard deviation over seeds ({', '.join(map(str, counts))} seeds).")
    return " ".join(parts)


def _number(column: Column, value: float) -> str:
    return costs.shown(column.metric, value) if column.is_cost else f"{value:.2f}"


def _varies(column: Column, cell: Cell) -> bool:
    """Whether a deviation is worth printing: all seeds of a run train equally many parameters."""
    return not column.is_cost or bool(cell.deviation)


def _markdown_cell(table: Table, run: str, column: Column, intervals: bool) -> str:
    cell = table.cells.get((run, column))
    if cell is None:
        return ""
    number = f"**{_number(column, cell.mean)}**" if table.leads(run, column) else _number(column, cell.mean)
    if cell.deviation is not None:
        return f"{number} ± {_number(column, cell.deviation)}" if _varies(column, cell) else number
    return f"{number} [{cell.low:.1f}, {cell.high:.1f}]" if intervals and cell.low is not None else number


def _latex_cell(table: Table, run: str, column: Column, intervals: bool) -> str:
    cell = table.cells.get((run, column))
    if cell is None:
        return "--"
    number = _number(column, cell.mean)
    if table.leads(run, column):
        number = rf"\textbf{{{number}}}"
    if cell.deviation is not None:
        return rf"{number} {{\scriptsize $\pm$ {_number(column, cell.deviation)}}}" if _varies(column, cell) else number
    return (
        rf"{number} {{\scriptsize [{cell.low:.1f}, {cell.high:.1f}]}}" if intervals and cell.low is not None else number
    )
