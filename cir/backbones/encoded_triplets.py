"""Human triplets seen through the frozen backbone: what `cir.methods.base.ImageTriplets` asks for, made of files."""

import dataclasses
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from PIL import Image
from torch import Tensor

from cir.backbones.base import ImageSide
from cir.backbones.cache import UNREADABLE, FeatureCache, Kind, encode_gallery
from cir.errors import InputError
from cir.schema import Query

Numbers = Sequence[int] | Int64[np.ndarray, " b"]
"""Pictures by number, in any order and any number of times."""


@runtime_checkable
class Triplets(Protocol):
    """Triplets by row, and their distinct pictures by number; `cir.data.image_triplets` reads them."""

    fingerprint: str
    """Changes with all that is learnt from."""
    reference: Int64[np.ndarray, " n"]
    target: Int64[np.ndarray, " n"]
    names: tuple[str, ...]
    """Of every picture, an id."""
    files: tuple[Path, ...]
    """Of every picture, where it lies."""
    bad: Any
    """What was left out; false where nothing was."""

    def __len__(self) -> int:
        """Count the triplets."""
        ...

    def query(self, row: int) -> Query:
        """Return a triplet as annotated."""
        ...


class EncodedTriplets:
    """Triplets through a frozen backbone.

    Features and patch tokens are computed once, for all pictures, when the first of their kind are asked for, and
    memory-mapped from `cache` (without one they are kept in memory). Tokens are stored in half precision: ViT-L's are
    0.5 MB a picture at 224 pixels, BLIP-2 ViT-g's 0.7 MB, which is 12 GB for CIRR's train split. Pixels are decoded
    when asked for, by `workers` threads (0: as many as there are cores, at most 16). Any picture that cannot be decoded
    is an `InputError` that names it. Everything may be asked for from several threads, and arrives in float32 on the
    backbone's device.
    """

    def __init__(
        self,
        backbone: ImageSide,
        triplets: Triplets,
        cache: FeatureCache | None,
        *,
        workers: int = 0,
        batch_size: int = 64,
        progress: bool = True,
    ) -> None:
        self.backbone, self.triplets, self.cache = backbone, triplets, cache
        self.workers = workers or min(16, os.cpu_count() or 1)
        self.batch_size, self.progress = batch_size, progress
        self.fingerprint, self.bad = triplets.fingerprint, triplets.bad
        self.reference, self.target = triplets.reference, triplets.target
        self.count = len(triplets.names)
        self._locks: dict[Kind, Lock] = {"image": Lock(), "patches": Lock()}
        self._tables: dict[Kind, np.ndarray] = {}
        self._pool = ThreadPoolExecutor(self.workers, thread_name_prefix="decode")  # no thread before it is asked

    def __len__(self) -> int:
        """Count the triplets."""
        return len(self.triplets)

    def query(self, row: int) -> Query:
        """Return a triplet as annotated: its texts, and the ids of reference and target."""
        return self.triplets.query(row)

    def features(self, images: Numbers) -> Float32[Tensor, "b t d"]:
        """Return raw features of pictures by number."""
        return self._rows("image", images)

    def patches(self, images: Numbers) -> Float32[Tensor, "b p v"]:
        """Return the last block's tokens before the final norm, class token first, of pictures by number."""
        return self._rows("patches", images)

    def pixels(self, images: Numbers) -> Float32[Tensor, "b 3 h w"]:
        """Decode and preprocess pictures by number, one that is named twice only once."""
        distinct, places = np.unique(np.asarray(images, dtype=np.int64), return_inverse=True)
        decoded = torch.stack(list(self._pool.map(self._decoded, distinct.tolist())))
        return decoded.to(self.backbone.device)[torch.from_numpy(places).to(self.backbone.device)]

    def _rows(self, kind: Kind, images: Numbers) -> Float32[Tensor, "b n w"]:
        chosen = self._table(kind)[np.asarray(images, dtype=np.int64)]  # a copy, in memory
        return torch.from_numpy(chosen).to(self.backbone.device).float()

    def _table(self, kind: Kind) -> Float[np.ndarray, "n m w"]:
        """Compute the rows of all pictures, or map what is there."""
        with self._locks[kind]:
            if kind not in self._tables:
                cache = self.cache
                if cache is not None and kind == "patches":
                    cache = dataclasses.replace(cache, storage="float16")
                self._tables[kind] = encode_gallery(
                    self.backbone,
                    self.triplets.names,
                    self.triplets.files,
                    cache,
                    batch_size=self.batch_size,
                    workers=self.workers,
                    progress=self.progress,
                    kind=kind,
                )
            return self._tables[kind]

    def _decoded(self, image: int) -> Float32[Tensor, "3 h w"]:
        """Decode and preprocess one picture."""
        file = self.triplets.files[image]
        try:
            with Image.open(file) as opened:
                return self.backbone.preprocess(opened)
        except UNREADABLE as error:
            name, reason = self.triplets.names[image], error or type(error).__name__
            raise InputError(f"image {name!r} cannot be read any more ({reason}): {file}; mend it") from None
