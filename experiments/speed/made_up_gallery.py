"""What the image benchmark works on: JPEGs of photos' sizes that look like nothing, a small random tower, a benchmark.

Pictures are cheap and distinct: a few hundred random colours blown up, with a film of grain whose place is drawn per
picture; about 36 KB each. All are a function of their number, so that a folder is filled up where it was left.
"""

import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from cir import data
from cir.progress import track
from cir.schema import Benchmark, Query

SIZES = ((640, 480), (480, 640), (640, 427), (640, 480), (500, 375))
GRAIN = 4.0
"""Standard deviation in grey levels: what makes a picture of 640 x 480 about 36 KB large."""
QUERIES = 220
PART = 256
"""Pictures a process makes at a time."""


@cache
def _grain() -> np.ndarray:
    """Noise larger than any picture, of which each takes a window."""
    return np.random.default_rng(0).normal(0, GRAIN, (1024, 1024, 1)).astype(np.float32)


def picture(number: int) -> Image.Image:
    """Draw one."""
    random = np.random.default_rng(number)
    width, height = SIZES[number % len(SIZES)]
    colours = random.integers(0, 256, (12, 16, 3), dtype=np.uint8)
    coarse = np.asarray(Image.fromarray(colours).resize((width, height), Image.Resampling.BICUBIC))
    top, left = random.integers(0, 1024 - 640, 2)
    grain = _grain()[top : top + height, left : left + width]
    return Image.fromarray(np.clip(coarse + grain, 0, 255).astype(np.uint8))


def _write(job: tuple[Path, list[int]]) -> int:
    """Write the pictures of these numbers that are not there yet; one is there whole or not at all."""
    folder, numbers = job
    for number in numbers:
        file = folder / name(number)
        if not file.exists():
            partial = file.with_suffix(".tmp")
            picture(number).save(partial, "JPEG", quality=75)
            os.replace(partial, file)
    return len(numbers)


def name(number: int) -> str:
    """Name a file as COCO does."""
    return f"{number:012d}.jpg"


def fill(folder: Path, numbers: list[int]) -> None:
    """Make all pictures, with a process per core."""
    folder.mkdir(parents=True, exist_ok=True)
    there = {entry.name for entry in os.scandir(folder)}
    absent = [number for number in numbers if name(number) not in there]
    jobs = [(folder, absent[start : start + PART]) for start in range(0, len(absent), PART)]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for _ in track(pool.map(_write, jobs), len(jobs), f"making {len(absent):,} pictures", bool(jobs)):
            pass


def benchmark(folder: Path, images: int, root: Path | None) -> Benchmark:
    """CIRCO's val queries and gallery, cut to `images`, where its annotations are; else made-up ids of that number."""
    if root is not None:
        whole = data.load("circo/val", root)
    else:
        ids = tuple(str(7 * number + 3) for number in range(images))
        asked = tuple(
            Query(str(i), ids[3 * i], ("is bigger",), ids[3 * i + 1 : 3 * i + 3])
            for i in range(min(QUERIES, images // 3))
        )
        whole = Benchmark("circo/made-up", "1", "val", "circo", asked, ids, folder, dict.fromkeys(ids, ""))
    return _cut(whole, folder, images)


def _cut(whole: Benchmark, folder: Path, images: int) -> Benchmark:
    """Keep the first queries whose images fit, and a gallery of these and the first others; files lie in `folder`."""
    kept: dict[str, None] = {}
    queries = []
    for query in whole.queries:
        more = kept | dict.fromkeys((query.reference, *query.targets))
        if len(more) <= images:
            kept = more
            queries.append(query)
    for image in whole.gallery:
        if len(kept) >= images:
            break
        kept[image] = None
    gallery = tuple(image for image in whole.gallery if image in kept)
    paths = {image: name(int(image)) for image in gallery}
    return replace(whole, queries=tuple(queries), gallery=gallery, root=folder, paths=paths)


def tower(folder: Path) -> Path:
    """Write a CLIP with random weights that sees 224 pixels, 64 wide, so that what is measured is the way to it."""
    from cir.backbones.tiny import TinyClip
    from cir.world import tokenizer

    if not (folder / "preprocessor_config.json").is_file():  # written last
        tokenizer.build(folder, size=2000)
        TinyClip(folder, width=64, image=224, patch=32).save(folder, scale=100.0)
    return folder
