"""`cir records`: the records on disk as a database."""

import json as plain
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from cir.commands.shell import SETTINGS, command
from cir.errors import InputError

app = typer.Typer(help="Records as a database: list, diff, check, mark stale, export.", **SETTINGS)

PLACES = (Path("runs"), Path("experiments/results"))
"""Where records are looked for when no place is named."""

Paths = Annotated[
    list[Path] | None, typer.Argument(metavar="[PATH]...", help="Record files or folders; default runs and results.")
]
Where = Annotated[list[str] | None, typer.Option(help="key=value, or != < > <= >= ~; repeatable, all must hold.")]
Columns = Annotated[str, typer.Option(help="Fields, comma-separated: run,train.batch,R@10.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@command(
    app,
    "list",
    "cir records list --where method.name=rtd --where benchmark.name~circo",
    "cir records list runs --where 'train.batch>=128' --columns run,seed,train.batch,mAP@10 --sort -mAP@10",
)
def listing(
    paths: Paths = None,
    where: Where = None,
    columns: Columns = "",
    sort: Annotated[str, typer.Option(help="Fields, comma-separated; -key for downwards.")] = "",
    json: Json = False,
) -> None:
    """List records, filtered by any field of theirs or of their configuration."""
    from cir.archive import query
    from cir.commands import records_text

    rows = query.select(query.rows_of(_found(paths)), [query.condition(text) for text in where or []])
    rows = query.ordered(rows, _names(sort)) if rows else rows
    names = _names(columns) or list(query.COLUMNS)
    query.require(rows, names)
    if json:
        kept = [{name: row.get(name) for name in names} for row in rows] if columns else rows
        typer.echo(plain.dumps(kept, indent=1, ensure_ascii=False))
        return
    for line in records_text.aligned(names, [[records_text.cell(row.get(name)) for name in names] for row in rows]):
        typer.echo(line)
    typer.echo(f"{len(rows):,} records", err=True)


@command(app, "diff", "cir records diff runs/rtd/seed-0/records runs/rtd/seed-1/records --metric mAP@10 --queries 5")
def diff(
    before: Annotated[Path, typer.Argument(help="A record, or the folder of a run's.")],
    after: Annotated[Path, typer.Argument(help="The other; wins and losses are its.")],
    metric: Annotated[str, typer.Option(help="Tested, and queries are ranked by it; default the first.")] = "",
    queries: Annotated[int, typer.Option(min=0, help="Most changed queries to list.")] = 10,
    json: Json = False,
) -> None:
    """Say how two runs differ: configuration, data, weights, code, numbers, and query by query."""
    from dataclasses import asdict

    from cir.archive import diff as differ
    from cir.commands import records_text

    pairs = differ.pairs(_found([before]), _found([after]))
    done = [(a, b, differ.diff(a, b, metric, queries)) for a, b in pairs]
    if json:
        listed = [{"from": str(a[0]), "to": str(b[0]), **records_text.named(asdict(found))} for a, b, found in done]
        typer.echo(plain.dumps(listed, indent=1, ensure_ascii=False))
        return
    for a, b, found in done:
        typer.echo(f"{a[1].benchmark.name}\n  from {a[0]}\n  to   {b[0]}")
        for line in records_text.diff_lines(found):
            typer.echo(line)


@command(app, "stale", "cir records stale runs/rtd/seed-0 --why 'trained before the tie rule was fixed'")
def stale(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="Record files or folders.")],
    why: Annotated[str, typer.Option(help="What overtook them, in a sentence.")] = "",
    undo: Annotated[bool, typer.Option("--undo", help="They hold after all.")] = False,
) -> None:
    """Mark records as overtaken by a fix: their numbers stay, with the reason; nothing counts them any more."""
    from cir.records import mark_stale

    if bool(why.strip()) == undo:
        raise InputError("stale: say why with --why TEXT, or take it back with --undo; one of the two")
    found = _found(paths)
    changed = [path for path, record in found.items() if record.stale != why.strip()]
    for path in changed:
        mark_stale(path, why.strip())
    typer.echo(f"{len(changed):,} of {len(found):,} records {'hold again' if undo else 'marked stale'}")


@command(app, "check", "cir records check experiments/results")
def check(
    paths: Paths = None,
    seal: Annotated[bool, typer.Option("--seal", help="Seal sound records from before there were seals.")] = False,
    json: Json = False,
) -> None:
    """Check that no number was altered, none contradicts another, none is outdated; exit code 1 where one is wrong."""
    from cir.archive import check as checking
    from cir.commands import records_text

    places = _places(paths)
    count, found = checking.check(places)
    if not count:
        raise InputError(f"no records in {', '.join(map(str, places))}; `cir evaluate` writes them")
    if seal:
        done = {one.path for one in found if one.kind == "unsealed" and checking.seal(one.path)}
        found = [one for one in found if one.kind != "unsealed" or one.path not in done]
        typer.echo(f"{len(done):,} records sealed", err=True)
    wrong = len({one.path for one in found if one.kind in checking.SERIOUS})
    if json:
        listed = [{"path": str(one.path), "kind": one.kind, "text": one.text} for one in found]
        typer.echo(plain.dumps({"records": count, "wrong": wrong, "findings": listed}, indent=1))
    else:
        for line in records_text.check_lines(found):
            typer.echo(line)
        typer.echo(f"{count:,} records checked, {wrong:,} wrong")
    if wrong:
        raise typer.Exit(1)


@command(
    app,
    "export",
    "cir records export runs --out records.parquet --columns train.batch,method.noise",
    "cir records export runs/rtd/seed-0/records --trec trec --data datasets",
    "cir records export runs --where method.name=rtd --mteb mteb",
)
def export(
    paths: Paths = None,
    out: Annotated[Path | None, typer.Option(help="FILE.csv, .json or .parquet: a row per record and metric.")] = None,
    trec: Annotated[Path | None, typer.Option(help="Folder for TREC run and qrels files.")] = None,
    mteb: Annotated[Path | None, typer.Option(help="Folder for results in MTEB's form.")] = None,
    where: Where = None,
    columns: Columns = "",
    data: Annotated[Path | None, typer.Option(help="Folder of the datasets; default where each run read them.")] = None,
) -> None:
    """Export records: one table in long form, TREC run and qrels files, MTEB results."""
    from cir.archive import query

    if out is None and trec is None and mteb is None:
        raise InputError("export: say what to write, --out FILE, --trec FOLDER or --mteb FOLDER")
    found = _found(paths)
    rows = query.select(query.rows_of(found), [query.condition(text) for text in where or []])
    found = {path: found[path] for path in (Path(row["path"]) for row in rows)}
    if not found:
        raise InputError("export: no record meets all of --where")
    if out is not None:
        _export_table(found, out, _names(columns))
    if trec is not None:
        _export_trec(found, trec, data)
    if mteb is not None:
        _export_mteb(found, mteb)


def _export_table(found: dict[Path, Any], out: Path, columns: Sequence[str]) -> None:
    from cir.archive import table
    from cir.records import replace_file

    rows = table.long(found, columns)
    content = table.encoded(rows, out.suffix)
    out.parent.mkdir(parents=True, exist_ok=True)
    replace_file(out, content)
    typer.echo(f"{out}: {len(rows):,} rows of {len(found):,} records")


def _export_trec(found: dict[Path, Any], folder: Path, root: Path | None) -> None:
    from cir.archive import trec

    kept = {path: record for path, record in found.items() if record.ranking is not None}
    if not kept:
        raise InputError("export: none of these records holds rankings; `cir evaluate ... --rankings` keeps them")
    for path, record in kept.items():
        done = trec.write(path, record, trec.benchmark_of(record, root), folder)
        said = f"computed again from the files: {', '.join(done.confirmed)}" if done.confirmed else "not computed again"
        typer.echo(f"{done.run} and {done.qrels.name}: {said}")
    _left_out(len(found) - len(kept), "hold no rankings")


def _export_mteb(found: dict[Path, Any], folder: Path) -> None:
    from cir.archive import mteb

    kept = {path: record for path, record in found.items() if record.per_query is not None}
    kept = {path: record for path, record in kept.items() if not record.benchmark.parts}
    for path, record in kept.items():
        typer.echo(str(mteb.write(path, record, folder)))
    _left_out(len(found) - len(kept), "are means over other records, or hold no values per query")


def _left_out(count: int, why: str) -> None:
    if count:
        typer.echo(f"left out, because they {why}: {count:,} of the records", err=True)


def _places(paths: Sequence[Path] | None) -> list[Path]:
    """Say where to look, and refuse what is not there."""
    if not paths:
        if not (there := [path for path in PLACES if path.exists()]):
            raise InputError(
                f"no records in {' or '.join(map(str, PLACES))}; `cir evaluate` writes them, or name a place"
            )
        return there
    absent = [str(path) for path in paths if not path.exists()]
    if absent:
        raise InputError(f"no such file or folder: {', '.join(absent)}")
    return list(paths)


def _found(paths: Sequence[Path] | None) -> dict[Path, Any]:
    from cir import records

    places = _places(paths)
    found = records.find(places)
    if not found:
        raise InputError(f"no records in {', '.join(map(str, places))}; `cir evaluate` writes them")
    return found


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]
