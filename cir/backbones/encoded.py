"""Images to learn from, seen through the frozen backbone: what `cir.methods.base.Images` asks for, made of files."""

import dataclasses
import os
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from threading import Lock
from typing import Any, Protocol, overload, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Float32
from PIL import Image
from torch import Tensor

from cir.backbones.base import Backbone, one_vector
from cir.backbones.cache import UNREADABLE, CacheKey, Counters, FeatureCache, _encode, input_size
from cir.backbones.crops import ATTEMPTS, crop
from cir.errors import InputError
from cir.randomness import StepRandom


@runtime_checkable
class Pictures(Protocol):
    """Pictures by row; `cir.data.pictures` reads them from folders, shards, tables and data sets."""

    fingerprint: str
    """Changes with names, order, sizes and captions."""
    stamp: str
    """Changes with the fingerprint and with the files' modification times: the key of cached features."""
    blocks: tuple[int, ...]
    """Lengths of the runs of rows that lie together on disk; empty where there are none."""
    bad: Any
    """What was left out; false where nothing was."""

    def __len__(self) -> int:
        """Count the pictures."""
        ...

    def name(self, row: int) -> str:
        """Name a picture."""
        ...

    def text(self, row: int) -> str:
        """Return a picture's caption, empty where there is none."""
        ...

    def open(self, row: int) -> Image.Image:
        """Open a picture; raises what Pillow raises on what is damaged, here or when it is decoded."""
        ...


class EncodedImages:
    """A picture source through a frozen backbone.

    Features of the plain pictures are computed once, for all rows, and memory-mapped from `cache` (without one they
    are kept in memory). Crops and patch tokens are encoded when asked for; their pictures are decoded by `workers`
    threads (0: as many as there are cores, at most 16) while the tower computes. Any damaged picture is an
    `InputError` that names it: what a source may leave out is left out before (`cir.data.pictures.load`). Rows may be
    asked for from several threads.
    """

    def __init__(
        self,
        backbone: Backbone,
        pictures: Pictures,
        cache: FeatureCache | None,
        *,
        workers: int = 0,
        batch_size: int = 64,
        progress: bool = True,
    ) -> None:
        self.backbone, self.pictures, self.cache = backbone, pictures, cache
        self.workers = workers or min(16, os.cpu_count() or 1)
        self.batch_size, self.progress = batch_size, progress
        self.fingerprint = pictures.fingerprint
        self.blocks = pictures.blocks
        self.bad = pictures.bad
        self._lock = Lock()
        self._features: np.ndarray | None = None

    def __len__(self) -> int:
        """Count the images."""
        return len(self.pictures)

    def name(self, row: int) -> str:
        """Name an image: a path relative to its root, or a key of its shard."""
        return self.pictures.name(row)

    def text(self, row: int) -> str:
        """Return an image's caption, empty where the source has none."""
        return self.pictures.text(row)

    def features(self, rows: Sequence[int]) -> Float32[Tensor, "b d"]:
        """Return raw features of the plain pictures on the backbone's device, one per image (`one_vector`)."""
        chosen = np.asarray(self._table()[np.asarray(rows, dtype=np.int64)], dtype=np.float32)
        return one_vector(torch.from_numpy(chosen).to(self.backbone.device))

    def augmented(self, rows: Sequence[int], random: StepRandom) -> Float32[Tensor, "b d"]:
        """Return raw features of random crops (`cir.backbones.crops`), drawn per row of the step."""
        # Drawn on the CPU whatever the device: the same crops everywhere, and no waiting for the device.
        drawn = dataclasses.replace(random, device=torch.device("cpu")).uniform("crop", ATTEMPTS, 4)
        if len(drawn) != len(rows):
            raise InputError(f"augmented: {len(rows)} rows, but the step's random numbers are for {len(drawn)}")

        def pixels(place: int) -> Tensor:
            image = crop(self._decoded(rows[place]), self._size, drawn[place])
            return self.backbone.preprocess(image)  # of the right size already: only the normalisation is left

        return one_vector(self._encoded(pixels, len(rows), self.backbone.encode_images))

    def patches(self, rows: Sequence[int]) -> Float32[Tensor, "b p v"]:
        """Return the last block's tokens before the final norm, class token first, of the plain pictures."""
        return self._encoded(
            lambda place: self.backbone.preprocess(self._decoded(rows[place])), len(rows), self.backbone.encode_patches
        )

    def _table(self) -> Float[np.ndarray, "n t d"]:
        """Compute the features of all rows, or map what is there."""
        with self._lock:
            if self._features is None:
                self._features = self._all_features()
            return self._features

    def _all_features(self) -> Float[np.ndarray, "n t d"]:
        counters = Counters() if self.cache is None else self.cache.counters
        openers = _Openers(self.pictures, range(len(self)))

        def compute(start: int) -> Generator[Float32[np.ndarray, "b t d"], None, None]:
            return _encode(self.backbone, openers, start, self.batch_size, self.workers, self.progress, counters)

        if self.cache is None:
            return np.concatenate(list(compute(0)))
        return self.cache.get(self._key(), compute)

    def _key(self) -> CacheKey:
        dtype = str(self.backbone.dtype).removeprefix("torch.")
        identity = (self.pictures.stamp,)
        preprocess = self.backbone.preprocess_id
        return CacheKey(self.backbone.fingerprint, preprocess, dtype, "image", count=len(self), identity=identity)

    @cached_property
    def _size(self) -> tuple[int, int]:
        """Width and height of what the tower takes."""
        return input_size(self.backbone)

    def _decoded(self, row: int) -> Image.Image:
        """Decode one picture in full; InputError where it is damaged."""
        try:
            with self.pictures.open(row) as image:
                image.load()
                return image
        except UNREADABLE as error:
            reason = error or type(error).__name__
            raise InputError(
                f"image {self.name(row)!r} cannot be read ({reason}); mend it, or leave damaged images out with "
                "train.allow_bad (the share of the source that may be unusable)"
            ) from None

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self.workers, thread_name_prefix="decode")

    def _encoded(
        self, pixels: Callable[[int], Tensor], count: int, encode: Callable[[Tensor], Tensor]
    ) -> Float32[Tensor, "b n d"]:
        """Encode pictures block by block while threads decode those behind."""
        with self._lock:
            pool = self._pool
        waiting: list[Future[Tensor]] = [pool.submit(pixels, place) for place in range(count)]
        try:
            blocks = (waiting[start : start + self.batch_size] for start in range(0, count, self.batch_size))
            return torch.cat([encode(torch.stack([each.result() for each in block])) for block in blocks])
        finally:
            for each in waiting:
                each.cancel()


class _Opener:
    """One picture of a source, as `cir.backbones.cache` opens it."""

    def __init__(self, pictures: Pictures, row: int) -> None:
        self.pictures, self.row = pictures, row

    def __call__(self) -> Image.Image:
        return self.pictures.open(self.row)

    def __str__(self) -> str:
        return self.pictures.name(self.row)


class _Openers(Sequence[_Opener]):
    """All pictures of a source; a slice costs nothing."""

    def __init__(self, pictures: Pictures, rows: range) -> None:
        self.pictures, self.rows = pictures, rows

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> _Opener: ...
    @overload
    def __getitem__(self, index: slice) -> "_Openers": ...
    def __getitem__(self, index: int | slice) -> "_Opener | _Openers":
        if isinstance(index, slice):
            return _Openers(self.pictures, self.rows[index])
        return _Opener(self.pictures, self.rows[index])
