import csv
import io
import json

import pytest

from cir import records
from cir.archive import table
from cir.errors import InputError


@pytest.fixture
def found(make):
    return records.find([
        make("a", ["train.batch=64", "method.noise=none"]),
        make("b", ["seed=1", "method.noise=0.5"], benchmark="world/cirr/val", protocol=("cirr", 1)),
        make("c", ["seed=2", 'prompt.template="a $, {text}"'], change={"stale": "fixed, twice"}),
    ])  # fmt: skip


def test_a_row_per_record_and_metric(found):
    rows = table.long(found)
    assert [(row["path"], row["metric"]) for row in rows] == [
        (str(path), metric) for path in found for metric in ("mAP@5", "mAP@10", "R@5", "R@10")
    ]
    for row in rows:
        record = found[next(path for path in found if str(path) == row["path"])]
        mean = record.means[row["metric"]]
        assert (row["mean"], row["low"], row["high"], row["queries"]) == (mean.mean, mean.low, mean.high, 4)
        assert (row["seed"], row["benchmark.name"], row["unit"]) == (record.seed, record.benchmark.name, "percent")
    assert list(rows[0]) == [*table.IDENTITY, *table.NUMBERS]


def test_csv_and_json_read_back(found):
    rows = table.long(found, ["train.batch", "prompt.template", "train.betas"])
    assert json.loads(table.encoded(rows, ".json")) == rows
    read = list(csv.DictReader(io.StringIO(table.encoded(rows, ".csv").decode())))
    assert [float(row["mean"]) for row in read] == [row["mean"] for row in rows]  # to the last bit
    assert read[-1]["prompt.template"] == "a $, {text}" and read[0]["train.batch"] == "64"
    assert json.loads(read[0]["train.betas"]) == [0.9, 0.999]


def test_parquet_equals_csv(found):
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = table.long(found, ["train.batch", "method.noise", "train.betas", "method.training.gpu_peak_mb"])
    read = parquet.read_table(io.BytesIO(table.encoded(rows, ".parquet"))).to_pylist()
    text = list(csv.DictReader(io.StringIO(table.encoded(rows, ".csv").decode())))
    assert [{key: "" if v is None else str(v) for key, v in row.items()} for row in read] == text
    assert [row["method.noise"] for row in read[::4]] == ["none", "0.5", None]  # a column of two types is text
    assert {type(row["train.batch"]) for row in read} == {int} and {type(row["mean"]) for row in read} == {float}


def test_what_cannot_be_written(found):
    rows = table.long(found)
    with pytest.raises(InputError, match=r"ends in \.csv, \.json or \.parquet, got '.xls'"):
        table.encoded(rows, ".xls")
    with pytest.raises(InputError, match=r"did you mean 'train\.batch'"):
        table.long(found, ["train.bach"])


def test_without_pyarrow_the_extra_is_named(found, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(InputError, match=r"cir\[parquet\]"):
        table.encoded(table.long(found), ".parquet")
