"""Whether an ablation's cells lie on a line: the one number that varies, and how its axis is spaced."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64

from cir import config as configs
from cir.ablation import naming
from cir.ablation.plan import Cell

LEAST = 3
"""Values that a line needs."""
SERIES = 6
"""Lines that one plot can hold apart."""
CROWDED = 0.07
"""Share of the axis that two ticks keep between them; below it the values stand evenly spaced."""


@dataclass(frozen=True)
class Line:
    """A number that varies over the cells: by series (the other settings) the cells by value, rising."""

    key: str
    series: Mapping[str, tuple[tuple[float, str], ...]]

    @property
    def values(self) -> list[float]:
        """All values, rising."""
        return sorted({value for points in self.series.values() for value, _ in points})


def line(cells: Sequence[Cell]) -> Line | None:
    """Find the number that every cell has and that takes the most values; None where a line would not say more.

    A cell that does not set it has the value of its configuration. Every line must have two points at least.
    """
    points = {cell.name: cell for cell in cells}
    keys = list(dict.fromkeys(key for cell in points.values() for key in cell.settings))
    found = [line for key in keys if (line := _along(key, keys, points)) is not None]
    return max(found, key=lambda one: len(one.values), default=None)


def places(values: Sequence[float]) -> tuple[str, dict[float, float]]:
    """Place rising values on an axis: `linear` or `log`, whichever spaces them more evenly, else `even`.

    Evenly by rank is for values whose ticks would collide otherwise, such as 0 among powers of ten.

    >>> places([1.0, 2.0, 3.0])[0], places([0.01, 0.1, 1.0])[0], places([0.0, 0.001, 1.0])
    ('linear', 'log', ('even', {0.0: 0.0, 0.001: 1.0, 1.0: 2.0}))
    """
    kind, where = "linear", np.asarray(values, dtype=np.float64)
    if values[0] > 0 and _unevenness(np.log10(where)) < _unevenness(where) - 1e-9:
        kind, where = "log", np.log10(where)
    if np.diff(where).min() / np.ptp(where) < CROWDED:
        kind, where = "even", np.arange(len(values), dtype=np.float64)
    return kind, {value: float(place) for value, place in zip(values, where, strict=True)}


def _unevenness(where: Float64[np.ndarray, " n"]) -> float:
    """How much the steps between values vary, in units of their mean."""
    steps = np.diff(where)
    return float(steps.std() / steps.mean())


def _along(key: str, keys: Sequence[str], points: Mapping[str, Cell]) -> Line | None:
    series: dict[str, list[tuple[float, str]]] = {}
    for name, cell in points.items():
        value = _setting(cell, key)
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            return None
        rest = ", ".join(f"{other}={naming.value(_setting(cell, other))}" for other in keys if other != key)
        series.setdefault(rest, []).append((float(value), name))
    found = Line(key, {rest: tuple(sorted(line)) for rest, line in series.items()})
    told = all(len({value for value, _ in line}) == len(line) >= 2 for line in found.series.values())
    return found if told and len(found.values) >= LEAST and len(found.series) <= SERIES else None


def _setting(cell: Cell, key: str) -> Any:
    """Look a dotted key up in a cell's settings, else in its configuration; None where neither has it."""
    if key in cell.settings:
        return cell.settings[key]
    place: Any = configs.resolved(cell.config)
    for part in key.split("."):
        place = place.get(part) if isinstance(place, dict) else None
    return place
