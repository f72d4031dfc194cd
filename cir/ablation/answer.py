"""What an ablation's records answer: per cell and column mean and spread, and what differs from the baseline.

Two kinds of doubt are kept apart. Over queries: would other queries of this kind say the same (bootstrap intervals,
paired tests on per-query values averaged over seeds)? Over seeds: would training again say the same (standard
deviation, paired t-test)? All comparisons of one column are corrected together (Holm, 1979).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cir import stats
from cir.ablation import factors
from cir.ablation.plan import Ablation, Cell
from cir.ablation.samples import Sample, Source, reordered
from cir.errors import InputError
from cir.records import Record
from cir.report.tables import conditions

ALPHA = 0.05
"""Level at which a comparison counts as a difference, after Holm's correction."""


@dataclass(frozen=True, slots=True)
class Summary:
    """One cell in one column, in percent."""

    name: str
    column: str
    seeds: Mapping[int, float]
    """Mean over queries by seed."""
    mean: float | None
    """Mean over seeds; None where no seed has a number."""
    deviation: float | None
    """Standard deviation over seeds (n - 1); None for fewer than two."""
    low: float | None
    high: float | None
    """95 % bootstrap interval over queries of the per-query values averaged over seeds."""
    queries: int
    missing: Mapping[str, str]
    """Why there is no number, by what has none ("seed 1")."""


@dataclass(frozen=True, slots=True)
class Contrast:
    """One cell against the baseline in one column, on the seeds that both have; in points of percent."""

    name: str
    against: str
    column: str
    seeds: tuple[int, ...]
    queries: stats.Comparison
    """Over queries, on values averaged over seeds; `difference`, `low`, `high` in points."""
    adjusted: float
    """The p-value over queries, by Holm over all comparisons of the column."""
    d_z: float
    """Paired effect size over queries (Cohen)."""
    seed_units: float | None
    """The difference in pooled standard deviations over seeds."""
    training: stats.SeedComparison | None
    """Over seeds, in points; None for fewer than three, or where they do not spread."""
    training_adjusted: float | None = None
    """The p-value over seeds, by Holm over the same comparisons."""

    @property
    def differs(self) -> bool:
        """Whether it differs on these queries, after correction."""
        return self.adjusted <= ALPHA


@dataclass(frozen=True)
class Factor:
    """The main effect of one factor of a grid: each level averaged over all other factors, against one level."""

    key: str
    levels: tuple[str, ...]
    reference: str
    over: int
    """How many settings of the other factors each level is averaged over."""
    summaries: Mapping[tuple[str, str], Summary]
    """By level and column."""
    contrasts: Mapping[tuple[str, str], Contrast]


@dataclass(frozen=True)
class Answer:
    """All numbers of an ablation; cells in the order of the file, `summaries` by cell and column."""

    ablation: Ablation
    cells: tuple[str, ...]
    columns: tuple[str, ...]
    baseline: str
    summaries: Mapping[tuple[str, str], Summary]
    contrasts: Mapping[tuple[str, str], Contrast]
    untested: Mapping[tuple[str, str], str]
    """Why a cell is not compared with the baseline."""
    factors: tuple[Factor, ...]
    notes: tuple[str, ...]
    """What the numbers rest on, and what limits them."""


def answer(ablation: Ablation, cells: Sequence[Cell], records: Mapping[Path, Record]) -> Answer:
    """Compute an ablation's numbers from the records that are valid for its cells (`cir.archive.match`).

    What has no valid record is missing with its reason, never an error; so is what a record says that was altered
    (`cir.archive.check`).
    """
    source = Source(records)
    names = tuple(dict.fromkeys(cell.name for cell in cells))
    seeds = {name: [cell for cell in cells if cell.name == name] for name in names}
    samples = {(name, column): source.sample(name, seeds[name], column) for name in names for column in ablation.show}
    baseline = {column: samples[ablation.baseline, column] for column in ablation.show}
    contrasts, untested = compared({key: s for key, s in samples.items() if key[0] != ablation.baseline}, baseline)
    return Answer(
        ablation,
        names,
        ablation.show,
        ablation.baseline,
        {key: summary(sample) for key, sample in samples.items()},
        contrasts,
        untested,
        tuple(_factors(ablation, cells, samples)),
        tuple(dict.fromkeys([*_conditions(samples.values()), *source.notes])),
    )


def summary(sample: Sample) -> Summary:
    """Summarise one sample: mean and spread over seeds, interval over queries."""
    if not sample.seeds:
        return Summary(sample.name, sample.column, {}, None, None, None, None, 0, sample.missing)
    percents = {seed: sample.percent(seed) for seed in sample.seeds}
    found = stats.bootstrap({"mean": sample.mean()}, sample.strata or None)["mean"]
    return Summary(
        sample.name,
        sample.column,
        percents,
        100 * found.mean,
        stats.deviation(list(percents.values())),
        100 * found.low,
        100 * found.high,
        found.queries,
        sample.missing,
    )


Key = tuple[str, str]
"""A cell, or a level of a factor, and a column."""


def compared(
    samples: Mapping[Key, Sample], baseline: Mapping[str, Sample]
) -> tuple[dict[Key, Contrast], dict[Key, str]]:
    """Compare samples, by name and column, with their column's baseline, corrected per column; and why some are not."""
    found: dict[Key, Contrast] = {}
    untested: dict[Key, str] = {}
    for key, sample in samples.items():
        try:
            found[key] = contrast(sample, baseline[key[1]])
        except InputError as why:
            untested[key] = str(why)
    for column in baseline:
        keys = [key for key in found if key[1] == column]
        adjusted = stats.holm([found[key].queries.p_value for key in keys])
        trained = [(key, training) for key in keys if (training := found[key].training) is not None]
        over_seeds = dict(zip((k for k, _ in trained), stats.holm([t.p_value for _, t in trained]), strict=True))
        for key, p_value in zip(keys, adjusted, strict=True):
            found[key] = replace(found[key], adjusted=p_value, training_adjusted=over_seeds.get(key))
    return found, untested


def contrast(sample: Sample, baseline: Sample) -> Contrast:
    """Compare one sample with another of the same column, not corrected yet; raises `InputError` where it cannot."""
    for one in (sample, baseline):
        if not one.seeds:
            raise InputError(f"{one.name} has no number")
    if sample.state != baseline.state:
        raise InputError(f"other data or another protocol than {baseline.name}")
    shared = tuple(seed for seed in sample.seeds if seed in baseline.seeds)
    if not shared:
        raise InputError(f"no seed in common with {baseline.name}")
    baseline = replace(baseline, seeds=reordered(baseline, sample.ids), ids=sample.ids)
    ours, theirs, strata = sample.mean(shared), baseline.mean(shared), sample.strata or None
    found = stats.paired(ours, theirs, strata=strata)
    points = replace(found, difference=100 * found.difference, low=100 * found.low, high=100 * found.high)
    a, b = [sample.percent(seed) for seed in shared], [baseline.percent(seed) for seed in shared]
    return Contrast(
        sample.name,
        baseline.name,
        sample.column,
        shared,
        points,
        found.p_value,
        stats.effect_size(ours, theirs, strata),
        stats.seed_units(a, b),
        stats.over_seeds(a, b),
    )


def _factors(ablation: Ablation, cells: Sequence[Cell], samples: Mapping[Key, Sample]) -> list[Factor]:
    """Compute the main effect of each factor of a grid of two or more."""
    found = []
    axes = factors.axes(ablation, cells)
    pooled = [(axis, factors.pooled(axis, samples, ablation.show)) for axis in axes]
    for axis, levels in pooled:
        reference = {column: levels[axis.reference, column] for column in ablation.show}
        others = {key: sample for key, sample in levels.items() if key[0] != axis.reference}
        contrasts, _ = compared(others, reference)
        summaries = {key: summary(sample) for key, sample in levels.items()}
        found.append(Factor(axis.key, tuple(axis.levels), axis.reference, axis.over, summaries, contrasts))
    return found


def _conditions(samples: Iterable[Sample]) -> list[str]:
    """Say what the numbers rest on, and what makes them not comparable, each once."""
    records = [record for sample in samples for record in sample.records]
    stamps = [f"{r.benchmark.name}: not comparable, {stamp}." for r in records for stamp in r.benchmark.stamps]
    return [*dict.fromkeys(conditions(record) for record in records), *dict.fromkeys(stamps)]
