"""Parts of pictures as benchmarks define them: an image of a gallery may be a crop, not a file of its own."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from cir.errors import InputError, nearest
from cir.schema import View

DILATION = 0.7
"""Of GeneCIS's boxes (Vaze et al., CVPR 2023, arXiv:2306.07969)."""


def dilated_square(image: Image.Image, box: tuple[float, ...], size: tuple[int, int]) -> Image.Image:
    """Cut a box (left, top, width, height) enlarged by 0.7 out, and pad it with black to a square: GeneCIS.

    The right and lower edges are computed from the enlarged left and upper ones, as in the official code, so unless
    the picture ends there a crop grows only to the left and to the top. Grey pictures stay grey, all others become
    RGB first, so that black is black (in CMYK, zeros are white). Raises InputError where nothing of the picture lies
    in the box.
    """
    left, top, width, height = box
    left, top = max(0.0, left - DILATION * width), max(0.0, top - DILATION * height)
    right = min(float(image.width), left + (1 + DILATION) * width)
    bottom = min(float(image.height), top + (1 + DILATION) * height)
    edges = round(left), round(top), round(right), round(bottom)
    if edges[2] <= edges[0] or edges[3] <= edges[1]:
        raise InputError(
            f"box {box} leaves nothing of a picture of {image.width} x {image.height}; expected the original picture, "
            "not a smaller copy"
        )
    part = image.crop(edges)
    part = part if part.mode in ("L", "RGB") else part.convert("RGB")
    side = max(part.size)
    square = Image.new(part.mode, (side, side))
    square.paste(part, ((side - part.width) // 2, (side - part.height) // 2))
    return square


def squashed_region(image: Image.Image, box: tuple[float, ...], size: tuple[int, int]) -> Image.Image:
    """Cut a region (left, top, right, bottom) out and squash it to what the tower takes: Pic2Word's object queries.

    Edges lose their fractions, as in the official code (arXiv:2302.03084).
    """
    left, top, right, bottom = (int(edge) for edge in box)
    part = image.convert("RGB").crop((left, top, right, bottom))
    return part.resize(size, Image.Resampling.BICUBIC)


VIEWS: dict[str, Callable[[Image.Image, tuple[float, ...], tuple[int, int]], Image.Image]] = {
    "dilated-square": dilated_square,
    "squashed-region": squashed_region,
}
"""By `View.kind`: picture, box, and (width, height) of the tower's input."""


def outside(view: View, width: int, height: int) -> bool:
    """Say whether a view's box, as annotated, has no part of a picture of that size: it was made for another copy."""
    left, top, right, bottom = view.box
    if view.kind == "dilated-square":
        right, bottom = left + right, top + bottom
    return right <= 0 or bottom <= 0 or left >= width or top >= height


def seen(image: Image.Image, view: View, size: tuple[int, int]) -> Image.Image:
    """Apply a view to a decoded picture."""
    if view.kind not in VIEWS:
        raise InputError(f"view {view.kind!r}: {nearest(view.kind, VIEWS)}")
    return VIEWS[view.kind](image, view.box, size)


@dataclass(frozen=True, slots=True)
class Seen:
    """A picture file with its view; called, it opens."""

    path: Path
    view: View
    size: tuple[int, int]

    def __call__(self) -> Image.Image:
        """Decode and apply the view."""
        with Image.open(self.path) as image:
            image.load()
            return seen(image, self.view, self.size)

    def __str__(self) -> str:
        """Name file and view, for messages and keys."""
        return f"{self.path} ({self.view})"
