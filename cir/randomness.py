"""Randomness of training: drawn for the global batch from (seed, step, name), each process takes its rows.

No generator outlives a step, so nothing has to be saved for an exact resume, and a run split over processes or
micro-batches sees the very numbers of the whole batch in one piece.
"""

import hashlib
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float32
from torch import Tensor


def seed_of(*parts: int | str) -> int:
    """Mix numbers and names into one seed of 63 bits, the same on every machine.

    >>> seed_of(0, "noise") == seed_of(0, "noise") != seed_of(1, "noise")
    True
    """
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


@dataclass(frozen=True)
class StepRandom:
    """The random draws of one step for rows `start` to `stop` of a global batch of `total` rows.

    Every draw has a name; the same name gives the same numbers, whatever else was drawn before. The numbers of
    different kinds of device differ, those of one kind do not.
    """

    seed: int
    step: int
    start: int
    stop: int
    total: int
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def normal(self, name: str, *shape: int) -> Float32[Tensor, "b ..."]:
        """Draw from N(0, 1), one block of `shape` per row."""
        return torch.randn(self.total, *shape, generator=self._generator(name), device=self.device)[self._rows]

    def uniform(self, name: str, *shape: int) -> Float32[Tensor, "b ..."]:
        """Draw from U(0, 1), one block of `shape` per row."""
        return torch.rand(self.total, *shape, generator=self._generator(name), device=self.device)[self._rows]

    def keep(self, name: str, probability: float, *shape: int) -> Bool[Tensor, "b ..."]:
        """Draw what dropout keeps: true with `probability`."""
        return self.uniform(name, *shape) < probability

    @property
    def _rows(self) -> slice:
        return slice(self.start, self.stop)

    def _generator(self, name: str) -> torch.Generator:
        return torch.Generator(self.device).manual_seed(seed_of(self.seed, self.step, name))
