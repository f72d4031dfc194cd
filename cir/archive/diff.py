"""How two records differ: configuration, data, weights, code, numbers, and query by query."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64, Int64

from cir.archive.flat import Difference, differences
from cir.errors import InputError, nearest
from cir.records import PerQuery, Record, read_values
from cir.report import comparison

Pair = tuple[Path, Record]

SECTIONS: dict[str, tuple[str, ...]] = {
    "data": ("benchmark", "protocol"),
    "weights": ("backbone", "method"),
    "code": ("code", "packages"),
}
"""Headings, and which parts of a record stand below them; the configuration has one of its own."""
FAR = 10**9
"""The rank of a target that is in no ranking, when ranks are compared."""


class Number(NamedTuple):
    """One metric in both records, in percent (None where a record does not have it), and the queries the second won."""

    metric: str
    before: float | None
    after: float | None
    won: int | None = None
    lost: int | None = None


class Changed(NamedTuple):
    """One query: its value (a fraction) and the best rank of its targets, in both records; 0: it has none."""

    query: str
    before: float
    after: float
    rank_before: int
    rank_after: int


@dataclasses.dataclass(frozen=True)
class Diff:
    """What `diff` found; `test` (second against first) and `changed` are of `metric`, None for other queries."""

    sections: Mapping[str, Sequence[Difference]]
    numbers: tuple[Number, ...]
    metric: str
    test: comparison.Row | None
    changed: tuple[Changed, ...]
    notes: tuple[str, ...]
    """What must be said of the comparison: other data, another protocol, no values."""


def diff(before: Pair, after: Pair, metric: str = "", queries: int = 10) -> Diff:
    """Compare two records; `metric` (none: the first both have) is tested and ranked by, `queries` are listed.

    Of the queries those are listed whose value changed most, and of equally changed ones those whose rank did, as a
    ratio. A paired test needs the same queries in both.
    """
    a, b = before[1], after[1]
    metric = _metric(a, b, metric)
    values, notes = _values(before, after, metric)
    test, changed = None, []
    if values is not None:
        test = comparison.pair(after, before, [metric])[0]
        changed = _changed(*values, metric)[:queries]
    return Diff(told(a, b), _numbers(a, b, values), metric, test, tuple(changed), tuple(notes))


def told(a: Record, b: Record) -> dict[str, list[Difference]]:
    """List by heading the fields in which two records differ, without their numbers and what every run differs in."""
    left, right = dataclasses.asdict(a), dataclasses.asdict(b)
    found = {"config": differences(a.config, b.config)}
    for heading, parts in SECTIONS.items():
        found[heading] = differences({part: left[part] for part in parts}, {part: right[part] for part in parts})
    return found


def pairs(ours: Mapping[Path, Record], theirs: Mapping[Path, Record]) -> list[tuple[Pair, Pair]]:
    """Put records of the same benchmark together; two single records go together whatever they are.

    Raises `InputError` where a benchmark has several records on one side, or none is on both.
    """
    if len(ours) == len(theirs) == 1:
        return [(next(iter(ours.items())), next(iter(theirs.items())))]
    found = []
    for name in dict.fromkeys(record.benchmark.name for record in ours.values()):
        sides = [[pair for pair in side.items() if pair[1].benchmark.name == name] for side in (ours, theirs)]
        if not sides[1]:
            continue
        for side in sides:
            if len(side) > 1:
                listed = ", ".join(str(path) for path, _ in side)
                raise InputError(f"diff: several records of {name}: {listed}; name one file, or one seed's folder")
        found.append((sides[0][0], sides[1][0]))
    if not found:
        raise InputError("diff: no benchmark in common; name two records, or folders of two runs")
    return found


def _metric(a: Record, b: Record, metric: str) -> str:
    shared = [name for name in a.means if name in b.means]
    if metric and metric not in shared:
        raise InputError(f"diff: not both records have {metric!r}; {nearest(metric, shared)}")
    return metric or next(iter(shared), "")


def _numbers(a: Record, b: Record, values: tuple[PerQuery, PerQuery] | None) -> tuple[Number, ...]:
    listed = []
    for name in dict.fromkeys([*a.means, *b.means]):
        percents = [one.means[name].mean if name in one.means else None for one in (a, b)]
        change = values[1].values[name] - values[0].values[name] if values and None not in percents else None
        counts = (None, None) if change is None else (int((change > 0).sum()), int((change < 0).sum()))
        listed.append(Number(name, percents[0], percents[1], *counts))
    return tuple(listed)


def _values(before: Pair, after: Pair, metric: str) -> tuple[tuple[PerQuery, PerQuery] | None, list[str]]:
    """Read both records' values, in one order of queries, and say what stands in the way of comparing them."""
    a, b = before[1], after[1]
    notes = [f"{record.run}: stale, {record.stale}" for record in (a, b) if record.stale]
    if (a.protocol.name, a.protocol.version) != (b.protocol.name, b.protocol.version):
        notes.append("the protocols differ: the numbers mean different things")
    if a.benchmark.fingerprint != b.benchmark.fingerprint:
        notes.append("the data differ: the numbers are not over the same queries, labels and gallery")
    if not metric:
        return None, [*notes, "no metric in common"]
    lacking = [path for path, record in (before, after) if record.per_query is None]
    if lacking:
        return None, [*notes, f"no per-query values in {', '.join(map(str, lacking))}: no paired test"]
    first, second = read_values(*before), read_values(*after)
    if set(first.ids) != set(second.ids):
        return None, [*notes, "not the same queries: no paired test"]
    return (first, _reordered(second, first.ids)), notes


def _reordered(values: PerQuery, ids: Sequence[str]) -> PerQuery:
    place = {name: row for row, name in enumerate(values.ids)}
    rows = [place[name] for name in ids]
    return PerQuery(tuple(ids), {name: one[rows] for name, one in values.values.items()}, values.ranks[rows])


def _changed(before: PerQuery, after: PerQuery, metric: str) -> list[Changed]:
    """List the queries whose value or rank changed, the most changed first."""
    values: list[Float64[np.ndarray, " q"]] = [before.values[metric], after.values[metric]]
    ranks = [_best(before.ranks), _best(after.ranks)]
    far = [np.log(np.where(rank > 0, rank, FAR)) for rank in ranks]
    order = np.lexsort((-np.abs(far[1] - far[0]), -np.abs(values[1] - values[0])))
    listed: list[Any] = [before.ids, *(column.tolist() for column in (*values, *ranks))]
    every = [Changed(*(column[row] for column in listed)) for row in order]
    return [one for one in every if one.before != one.after or one.rank_before != one.rank_after]


def _best(ranks: Int64[np.ndarray, "q m"]) -> Int64[np.ndarray, " q"]:
    """Take the best rank among a query's targets, 0 where it has none."""
    last = np.iinfo(np.int64).max
    best = np.where(ranks > 0, ranks, last).min(axis=1, initial=last)
    return np.where(best == last, 0, best)
