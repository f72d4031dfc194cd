"""The factors of a grid: each level with all settings of the others, so that a main effect can be averaged."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cir.ablation import naming
from cir.ablation.plan import Ablation, Cell
from cir.ablation.samples import Sample, averaged


@dataclass(frozen=True)
class Axis:
    """One factor: a key of `vary`, or all keys of `zip` together."""

    key: str
    levels: Mapping[str, tuple[str, ...]]
    """Cells by level, in the same order of the other factors' settings."""
    reference: str
    """The baseline's level, or the first."""

    @property
    def over(self) -> int:
        """How many settings of the other factors there are."""
        return len(self.levels[self.reference])


def axes(ablation: Ablation, cells: Iterable[Cell]) -> list[Axis]:
    """Find the factors of a grid that have several levels, each with several settings of the others.

    Only settings of the others that occur with every level count, so that levels are compared like with like.
    """
    points = {cell.name: cell.settings for cell in cells}
    groups = [(key,) for key in ablation.vary] + ([tuple(ablation.zip)] if ablation.zip else [])
    found = [_axis(keys, points, ablation.baseline) for keys in groups]
    return [axis for axis in found if len(axis.levels) > 1 and axis.over > 1]


def pooled(
    axis: Axis, samples: Mapping[tuple[str, str], Sample], columns: Sequence[str]
) -> dict[tuple[str, str], Sample]:
    """Average the cells of each level query by query, by level and column."""
    return {
        (level, column): averaged(level, [samples[name, column] for name in names])
        for level, names in axis.levels.items()
        for column in columns
    }


def _axis(keys: tuple[str, ...], points: Mapping[str, Mapping[str, Any]], baseline: str) -> Axis:
    """Group the cells that set a factor by its level and by the rest of their settings."""
    levels: dict[str, dict[str, str]] = {}
    for name, settings in points.items():
        if all(key in settings for key in keys):
            level = ", ".join(naming.value(settings[key]) for key in keys)
            rest = {key: value for key, value in settings.items() if key not in keys}
            levels.setdefault(level, {})[json.dumps(rest, sort_keys=True, default=str)] = name
    common = [rest for rest in next(iter(levels.values()), {}) if all(rest in others for others in levels.values())]
    cells = {level: tuple(rests[rest] for rest in common) for level, rests in levels.items()}
    reference = next((level for level, rests in levels.items() if baseline in rests.values()), next(iter(levels), ""))
    return Axis(", ".join(keys), cells, reference)
