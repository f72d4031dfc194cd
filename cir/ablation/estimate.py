"""What a run will cost, from what records say earlier ones did."""

from collections.abc import Iterable, Sequence
from statistics import median

from cir.ablation.jobs import Job
from cir.records import Record


def seconds(job: Job, known: Sequence[Record]) -> float | None:
    """Estimate how long a job still takes; None where no record of its method on its encoders says.

    Training: the median time per row of batch, of records with the same batch (else any), best with the same number
    of steps; steps that are behind it count as done. Evaluation: the median of records on the same benchmark.
    """
    like = [r for r in known if r.method.name == job.config.method["name"] and _encoders(r) == _wanted(job)]
    evaluating = [_evaluation(name, like) for name in job.config.evaluate]
    if not job.learns:
        return None if None in evaluating else sum(one or 0.0 for one in evaluating)
    per_row = _per_row(job, like)
    if per_row is None:
        return None
    train = job.config.train
    left = max(0, train.steps - job.steps_done()[0])
    return left * train.batch * per_row + sum(one or 0.0 for one in evaluating)


def _per_row(job: Job, like: Iterable[Record]) -> float | None:
    """Take the seconds per row of a batch from the runs that resemble the job most."""
    found: dict[tuple[bool, bool], list[float]] = {}
    for record in like:
        training, batch = record.method.training, record.config.get("train", {}).get("batch")
        if training is None or training.seconds is None or not training.steps or not batch:
            continue
        train = job.config.train
        alike = (batch == train.batch, training.steps == train.steps)
        found.setdefault(alike, []).append(training.seconds / (training.steps * batch))
    return median(found[max(found)]) if found else None


def _evaluation(benchmark: str, like: Iterable[Record]) -> float | None:
    times = [record.seconds for record in like if record.benchmark.name == benchmark]
    return median(times) if times else None


def _encoders(record: Record) -> str:
    return str(record.config.get("backbone", {}).get("name"))


def _wanted(job: Job) -> str:
    return job.config.backbone.name
