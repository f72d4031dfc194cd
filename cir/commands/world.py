"""`cir world`: the bundled world, a benchmark with exact ground truth, and the model trained on it."""

from pathlib import Path
from typing import Annotated

import typer

from cir.commands.shell import SETTINGS, command

app = typer.Typer(help="The bundled world: a benchmark with exact ground truth, made from a seed.", **SETTINGS)


@command(app, "build", "cir world build datasets/world --seed 0")
def build(
    out: Annotated[Path, typer.Argument(help="Folder for benchmarks and training texts.")] = Path("datasets/world"),
    seed: Annotated[int, typer.Option(help="Everything follows from it.")] = 0,
    size: Annotated[str, typer.Option(help="How large a world.")] = "full",
) -> None:
    """Build the world's benchmarks in the layouts of FashionIQ, CIRR and CIRCO, and its training texts."""
    from cir.world.commands import build

    build(out, seed=seed, size=size)


@command(app, "pretrain", "cir world pretrain runs/tiny-clip --seed 0")
def pretrain(
    out: Annotated[Path, typer.Argument(help="Folder for the checkpoint.")],
    seed: Annotated[int, typer.Option(help="Seed of weights and data order.")] = 0,
    steps: Annotated[int | None, typer.Option(help="Steps; default as in the model card.")] = None,
    smoke: Annotated[bool, typer.Option("--smoke", help="A few steps, to see that it runs.")] = False,
    model: Annotated[str, typer.Option(help="clip, or blip2: made from the bundled CLIP's vision tower.")] = "clip",
) -> None:
    """Train a bundled model from scratch on the world; resumes by itself."""
    from cir.world.commands import pretrain

    pretrain(out, seed=seed, steps=steps, smoke=smoke, model=model)


@command(app, "sheet", "cir world sheet sheet.png")
def sheet(
    out: Annotated[Path, typer.Argument(help="PNG to write.")],
    seed: Annotated[int, typer.Option(help="Seed of the scenes.")] = 0,
) -> None:
    """Draw a sheet of scenes with their captions, to look at."""
    from cir.world.commands import sheet

    sheet(out, seed=seed)
