"""Arrays computed once: content-addressed, checked, memory-mapped, resumable, safe under two processes."""

import hashlib
import json
import logging
import re
import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped

from cir.backbones.entries import Partial, locked, open_entry
from cir.errors import InputError, nearest

logger = logging.getLogger(__name__)

STORAGE = {"float32": np.float32, "float16": np.float16}
AS_COMPUTED = "as computed"

Compute = Callable[[int], Generator[Shaped[np.ndarray, "b ..."], None, None]]
"""Yields blocks of rows from the given row on; closed early when something fails."""

SECONDS = 20.0
"""Between two points from which an interrupted computation can go on, where rows come slowly."""

LAYOUT = 1
"""Part of every digest: raise it when the meaning of an entry changes."""


@dataclass(frozen=True)
class CacheKey:
    """All that the rows depend on: one row per id, `stamps` change with the content behind the ids.

    A million rows need no million ids: with `count` rows are numbered, and `identity` is all that they depend on.
    """

    weights: str
    preprocess: str
    dtype: str
    kind: str
    ids: tuple[str, ...] = ()
    stamps: tuple[str, ...] = ()
    count: int | None = None
    identity: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in (self.weights, self.kind):
            if not re.fullmatch(r"[\w.-]*\w[\w.-]*", name):
                raise InputError(f"cache key: {name!r} cannot be part of a file name; expected letters, digits, . - _")
        if self.stamps and len(self.stamps) != len(self.ids):
            raise InputError(f"cache key: {len(self.ids)} ids but {len(self.stamps)} stamps")
        if self.ids and self.count is not None:
            raise InputError(f"cache key: {len(self.ids)} ids and a count of {self.count}; expected one of the two")

    def __len__(self) -> int:
        """Count the rows."""
        return len(self.ids) if self.count is None else self.count

    def name(self, row: int) -> str:
        """Name a row in a message."""
        return self.ids[row] if self.count is None else f"row {row}"

    @cached_property
    def described(self) -> dict[str, Any]:
        """Describe the key for the file beside the data; the rows themselves by their number and a digest."""
        listed = [self.ids, self.stamps] if self.count is None else [self.identity]
        rows = hashlib.sha256(json.dumps(listed).encode()).hexdigest()
        return {
            "layout": LAYOUT,
            "weights": self.weights,
            "preprocess": self.preprocess,
            "dtype": self.dtype,
            "kind": self.kind,
            "count": len(self),
            "rows": rows,
        }

    def path(self, root: Path, storage: str) -> Path:
        """Name the file of an entry."""
        digest = hashlib.sha256(json.dumps([self.described, storage], sort_keys=True).encode()).hexdigest()[:24]
        return root / self.weights / f"{self.kind}-{digest}.npy"


@dataclass
class Counters:
    """What a cache did in this process: entries served and computed, rows taken over from an interrupted run, images.

    A second evaluation must count 0 decoded and 0 encoded images.
    """

    hits: int = 0
    computed: int = 0
    resumed_rows: int = 0
    decoded: int = 0
    encoded: int = 0


@dataclass
class FeatureCache:
    """A folder of computed arrays; `storage` is float32 or float16 (half the disk, products stay float32)."""

    root: Path
    storage: str = "float32"
    chunk: int = 2048
    """Rows between two points from which an interrupted computation can go on."""
    counters: Counters = field(default_factory=Counters)

    def __post_init__(self) -> None:
        if self.storage not in STORAGE:
            raise InputError(f"cache storage {self.storage!r}: {nearest(self.storage, STORAGE)}")

    def get(self, key: CacheKey, compute: Compute) -> Float[np.ndarray, "n t d"]:
        """Serve an entry as a read-only memory map, computing it where it is absent, truncated or edited.

        `compute(start)` yields blocks of rows from row `start` on. A damaged entry is named in a warning. Raises
        RunError where rows are not finite, where their number is wrong, or where the disk does not take them.
        """
        return self._serve(key, compute, self.storage)

    def keep(self, key: CacheKey, compute: Compute) -> Shaped[np.ndarray, "n ..."]:
        """Do what `get` does for rows of any shape and type (token ids, say), stored as they were computed."""
        return self._serve(key, compute, AS_COMPUTED)

    def _serve(self, key: CacheKey, compute: Compute, storage: str) -> np.ndarray:
        """Open an entry, or compute it under its lock."""
        path = key.path(self.root, storage)
        found = open_entry(path, key.described)
        if found is None:
            with locked(path):
                found = open_entry(path, key.described, warn=True)  # another process may have made it meanwhile
                if found is None:
                    self._build(path, key, compute, STORAGE.get(storage))
                    return np.load(path, mmap_mode="r", allow_pickle=False)
        self.counters.hits += 1
        logger.info("%s of %d items: from the cache, %s", key.kind, len(key), path)
        return found

    def _build(self, path: Path, key: CacheKey, compute: Compute, dtype: type[np.generic] | None) -> None:
        """Compute an entry, or the rest of one."""
        for stale in (path, path.with_suffix(".json")):
            stale.unlink(missing_ok=True)
        partial = Partial(path, key.described, len(key), key.name, dtype)
        try:
            self.counters.resumed_rows += partial.rows
            last, saved = partial.rows, time.monotonic()
            with closing(compute(partial.rows)) as blocks:
                for block in blocks:
                    partial.append(block)
                    if partial.rows - last >= self.chunk or time.monotonic() - saved >= SECONDS:
                        partial.checkpoint()
                        last, saved = partial.rows, time.monotonic()
            partial.finish()
        finally:
            partial.close()
        self.counters.computed += 1
