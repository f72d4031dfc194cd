from dataclasses import replace

import numpy as np
import pytest

from cir import config as configs
from cir import records
from cir.papers import table as tables
from cir.protocols import PROTOCOLS
from cir.record_values import means

RUN = "name: mine\nseed: 3\nmethod: {name: sum}\nbackbone: {name: checkpoints/tiny-clip}\n"


@pytest.fixture
def house(tmp_path):
    """A repository with one run and one table; `write(text)` writes the table and reads it."""

    class House:
        root = tmp_path
        path = tmp_path / "tables" / "small.yaml"
        records = tmp_path / "records"

        def write(self, text):
            self.path.write_text(text)
            return tables.read(self.path)

        def record(self, mean, seed=3, benchmark="circo/val", overrides=(), run="mine", **changes):
            """Write a record whose mAP@5 over four queries is `mean` percent; returns its path."""
            config = configs.load(tmp_path / "runs" / "mine.yaml", [f"name={run}", f"seed={seed}", *overrides])
            return write_record(self.records, config, benchmark, mean, **changes)

    (tmp_path / "runs").mkdir()
    (tmp_path / "tables").mkdir()
    (tmp_path / "runs" / "mine.yaml").write_text(RUN)
    return House()


def write_record(folder, config, benchmark, mean, protocol="circo", version=None, data="00ff00ff00ff00ff", **changes):
    steps = np.array([-0.2, 0.2, -0.1, 0.1]) * min(mean, 100 - mean) / 50
    values = records.PerQuery(tuple("abcd"), {"mAP@5": mean / 100 + steps}, np.ones((4, 1), np.int64))
    described = records.ProtocolInfo(protocol, version or PROTOCOLS[protocol].version, "as defined")
    bench = records.BenchmarkInfo(benchmark, "1", "val", data, 4, 30, stamps=changes.pop("stamps", []))
    backbone = records.BackboneInfo("tiny", "1" * 16, "clip:2222", "float32", "cpu")
    method = records.MethodInfo(config.method["name"], "baseline")
    record = records.Record(
        run=config.name,
        fingerprint=records.identity(configs.fingerprint(config), bench, described, backbone, method),
        config=configs.resolved(config),
        seed=config.seed,
        protocol=described,
        benchmark=bench,
        backbone=backbone,
        method=method,
        code=records.CodeInfo("0.1.0", "abcdef", False),
        packages={},
        seconds=1.0,
        peak_mb=1.0,
        means=means(values.values),
        tied=0,
        created="2026-01-01T00:00:00+00:00",
    )
    return records.write(folder, replace(record, **changes), values)
