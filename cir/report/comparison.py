"""Two runs query by query: difference with its interval, won, tied, lost, and a paired test."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cir import stats
from cir.errors import InputError, nearest
from cir.records import PerQuery, Record, read_values
from cir.report.markup import p_text


@dataclass(frozen=True)
class Row:
    """One metric of one benchmark, run against baseline; difference and interval in points of percent."""

    benchmark: str
    metric: str
    run: str
    baseline: str
    difference: float
    low: float
    high: float
    won: int
    tied: int
    lost: int
    p_value: float
    test: str

    @property
    def p_text(self) -> str:
        """Print the p-value with the digits it deserves."""
        return p_text(self.p_value)


def compare(ours: Mapping[Path, Record], theirs: Mapping[Path, Record], metrics: Sequence[str] = ()) -> list[Row]:
    """Compare the records of two runs, benchmark by benchmark, in the order of the first.

    `metrics` picks what is compared (none: the first of each record). Only records of the same data, protocol and
    protocol version are compared; raises `InputError` when there is no such pair, or several for one benchmark.
    """
    rows = []
    for path, record in ours.items():
        partners = [other for other in theirs if theirs[other].means and _comparable(record, theirs[other])]
        if len(partners) > 1:
            names = ", ".join(str(partner) for partner in partners)
            raise InputError(f"compare: several records match {path}: {names}; name one file, or one seed's folder")
        if partners and record.means:
            rows += pair((path, record), (partners[0], theirs[partners[0]]), metrics)
    if not rows:
        raise InputError(
            "compare: no benchmark in common; expected records of the same benchmark, data and protocol version, got "
            f"{_listed(ours.values())} and {_listed(theirs.values())}"
        )
    return rows


def pair(ours: tuple[Path, Record], theirs: tuple[Path, Record], metrics: Sequence[str] = ()) -> list[Row]:
    """Compare one record with another of the same benchmark, on the same queries."""
    record, baseline = ours[1], theirs[1]
    a, b = read_values(*ours), read_values(*theirs)
    if set(a.ids) != set(b.ids):
        raise InputError(f"compare: {ours[0]} and {theirs[0]} hold values of different queries")
    rows = []
    for metric in metrics or list(record.means)[:1]:
        for values, path in ((a, ours[0]), (b, theirs[0])):
            if metric not in values.values:
                raise InputError(f"compare: {path} has no {metric!r}; {nearest(metric, values.values)}")
        rows.append(_row(record, baseline, metric, a, b))
    return rows


def _row(record: Record, baseline: Record, metric: str, a: PerQuery, b: PerQuery) -> Row:
    position = {name: row for row, name in enumerate(b.ids)}
    theirs = b.values[metric][[position[name] for name in a.ids]]
    found = stats.paired(a.values[metric], theirs, strata=a.strata or None)
    return Row(
        record.benchmark.name,
        metric,
        record.run,
        baseline.run,
        difference=100 * found.difference,
        low=100 * found.low,
        high=100 * found.high,
        won=found.won,
        tied=found.tied,
        lost=found.lost,
        p_value=found.p_value,
        test=found.test,
    )


def _comparable(a: Record, b: Record) -> bool:
    def what(record: Record) -> tuple[object, ...]:
        protocol, bench = record.protocol, record.benchmark
        return bench.name, bench.fingerprint, protocol.name, protocol.version

    return what(a) == what(b)


def _listed(records: Iterable[Record]) -> str:
    return ", ".join(dict.fromkeys(r.benchmark.name for r in records)) or "nothing"
