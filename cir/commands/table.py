"""`cir table` and `cir compare`: read records, print."""

from collections.abc import Sequence
from pathlib import Path

import typer

from cir import records
from cir.errors import InputError
from cir.report import tables
from cir.report.comparison import Row
from cir.report.comparison import compare as compare_records


def main(
    paths: Sequence[Path], format: str, metrics: Sequence[str], intervals: bool, out: Path | None, cost: bool = False
) -> None:
    """Print or write one table of all records found; `cost` adds what training cost."""
    table = tables.build([record for record in _found(paths).values() if record.means], metrics, cost)
    if format == "csv":
        text = tables.csv_text(table)
    else:
        text = tables.latex(table, intervals) if format == "latex" else tables.markdown(table, intervals)
    if out is None:
        typer.echo(text, nl=False)
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    records.replace_file(out, text.encode())


def compare(ours: Path, theirs: Path, metrics: Sequence[str]) -> None:
    """Print how two runs differ."""
    for row in compare_records(_found([ours]), _found([theirs]), metrics):
        typer.echo(line(row))


def line(row: Row) -> str:
    """Print one comparison as a line."""
    return (
        f"{row.benchmark}:{row.metric}  {row.run} against {row.baseline}: {row.difference:+.2f} points "
        f"[{row.low:+.2f}, {row.high:+.2f}], won {row.won}, tied {row.tied}, lost {row.lost}, "
        f"p {row.p_text if row.p_value < 0.001 else '= ' + row.p_text} ({row.test})"
    )


def _found(paths: Sequence[Path]) -> dict[Path, records.Record]:
    absent = [str(path) for path in paths if not path.exists()]
    if absent:
        raise InputError(f"no such file or folder: {', '.join(absent)}")
    found = records.find(paths)
    if not found:
        raise InputError(f"no records in {', '.join(map(str, paths))}; `cir evaluate` writes them")
    return found
