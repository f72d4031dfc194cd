"""`cir compare-protocols`: one model's numbers under every protocol its benchmark goes by."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import typer

from cir import data
from cir.errors import InputError
from cir.protocol_comparison import Comparison, Load, Source, compare
from cir.schema import Benchmark
from cir.score import write_json

HEAD = ("protocol", "gallery", "metric", "value", "change", "95 % interval")


def main(
    arguments: Sequence[str],
    method: str,
    backbone: str,
    root: Path | None,
    queries: Path | None,
    gallery: Path | None,
    json: Path | None,
) -> None:
    """Compare, print a table per benchmark, and write everything as JSON where asked for."""
    if (queries is None) != (gallery is None):
        raise InputError("compare-protocols: vectors are two files, --queries and --gallery; one of them is missing")
    if queries is not None and gallery is not None:
        names, load, source = _given(arguments, method or backbone, root, queries, gallery)
    else:
        names, load, source = _composed(arguments, method, backbone, root)
    found = []
    for name in names:
        found.append(compare(name, load, source))
        typer.echo("\n".join(lines(found[-1])) + "\n")
    if json is not None:
        write_json(json, {"comparisons": [one.plain() for one in found]})


def _given(
    arguments: Sequence[str], model: str, root: Path | None, queries: Path, gallery: Path
) -> tuple[list[str], Load, Source]:
    """Take vectors from files."""
    from cir.protocol_comparison.given import Given

    if len(arguments) != 1 or "=" in arguments[0] or model:
        raise InputError(
            "compare-protocols: with --queries and --gallery, name one benchmark, and no model or override"
        )
    data.expand(arguments[0])

    def load(name: str, protocol: str) -> Benchmark:
        return data.load(name, root or Path("datasets"), protocol=protocol)

    return [arguments[0]], load, Given(queries, gallery)


def _composed(
    arguments: Sequence[str], method: str, backbone: str, root: Path | None
) -> tuple[list[str], Load, Source]:
    """Compose vectors with a run, a checkpoint or a baseline, as `cir evaluate` would."""
    from cir import runs
    from cir.commands.evaluate import configured, sort_out
    from cir.protocol_comparison.composed import Composed

    target, names, overrides = sort_out(arguments)
    options = [f"backbone.name={backbone}"] if backbone else []
    options += [f"data.root={root}"] if root is not None else []
    config, trained = configured(target, method, [*options, *overrides])
    names = names or list(config.evaluate)
    if not names:
        raise InputError("compare-protocols: no benchmark named; for example `cir compare-protocols CONFIG cirr/val`")
    for name in names:
        data.expand(name)  # a wrong name is told before weights are read
    loaded = runs.load_backbone(config)
    built = runs.build(config, loaded) if trained is None else runs.load_trained(trained, loaded)[0]
    composed = Composed(config, loaded, built)
    return names, composed.load, composed


def lines(comparison: Comparison) -> Iterator[str]:
    """Set a comparison as a table, and a sentence per protocol below it."""
    default = comparison.rows[0].protocol
    counts = {row.queries for row in comparison.rows if row.queries}
    asked = f"{counts.pop():,} queries" if len(counts) == 1 else "numbers of queries differ"
    yield f"{comparison.benchmark}: {asked}; percent, change in points against {default}"
    table = [HEAD, *_cells(comparison)]
    widths = [max(len(row[column]) for row in table) for column in range(len(HEAD))]
    left = (True, False, True, False, False, False)
    for cells in table:
        aligned = zip(cells, widths, left, strict=True)
        yield "  ".join(cell.ljust(width) if at else cell.rjust(width) for cell, width, at in aligned).rstrip()
    for row in comparison.rows:
        yield f"{row.protocol} v{row.version}: {row.differs}"
        if row.reason:
            yield f"  not run: {row.reason}"
        yield from (f"  not comparable: {stamp}" for stamp in row.stamps)


def _cells(comparison: Comparison) -> Iterator[tuple[str, ...]]:
    """List the table's rows: a metric each; a protocol and its gallery are named once."""
    for row in comparison.rows:
        if row.reason:
            yield row.protocol, "-", "not run", "", "", ""
        for number, (metric, value) in enumerate(row.means.items()):
            named = (row.protocol, f"{row.gallery:,}") if number == 0 else ("", "")
            change = row.changes.get(metric)
            moved = (f"{change.difference:+.2f}", f"[{change.low:+.2f}, {change.high:+.2f}]") if change else ("", "")
            yield *named, metric, f"{value:.2f}", *moved
