"""What an ablation asks: one YAML file, read and checked.

question: "Does the noise matter?"
base: ../runs/rtd_world.yaml                          relative to this file
set: {train.steps: 600}                               common to all cells
vary: {method.noise: [none, gaussian]}                a grid, the product of its lists
zip: {train.batch: [64, 128], train.lr: [1e-3, 2e-3]} lists that go together, within the grid
cells: [{name: no noise, set: {method.noise: none}}]  named cells, in place of the grid or behind it
seeds: [0, 1, 2]
show: ["world/circo/val:mAP@5"]
baseline: no noise                                    the cell the others are compared with; default the first
answer: ""                                            written once known, including "no"
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cir import data, layers
from cir.ablation import naming
from cir.errors import InputError, nearest
from cir.protocols import PROTOCOLS

ROOT = Path("runs") / "ablations"
"""Where cells live, relative to the working folder."""
BASES = "bases"
"""Where the runs that cells stand on live; no ablation may have this name."""
RESERVED = {
    "name": "a run is called after its cell",
    "seed": "the ablation's `seeds` say which",
    "evaluate": "the ablation's `show` says on what",
    "smoke": "`--smoke` does that",
}
"""Keys of a run that an ablation sets itself, and how else to get what one may have wanted."""


@dataclass(frozen=True)
class NamedCell:
    """A cell before its seeds: what it is called, and the settings in which it departs from the base."""

    name: str
    set: dict[str, Any]


@dataclass(frozen=True)
class Ablation:
    """One ablation file, checked; `points` are all its cells in order, the grid's before the named ones."""

    path: Path
    question: str
    base: Path
    set: dict[str, Any]
    vary: dict[str, list[Any]]
    zip: dict[str, list[Any]]
    cells: tuple[NamedCell, ...]
    seeds: tuple[int, ...]
    show: tuple[str, ...]
    baseline: str
    answer: str
    points: tuple[NamedCell, ...]
    smoke: bool = False
    """Whether every run of it is shrunk to seconds; its numbers then mean nothing."""

    @property
    def name(self) -> str:
        """The file's stem; that of a shrunk one says so."""
        return f"{self.path.stem}-smoke" if self.smoke else self.path.stem

    @property
    def folder(self) -> Path:
        """Where its cells live."""
        return ROOT / self.name

    @property
    def benchmarks(self) -> tuple[str, ...]:
        """The benchmarks that are shown, each once, in order."""
        return tuple(dict.fromkeys(column.rpartition(":")[0] for column in self.show))


@dataclass
class _File:
    """The file's keys; the free-form sections are read by hand, so that `${seed}` in them keeps naming a run's key."""

    question: str = "???"
    base: str = "???"
    set: dict[str, Any] = field(default_factory=dict)
    vary: dict[str, Any] = field(default_factory=dict)
    zip: dict[str, Any] = field(default_factory=dict)
    cells: list[Any] = field(default_factory=list)
    seeds: list[int] = field(default_factory=lambda: [0])
    show: list[str] = field(default_factory=list)
    baseline: str = ""
    answer: str = ""


FREE: dict[str, type] = {"set": dict, "vary": dict, "zip": dict, "cells": list}


def read(path: str | Path, *, smoke: bool = False) -> Ablation:
    """Read one ablation file; raises `InputError`, one line with file and key.

    What its cells set is checked when they are expanded (`expand`).
    """
    path = Path(path)
    raw = layers.read(path)
    free = {key: _section(path, key, kind, raw.get(key)) for key, kind in FREE.items()}
    plain = {key: FREE[key]() if key in FREE else value for key, value in raw.items()}
    for key in ("question", "base", "show"):
        if not plain.get(key):
            raise InputError(f"{path}: {key}: missing; an ablation has a question, a base and columns to show")
    file = layers.build(_File, [(str(path), plain)], str(path))
    _check(path, file)
    grid, together = _lists(path, "vary", free["vary"]), _lists(path, "zip", free["zip"])
    cells = tuple(_named(path, number, entry) for number, entry in enumerate(free["cells"], 1))
    points = (*_points(path, grid, together), *cells)
    _check_names(path, [point.name for point in points], file.baseline)
    return Ablation(
        path=path,
        question=file.question,
        base=path.parent / file.base,
        set=free["set"],
        vary=grid,
        zip=together,
        cells=cells,
        seeds=tuple(file.seeds),
        show=tuple(file.show),
        baseline=file.baseline or points[0].name,
        answer=file.answer,
        points=points,
        smoke=smoke,
    )


def _section(path: Path, key: str, kind: type, value: Any) -> Any:
    if value is None:
        return kind()
    if not isinstance(value, kind):
        wanted = "a list of cells" if kind is list else "keys with values, such as {train.steps: 600}"
        raise InputError(f"{path}: {key}: expected {wanted}, got {value!r}")
    if isinstance(value, dict):
        _refuse_reserved(f"{path}: {key}", value)
    return value


def _refuse_reserved(said: str, settings: Mapping[str, Any]) -> None:
    for key in settings:
        if str(key) in RESERVED:
            raise InputError(f"{said}: {key}: leave it out; {RESERVED[str(key)]}")


def _lists(path: Path, key: str, section: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Check that every key of a section has a list of values."""
    for name, values in section.items():
        if not isinstance(values, list) or not values:
            raise InputError(f"{path}: {key}: {name}: expected a list of values, got {values!r}")
    lengths = {str(name): len(values) for name, values in section.items()}
    if key == "zip" and len(set(lengths.values())) > 1:
        told = ", ".join(f"{name} has {length}" for name, length in lengths.items())
        raise InputError(f"{path}: zip: lists go together and need one length, but {told}")
    return {str(name): list(values) for name, values in section.items()}


def _named(path: Path, number: int, entry: Any) -> NamedCell:
    """Check one entry of `cells`."""
    said = f"{path}: cells: number {number}"
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str) or not entry["name"].strip():
        raise InputError(f"{said}: expected {{name: ..., set: {{...}}}}, got {entry!r}")
    said = f"{path}: cell {entry['name']!r}"
    for key in entry:
        if key not in ("name", "set"):
            raise InputError(f"{said}: {key}: unknown key; {nearest(str(key), ('name', 'set'))}")
    settings = entry.get("set") or {}
    if not isinstance(settings, dict):
        raise InputError(f"{said}: set: expected keys with values, such as {{train.steps: 600}}, got {settings!r}")
    _refuse_reserved(f"{said}: set", settings)
    return NamedCell(entry["name"], settings)


def _points(path: Path, grid: Mapping[str, list[Any]], together: Mapping[str, list[Any]]) -> list[NamedCell]:
    """Multiply the grid out, the last key fastest; the zipped lists count as one more axis behind it."""
    twice = sorted(set(grid) & set(together))
    if twice:
        raise InputError(f"{path}: {twice[0]}: stands in vary and in zip; keep one")
    points: list[dict[str, Any]] = [{}] if grid or together else []
    for key, values in grid.items():
        points = [{**point, key: value} for point in points for value in values]
    if together:
        rows = [dict(zip(together, row, strict=True)) for row in zip(*together.values(), strict=True)]
        points = [{**point, **row} for point in points for row in rows]
    return [NamedCell(naming.name(point), point) for point in points]


def _check(path: Path, file: _File) -> None:
    """Check what types cannot say of the file's own keys."""
    if path.stem == BASES:
        raise InputError(f"{path}: {BASES!r} is the folder of the runs that cells stand on; call the file otherwise")
    if not file.question.strip().endswith("?"):
        raise InputError(f"{path}: question: expected one sentence that ends in '?', got {file.question!r}")
    if not file.seeds or len(set(file.seeds)) < len(file.seeds):
        raise InputError(f"{path}: seeds: expected distinct numbers such as [0, 1, 2], got {file.seeds}")
    for column in file.show:
        _check_column(f"{path}: show: {column!r}", column)
    if len(set(file.show)) < len(file.show):
        raise InputError(f"{path}: show: a column stands there twice")


def _check_column(said: str, column: str) -> None:
    benchmark, colon, metric = column.rpartition(":")
    if not colon or not benchmark or not metric:
        raise InputError(f"{said}: expected benchmark:metric, such as circo/val:mAP@5")
    try:
        protocols = data.find(data.expand(benchmark)[0]).protocols
    except InputError as error:
        raise InputError(f"{said}: {error}") from None
    known = [name for protocol in protocols for name in PROTOCOLS[protocol].metrics]
    if metric not in known:
        raise InputError(f"{said}: {benchmark} has no metric {metric!r}; {nearest(metric, known)}")


def _check_names(path: Path, names: Sequence[str], baseline: str) -> None:
    """Check that cells can be told apart, as people and as folders see them, and that the baseline is one of them."""
    if not names:
        raise InputError(f"{path}: nothing varies; give vary, zip or cells")
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(naming.slug(name).casefold(), name)
        if names.count(name) > 1:
            raise InputError(f"{path}: cell {name!r} stands there twice")
        if other != name:
            raise InputError(f"{path}: cells {other!r} and {name!r} would share a folder; call one otherwise")
    if baseline and baseline not in names:
        raise InputError(f"{path}: baseline: no cell is called {baseline!r}; {nearest(baseline, names)}")
