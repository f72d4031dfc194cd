"""The overview page: one table per benchmark, links to the pages of rankings, runs compared query by query."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import cir
from cir.records import Record, replace_file
from cir.report import tables
from cir.report.comparison import Row
from cir.report.gallery import template


class Page(NamedTuple):
    """A link to a page of rankings, relative to the overview."""

    href: str
    label: str


def write(
    path: Path,
    records: Sequence[Record],
    pages: Mapping[str, str] | None = None,
    comparisons: Sequence[Row] = (),
    title: str = "Composed image retrieval",
) -> Path:
    """Write the overview to `path` and return it.

    `pages` maps fingerprints of records to their pages, relative to `path`; a group links those of its parts. Records
    without numbers (hidden labels) are listed with their pages below the tables.
    """
    scored = [record for record in records if record.means]
    table = tables.build(scored) if scored or not records else tables.Table((), (), {}, ())
    links: dict[tuple[str, str], list[Page]] = defaultdict(list)
    for record in records:
        href = (pages or {}).get(record.fingerprint)
        if href:
            links[record.run, record.benchmark.name].append(Page(href, "look"))
            for group in (r for r in records if r.run == record.run and record.benchmark.name in r.benchmark.parts):
                label = record.benchmark.name.removeprefix("world/").split("/")[1]
                links[group.run, group.benchmark.name].append(Page(href, label))
    columns: dict[str, list[tables.Column]] = defaultdict(list)
    groups = {name for record in records for name in record.benchmark.parts}
    for column in table.columns:
        columns[_section(column, table)].append(column)
    hidden = dict.fromkeys(
        (record.run, record.benchmark.name)
        for record in records
        if not record.means and record.benchmark.name not in groups
    )
    compared: dict[str, list[Row]] = defaultdict(list)
    for row in comparisons:
        compared[row.benchmark].append(row)
    stamps = dict.fromkeys(
        f"{record.benchmark.name}, {stamp}" for record in records for stamp in record.benchmark.stamps
    )
    page = template("index.html").render(
        title=title,
        table=table,
        benchmarks=dict(columns),
        parts=[name for name in columns if name.split(" ")[0] in groups],
        pages=dict(links),
        hidden=list(hidden),
        comparisons=dict(compared),
        stamps=list(stamps),
        version=cir.__version__,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, page.encode())
    return path


def _section(column: tables.Column, table: tables.Table) -> str:
    """Name a benchmark, with the data's fingerprint where two states of it are shown."""
    states = {(other.data, other.version) for other in table.columns if other.benchmark == column.benchmark}
    return f"{column.benchmark}" + (f" [{column.data[:6]}]" if len(states) > 1 else "")
