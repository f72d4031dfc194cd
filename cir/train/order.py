"""Which rows a step takes: a function of (seed, step), so that the position in the data needs no saving."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from cir.errors import InputError
from cir.methods.base import Batches
from cir.randomness import StepRandom, seed_of

WINDOW_BLOCKS = 8
WINDOW_ROWS = 1 << 16
"""Rows of a source in blocks are shuffled among at least so many blocks and rows that lie together in the order."""


@lru_cache(maxsize=3)
def permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    """Shuffle `count` rows for one epoch: four bytes per row."""
    rows = np.arange(count, dtype=np.int32 if count < 2**31 else np.int64)
    np.random.default_rng(seed_of(seed, "epoch", epoch)).shuffle(rows)
    return rows


def rows_at(seed: int, position: int, length: int, count: int, blocks: tuple[int, ...] = ()) -> list[int]:
    """List the rows drawn from `position` on: epoch after epoch, every row once in each.

    `blocks` are the lengths of runs of rows that lie together on disk (shards). With them an epoch goes through the
    blocks in random order and shuffles rows within windows of several blocks, so that few files are read at a time.

    >>> sorted(rows_at(seed=0, position=4, length=4, count=4))
    [0, 1, 2, 3]
    """
    if not blocks:
        places = range(position, position + length)
        return [int(permutation(seed, place // count, count)[place % count]) for place in places]
    rows: list[int] = []
    while len(rows) < length:
        epoch, place = divmod(position + len(rows), count)
        window, start, chosen = _windows(seed, epoch, blocks).at(place)
        order = _shuffled(seed, epoch, window, chosen, blocks)
        rows += order[place - start : place - start + length - len(rows)].tolist()
    return rows


@dataclass(frozen=True)
class Windows:
    """One epoch's order of blocks, cut into windows; `starts` are the windows' first places, and the epoch's end."""

    groups: tuple[tuple[int, ...], ...]
    starts: np.ndarray

    def at(self, place: int) -> tuple[int, int, tuple[int, ...]]:
        """Find the window of a place in the epoch: its number, its first place, its blocks."""
        window = int(np.searchsorted(self.starts, place, side="right")) - 1
        return window, int(self.starts[window]), self.groups[window]


@lru_cache(maxsize=4)
def _windows(seed: int, epoch: int, blocks: tuple[int, ...]) -> Windows:
    """Put the blocks in random order and group them: a window ends once it has enough blocks and rows."""
    order = np.random.default_rng(seed_of(seed, "blocks", epoch)).permutation(len(blocks)).tolist()
    groups: list[list[int]] = [[]]
    for block in order:
        last = groups[-1]
        if len(last) >= WINDOW_BLOCKS and sum(blocks[each] for each in last) >= WINDOW_ROWS:
            groups.append([])
        groups[-1].append(block)
    lengths = [sum(blocks[each] for each in group) for group in groups]
    return Windows(tuple(map(tuple, groups)), np.cumsum([0, *lengths], dtype=np.int64))


@lru_cache(maxsize=4)
def _shuffled(seed: int, epoch: int, window: int, chosen: tuple[int, ...], blocks: tuple[int, ...]) -> np.ndarray:
    """Shuffle the rows of one window."""
    starts = np.cumsum([0, *blocks], dtype=np.int64)
    rows = np.concatenate([np.arange(starts[each], starts[each + 1]) for each in chosen])
    np.random.default_rng(seed_of(seed, "window", epoch, window)).shuffle(rows)
    return rows


def blocks_of(source: object, count: int) -> tuple[int, ...]:
    """Take a source's blocks where it has several and they are the rows that batches are made of."""
    blocks = tuple(getattr(source, "blocks", ()))
    return blocks if len(blocks) > 1 and sum(blocks) == count else ()


@dataclass(frozen=True)
class Share:
    """The rows of a global batch that one process takes in each of its micro-batches.

    Micro-batch m of all processes together is a contiguous block, so that any number of processes sees the same
    micro-batches.
    """

    batch: int
    accumulate: int = 1
    rank: int = 0
    size: int = 1

    def __post_init__(self) -> None:
        if self.batch % (self.accumulate * self.size):
            raise InputError(
                f"train.batch: {self.batch} rows cannot be shared by {self.size} processes in {self.accumulate} "
                f"micro-batches; expected a multiple of {self.accumulate * self.size}"
            )

    def bounds(self, micro: int) -> tuple[int, int]:
        """Return where in the global batch this process's part of a micro-batch starts and stops."""
        rows = self.batch // (self.accumulate * self.size)
        start = (micro * self.size + self.rank) * rows
        return start, start + rows


@dataclass(frozen=True)
class Feed:
    """Prepared micro-batches in order, made ahead by `workers` threads (none: when asked for)."""

    batches: Batches
    share: Share
    seed: int
    workers: int
    device: torch.device
    blocks: tuple[int, ...] = ()

    def make(self, step: int, micro: int) -> Any:
        """Prepare one micro-batch."""
        start, stop = self.share.bounds(micro)
        rows = rows_at(self.seed, step * self.share.batch + start, stop - start, len(self.batches), self.blocks)
        random = StepRandom(self.seed, step, start, stop, self.share.batch, self.device)
        return self.batches.batch(rows, random)

    @contextmanager
    def read(self, first: int, steps: int) -> Iterator[Iterator[Any]]:
        """Iterate over the micro-batches of steps `first` to `steps`; threads end with the block."""
        wanted = ((step, micro) for step in range(first, steps) for micro in range(self.share.accumulate))
        if not self.workers:
            yield (self.make(*place) for place in wanted)
            return
        with ThreadPoolExecutor(self.workers) as pool:
            try:
                yield self._ahead(pool, wanted)
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def _ahead(self, pool: ThreadPoolExecutor, wanted: Iterator[tuple[int, int]]) -> Iterator[Any]:
        waiting: deque[Future[Any]] = deque()
        for place in wanted:
            waiting.append(pool.submit(self.make, *place))
            if len(waiting) > 2 * self.workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
