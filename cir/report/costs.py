"""What training cost, as columns of a table: `train:minutes`, `train:peak_mb` and the like, from the same records."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from cir.records import Record, TrainingInfo

TRAIN = "train"
"""The name these columns have in place of a benchmark's."""


class Kind(NamedTuple):
    """One cost: how it is read off a record, printed, and explained below the table."""

    read: Callable[[Record, TrainingInfo], float | None]
    form: str
    note: str


def _minutes(seconds: float | None) -> float | None:
    return None if seconds is None else seconds / 60


COSTS: dict[str, Kind] = {
    "minutes": Kind(lambda r, t: _minutes(t.seconds), ".2f", "time in training steps"),
    "prepare_minutes": Kind(
        lambda r, t: _minutes(t.prepare_seconds), ".2f", "time before the first step, next to nothing where it was kept"
    ),
    "peak_mb": Kind(lambda r, t: t.peak_mb, ",.0f", "peak resident memory of the training process in 10^6 bytes"),
    "gpu_peak_mb": Kind(lambda r, t: t.gpu_peak_mb, ",.0f", "peak memory allocated on its GPU in 10^6 bytes"),
    "parameters": Kind(lambda r, t: float(r.method.trained_count), ",.0f", "trained parameters"),
}


def read(record: Record, metric: str) -> float | None:
    """Look up a cost; None for what is not trained, or where an older record does not say."""
    return None if record.method.training is None else COSTS[metric].read(record, record.method.training)


def shown(metric: str, value: float) -> str:
    """Print a cost.

    >>> shown("minutes", 1.234), shown("parameters", 14162688.0)
    ('1.23', '14,162,688')
    """
    return format(value, COSTS[metric].form)


def notes(records: Iterable[Record], metrics: Sequence[str]) -> list[str]:
    """Say what the columns mean, on what the runs trained, and what is not in the number: a wrapper's base."""
    trained = {(r.run, r.seed): r for r in records if r.method.training is not None}.values()
    said = [f"{TRAIN}:{metric}: {COSTS[metric].note}." for metric in metrics]
    places: dict[str, dict[str, None]] = defaultdict(dict)
    for record in trained:
        place = _place(record.method.training) if record.method.training is not None else ""
        if place:
            places[place][record.run] = None
    said += [f"Trained on {place}: {', '.join(runs)}." for place, runs in places.items()]
    wrappers = {r.run: r for r in trained if r.method.base is not None or r.config.get("base")}
    return said + [f"{run}: without its base{_cost_of(record.method.base)}." for run, record in wrappers.items()]


def _place(training: TrainingInfo) -> str:
    if not training.device:
        return ""
    parts = [f"{training.threads} threads"] if training.threads else []
    parts += [f"{training.processes} processes"] if (training.processes or 1) > 1 else []
    return f"{training.device} ({', '.join(parts)})" if parts else training.device


def _cost_of(base: TrainingInfo | None) -> str:
    """Say what a base cost, as far as it is known."""
    if base is None:
        return ", which was trained before"
    parts = [f"{base.seconds / 60:.2f} minutes"] if base.seconds is not None else []
    parts += [f"{base.peak_mb:,.0f} MB at most"] if base.peak_mb is not None else []
    return f", which took {', '.join(parts)}" if parts else ", which was trained before"
