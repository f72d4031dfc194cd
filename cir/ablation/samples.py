"""What each cell reached in each column: per-query values by seed, or the reason why there are none."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Float64

from cir import stats
from cir.ablation.plan import Cell
from cir.archive.check import SERIOUS, examined
from cir.archive.match import matching, why_not
from cir.errors import InputError
from cir.records import PerQuery, Record, read_values

DIGITS = 12
"""Decimals kept of a mean over seeds: two orders of adding the same numbers must tie."""


@dataclass(frozen=True)
class Sample:
    """One cell in one column `benchmark:metric`: values by seed, over queries that all its seeds have."""

    name: str
    column: str
    seeds: Mapping[int, Float64[np.ndarray, " q"]]
    """Fractions per query."""
    ids: tuple[str, ...] = ()
    strata: tuple[str, ...] = ()
    """The part of a group each query belongs to; empty for a single benchmark."""
    state: tuple[str, int, str] = ("", 0, "")
    """Protocol, its version, and the data's fingerprint: only equal states are compared."""
    missing: Mapping[str, str] = field(default_factory=dict)
    """Why there is no value, by what has none ("seed 1")."""
    records: tuple[Record, ...] = field(default=(), repr=False)

    def mean(self, seeds: Iterable[int] | None = None) -> Float64[np.ndarray, " q"]:
        """Average the per-query values over seeds (none: all)."""
        chosen = [self.seeds[seed] for seed in (self.seeds if seeds is None else seeds)]
        return np.round(np.stack(chosen).mean(axis=0), DIGITS)

    def percent(self, seed: int) -> float:
        """Give the mean over queries of one seed in percent; parts of a group weigh the same."""
        return 100 * stats.stratified_mean(self.seeds[seed], self.strata or None)


class Source:
    """The records of an ablation's cells; per-query values are read once per record."""

    def __init__(self, records: Mapping[Path, Record]) -> None:
        self.records = records
        self.notes: list[str] = []
        """What the reader must know about the records themselves."""
        self._values: dict[Path, PerQuery] = {}
        self._found: dict[tuple[str, int], dict[str, list[tuple[Path, Record]]]] = {}

    def sample(self, name: str, cells: Sequence[Cell], column: str) -> Sample:
        """Collect the seeds of one cell in one column; a seed without a valid number leaves its reason."""
        benchmark, _, metric = column.rpartition(":")
        kept: dict[int, tuple[Record, PerQuery]] = {}
        missing: dict[str, str] = {}
        for cell in cells:
            try:
                record, values = self._of(cell, benchmark, metric)
                if kept and _state(record) != _state(next(iter(kept.values()))[0]):
                    raise InputError(f"other data or another protocol than seed {next(iter(kept))}")
                kept[cell.seed] = record, values
            except InputError as why:
                missing[f"seed {cell.seed}"] = str(why)
        if not kept:
            return Sample(name, column, {}, missing=missing)
        first, values = next(iter(kept.values()))
        seeds = {seed: aligned(values.ids, other, metric) for seed, (_, other) in kept.items()}
        found = tuple(record for record, _ in kept.values())
        return Sample(name, column, seeds, values.ids, values.strata, _state(first), missing, found)

    def _of(self, cell: Cell, benchmark: str, metric: str) -> tuple[Record, PerQuery]:
        """Find the valid record of a cell on a benchmark; raises `InputError` with the reason for none."""
        key = cell.name, cell.seed
        if key not in self._found:
            self._found[key] = matching(cell.config, self.records)
        pairs = self._found[key].get(benchmark, [])
        if not pairs:
            raise InputError(self._reason(cell, benchmark))
        path, record = pairs[0]
        self._alarm(cell, pairs, metric)
        values = self._values_of(path, record)
        if metric not in values.values or metric not in record.means:
            raise InputError(f"the record has no {metric}; it has {', '.join(record.means)}")
        return record, values

    def _values_of(self, path: Path, record: Record) -> PerQuery:
        """Read the values of a record that nothing speaks against (`cir.archive.check`), each once."""
        if path not in self._values:
            wrong = [text for kind, text in examined(path, record) if kind in SERIOUS]
            if wrong:
                raise InputError(f"{path.name}: {wrong[0]}; evaluate again")
            self._values[path] = read_values(path, record)
        return self._values[path]

    def _reason(self, cell: Cell, benchmark: str) -> str:
        """Say why a cell has no record: the nearest miss lies in the cell's own folder."""
        own = Path(cell.folder)
        for path, record in self.records.items():
            if record.benchmark.name == benchmark and own.parts == path.parts[-len(own.parts) - 2 : -2]:
                return f"{path.name} is not valid: {why_not(cell.config, record)}"
        return "no record"

    def _alarm(self, cell: Cell, pairs: Sequence[tuple[Path, Record]], metric: str) -> None:
        """Note records of one configuration that do not agree; the newest counts."""
        told = {round(record.means[metric].mean, 6) for _, record in pairs if metric in record.means}
        if len(told) > 1:
            numbers = ", ".join(f"{number:.2f}" for number in sorted(told))
            note = f"{cell.name}, seed {cell.seed}, {pairs[0][1].benchmark.name}:{metric}: records of one configuration"
            self.notes.append(f"{note} differ ({numbers}); the newest counts.")


def aligned(ids: tuple[str, ...], values: PerQuery, metric: str) -> Float64[np.ndarray, " q"]:
    """Order a record's values of a metric as `ids`, which must be its queries."""
    if values.ids == ids:
        return values.values[metric]
    position = {name: row for row, name in enumerate(values.ids)}
    if set(position) != set(ids):
        raise InputError("records of the same data hold values of different queries; evaluate again")
    return values.values[metric][[position[name] for name in ids]]


def averaged(name: str, samples: Sequence[Sample]) -> Sample:
    """Average samples of one column query by query, over the seeds that all of them have."""
    first = samples[0]
    absent = {f"{sample.name}, {what}": why for sample in samples for what, why in sample.missing.items()}
    seeds = [seed for seed in first.seeds if all(seed in sample.seeds for sample in samples)]
    if seeds and any(sample.state != first.state for sample in samples):
        absent |= {"all seeds": "its cells have numbers of different data or protocols"}
        seeds = []
    if not seeds:
        return Sample(name, first.column, {}, missing=absent)
    values = {seed: np.mean([reordered(sample, first.ids)[seed] for sample in samples], axis=0) for seed in seeds}
    found = tuple(record for sample in samples for record in sample.records)
    return Sample(name, first.column, values, first.ids, first.strata, first.state, absent, found)


def reordered(sample: Sample, ids: tuple[str, ...]) -> Mapping[int, Float64[np.ndarray, " q"]]:
    """Give a sample's values by seed in the order of `ids`, which must be its queries."""
    if sample.ids == ids:
        return sample.seeds
    position = {name: row for row, name in enumerate(sample.ids)}
    if set(position) != set(ids):
        raise InputError(f"{sample.name}: {sample.column}: values of other queries than others; evaluate again")
    rows = [position[name] for name in ids]
    return {seed: values[rows] for seed, values in sample.seeds.items()}


def _state(record: Record) -> tuple[str, int, str]:
    return record.protocol.name, record.protocol.version, record.benchmark.fingerprint
