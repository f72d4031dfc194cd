"""One model, one benchmark, every protocol it goes by: how much of a number is the model's, how much the rule's.

The vectors come from a `Source`: files that anybody made (`given`), or a method that composes them here (`composed`).
Only the second needs torch.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from cir import data, stats
from cir.errors import InputError
from cir.protocols import PROTOCOLS, mean_over, pooled
from cir.schema import Benchmark, Embeddings, Scores
from cir.score import rank_and_score

Load = Callable[[str, str], Benchmark]
"""`load(name, protocol)`: a benchmark, not a group, under one of its protocols."""
Source = Callable[[Benchmark], tuple[Embeddings, Embeddings]]
"""Query and gallery vectors of a benchmark, in its order."""


@dataclass(frozen=True, slots=True)
class Change:
    """A mean minus the default protocol's, in points of percent, with the paired 95 % interval over queries."""

    difference: float
    low: float
    high: float
    p_value: float


@dataclass(frozen=True, slots=True)
class Row:
    """One protocol: its means in percent, and how far they are from the default's; or why it could not be run."""

    protocol: str
    version: int
    differs: str
    """One sentence."""
    gallery: int = 0
    """Images; of a group, the sum over its parts."""
    queries: int = 0
    means: Mapping[str, float] = field(default_factory=dict)
    changes: Mapping[str, Change] = field(default_factory=dict)
    """For metrics that the default protocol has too, where both have the same queries."""
    stamps: tuple[str, ...] = ()
    reason: str = ""
    """Why there are no numbers; empty where there are."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """A benchmark or group under every protocol it has, the default first."""

    benchmark: str
    rows: tuple[Row, ...]

    def plain(self) -> dict[str, Any]:
        """Write it as plain values, for JSON."""
        return {"benchmark": self.benchmark, "unit": "percent", "interval": 0.95, **asdict(self)}


@dataclass(frozen=True, slots=True)
class _Scored:
    """The parts of a benchmark under one protocol, pooled."""

    name: str
    scores: Scores
    strata: tuple[str, ...]
    means: Mapping[str, float]
    gallery: int
    stamps: tuple[str, ...]


def compare(name: str, load: Load, source: Source) -> Comparison:
    """Score a benchmark under all its protocols.

    A protocol that cannot be run here (its images or their vectors are missing) is a row with the reason. Raises
    InputError where that holds for all of them, and for a benchmark whose labels are hidden.
    """
    parts = data.expand(name)
    rows: list[Row] = []
    default: _Scored | None = None
    title = name
    for protocol in protocols(parts):
        rule = PROTOCOLS[protocol]
        described = (protocol, rule.version, rule.differs or rule.definition)
        try:
            scored = _score(name, parts, protocol, load, source)
        except InputError as error:
            rows.append(Row(*described, reason=str(error)))
            continue
        title = scored.name
        rows.append(_row(described, scored, default if rows else None))
        default = scored if len(rows) == 1 else default
    if all(row.reason for row in rows):
        raise InputError(rows[0].reason)
    return Comparison(title, tuple(rows))


def protocols(parts: Sequence[str]) -> list[str]:
    """List the protocols that benchmarks have in common, the default first."""
    first, *others = [data.find(part).protocols for part in parts]
    return [protocol for protocol in first if all(protocol in other for other in others)]


def _score(name: str, parts: Sequence[str], protocol: str, load: Load, source: Source) -> _Scored:
    """Score every part under one protocol."""
    scored: dict[str, Scores] = {}
    gallery = 0
    stamps: list[str] = []
    for part in parts:
        benchmark = load(part, protocol)
        if not benchmark.labelled:
            raise InputError(f"{benchmark.name}: the labels are hidden, no protocol can be compared on it")
        queries, images = source(benchmark)
        scored[benchmark.name] = rank_and_score(benchmark, PROTOCOLS[protocol], queries, images).scores
        gallery += len(benchmark.gallery)
        stamps += benchmark.stamps
    world = data.WORLD if next(iter(scored)).startswith(data.WORLD) and not name.startswith(data.WORLD) else ""
    scores, strata = pooled(scored)
    groups = strata if len(parts) > 1 else ()
    return _Scored(world + name, scores, groups, mean_over(scored), gallery, tuple(dict.fromkeys(stamps)))


def _row(described: tuple[str, int, str], scored: _Scored, default: _Scored | None) -> Row:
    """Average, and compare with the default protocol query by query."""
    return Row(
        *described,
        gallery=scored.gallery,
        queries=len(scored.scores.query_ids),
        means={metric: 100 * mean for metric, mean in scored.means.items()},
        changes=_changes(scored, default) if default is not None else {},
        stamps=scored.stamps,
    )


def _changes(scored: _Scored, default: _Scored) -> dict[str, Change]:
    """Compare the metrics that both have; nothing where the queries are others."""
    if scored.scores.query_ids != default.scores.query_ids:
        return {}
    changes = {}
    for metric, values in scored.scores.values.items():
        if metric in default.scores.values:
            found = stats.paired(values, default.scores.values[metric], strata=scored.strata or None)
            changes[metric] = Change(100 * found.difference, 100 * found.low, 100 * found.high, found.p_value)
    return changes
