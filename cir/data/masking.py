"""The objects of COCO composition on white: writes `val2017_masked/` for the regions of a `coco_eval.csv`.

A masked picture is the whole picture with everything but one object white, as JPEG of Pillow's default quality, as in
the script that draws the regions (arXiv:2302.03084, released code). The region's box stands in the file's comment, so
that a file of another draw is not taken for this one's.
"""

import io
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Bool
from PIL import Image

from cir.data import coco, layout
from cir.data.annotations import Row, read_json, typed
from cir.data.images import open_image
from cir.data.segmentation import mask
from cir.errors import InputError, RunError
from cir.files import replace_file

INSTANCES = ("annotations/instances_val2017.json", "instances_val2017.json")
SLACK = 0.02
"""Pixels by which an annotation's box may differ from a row's: both are written with few decimals."""
WHITE = 255

Outcome = Literal["written", "kept", "foreign"]
"""`kept`: was there, of this region; `foreign`: was there, and nothing in it says of which region."""


@dataclass(frozen=True, slots=True)
class Object:
    """What one masked picture is made of."""

    region: coco.Region
    annotation: Row
    size: tuple[int, int]
    """Height and width of the picture, by the annotation file."""


def objects(base: Path) -> list[Object]:
    """Find the annotation of every region, by image and box; where boxes are equal, the class decides.

    Raises InputError where the annotation file lacks an image or an object, with the region's line.
    """
    regions = coco.read(base / coco.FILE)
    file = next((base / place for place in INSTANCES if (base / place).is_file()), base / INSTANCES[0])
    content = Row(typed(read_json(file), dict, str(file)), str(file))
    sizes, numbers = {}, {}
    for row in _rows(content, "images"):
        numbers[row.get("file_name", str)] = row.get("id", int)
        sizes[row.get("id", int)] = row.get("height", int), row.get("width", int)
    kinds = {row.get("id", int): row.get("name", str) for row in _rows(content, "categories")}
    wanted = {numbers[region.image] for region in regions if region.image in numbers}
    found: dict[int, list[Row]] = {number: [] for number in wanted}
    for row in _rows(content, "annotations"):
        if row.get("image_id", int) in wanted:
            found[row.data["image_id"]].append(row)
    chosen = []
    for region in regions:
        if region.image not in numbers:
            raise InputError(f"{region.where}: {region.image} is no image of {file}; expected images of val2017")
        number = numbers[region.image]
        chosen.append(Object(region, _match(region, found[number], kinds, file), sizes[number]))
    return chosen


def write(
    root: Path,
    *,
    workers: int | None = None,
    overwrite: bool = False,
    progress: Callable[[Sequence[Object]], Iterable[object]] = iter,
) -> dict[Outcome, int]:
    """Write the masked pictures that are not there yet, and count what was done; `progress` wraps the list of objects.

    `root` is the folder of COCO or the one it lies in. Every file appears whole; an interrupted run goes on where it
    stopped. Files of another draw that were written here are replaced; files made elsewhere stay, unless `overwrite`.
    """
    base, _ = layout.find(root, coco.SOURCE.folders, (coco.FILE,))
    listed = objects(base)
    counts: dict[Outcome, int] = {"written": 0, "kept": 0, "foreign": 0}
    pool = ThreadPoolExecutor(workers or os.cpu_count(), thread_name_prefix="mask")
    try:
        outcomes = pool.map(lambda one: _one(base, one, overwrite), listed)
        for _, outcome in zip(progress(listed), outcomes, strict=True):
            counts[outcome] += 1
    finally:
        pool.shutdown(cancel_futures=True)
    return counts


def on_white(image: Image.Image, inside: Bool[np.ndarray, "height width"]) -> Image.Image:
    """Make everything outside a mask white; grey pictures stay grey, all others become RGB."""
    image = image if image.mode in ("L", "RGB") else image.convert("RGB")
    pixels = np.asarray(image)
    kept = inside if pixels.ndim == 2 else inside[:, :, None]
    return Image.fromarray(np.where(kept, pixels, np.uint8(WHITE)))


def _one(base: Path, one: Object, overwrite: bool) -> Outcome:
    """Write one masked picture, unless it is there."""
    path = base / coco.MASKED / one.region.image
    comment = ";".join(map(str, one.region.box)).encode()
    if not overwrite and (there := _comment(path)) is not None and there in (comment, b""):
        return "kept" if there else "foreign"
    image = open_image(base, f"{coco.IMAGES}/{one.region.image}", one.region.image)
    if (image.height, image.width) != one.size:
        raise InputError(
            f"{base / coco.IMAGES / one.region.image}: {image.width} x {image.height} pixels, the annotations say "
            f"{one.size[1]} x {one.size[0]}; expected the original picture"
        )
    _save(on_white(image, mask(one.annotation, *one.size)), path, comment)
    return "written"


def _comment(path: Path) -> bytes | None:
    """Read which region a masked picture says it shows: empty where it says nothing, None where there is no picture."""
    try:
        with Image.open(path) as image:
            comment = image.info.get("comment", b"")
            return comment if isinstance(comment, bytes) and comment.count(b";") == 3 else b""
    except (OSError, ValueError, SyntaxError):
        return None


def _save(image: Image.Image, path: Path, comment: bytes) -> None:
    """Write a JPEG whole or not at all."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        written = io.BytesIO()
        image.save(written, "JPEG", comment=comment)
        replace_file(path, written.getvalue())
    except OSError as error:
        raise RunError(f"{path}: could not be written ({error.strerror}); is the disk full?") from None


def _rows(content: Row, key: str) -> Iterator[Row]:
    """Go through a list of objects of the annotation file."""
    for index, data in enumerate(content.many(key, dict)):
        yield Row(data, f"{content.where}, {key}[{index}]")


def _match(region: coco.Region, rows: Sequence[Row], kinds: dict[int, str], file: Path) -> Row:
    """Find the annotation with a region's box."""
    near = [row for row in rows if np.abs(np.subtract(_box(row), region.box)).max() <= SLACK]
    if not near:
        box = ";".join(map(str, region.box))
        raise InputError(
            f"{region.where}: no object of {region.image} has the box {box} in {file}; expected the annotations that "
            f"{coco.FILE} was drawn from"
        )
    same = [row for row in near if kinds.get(row.get("category_id", int)) == region.kind]
    return (same or near)[0]


def _box(row: Row) -> tuple[float, ...]:
    """Read an annotation's box as left, top, right, bottom."""
    numbers = row.get("bbox", list)
    if len(numbers) != 4 or not all(isinstance(number, (int, float)) for number in numbers):
        raise InputError(f"{row.where}: bbox is {numbers}; expected x, y, width, height")
    left, top, width, height = map(float, numbers)
    return left, top, left + width, top + height
