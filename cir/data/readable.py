"""A look at every picture of a source, once: which ones cannot be decoded."""

import os
import struct
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from jaxtyping import Bool
from PIL import Image

from cir.data.bad import SHOWN, Bad
from cir.data.keep import digest, locked
from cir.data.pictures import Part, Pictures
from cir.errors import RunError
from cir.progress import bar

UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, IndexError, struct.error, Image.DecompressionBombError)
"""What Pillow raises on a damaged picture."""
CHUNK = 1024
"""Pictures between two points from which an interrupted look can go on."""


def without_damaged(pictures: Pictures, keep: Path | None, progress: bool) -> Pictures:
    """Leave out the pictures that cannot be decoded, counted as `damaged`; the first ten are named with the reason."""
    good = _looked(pictures, keep, progress)
    gone = np.flatnonzero(~good)
    if not len(gone):
        return pictures
    bad = Bad(pictures.bad.counts, pictures.bad.first)
    for row in gone[:SHOWN].tolist():
        bad.add("damaged", f"{pictures.name(row)}: {trouble(pictures, row) or 'readable by now'}")
    if len(gone) > SHOWN:
        bad.add("damaged", "", len(gone) - SHOWN)
    return Part(pictures, np.flatnonzero(good).astype(np.int64), bad)


def trouble(pictures: Pictures, row: int) -> str:
    """Say why a picture cannot be decoded, empty where it can."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd metadata
            with pictures.open(row) as image:
                decode(image)
    except UNREADABLE as error:
        return str(error) or type(error).__name__
    return ""


def decode(image: Image.Image) -> None:
    """Decode an opened picture as cheaply as shows whether it can be: its size may be another one afterwards."""
    image.draft("RGB", (32, 32))  # a JPEG's whole stream is read, an eighth of its pixels is made
    image.load()


def _looked(pictures: Pictures, keep: Path | None, progress: bool) -> Bool[np.ndarray, " n"]:
    """Look at every picture, or read what a look has found before: a byte per picture, growing as it goes on."""
    if keep is None:
        return np.concatenate([np.zeros(0, dtype=bool), *_chunks(pictures, 0, progress)])
    path = keep / f"readable-{digest(pictures.stamp)}.bin"
    if not _whole(path, len(pictures)):
        with locked(path.with_suffix(".lock")):
            part = path.with_suffix(".part")
            done = part.stat().st_size if part.exists() else 0
            if not _whole(path, len(pictures)):
                try:
                    with open(part, "ab") as file:
                        for chunk in _chunks(pictures, done, progress):
                            file.write(chunk.astype(np.uint8).tobytes())
                            file.flush()
                    os.replace(part, path)
                except OSError as error:
                    raise RunError(f"{path}: could not be written ({error}); is the disk full?") from None
    return np.fromfile(path, dtype=np.uint8).astype(bool)


def _whole(path: Path, count: int) -> bool:
    return path.is_file() and path.stat().st_size == count


def _chunks(pictures: Pictures, start: int, progress: bool) -> Iterator[Bool[np.ndarray, " c"]]:
    """Decode with threads, chunk by chunk from a row on."""
    with (
        ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool,
        bar(len(pictures), "looking at images", progress) as shown,
    ):
        shown.skip(start)
        for first in range(start, len(pictures), CHUNK):
            rows = range(first, min(first + CHUNK, len(pictures)))
            found = list(pool.map(lambda row: trouble(pictures, row), rows))
            yield np.array([not each for each in found], dtype=bool)
            shown.advance(len(found))
