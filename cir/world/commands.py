"""What the `cir world` commands do."""

import random
import textwrap
from pathlib import Path

import typer
from PIL import Image, ImageDraw

from cir.errors import InputError, nearest
from cir.progress import bar
from cir.world import corpus, layouts, pictures
from cir.world.grammar import ALL, caption
from cir.world.render import SIDE, draw
from cir.world.scenes import sample_scene

SIZES = {"full": 1.0, "small": 0.1}
_IMAGES = {"full": 17_600, "small": 1_800}  # about, for the progress bar


def build(out: Path, seed: int = 0, size: str = "full", train: bool = True) -> None:
    """Write the benchmarks and what methods learn from; what is there is kept, what is missing is added.

    Without `train`, no train splits in the benchmarks' layouts: they take as long to draw as the benchmarks.
    """
    if size not in SIZES:
        raise InputError(f"size {size!r} is unknown; {nearest(size, SIZES)}")
    with bar(_IMAGES[size], "drawing the world") as shown:
        wrote = layouts.build(out, seed, SIZES[size], shown.advance)
    lacking = sum(layouts.lacking(out).values()) if train else 0
    if lacking:
        with bar(lacking, "drawing the train splits") as shown:
            layouts.add_train(out, shown.advance)
    folder = out / "corpus"
    todo = pictures.missing(folder / "images", SIZES[size])
    with bar(todo, "drawing pictures to train on", enabled=todo > 0) as shown:
        found = corpus.write(folder, seed, SIZES[size], shown.advance)
    typer.echo(f"{'wrote' if wrote else 'kept'} {out}: FashionIQ, CIRR and CIRCO layouts")
    if train:
        typer.echo(f"{'drew' if lacking else 'kept'} the train splits fashioniq/train and cirr/train")
    typer.echo(f"to train on: texts {found.captions}, {found.triplets}; pictures {found.images}; "
               f"concepts {found.concepts}, {found.phrases}")  # fmt: skip


MODELS = ("clip", "blip2")


def pretrain(out: Path, seed: int = 0, steps: int | None = None, smoke: bool = False, model: str = "clip") -> None:
    """Train the tiny CLIP from scratch, or the tiny BLIP-2 on its vision tower, and print what it scores."""
    if model not in MODELS:
        raise InputError(f"model {model!r} is unknown; {nearest(model, MODELS)}")
    if model == "clip":
        from cir.world.pretrain import STEPS, pretrain

        stages = (4, 4) if smoke else (STEPS[0], steps or STEPS[1])
        scores = pretrain(out, seed, stages, 0.01 if smoke else 1.0)
    else:
        from cir.world import pretrain_blip2

        first, second, third = pretrain_blip2.STEPS
        parts = (4, 4, 4) if smoke else (first, steps or second, third)
        scores = pretrain_blip2.pretrain(out, seed, parts, 0.01 if smoke else 1.0, scenes=50 if smoke else 500)
    for name, value in scores.items():
        typer.echo(f"{name:<28} {value:.4f}")
    typer.echo(f"model: {out / 'model'}")


def sheet(out: Path, seed: int = 0, columns: int = 8, rows: int = 4) -> None:
    """Draw scenes, twice their size, with a caption under each."""
    rng, side = random.Random(seed), 2 * SIDE
    page = Image.new("RGB", (columns * (side + 12), rows * (side + 44)), "white")
    pen = ImageDraw.Draw(page)
    for index in range(columns * rows):
        scene = sample_scene(rng)
        x, y = index % columns * (side + 12) + 6, index // columns * (side + 44) + 4
        page.paste(Image.fromarray(draw(scene, index)[0]).resize((side, side), Image.Resampling.NEAREST), (x, y))
        lines = textwrap.wrap(caption(scene, rng, ALL), 24, max_lines=3, placeholder=" …")
        pen.multiline_text((x, y + side + 1), "\n".join(lines), fill="black", font_size=9, spacing=1)
    page.save(out)
    typer.echo(f"drew {columns * rows} scenes: {out}")
