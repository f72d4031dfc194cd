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


@lru_cache(maxsize=4)
def permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    """Shuffle `count` rows for one epoch."""
    return np.random.default_rng(seed_of(seed, "epoch", epoch)).permutation(count)


def rows_at(seed: int, position: int, length: int, count: int) -> list[int]:
    """List the rows drawn from `position` on: epoch after epoch, every row once in each.

    >>> sorted(rows_at(seed=0, position=4, length=4, count=4))
    [0, 1, 2, 3]
    """
    places = range(position, position + length)
    return [int(permutation(seed, place // count, count)[place % count]) for place in places]


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

    def make(self, step: int, micro: int) -> Any:
        """Prepare one micro-batch."""
        start, stop = self.share.bounds(micro)
        rows = rows_at(self.seed, step * self.share.batch + start, stop - start, len(self.batches))
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
