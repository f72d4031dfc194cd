"""`cir data mask`: the object pictures that COCO composition asks with."""

from pathlib import Path

import typer

from cir.errors import InputError


def main(dataset: str, root: Path, workers: int, overwrite: bool) -> None:
    """Write what is missing, and say what was written and what was there."""
    from cir.data import coco, masking
    from cir.progress import track

    if dataset.split("/")[0] != "coco":
        raise InputError(f"data mask: {dataset!r} has no masked pictures; expected coco")
    counts = masking.write(
        root,
        workers=workers or None,
        overwrite=overwrite,
        progress=lambda listed: track(listed, description=f"writing {coco.MASKED}"),
    )
    typer.echo(f"{coco.MASKED}: {counts['written']:,} written, {counts['kept']:,} were there")
    if counts["foreign"]:
        typer.echo(
            f"{counts['foreign']:,} were made elsewhere and were kept: nothing in them says which object they show; "
            "--overwrite writes them anew"
        )
