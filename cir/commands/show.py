"""Printing a few records on the terminal."""

from collections.abc import Sequence

import typer

from cir.records import Record


def show(records: Sequence[Record]) -> None:
    """Print each record: what was measured, each mean with its interval, stamps."""
    for record in records:
        bench, protocol = record.benchmark, record.protocol
        typer.echo(
            f"{record.run} on {bench.name}: {bench.queries:,} queries, {bench.gallery:,} images, "
            f"protocol {protocol.name} v{protocol.version}, percent with 95 % interval"
        )
        for metric, mean in record.means.items():
            typer.echo(f"  {metric:<8} {mean.mean:6.2f}  [{mean.low:.2f}, {mean.high:.2f}]")
        if not record.means:
            typer.echo("  labels are hidden: rankings only")
        for stamp in bench.stamps:
            typer.echo(f"  not comparable: {stamp}")
