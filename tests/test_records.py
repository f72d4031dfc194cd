import json
import os
from dataclasses import replace

import numpy as np
import pytest

from cir import records
from cir.errors import InputError
from cir.records import (
    BackboneInfo,
    BenchmarkInfo,
    CodeInfo,
    Mean,
    MethodInfo,
    PerQuery,
    ProtocolInfo,
    Record,
    TrainingInfo,
)
from cir.schema import Ranking


@pytest.fixture
def record():
    return Record(
        run="lincir",
        fingerprint="0123456789abcdef",
        config={"seed": 1, "train": {"betas": [0.9, 0.999]}, "data": {"roots": {}}},
        seed=1,
        protocol=ProtocolInfo("cirr", 1, "R@K, reference deleted"),
        benchmark=BenchmarkInfo("cirr/val", "rc2", "val", "f" * 16, 3, 10, ["a note"], ["subset of 3 queries"]),
        backbone=BackboneInfo("tiny", "a" * 16, "clip:1", "float32", "cpu"),
        method=MethodInfo("lincir", "Gu et al.", ["phi.weight"], 10, "c" * 16, TrainingInfo(5, 1.5, "s", "t")),
        code=CodeInfo("0.1.0", "", False),
        packages={"python": "3.11.0"},
        seconds=2.5,
        peak_mb=100.0,
        means={"R@1": Mean(33.3, 0.0, 100.0, 3)},
        tied=1,
        created="2024-05-01T10:00:00+00:00",
        aspects={"count": Mean(50.0, 0.0, 100.0, 2)},
    )


@pytest.fixture
def values():
    return PerQuery(
        ("q1", "q2", "q3"),
        {"R@1": np.array([1.0, 0.0, 0.0]), "R@5": np.array([1.0, 1.0, 0.0])},
        np.array([[1, 0], [3, 5], [9, 0]]),
        ("a", "a", "b"),
    )


def test_what_is_written_is_read(tmp_path, record, values):
    path = records.write(tmp_path / "deep" / "folder", record, values)
    assert path.name == "cirr-val-0123456789abcdef.json"
    again = records.read(path)
    assert replace(again, per_query=None) == record
    found = records.read_values(path, again)
    assert (found.ids, found.strata) == (values.ids, values.strata)
    np.testing.assert_array_equal(found.ranks, values.ranks)
    assert list(found.values) == ["R@1", "R@5"]
    for name in values.values:
        np.testing.assert_array_equal(found.values[name], values.values[name])
    assert sorted(file.name for file in path.parent.iterdir()) == [path.name, path.with_suffix(".npz").name]


def test_equal_records_are_equal_bytes(tmp_path, record, values):
    first = records.write(tmp_path / "a", record, values)
    second = records.write(tmp_path / "b", record, values)
    assert first.read_bytes() == second.read_bytes()


def test_a_record_from_before_costs_were_kept_is_read(tmp_path, record):
    path = records.write(tmp_path, record)
    names = ("prepare_seconds", "peak_mb", "gpu_peak_mb", "processes", "device", "threads")
    edited(path, lambda p: [p["method"]["training"].pop(name) for name in names] + [p["method"].pop("base")])
    assert records.read(path) == record


def edited(path, change):
    plain = json.loads(path.read_text())
    change(plain)
    path.write_text(json.dumps(plain))


def put(*keys, value):
    def change(plain):
        for key in keys[:-1]:
            plain = plain[key]
        plain[keys[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p.pop("seed"), "seed: missing"),
        (lambda p: p["protocol"].pop("version"), "protocol.version: missing"),
        (put("sede", value=1), "sede: unknown field; did you mean 'seed'?"),
        (put("method", "papers", value=""), "method.papers: unknown field; did you mean 'paper'?"),
        (put("seed", value="one"), "seed: expected int, got 'one'"),
        (put("seed", value=True), "seed: expected int, got 'True'"),
        (put("seconds", value=float("nan")), "seconds: expected a finite number"),
        (put("means", "R@1", "mean", value=None), "means.R@1.mean: expected a finite number"),
        (put("means", "R@1", value=3), "means.R@1: expected a mapping"),
        (put("benchmark", "stamps", value="subset"), "benchmark.stamps: expected list"),
        (put("benchmark", "notes", value=[1]), "benchmark.notes.0: expected str"),
        (put("method", "training", value=[]), "method.training: expected a mapping"),
        (put("unit", value="fraction"), "unit: expected 'percent'"),
        (put("format", value=2), "format: expected 1, got 2"),
    ],
)
def test_a_damaged_record_names_file_and_field(tmp_path, record, change, message):
    path = records.write(tmp_path, record)
    edited(path, change)
    with pytest.raises(InputError) as caught:
        records.read(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("content", ["", "{", "[1]", "null"])
def test_what_is_no_record_is_refused(tmp_path, content):
    path = tmp_path / "record.json"
    path.write_text(content)
    with pytest.raises(InputError, match=r"record\.json"):
        records.read(path)


def test_an_invalid_record_is_not_written(tmp_path, record):
    with pytest.raises(InputError, match="seconds"):
        records.write(tmp_path / "new", replace(record, seconds=float("inf")))
    assert not (tmp_path / "new").exists()


def test_values_of_another_length_are_not_written(tmp_path, record, values):
    wrong = replace(values, ids=("q1",))
    with pytest.raises(InputError, match="3 values for 1 queries"):
        records.write(tmp_path / "new", record, wrong)


def test_changed_or_missing_values_are_noticed(tmp_path, record, values):
    path = records.write(tmp_path, record, values)
    record = records.read(path)
    beside = path.with_suffix(".npz")
    content = bytearray(beside.read_bytes())
    content[len(content) // 2] ^= 1
    beside.write_bytes(content)
    with pytest.raises(InputError, match="content differs from the sha256"):
        records.read_values(path, record)
    beside.unlink()
    with pytest.raises(InputError, match="cannot be read"):
        records.read_values(path, record)


def test_values_stay_beside_the_record(tmp_path, record, values):
    path = records.write(tmp_path / "inner", record, values)
    record = records.read(path)
    escaping = replace(record, per_query=replace(record.per_query, file="../other.npz"))
    with pytest.raises(InputError, match="without folders"):
        records.read_values(path, escaping)


def test_pickles_in_values_are_not_executed(tmp_path, record, values):
    executed = tmp_path / "executed"

    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(executed),)

    path = records.write(tmp_path, record, values)
    beside = path.with_suffix(".npz")
    np.savez(beside, ids=np.array([Payload()], dtype=object), metrics=np.array(["R@1"]))
    stored = replace(
        records.read(path),
        per_query=records.Attachment(beside.name, __import__("hashlib").sha256(beside.read_bytes()).hexdigest()),
    )
    with pytest.raises(InputError, match="not per-query values"):
        records.read_values(path, stored)
    assert not executed.exists()


def test_find_looks_into_folders_and_past_other_json(tmp_path, record, values):
    path = records.write(tmp_path / "runs" / "a", record, values)
    other = records.write(tmp_path / "runs" / "b", replace(record, fingerprint="f" * 16))
    (tmp_path / "runs" / "a" / "config.json").write_text('{"method": "lincir"}')
    assert list(records.find([tmp_path / "runs"])) == [path, other]
    assert list(records.find([other])) == [other]
    with pytest.raises(InputError, match=r"config\.json"):
        records.find([tmp_path / "runs" / "a" / "config.json"])


def test_a_stale_record_keeps_its_numbers(tmp_path, record, values):
    path = records.write(tmp_path, record, values)
    before = records.read(path)
    records.mark_stale(path, "tie rule fixed")
    assert records.read(path) == replace(before, stale="tie rule fixed")


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    records.replace_file(path, b"old")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        records.replace_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.fixture
def ranking():
    order = np.array([[2, 0], [1, -1], [0, 1]])
    scores = np.array([[0.9, 0.5], [0.25, -np.inf], [0.125, 0.125]], dtype=np.float32)
    return Ranking(("q1", "q2", "q3"), ("a", "b b", "ç"), order, scores)


def test_rankings_are_kept_and_read(tmp_path, record, values, ranking):
    path = records.write(tmp_path, record, values, ranking)
    names = [path.stem + "-ranking.npz", path.name, path.stem + ".npz"]
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(names)
    found = records.read_ranking(path, records.read(path))
    assert (found.query_ids, found.gallery_ids) == (ranking.query_ids, ranking.gallery_ids)
    np.testing.assert_array_equal(found.order, ranking.order)
    np.testing.assert_array_equal(found.scores, ranking.scores)
    assert found.row(1) == ["b b"]


def test_rankings_that_are_changed_or_none_are_noticed(tmp_path, record, values, ranking):
    path = records.write(tmp_path / "a", record, values, ranking)
    beside = path.with_name(f"{path.stem}-ranking.npz")
    beside.write_bytes(
        records.pack_ranking(replace(ranking, order=ranking.order[[1, 0, 2]], scores=ranking.scores[[1, 0, 2]]))
    )
    with pytest.raises(InputError, match="content differs from the sha256"):
        records.read_ranking(path, records.read(path))
    bare = records.write(tmp_path / "b", record, values)
    with pytest.raises(InputError, match="holds no rankings; `cir evaluate"):
        records.read_ranking(bare, records.read(bare))


def test_the_seal_is_over_everything_but_stale(tmp_path, record, values):
    path = records.write(tmp_path, replace(record, config={"lr": 1e-4, "rows": (1, 2), "ç": {3: "x"}}), values)
    plain = records.read_plain(path)
    assert plain[records.SEAL] == records.seal(plain) and list(plain)[-1] == records.SEAL
    assert records.seal({**plain, "stale": "why"}) == plain[records.SEAL]
    for key in set(plain) - {"stale", records.SEAL}:
        assert records.seal({**plain, key: "other"}) != plain[records.SEAL], key
