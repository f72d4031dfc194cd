"""The world's tables against the committed records, by command, and with one number changed."""

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cir.cli import app
from cir.papers import table as tables
from cir.papers.verdict import Verdict, compare

ROOT = Path(__file__).resolve().parents[2]
ROWS = ("sum", "lincir")


@pytest.fixture
def run(monkeypatch):
    monkeypatch.chdir(ROOT)
    return lambda *arguments: CliRunner().invoke(app, ["table", *map(str, arguments)])


@pytest.fixture
def committed(tmp_path):
    """A copy of a few committed rows, and of the table with only these."""
    for name in ROWS:
        shutil.copytree(ROOT / "experiments" / "results" / "world" / name, tmp_path / "results" / name)
    (tmp_path / "tables").mkdir()
    shutil.copy(ROOT / tables.FOLDER / "world.yaml", tmp_path / "tables" / "world.yaml")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "trained"), [("world", "lincir"), ("world_supervised", "combiner"), ("world_blip2", "sprc")]
)
def test_the_committed_records_hold(run, name, trained):
    done = run(name, "--check")
    assert done.exit_code == 0, done.output
    compared = compare(tables.read(ROOT / tables.FOLDER / f"{name}.yaml"))
    assert {row[0].row.name for row in compared.cells} == {
        path.name for path in (ROOT / "experiments" / "results" / name).iterdir()
    }
    assert {cell.verdict for cell in compared.flat} <= {Verdict.EQUAL, Verdict.WITHIN}
    assert {cell.ours.seeds for row in compared.cells for cell in row if row[0].row.name == trained} == {3}


def test_a_row_without_records_is_no_failure_but_says_so(run, committed):
    done = run("world", "--check", "--records", committed / "results")
    assert done.exit_code == 0 and "no record" in done.output and "14 equal" in done.output


@pytest.mark.parametrize("field", ["mean", "low", "queries"])
def test_one_number_changed_in_a_record_is_caught(run, committed, field):
    path = next((committed / "results" / "lincir" / "seed-1").glob("world-cirr-val-*.json"))
    content = json.loads(path.read_text())
    content["means"]["R@1"][field] += 1
    path.write_text(json.dumps(content, indent=1))
    done = run("world", "--check", "--records", committed / "results")
    assert done.exit_code == 2 and "altered record" in done.output and path.name in done.output


def test_a_number_that_moved_beyond_the_spread_fails_the_check(run, committed):
    place = committed / "tables" / "world.yaml"
    text = place.read_text()
    assert text.count("[34.68, 1.00]") == 1
    for shown, code, mark in (("[35.67, 1.00]", 0, "≈"), ("[35.70, 1.00]", 1, "≠")):
        place.write_text(text.replace("[34.68, 1.00]", shown))
        done = run(place, "--check", "--records", committed / "results")
        assert done.exit_code == code and mark in done.output.splitlines()[12]
        assert ("lincir on world/circo/val:mAP@5 is 34.68" in done.output) == bool(code)
    assert run(place, "--records", committed / "results").exit_code == 0  # only --check ends in an error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("world", "experiments/results"), "cannot share a table"),
        (("world", "--cost"), "a paper's table says its columns"),
        (("experiments/results/world/sum", "--check"), "are for a paper's table"),
        (("world", "--records", "nowhere"), "no such file or folder: nowhere"),
        (("nowhere.yaml",), "nowhere.yaml: no such file"),
    ],
)
def test_what_does_not_fit_is_said(run, arguments, message):
    done = run(*arguments)
    assert done.exit_code == 2 and message in done.output


def test_the_whole_folder_fits_into_one_call(run, tmp_path):
    places = sorted((ROOT / tables.FOLDER).glob("searle_*.yaml"))
    done = run(*places, "--format", "latex", "--out", tmp_path / "all.tex", "--records", tmp_path)
    assert done.exit_code == 0 and (tmp_path / "all.tex").read_text().count(r"\begin{tabular}") == len(places)
