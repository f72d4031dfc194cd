"""`cir submit`: files for the test servers, made from a run or from vectors, and checks of files made elsewhere."""

import json as plain
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer

from cir import data as datasets
from cir.errors import InputError
from cir.schema import Benchmark
from cir.submissions import Written, check, find, official, write
from cir.submissions.reading import sha256
from cir.submissions.servers import benchmark_name

FOLDER = "submissions"


def main(
    arguments: Sequence[str],
    method: str,
    backbone: str,
    data: Path | None,
    out: Path | None,
    split: str,
    queries: Path | None,
    gallery: Path | None,
    json: bool,
) -> None:
    """Make the files of one server for one split, and say where they go."""
    if not arguments or "=" in arguments[0]:
        raise InputError("submit: name the benchmark first, cirr or circo; or check a file with --validate FILE")
    name = benchmark_name(arguments[0], split or "test")
    if (queries is None) != (gallery is None):
        raise InputError("submit: vectors are two files, --queries and --gallery; one of them is missing")
    if queries is not None and gallery is not None:
        if len(arguments) > 1 or method or backbone:
            raise InputError("submit: with --queries and --gallery name only cirr or circo, no model and no override")
        benchmark, written = from_vectors(name, data or Path("datasets"), queries, gallery, out or Path(FOLDER))
    else:
        benchmark, written = from_run(name, arguments[1:], method, backbone, data, out)
    if json:
        typer.echo(plain.dumps([told(one) for one in written], indent=1))
    else:
        show(benchmark, written)


def validated(file: Path, arguments: Sequence[str], data: Path | None, split: str, json: bool) -> None:
    """Print what is wrong with a file; exit code 2 where the server would refuse it, or it would lose score."""
    if len(arguments) > 1:
        raise InputError(f"submit: with --validate name cirr or circo at most, got {' '.join(arguments)}")
    name = find(arguments[0]).id if arguments else ""
    report = check(file, data or Path("datasets"), name=name, split=split)
    if json:
        typer.echo(plain.dumps(report.plain(), indent=1))
    else:
        for line in report.lines():
            typer.echo(line)
    if report.errors:
        raise typer.Exit(2)


def from_vectors(name: str, root: Path, queries: Path, gallery: Path, out: Path) -> tuple[Benchmark, list[Written]]:
    """Rank vectors that anybody made."""
    from cir.records import fingerprint
    from cir.score import aligned, read_vectors

    benchmark = datasets.load(name, root)
    asked = aligned(*read_vectors(queries), [query.id for query in benchmark.queries], f"{queries}: query")
    images = aligned(*read_vectors(gallery), benchmark.gallery, f"{gallery}: gallery")
    origin = {
        side: {"file": path.name, "sha256": sha256(path)} for side, path in (("queries", queries), ("gallery", gallery))
    }
    mark = fingerprint(benchmark.fingerprint, *(origin[side]["sha256"] for side in ("queries", "gallery")))
    return benchmark, write(benchmark, asked, images, out, _stem(benchmark, "vectors", mark), {"vectors": origin})


def from_run(
    name: str, arguments: Sequence[str], method: str, backbone: str, data: Path | None, out: Path | None
) -> tuple[Benchmark, list[Written]]:
    """Encode, compose and rank with a run, a checkpoint or a baseline; the arguments are those of `cir evaluate`."""
    from cir import evaluate as evaluation
    from cir import retrieval, runs
    from cir.commands.evaluate import asked, model

    config, trained, names = asked(arguments, method, backbone, data)
    if names:
        raise InputError(f"submit: expected a config or a checkpoint folder behind the benchmark, got {names[0]!r}")
    benchmark = retrieval.load_benchmark(config, name, datasets.find(name).protocols[0])
    official(benchmark)  # a part of a split is refused before anything is encoded
    begun = time.perf_counter()
    loaded, built, info = model(config, trained)
    queries, gallery = retrieval.embed(benchmark, config, loaded, built)
    seconds = time.perf_counter() - begun
    record = evaluation.unscored(benchmark, config, loaded, info or evaluation.describe(built), seconds)
    folder = out if out is not None else runs.folder(config) / FOLDER
    stem = _stem(benchmark, record.run, record.fingerprint)
    return benchmark, write(benchmark, queries, gallery, folder, stem, {"run": asdict(record)})


def show(benchmark: Benchmark, written: Sequence[Written]) -> None:
    """Print what was written, what its check found, and where it goes."""
    typer.echo(f"{benchmark.name}: {len(benchmark.queries):,} queries, gallery of {len(benchmark.gallery):,} images")
    for one in written:
        typer.echo(f"{one.path}")
        typer.echo(f"  {one.report.bytes:,} bytes, sha256 {one.report.sha256}")
        typer.echo(f"  read back and checked against the annotations: {one.report.verdict}")
        for line in one.report.scored():
            typer.echo(line)
    for stamp in benchmark.stamps:
        typer.echo(f"  not comparable: {stamp}")
    if benchmark.labelled:
        typer.echo("the labels of this split are public: nothing to upload, the servers take the test split only")
        return
    for line in find(benchmark.name).advice(benchmark):
        typer.echo(line)


def told(one: Written) -> dict[str, Any]:
    """Describe a written file for `--json`."""
    return {**one.report.plain(), "provenance": str(one.provenance)}


def _stem(benchmark: Benchmark, run: str, fingerprint: str) -> str:
    """Name a file after split, run and fingerprint."""
    return f"{benchmark.name}/{run}".replace("/", "-") + f"-{fingerprint}"
