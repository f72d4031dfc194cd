"""Opening a benchmark's pictures to look at them: small, in RGB, cut where an image is a part of its file."""

from collections.abc import Callable
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from cir.errors import InputError
from cir.schema import Benchmark, View

Part = Callable[[Image.Image, View, tuple[int, int]], Image.Image]
"""Cuts a view out of a picture, given the (width, height) it is wanted for where it has none of its own."""


def opened(benchmark: Benchmark, name: str, side: int, part: Part | None = None) -> Image.Image | None:
    """Open one image at no more than `side` pixels, what is transparent on white; None where no file can be read.

    Raises `InputError` for a path that leads out of the data folder.
    """
    relative = Path(benchmark.paths.get(name, ""))
    if relative.is_absolute() or ".." in relative.parts:
        raise InputError(f"{benchmark.name}: image {name!r} lies at {str(relative)!r}, outside the data folder")
    try:
        with Image.open(benchmark.root / relative) as image:
            view = benchmark.views.get(name) if part is not None else None
            if view is None:
                image.draft("RGB", (2 * side, 2 * side))
            cut = image if view is None or part is None else part(image, view, (side, side))
            transparent = "transparency" in image.info or "A" in image.mode
            shown = cut.convert("RGBA" if transparent else "RGB")
    except (OSError, UnidentifiedImageError):
        return None
    if shown.mode == "RGBA":
        white = Image.new("RGBA", shown.size, "white")
        shown = Image.alpha_composite(white, shown).convert("RGB")
    shown.thumbnail((side, side), Image.Resampling.LANCZOS)
    return shown
