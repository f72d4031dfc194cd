from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cir import config, records
from cir.ablation import naming
from cir.ablation.plan import Ablation, Cell, NamedCell
from cir.record_values import means
from cir.records import BackboneInfo, BenchmarkInfo, CodeInfo, MethodInfo, PerQuery, ProtocolInfo, Record

QUESTION = "Does it matter?"


def run_config(settings, seed):
    """A configuration in which every setting is an option of the method, or a key of the training."""
    made = config.RunConfig(seed=seed, method={"name": "sum"})
    for key, value in settings.items():
        section, _, last = key.partition(".")
        if section == "train":
            setattr(made.train, last, value)
        else:
            made.method[last] = value
    return made


def identified(record):
    """The record with the fingerprint that its content has."""
    made = config.fingerprint_of(record.config)
    identity = records.identity(made, record.benchmark, record.protocol, record.backbone, record.method)
    return replace(record, fingerprint=identity)


def write_record(folder, name, cell, column_values, benchmark, *, ids, strata=(), change=None):
    """A record of a cell on one benchmark with the per-query values given by metric."""
    values = {metric: np.asarray(numbers, dtype=np.float64) for metric, numbers in column_values.items()}
    record = Record(
        run=name,
        fingerprint="",
        config=config.resolved(cell.config),
        seed=cell.seed,
        protocol=ProtocolInfo("circo", 1, "AP@k over min(targets, k)."),
        benchmark=BenchmarkInfo(benchmark, "1.0", "val", "00ff00ff00ff00ff", len(ids), 30),
        backbone=BackboneInfo("tiny", "1" * 16, "clip:2222", "float32", "cpu"),
        method=MethodInfo("sum", "Somebody et al. 2024"),
        code=CodeInfo("0.1.0", "abcdef", False),
        packages={"python": "3.11"},
        seconds=1.5,
        peak_mb=500.0,
        means=means(values, strata),
        tied=0,
        created="2024-01-01T00:00:00+00:00",
    )
    record = identified(change(record) if change else record)
    per_query = PerQuery(tuple(ids), values, np.ones((len(ids), 1), np.int64), tuple(strata))
    path = records.write(folder, record, per_query)
    return path, records.read(path)


class Made:
    """An ablation with records on disk: cells by name, their settings, and per-query values by seed and column."""

    def __init__(self, root):
        self.root, self.cells, self.records, self.points = root, [], {}, []

    def add(self, name, values, settings=None, *, ids=None, strata=(), change=None):
        """Add a cell; `values` are `{seed: {column: numbers}}`, and a seed without columns has no record."""
        settings = {"method.cell": name} if settings is None else settings
        self.points.append(NamedCell(name, settings))
        for seed, columns in values.items():
            folder = self.root / naming.slug(name) / f"seed-{seed}"
            cell = Cell(name, settings, seed, run_config(settings, seed), folder, None)
            self.cells.append(cell)
            by_benchmark = {}
            for column, numbers in columns.items():
                benchmark, _, metric = column.rpartition(":")
                by_benchmark.setdefault(benchmark, {})[metric] = numbers
            for benchmark, numbers in by_benchmark.items():
                count = len(next(iter(numbers.values())))
                named = ids or [f"q{index}" for index in range(count)]
                path, record = write_record(
                    folder / "records", name, cell, numbers, benchmark, ids=named, strata=strata, change=change
                )
                self.records[path] = record
        return self

    def ablation(self, show, baseline=None, **changes):
        """The ablation file that these cells could have come from."""
        seeds = tuple(dict.fromkeys(cell.seed for cell in self.cells))
        made = Ablation(
            path=Path("it.yaml"),
            question=QUESTION,
            base=Path("base.yaml"),
            set={},
            vary={},
            zip={},
            cells=(),
            seeds=seeds,
            show=tuple(show),
            baseline=baseline or self.points[0].name,
            answer="",
            points=tuple(self.points),
        )
        return replace(made, **changes)


@pytest.fixture
def made(tmp_path):
    return Made(tmp_path)
