"""`cir table` and `cir compare`: read records, print; a paper's table is compared with them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import typer

from cir import records
from cir.errors import InputError, RunError
from cir.papers import render, verdict
from cir.papers import table as papers_table
from cir.report import tables
from cir.report.comparison import Row
from cir.report.comparison import compare as compare_records


def main(
    paths: Sequence[Path],
    format: str,
    metrics: Sequence[str],
    intervals: bool,
    out: Path | None,
    cost: bool = False,
    check: bool = False,
    folders: Sequence[Path] = (),
) -> None:
    """Print or write one table of all records found, `cost` adds what training cost; or tables of papers."""
    asked = {path: found for path in paths if (found := papers_table.find(path))}
    if asked:
        _papers(asked, paths, format, bool(metrics or cost or not intervals), out, check, folders)
        return
    if check or folders:
        raise InputError(
            f"--check and --records are for a paper's table, not for records; expected a YAML such as "
            f"{papers_table.FOLDER}/world.yaml, got {', '.join(map(str, paths))}"
        )
    table = tables.build([record for record in _found(paths).values() if record.means], metrics, cost)
    if format == "csv":
        text = tables.csv_text(table)
    else:
        text = tables.latex(table, intervals) if format == "latex" else tables.markdown(table, intervals)
    _put(text, out)


def _papers(
    asked: Mapping[Path, Path],
    paths: Sequence[Path],
    format: str,
    shaped: bool,
    out: Path | None,
    check: bool,
    folders: Sequence[Path],
) -> None:
    """Print ours beside theirs; with `check`, end with an error where a checked cell differs."""
    others = [str(path) for path in paths if path not in asked]
    if others:
        raise InputError(f"{', '.join(others)}: records and papers' tables cannot share a table; name one kind")
    if shaped:
        raise InputError(
            "--metric, --cost and --no-intervals shape a table of records; a paper's table says its columns"
        )
    absent = [str(folder) for folder in folders if not folder.exists()]
    if absent:
        raise InputError(f"no such file or folder: {', '.join(absent)}")
    found = [verdict.compare(papers_table.read(path), folders) for path in asked.values()]
    _put("\n".join(render.FORMATS[format](one) for one in found), out)
    differing = [line for one in found for line in render.differences(one)]
    if check and differing:
        raise RunError(f"{len(differing)} checked cells differ: {'; '.join(differing)}")


def _put(text: str, out: Path | None) -> None:
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
