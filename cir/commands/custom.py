"""`cir data new`: a benchmark of one's own."""

import shlex
from pathlib import Path

import typer


def main(
    name: str, queries: Path, images: Path, gallery: Path | None, root: Path, remove_reference: bool, overwrite: bool
) -> None:
    """Make the benchmark, say what it is, and what to type next."""
    from cir.data.custom_new import new

    made = new(
        name, queries, images, root=root, gallery=gallery, remove_reference=remove_reference, overwrite=overwrite
    )
    labels = "" if made.labelled else ", labels hidden"
    typer.echo(f"{made.name}  {len(made.queries):,} queries{labels}, gallery of {len(made.gallery):,} images")
    typer.echo(f"  folder    {root / made.name}")
    typer.echo(f"  images    {images}")
    typer.echo(f"  protocol  {made.protocol}")
    typer.echo("next:")
    place = shlex.quote(str(root))
    typer.echo(f"  cir data check {made.name} --root {place}")
    typer.echo(f"  cir evaluate --method sum --backbone openai/clip-vit-base-patch32 --data {place} {made.name}")
    if made.labelled:
        typer.echo(f"  cir score {made.name} --data {place} --queries q.npz --gallery g.npz")
