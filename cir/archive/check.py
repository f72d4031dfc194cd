"""Whether records can be trusted: none altered, none outdated, no two of one configuration with other numbers."""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from cir import config as configs
from cir import records
from cir.archive.diff import told
from cir.archive.flat import shown
from cir.archive.match import config_fingerprint, outdated
from cir.errors import InputError
from cir.record_values import means
from cir.records import PerQuery, Record

Kind = Literal["invalid", "altered", "alarm", "outdated", "stale", "unsealed"]
SERIOUS: tuple[Kind, ...] = ("invalid", "altered", "alarm")
"""Findings with which `cir records check` ends in exit code 1."""
EXACT = 1e-9
"""How far a mean may be from its values: two ways of adding the same numbers."""
DRAWN = 1e-6
"""How far the ends of an interval may be: the same draws, added by another machine."""
CAUSES = 8
"""Differences that an alarm names at most."""
NOISE = ("seconds", "peak_mb")
"""How fields end that are never the cause of another number."""


class Finding(NamedTuple):
    """What was found about one record; an alarm names the other in its text."""

    path: Path
    kind: Kind
    text: str


def check(paths: Iterable[Path]) -> tuple[int, list[Finding]]:
    """Check every record among files and folders; returns how many there were, and what was found, in path order."""
    findings: list[Finding] = []
    good: dict[Path, Record] = {}
    files = records.files(paths)
    for path in files:
        try:
            good[path] = records.read(path)
        except InputError as error:
            findings.append(Finding(path, "invalid", str(error).removeprefix(f"{path}: ")))
            continue
        findings += [Finding(path, kind, text) for kind, text in examined(path, good[path])]
    findings += alarms(good)
    return len(files), sorted(findings, key=lambda one: (SERIOUS.index(one.kind) if one.kind in SERIOUS else 9, one))


def examined(path: Path, record: Record) -> list[tuple[Kind, str]]:
    """Check one record by itself: seal, fingerprint, values and means, versions."""
    found: list[tuple[Kind, str]] = []
    plain = records.read_plain(path)
    if records.SEAL not in plain:
        found.append(("unsealed", "written before records were sealed: only what follows from its values is checked"))
    elif plain[records.SEAL] != records.seal(plain):
        found.append(("altered", "its content is not what was written: the seal does not fit"))
    found += [("altered", text) for text in [*_contradictions(record), *_values(path, record)]]
    found += [("stale", record.stale)] if record.stale else []
    old = outdated(record)
    found += [("outdated", f"{old}; evaluate again")] if old and not record.stale else []
    return found


def seal(path: Path) -> bool:
    """Seal a record from before records were, where nothing speaks against it; returns whether it was done."""
    record = records.read(path)
    found = {kind for kind, _ in examined(path, record)}
    if "unsealed" not in found or found & set(SERIOUS):
        return False
    plain = records.read_plain(path)
    records.replace_file(path, records.text({**plain, records.SEAL: records.seal(plain)}))
    return True


def alarms(found: dict[Path, Record]) -> list[Finding]:
    """Find records of one configuration, data and protocol whose numbers differ; stale ones are out of it."""
    same: dict[tuple[str, ...], list[Path]] = {}
    for path, record in found.items():
        if not record.stale:
            same.setdefault(_asked(record), []).append(path)
    return [
        Finding(first, "alarm", text)
        for group in same.values()
        for first, second in combinations(group, 2)
        if (text := _alarm((first, found[first]), (second, found[second])))
    ]


def _contradictions(record: Record) -> list[str]:
    """Compare what a record says twice."""
    said = []
    identity = records.identity(
        configs.fingerprint_of(record.config), record.benchmark, record.protocol, record.backbone, record.method
    )
    if identity != record.fingerprint:
        said.append(f"fingerprint {record.fingerprint}, but configuration, data and weights make {identity}")
    if record.config.get("seed") != record.seed:
        said.append(f"seed {record.seed}, but the configuration's is {record.config.get('seed')}")
    for name, mean in {**record.means, **record.aspects}.items():
        if not (0 <= mean.low <= mean.mean + EXACT and mean.mean <= mean.high + EXACT <= 100 + 2 * EXACT):
            said.append(f"{name}: {mean.mean} is no percentage within [{mean.low}, {mean.high}]")
    return said


def _values(path: Path, record: Record) -> list[str]:
    """Compare the means with the values behind them."""
    said = []
    try:
        if record.ranking is not None:
            records.read_ranking(path, record)
        if record.per_query is None:
            return ["it has means, but no per-query values behind them"] if record.means else []
        values = records.read_values(path, record)
    except InputError as error:
        return [str(error)]
    if len(values.ids) != record.benchmark.queries:
        said.append(f"values of {len(values.ids):,} queries, but the benchmark has {record.benchmark.queries:,}")
    again = means(values.values, values.strata)
    if list(again) != list(record.means):
        return [*said, f"means of {', '.join(record.means)}, but values of {', '.join(again)}"]
    for name, mean in record.means.items():
        for field in dataclasses.fields(mean):
            ours, theirs = getattr(mean, field.name), getattr(again[name], field.name)
            if not math.isclose(ours, theirs, rel_tol=0, abs_tol=DRAWN if field.name in ("low", "high") else EXACT):
                said.append(f"{name}: {field.name} is {ours:.10g}, but its values make {theirs:.10g}")
    return said


def _asked(record: Record) -> tuple[str, ...]:
    """Say what a record is the answer to: all that its fingerprint is over but the trained weights."""
    try:
        config = config_fingerprint(record)
    except InputError:  # of another version of cir
        config = configs.fingerprint_of(record.config)
    return (config, record.benchmark.name, record.benchmark.fingerprint, record.protocol.name,
            str(record.protocol.version), record.backbone.weights, record.backbone.preprocess,
            record.method.name)  # fmt: skip


def _alarm(ours: tuple[Path, Record], theirs: tuple[Path, Record]) -> str:
    """Say how two records that should have the same numbers differ, and what may be the cause; empty if they do not."""
    a, (other, b) = ours[1], theirs
    numbers: Sequence[str] = [
        f"{name} {mean.mean:.4f} against {b.means[name].mean:.4f}"
        for name, mean in a.means.items()
        if name in b.means and abs(mean.mean - b.means[name].mean) > EXACT
    ]
    if not numbers:
        numbers = _different_values(ours, theirs)
    if not numbers and list(a.means) == list(b.means):
        return ""
    what = "one fingerprint" if a.fingerprint == b.fingerprint else "one configuration, trained twice,"
    named = "; ".join(_causes(a, b))
    return (
        f"{what} and different numbers in {other}: {', '.join(numbers[:3]) or 'other metrics'}; "
        f"they differ in: {named or 'nothing that a record keeps'}"
    )


def _causes(a: Record, b: Record) -> list[str]:
    """Name what two records differ in, code and machine first, without what any two runs differ in."""
    found = told(a, b)
    listed = [difference for part in ("code", "weights", "data", "config") for difference in found[part]]
    causes = [f"{d.key} {shown(d.before)} / {shown(d.after)}" for d in listed if not d.key.endswith(NOISE)]
    return [*causes[:CAUSES], *([f"and {len(causes) - CAUSES} more"] if len(causes) > CAUSES else [])]


def _different_values(ours: tuple[Path, Record], theirs: tuple[Path, Record]) -> Sequence[str]:
    """Compare values query by query, where the means agree; files of equal content need no look."""
    a, b = ours[1].per_query, theirs[1].per_query
    if a is None or b is None or a.sha256 == b.sha256:
        return []
    try:
        left, right = records.read_values(*ours), records.read_values(*theirs)
    except InputError:  # found by `examined`
        return []
    return [] if _equal(left, right) else ["the same means, but other values per query"]


def _equal(a: PerQuery, b: PerQuery) -> bool:
    return (
        a.ids == b.ids
        and list(a.values) == list(b.values)
        and all(np.array_equal(a.values[name], b.values[name]) for name in a.values)
        and np.array_equal(a.ranks, b.ranks)
    )
