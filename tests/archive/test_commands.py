"""`cir records` on the command line."""

import csv
import json

import pytest
from typer.testing import CliRunner

from cir import records
from cir.cli import app


def cir(*arguments, exit_code=0):
    result = CliRunner().invoke(app, ["records", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == exit_code, result.output
    return result


@pytest.fixture
def two(make):
    return make("a", ["train.batch=64"]), make("b", ["seed=1"], ranks=[(1, 2), (1, 9), (3, 20), (40, 6)])


def test_list_prints_a_line_per_record(two, tmp_path):
    lines = cir("list", tmp_path, "--sort", "-seed").stdout.splitlines()
    assert lines[0].split() == ["run", "seed", "benchmark.name", "headline", "path"]
    assert [line.split()[1] for line in lines[1:]] == ["1", "0"] and str(two[1]) in lines[1]
    only = cir("list", tmp_path, "--where", "train.batch=64", "--columns", "seed,train.batch").stdout.splitlines()
    assert only == ["seed  train.batch", "0     64"]
    found = json.loads(cir("list", tmp_path, "--where", "seed>0", "--json").stdout)
    assert [row["path"] for row in found] == [str(two[1])] and found[0]["train.batch"] == 128
    assert json.loads(cir("list", tmp_path, "--columns", "seed,R@5", "--json").stdout)[0] == {"seed": 0, "R@5": 50.0}


def test_diff_prints_what_differs(two):
    text = cir("diff", *two, "--metric", "mAP@10", "--queries", 1).stdout
    for part in ("train.batch: 64 -> 128", "data: the same", "code: the same", "lincir against lincir: +", "[7] -> "):
        assert part in text, text
    (found,) = json.loads(cir("diff", *two, "--json").stdout)
    assert {"key": "seed", "before": 0, "after": 1} in found["sections"]["config"]
    assert found["test"]["metric"] == found["metric"] == "mAP@5" and found["changed"][0]["query"] == "q1"


def test_stale_and_back(two, tmp_path):
    cir("stale", two[0], "--why", "the tie rule was fixed")
    assert [records.read(path).stale for path in two] == ["the tie rule was fixed", ""]
    assert "state" in cir("list", tmp_path).stdout.splitlines()[0]
    assert "1 of 2 records hold again" in cir("stale", tmp_path, "--undo").stdout
    assert records.read(two[0]).stale == ""
    assert "one of the two" in cir("stale", two[0], exit_code=2).stderr
    assert "one of the two" in cir("stale", two[0], "--undo", "--why", "x", exit_code=2).stderr


def test_check_ends_in_1_where_a_number_was_changed(two, tmp_path):
    assert "2 records checked, 0 wrong" in cir("check", tmp_path).stdout
    text = two[0].read_text()
    plain = json.loads(text)
    plain["means"]["R@5"]["mean"] += 0.1
    two[0].write_text(json.dumps(plain))
    said = cir("check", tmp_path, exit_code=1).stdout
    assert f"altered: {two[0]}: R@5: mean is 50.1, but its values make 50" in said and "1 wrong" in said
    found = json.loads(cir("check", tmp_path, "--json", exit_code=1).stdout)
    assert found["records"] == 2 and found["wrong"] == 1 and {one["kind"] for one in found["findings"]} == {"altered"}


def test_check_seals_on_request(two, tmp_path):
    plain = json.loads(two[0].read_text())
    del plain[records.SEAL]
    records.replace_file(two[0], records.text(plain))
    assert "1 written before records were sealed" in cir("check", tmp_path).stdout
    assert "1 records sealed" in cir("check", tmp_path, "--seal").stderr
    assert "sealed" not in cir("check", tmp_path).stdout


def test_export_writes_what_is_asked_for(two, tmp_path):
    out = tmp_path / "deep" / "table.csv"
    cir("export", tmp_path, "--out", out, "--columns", "train.batch", "--where", "seed=0")
    rows = list(csv.DictReader(out.read_text().splitlines()))
    assert len(rows) == 4 and {row["train.batch"] for row in rows} == {"64"}
    cir("export", tmp_path, "--mteb", tmp_path / "mteb")
    assert len(list((tmp_path / "mteb").rglob("*.json"))) == 2
    assert "say what to write" in cir("export", tmp_path, exit_code=2).stderr
    assert "none of these records holds rankings" in cir("export", tmp_path, "--trec", tmp_path, exit_code=2).stderr
    assert "meets all" in cir("export", tmp_path, "--out", out, "--where", "seed=9", exit_code=2).stderr


def test_no_records_is_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("list", "check"):
        assert cir(name, exit_code=2).stderr.startswith("error: no records in runs")
    assert "no such file or folder" in cir("list", "gone", exit_code=2).stderr


def test_where_the_records_are_by_default(make, tmp_path, monkeypatch):
    make("runs/a/records"), make("experiments/results/b", ["seed=1"]), make("elsewhere", ["seed=2"])
    monkeypatch.chdir(tmp_path)
    assert len(cir("list").stdout.splitlines()) == 3
