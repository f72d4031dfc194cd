"""Image features computed once: a gallery's pictures through a frozen vision tower, into the feature cache."""

import hashlib
import os
import stat
import struct
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Float32
from PIL import Image
from torch import Tensor

from cir.backbones.base import ImageSide
from cir.backbones.store import CacheKey, Counters, FeatureCache
from cir.errors import InputError
from cir.progress import bar

__all__ = ["CacheKey", "Counters", "FeatureCache", "encode_gallery"]

UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, IndexError, struct.error, Image.DecompressionBombError)
"""What Pillow raises on a damaged picture."""


@runtime_checkable
class Opener(Protocol):
    """A picture that is no file of its own: called, it opens; as text, it is its name."""

    def __call__(self) -> Image.Image:
        """Open the picture; raises what Pillow raises."""
        ...


def input_size(backbone: ImageSide) -> tuple[int, int]:
    """Give width and height of what the vision tower takes."""
    height, width = backbone.preprocess(Image.new("RGB", (32, 32))).shape[-2:]
    return width, height


Stamp = Literal["stat", "hash"]
"""How a changed picture is noticed: by size and modification time, or by its content (reads every file)."""

Kind = Literal["image", "patches"]
"""What is kept of a picture: its joint features, or the vision tower's tokens (`Backbone.encode_patches`)."""


def encode_gallery(
    backbone: ImageSide,
    ids: Sequence[str],
    paths: Sequence[Path],
    cache: FeatureCache | None,
    *,
    batch_size: int = 64,
    workers: int | None = None,
    progress: bool = True,
    stamp: Stamp = "stat",
    kind: Kind = "image",
    openers: Sequence[Path | Opener] | None = None,
    marks: Sequence[str] = (),
) -> Float[np.ndarray, "n t d"]:
    """Give the raw features of pictures, row i for `ids[i]` at `paths[i]`: a read-only memory map from the cache.

    With `kind="patches"` a row holds the picture's tokens, "n p v": two to three orders of magnitude more. `openers`
    are opened in place of the paths (parts of pictures); `marks`, one per row, say which and are part of the cache key.
    Pictures are decoded by threads a bounded number ahead of the tower; the result does not depend on the batch
    size beyond float rounding. The array is float32, or float16 where the cache stores that: widen it before
    multiplying. With `cache=None` everything is computed in memory, patches as float16. Raises InputError that names
    the first ten missing or unreadable pictures and says how many there are.
    """
    if len(ids) != len(paths):
        raise InputError(f"gallery: {len(ids):,} ids but {len(paths):,} paths")
    if batch_size < 1:
        raise InputError(f"batch_size {batch_size}: expected 1 or more")
    if not ids:
        shape = (0, backbone.vectors, backbone.width) if kind == "image" else (0, 0, backbone.vision_width)
        return np.zeros(shape, dtype=np.float32)
    workers = workers or min(8, os.cpu_count() or 1)
    opened = paths if openers is None else openers
    stamps = _stamps(paths, stamp, workers)
    if marks:
        stamps = tuple(" ".join(pair) for pair in zip(stamps, marks, strict=True))
    counters = Counters() if cache is None else cache.counters

    def compute(start: int) -> Generator[Float32[np.ndarray, "b t d"], None, None]:
        return _encode(backbone, opened, start, batch_size, workers, progress, counters, kind)

    if cache is None:
        kept = np.float32 if kind == "image" else np.float16
        return np.concatenate([block.astype(kept, copy=False) for block in compute(0)])
    dtype = str(backbone.dtype).removeprefix("torch.")
    key = CacheKey(backbone.fingerprint, backbone.preprocess_id, dtype, kind, tuple(ids), stamps)
    return cache.get(key, compute)


def _encode(
    backbone: ImageSide,
    paths: Sequence[Path | Opener],
    start: int,
    batch_size: int,
    workers: int,
    progress: bool,
    counters: Counters,
    kind: Kind = "image",
) -> Generator[Float32[np.ndarray, "b t d"], None, None]:
    """Yield the features of the pictures from `start` on, batch by batch.

    After the first unreadable picture the rest is only decoded, to list all of them at once.
    """
    failed: list[str] = []
    batch: list[Tensor] = []
    encode = backbone.encode_images if kind == "image" else backbone.encode_patches
    with (
        bar(len(paths), "encoding images", progress) as shown,
        closing(_decode_ahead(backbone, paths[start:], workers, ahead=2 * batch_size)) as decoded,
    ):
        shown.skip(start)
        for index, pixels in enumerate(decoded, start + 1):
            if isinstance(pixels, str):
                failed.append(pixels)
                batch.clear()
                continue
            counters.decoded += 1
            if failed:
                continue
            batch.append(pixels)
            if len(batch) == batch_size or index == len(paths):
                yield encode(torch.stack(batch)).cpu().numpy()
                counters.encoded += len(batch)
                shown.advance(len(batch))
                batch.clear()
    if failed:
        raise InputError(_listed("could not be read as pictures", failed))


def _decode_ahead(
    backbone: ImageSide, paths: Sequence[Path | Opener], workers: int, ahead: int
) -> Generator[Tensor | str, None, None]:
    """Decode in threads (Pillow releases the interpreter's lock), at most `ahead` pictures in front of the reader."""
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    waiting: deque[Future[Tensor | str]] = deque()
    try:
        for path in paths:
            waiting.append(pool.submit(_decode, backbone, path))
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _decode(backbone: ImageSide, path: Path | Opener) -> Tensor | str:
    """Turn a file into pixels, or say why not."""
    try:
        with Image.open(path) if isinstance(path, Path) else path() as image:
            return backbone.preprocess(image)
    except UNREADABLE as error:
        return f"{path} ({error or type(error).__name__})"


def _stamps(paths: Sequence[Path], stamp: Stamp, workers: int) -> tuple[str, ...]:
    """Fingerprint each file; InputError where some are absent."""
    read = _stat if stamp == "stat" else _content
    size = -(-len(paths) // (8 * workers))  # a task per file would cost five times what the look at the file does
    parts = [paths[start : start + size] for start in range(0, len(paths), size)]
    with ThreadPoolExecutor(workers) as pool:
        found = [mark for part in pool.map(lambda part: [read(path) for path in part], parts) for mark in part]
    missing = [str(path) for path, mark in zip(paths, found, strict=True) if mark is None]
    if missing:
        raise InputError(_listed("are missing", missing))
    return tuple(mark for mark in found if mark is not None)


def _stat(path: Path) -> str | None:
    """Give size and modification time, or none for what is no file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return f"{found.st_size}-{found.st_mtime_ns}" if stat.S_ISREG(found.st_mode) else None


def _content(path: Path) -> str | None:
    """Give a digest of the content, or none for what cannot be read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return None


def _listed(what: str, names: Sequence[str]) -> str:
    """Name the first ten and say how many there are."""
    more = f" and {len(names) - 10:,} more" if len(names) > 10 else ""
    return f"{len(names):,} images {what}: {', '.join(names[:10])}{more}"
