"""`cir import`: published checkpoints as folders of this project."""

from pathlib import Path

import typer

from cir import importers, runs


def main(
    format: str,
    file: Path,
    out: Path,
    backbone: str,
    preprocess: str,
    base: Path | None,
    tokenizer: str,
    vision: Path | None,
) -> None:
    """Import one file or folder and say what was found."""
    projector = runs.find_checkpoint(base) if base is not None else None
    done = importers.import_checkpoint(
        file, out, format, backbone=backbone, preprocess=preprocess, base=projector, tokenizer=tokenizer, vision=vision
    )
    for line in done.lines:
        typer.echo(line)
