"""What is trained and how it moves: parameter patterns, AdamW, learning-rate schedules, a moving average."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cir.errors import InputError, nearest

SCHEDULES = ("constant", "linear", "cosine", "onecycle")
BETA_HIGH, BETA_LOW = 0.95, 0.85
"""Between which torch's OneCycleLR moves Adam's first beta unless told otherwise."""


@dataclass(frozen=True, slots=True)
class Count:
    """Parameters of one part of a model."""

    part: str
    trained: int
    frozen: int


def trainables(module: nn.Module, patterns: Sequence[str]) -> dict[str, nn.Parameter]:
    """Set `requires_grad` by name patterns, matched in full, and return what is trained; all else is frozen.

    Raises `InputError` for a pattern that matches no parameter, naming those that look like it: a pattern left over
    is a part that was meant to be trained and is not.
    """
    named = dict(module.named_parameters())
    for pattern in patterns:
        if not any(re.fullmatch(pattern, name) for name in named):
            raise InputError(f"trainable pattern {pattern!r} matches no parameter; {nearest(pattern, named)}")
    chosen = {}
    for name, parameter in named.items():
        parameter.requires_grad_(any(re.fullmatch(pattern, name) for pattern in patterns))
        if parameter.requires_grad:
            chosen[name] = parameter
    return chosen


def counts(module: nn.Module, depth: int = 2) -> list[Count]:
    """Count trained and frozen parameters by the first `depth` parts of their names, in the model's order.

    >>> counts(nn.Sequential(nn.Linear(2, 3)), depth=1)
    [Count(part='0', trained=9, frozen=0)]
    """
    parts: dict[str, list[int]] = {}
    for name, parameter in module.named_parameters():
        entry = parts.setdefault(".".join(name.split(".")[:-1][:depth]) or name, [0, 0])
        entry[0 if parameter.requires_grad else 1] += parameter.numel()
    return [Count(part, trained, frozen) for part, (trained, frozen) in parts.items()]


def adamw(
    named: Mapping[str, nn.Parameter],
    *,
    lr: float,
    weight_decay: float = 0.01,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    undecayed: Sequence[str] = (),
) -> torch.optim.AdamW:
    """Build AdamW (arXiv:1711.05101), fused: the same update in one pass over memory.

    Parameters whose names match one of `undecayed` in full go into a second group without weight decay.
    """
    spared = {name for name in named if any(re.fullmatch(pattern, name) for pattern in undecayed)}
    groups = [
        {"params": [p for name, p in named.items() if name not in spared], "weight_decay": weight_decay},
        {"params": [p for name, p in named.items() if name in spared], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=lr, betas=betas, eps=eps, fused=True)


def rate(schedule: str, step: int, steps: int, warmup: int = 0, div: float = 25.0) -> float:
    """Say by which factor the learning rate is scaled at a step (from 0), a pure function: nothing to save.

    The factor rises over `warmup` steps, (step + 1) / warmup, then stays (`constant`), or falls to 0 at `steps`
    along a line (`linear`) or half a cosine (`cosine`, SGDR, arXiv:1608.03983). `onecycle` is torch's OneCycleLR
    (arXiv:1708.07120): half a cosine from 1 / `div` to 1 over the warm-up, another one down to 1 / (10,000 `div`).
    A run may have fewer steps than its schedule, and then ends before the rate does.

    >>> [rate("linear", step, steps=4, warmup=2) for step in range(4)]
    [0.5, 1.0, 1.0, 0.5]
    """
    if schedule not in SCHEDULES:
        raise InputError(f"schedule {schedule!r} is unknown; {nearest(schedule, SCHEDULES)}")
    if div <= 0:
        raise InputError(f"train.div: expected a number above 0, got {div}")
    if schedule == "onecycle":
        low, high = (1 / div, 1.0) if _rises(step, warmup) else (1e-4 / div, 1.0)
        return low + (high - low) * _cycle(step, steps, warmup)
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}[schedule]


def first_beta(schedule: str, step: int, steps: int, warmup: int, beta: float) -> float:
    """Say Adam's first beta at a step: as it is given, but under `onecycle`, which lowers it while the rate is high.

    >>> [round(first_beta("onecycle", step, 5, 2, 0.9), 3) for step in range(5)]
    [0.95, 0.85, 0.875, 0.925, 0.95]
    """
    if schedule != "onecycle":
        return beta
    return BETA_HIGH - (BETA_HIGH - BETA_LOW) * _cycle(step, steps, warmup)


def _rises(step: int, warmup: int) -> bool:
    return step < warmup - 1


def _cycle(step: int, steps: int, warmup: int) -> float:
    """Say how far up the cycle a step is: half a cosine from 0 to 1 at the warm-up's last step, another to the end."""
    top = max(warmup - 1, 0)
    done = 1 - step / top if _rises(step, warmup) else min(1.0, (step - top) / max(1, steps - 1 - top))
    return (1 + math.cos(math.pi * done)) / 2


class Average:
    """Exponential moving average of weights, float32: a <- d a + (1 - d) w with d = min(decay, (1 + k) / (10 + k)).

    k counts updates; the bound lets the average follow the fast first steps.
    """

    def __init__(self, named: Mapping[str, nn.Parameter], decay: float) -> None:
        if not 0 < decay < 1:
            raise InputError(f"ema: expected a decay between 0 and 1, got {decay}")
        self.decay = decay
        self.named = named
        self.values = {name: p.detach().float().clone() for name, p in named.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the average towards the weights; `step` counts from 0."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, parameter in self.named.items():
            self.values[name].lerp_(parameter.float(), 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put the average in the weights' place for the time of a block, to evaluate or save it."""
        own = {name: p.detach().clone() for name, p in self.named.items()}
        self._copy(self.values)
        try:
            yield
        finally:
            self._copy(own)

    @torch.no_grad()
    def _copy(self, values: Mapping[str, Tensor]) -> None:
        for name, parameter in self.named.items():
            parameter.copy_(values[name])
