"""What is there already: the records that hold a cell's numbers, and the data as it is now."""

import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from cir import data, records
from cir.ablation.plan import ROOT, Cell
from cir.archive.match import matching
from cir.config import RunConfig
from cir.errors import InputError
from cir.records import Record

RESULTS = Path("experiments") / "results"
"""Where committed records lie, relative to the working folder."""


class Kept:
    """The records among the committed ones and those of all ablations, looked up by what made them.

    A record counts for a cell wherever it lies, so that ablations which share a cell train it once. It must not be
    stale, and agree in the configuration, in the data as it is here now, and in the version of the protocol.
    """

    def __init__(self, benchmarks: Sequence[str]) -> None:
        self.benchmarks = benchmarks
        places = [*sorted(ROOT.glob("*/*/seed-*/records")), *([RESULTS] if RESULTS.is_dir() else [])]
        self.records: dict[Path, Record] = records.find(places)
        self._data: dict[str, dict[str, str]] = {}

    def refresh(self, folder: Path) -> None:
        """Read the records of one run again."""
        place = folder / "records"
        self.records = {path: record for path, record in self.records.items() if path.parent != place}
        if place.is_dir():
            self.records |= records.find([place])

    def of(self, cell: Cell) -> dict[str, tuple[Path, Record]]:
        """Find a valid record of a cell by the benchmarks that are shown; those without one are left out."""
        near = {p: r for p, r in self.records.items() if r.benchmark.name in self.benchmarks and r.seed == cell.seed}
        if not near:
            return {}
        found = matching(cell.config, near, data=self.data(cell.config))
        return {name: found[name][0] for name in self.benchmarks if name in found}

    def missing(self, cell: Cell) -> list[str]:
        """Name the shown benchmarks of which a cell has no valid record."""
        found = self.of(cell)
        return [name for name in self.benchmarks if name not in found]

    def data(self, config: RunConfig) -> dict[str, str]:
        """Give the fingerprints that the shown benchmarks have now, by name; none for what is not on this machine."""
        key = json.dumps(dataclasses.asdict(config.data), sort_keys=True)
        if key not in self._data:
            self._data[key] = _fingerprints(config, self.benchmarks)
        return self._data[key]

    def current(self, cells: Iterable[Cell]) -> dict[Path, Record]:
        """Leave out the records made on another state of the data than the cells see now."""
        now: dict[str, str] = {}
        for cell in cells:
            now |= self.data(cell.config)
        return {
            path: record
            for path, record in self.records.items()
            if now.get(record.benchmark.name, record.benchmark.fingerprint) == record.benchmark.fingerprint
        }


def _fingerprints(config: RunConfig, names: Iterable[str]) -> dict[str, str]:
    """Load the annotations and read off the fingerprints; a group's is that of its parts."""
    from cir.retrieval import load_benchmark  # torch comes with it

    found: dict[str, str] = {}
    for name in names:
        try:
            parts = [load_benchmark(config, part) for part in data.expand(name)]
        except InputError:
            continue  # not here, or not whole: the run itself will say what is wrong with it
        if parts[0].name.startswith(data.WORLD) and not name.startswith(data.WORLD):
            raise InputError(f"show: {name}: {parts[0].root} holds the bundled world; the name is {data.WORLD}{name}")
        found |= {part.name: part.fingerprint for part in parts}
        if len(parts) > 1:
            found[name] = records.fingerprint([part.fingerprint for part in parts])
    return found
