"""Records that hold together: means from their values, the fingerprint from the rest."""

from dataclasses import replace

import numpy as np
import pytest

from cir import config as configs
from cir import records
from cir.record_values import PerQuery, means
from cir.records import BackboneInfo, BenchmarkInfo, CodeInfo, MethodInfo, ProtocolInfo, Record, TrainingInfo

RANKS = ((1, 3), (7, 0), (2, 20), (40, 6))


def make_record(
    overrides=(), *, name="lincir", benchmark="world/circo/val", protocol=("circo", 1), values=None,
    checkpoint="c" * 16, data="d" * 16, **fields,
):  # fmt: skip
    config = configs.load(None, [f"name={name}", "method.name=lincir", *overrides])
    bench = BenchmarkInfo(benchmark, "1", "val", data, len(values.ids) if values else 4, 20)
    rules = ProtocolInfo(*protocol, "AP@K over min(targets, K)")
    model = BackboneInfo("tiny", "b" * 16, "clip:1", "float32", "cpu")
    training = TrainingInfo(5, 1.5, "s" * 16, "t" * 16, threads=1)
    method = MethodInfo("lincir", "Gu et al.", ["phi.weight"], 10, checkpoint, training)
    resolved = configs.resolved(config)
    return Record(
        run=name,
        fingerprint=records.identity(configs.fingerprint_of(resolved), bench, rules, model, method),
        config=resolved,
        seed=config.seed,
        protocol=rules,
        benchmark=bench,
        backbone=model,
        method=method,
        **{
            "code": CodeInfo("0.1.0", "e" * 40, False),
            "packages": {"python": "3.11.0", "torch": "2.13.0"},
            "seconds": 2.5,
            "peak_mb": 100.0,
            "means": means(values.values, values.strata) if values else {},
            "tied": 0,
            "created": "2026-05-01T10:00:00+00:00",
            **fields,
        },
    )


def make_values(ranks, cuts=(5, 10), prefix="q"):
    """CIRCO's values, of which `R@K` asks for the first target, from ranks."""
    from cir.metrics import average_precision_at, recall_at

    ranks = np.array(ranks, dtype=np.int64)
    values = {f"mAP@{k}": average_precision_at(ranks, k) for k in cuts} | {f"R@{k}": recall_at(ranks, k) for k in cuts}
    return PerQuery(tuple(f"{prefix}{row}" for row in range(len(ranks))), values, ranks)


@pytest.fixture(scope="session")
def make_in():
    """Writer of records below a folder; each returns its path."""

    def writer(folder):
        def written(place, overrides=(), ranks=RANKS, change=None, ranking=None, **fields):
            values = make_values(ranks)
            record = make_record(overrides, values=values, **fields)
            record = replace(record, **change) if change else record
            return records.write(folder / place, record, values, ranking)

        return written

    return writer


@pytest.fixture
def make(make_in, tmp_path):
    """Write a record of a place below the test's folder."""
    return make_in(tmp_path)


@pytest.fixture(name="make_record", scope="session")
def make_record_fixture():
    return make_record
