"""`cir data`: benchmarks on disk, what was found and what is missing."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from cir.commands.shell import SETTINGS, command

app = typer.Typer(help="Benchmarks on disk: what was found, what is missing.", **SETTINGS)

Name = Annotated[str, typer.Argument(help="For example cirr/val or fashioniq/val.")]
Root = Annotated[Path, typer.Option(help="Folder that holds the datasets, or the dataset itself.")]


@command(app, "show", "cir data show cirr/val --root /data")
def show(
    benchmark: Name,
    root: Root = Path("datasets"),
    allow_missing: Annotated[bool, typer.Option("--allow-missing", help="Show partial data too.")] = False,
) -> None:
    """Show what a benchmark holds and where it lies; no image is opened."""
    from cir import data

    for name in data.expand(benchmark):
        found = data.load(name, root, allow_missing=allow_missing)
        labels = "" if found.labelled else ", labels hidden"
        typer.echo(f"{found.name}  {len(found.queries):,} queries{labels}, gallery of {len(found.gallery):,} images")
        typer.echo(f"  root      {found.root}")
        typer.echo(f"  version   {found.version}, fingerprint {found.fingerprint}")
        typer.echo(f"  protocol  {found.protocol}")
        for query in found.queries[:1]:
            where = found.paths.get(query.reference, "no file known")
            typer.echo(f"  first     {query.id}: {query.reference} ({where}), {' | '.join(query.texts)!r}")
        for note in found.notes:
            typer.echo(f"  note      {note}")
        for stamp in found.stamps:
            typer.echo(f"  stamp     {stamp}")


@command(app, "check", "cir data check circo/val --root /data")
def check(benchmark: Name, root: Root = Path("datasets")) -> None:
    """Check the counts of a benchmark and the header of every image file."""
    from cir import data
    from cir.data import images
    from cir.progress import track

    for name in data.expand(benchmark):
        found = data.load(name, root)
        images.check(found, progress=partial(track, description=f"checking {name}"))
        typer.echo(f"{found.name}: {len(found.queries):,} queries and {len(found.paths):,} images are all there")
