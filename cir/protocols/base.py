"""What every protocol offers: who competes, which numbers are printed, and how values are averaged."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import numpy as np
from jaxtyping import Float64, Int64

from cir.errors import InputError
from cir.schema import Benchmark, Query, Scores, TargetRanks


class Protocol(ABC):
    """What a published number means. `version` is raised with any change that can move a score."""

    id: ClassVar[str]
    """The key in PROTOCOLS."""
    version: ClassVar[int]
    definition: ClassVar[str]
    """One sentence with its source; printed with every number."""
    differs: ClassVar[str] = ""
    """What sets it apart from the other protocols of its benchmarks, in one sentence; empty: see the definition."""
    metrics: ClassVar[tuple[str, ...]]
    """In the order tables print them."""
    headline: ClassVar[str]
    """The metric to compare and select by."""
    aspect_metric: ClassVar[str]
    """The metric that is also averaged per tag."""
    competes: ClassVar[Literal["gallery", "candidates", "both"]] = "gallery"
    """Which images a query's targets compete with: the gallery, its own candidates, or one after the other."""

    def excluded(self, query: Query) -> tuple[str, ...]:
        """Name the images that do not take part in the ranking of a query."""
        return ()

    def relevant(self, query: Query) -> tuple[str, ...]:
        """Name the images whose ranks `score` is given, in the order of its columns; targets come first."""
        return query.targets

    def relevant_within(self, query: Query) -> tuple[str, ...]:
        """Name the images whose ranks among the candidates `score` is given (`competes = "both"`)."""
        return query.targets

    def score(self, benchmark: Benchmark, ranks: TargetRanks, within: TargetRanks | None = None) -> Scores:
        """Turn the ranks of what is `relevant` into per-query fractions, keyed in print order.

        `within` holds the ranks among each query's candidates, for protocols where both compete; where only
        candidates do, `ranks` are those. Raises InputError for hidden labels, for ranks of other queries, and for a
        missing `within`.
        """
        if not benchmark.labelled:
            raise InputError(f"{benchmark.name}: the labels are hidden, only the benchmark's server can score it")
        ids = tuple(query.id for query in benchmark.queries)
        for given in (ranks, within):
            if given is not None and given.query_ids != ids:
                raise InputError(f"{benchmark.name}: the ranks are not of its {len(ids):,} queries in their order")
        if self.competes == "both" and within is None:
            raise InputError(f"{benchmark.name}: {self.id} also needs the ranks within each query's candidates")
        values = self._values(benchmark.queries, ranks.ranks, within.ranks if within else ranks.ranks[:, :0])
        return Scores(ids, {name: values[name] for name in self.metrics})

    @abstractmethod
    def _values(
        self, queries: Sequence[Query], ranks: Int64[np.ndarray, "q m"], within: Int64[np.ndarray, "q n"]
    ) -> dict[str, Float64[np.ndarray, " q"]]:
        """Compute every metric of the protocol from the ranks of the relevant images; 0 fills unused columns."""

    def aspects(self, benchmark: Benchmark, scores: Scores) -> dict[str, Int64[np.ndarray, " n"]]:
        """List, per tag, the positions in `scores` of the queries that carry it; a query counts for each of its tags.

        Take means of `aspect_metric` over them. A tag that no query carries does not occur.
        """
        tags = {query.id: query.tags for query in benchmark.queries}
        table: dict[str, list[int]] = {}
        for position, name in enumerate(scores.query_ids):
            for tag in dict.fromkeys(tags[name]):
                table.setdefault(tag, []).append(position)
        return {tag: np.array(table[tag], dtype=np.int64) for tag in sorted(table)}

    def label(self, benchmark: Benchmark) -> str:
        """Name protocol and version as they are printed; numbers of the bundled world say so.

        E.g. `cirr (v1)`, `world/cirr (v1)`.
        """
        world = "world/" if benchmark.name.startswith("world/") else ""
        return f"{world}{self.id} (v{self.version})"


def pooled(parts: Mapping[str, Scores]) -> tuple[Scores, tuple[str, ...]]:
    """Put several benchmarks' per-query values behind one another, with the part each query belongs to.

    The second value is the `strata` of `cir.stats.bootstrap`, whose mean is then the unweighted mean over parts.
    """
    if not parts:
        raise InputError("protocols: nothing to pool; expected the scores of at least one benchmark")
    first = next(iter(parts.values()))
    if any(list(part.values) != list(first.values) for part in parts.values()):
        raise InputError(f"protocols: {', '.join(parts)} do not have the same metrics and cannot be averaged")
    ids = tuple(name for part in parts.values() for name in part.query_ids)
    values = {metric: np.concatenate([part.values[metric] for part in parts.values()]) for metric in first.values}
    return Scores(ids, values), tuple(name for name, part in parts.items() for _ in part.query_ids)


def mean_over(parts: Mapping[str, Scores]) -> dict[str, float]:
    """Average each metric within every benchmark, then over benchmarks without weights, as FashionIQ's tables do."""
    scores, strata = pooled(parts)
    rows = [[i for i, name in enumerate(strata) if name == part] for part in parts]
    return {metric: float(np.mean([value[row].mean() for row in rows])) for metric, value in scores.values.items()}
