"""`cir data check` at the command line: exit codes, the report for people, the report as JSON."""

import json

import pytest
from typer.testing import CliRunner

from cir import doctor
from cir.cli import app
from cir.doctor import text


def cir(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def broken(tree, names, put):
    """One image of each kind that is not well, and one more that is not asked for."""
    dev = tree / "CIRR/dev"
    (dev / f"{names[0]}.png").unlink()
    put(dev / f"{names[1]}.png", b"")
    (dev / f"{names[2]}.png").rename(tree / f"{names[2]}.png")
    content = (dev / f"{names[3]}.png").read_bytes()
    (dev / f"{names[3]}.png").unlink()
    put(tree / f"a/{names[3]}.png", content)
    put(tree / f"b/{names[3]}.png", content + b"more")
    put(dev / "stranger.png", content)
    return tree


def test_all_well(tree):
    done = cir("data", "check", "cirr/val", "--root", tree)
    assert done.exit_code == 0 and done.stdout.startswith("cirr/val: 2 queries and 8 images are all there\n")
    assert "8 of 8 files found" in done.stdout and "error" not in done.stderr
    assert cir("data", "check", "cirr", "--root", tree).exit_code == 0  # test1 is not here


def test_the_report_for_people(broken, names):
    done = cir("data", "check", "cirr/val", "--root", broken)
    assert done.exit_code == 2
    errors = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert errors == [
        "error: cirr/val: 1 images missing, 1 images corrupt, 1 images misplaced, 1 images ambiguous; "
        "the report says what to do"
    ]
    for line in (
        "cirr/val: not complete",
        "  counts       queries 2, gallery 8, targets 2",
        "  images       4 of 8 files found",
        f"    {names[1]} (dev/{names[1]}.png): empty, 0 bytes",
        f"    {names[2]} (dev/{names[2]}.png, found {names[2]}.png)",
        "  extra        1 more images in these folders, first dev/stranger.png",
    ):
        assert line in done.stdout.splitlines()
    assert "Traceback" not in done.output


def test_the_report_as_json(broken, names, tmp_path):
    done = cir("data", "check", "cirr/val", "--root", broken, "--json", "-")
    assert done.exit_code == 2
    report = json.loads(done.stdout)
    head = {key: report[key] for key in ("format", "name", "root", "well", "decoded", "searched", "unreadable")}
    assert head == {
        "format": 1, "name": "cirr/val", "root": str(broken), "well": False, "decoded": False, "searched": True,
        "unreadable": [],
    }  # fmt: skip
    (split,) = report["splits"]
    assert split["status"] == "incomplete" and split["counts"]["gallery"] == {"found": 8, "expected": 8}
    images = split["images"]
    assert images["verdicts"] == {"missing": 1, "corrupt": 1, "misplaced": 1, "ambiguous": 1, "outside": 0}
    assert (images["files"], images["found"], images["extra"]) == (8, 4, 1)
    assert images["folders"] == {"dev": 5} and images["suffixes"] == {".png": 5}
    assert [image["id"] for image in images["bad"]] == names[:4]
    assert len(split["fingerprint"]) == len(split["data_fingerprint"]) == 16
    written = cir("data", "check", "cirr/val", "--root", broken, "--json", tmp_path / "deep/report.json")
    assert json.loads((tmp_path / "deep/report.json").read_text()) == report and "not complete" in written.stdout
    assert report == json.loads(json.dumps(doctor.check("cirr/val", broken, progress=False).plain()))


def test_fixing_the_layout(broken, tmp_path, names):
    done = cir("data", "check", "cirr/val", "--root", broken, "--fix-layout", tmp_path / "out")
    assert done.exit_code == 2 and f"use data.root={tmp_path / 'out'}" in done.stdout
    done = cir("data", "check", "cirr/val", "--root", broken, "--fix-layout", tmp_path / "out", "--json", "-")
    report = json.loads(done.stdout)
    assert (report["links"], report["new_links"], report["of"]) == (8, 0, str(broken))
    assert report["root"] == str(tmp_path / "out") and report["splits"][0]["images"]["links"] == 6
    refused = cir("data", "check", "cirr/val", "--root", broken, "--fix-layout", broken)
    assert refused.exit_code == 2 and refused.stderr.startswith("error: --fix-layout")


def test_decode_fresh_and_cache(tree, tmp_path):
    options = ("--root", tree, "--cache", tmp_path / "kept")
    assert cir("data", "check", "cirr/val", *options, "--decode", "--fresh").exit_code == 0
    lines = [json.loads(line) for line in next((tmp_path / "kept").glob("*.jsonl")).read_text().splitlines()]
    assert len(lines) == 8 and all(line[6] is True and line[5] == "" for line in lines)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("cirr/vall",), "unknown benchmark"),
        (("cirr/val", "--root", "gone"), "no such folder"),
        (("cirr/val", "--protocol", "circo"), "has no protocol"),
    ],
)
def test_errors_are_one_line(tree, arguments, message):
    done = cir("data", "check", *(arguments if "--root" in arguments else (*arguments, "--root", tree)))
    assert done.exit_code == 2 and done.stderr.startswith("error: ") and message in done.stderr
    assert done.stderr.count("\n") == 1 and done.stdout == ""


def test_show_names_protocols_and_manual(tree):
    shown = cir("data", "show", "cirr/val", "--root", tree).stdout
    assert "also: cirr/soft" in shown and "docs/benchmarks/cirr.md" in shown


def test_long_lists_are_cut_for_people(tree, monkeypatch):
    monkeypatch.setattr(text, "SHOWN", 3)
    for file in (tree / "CIRR/dev").iterdir():
        file.rename(tree / file.name)
    lines = list(text.lines(doctor.check("cirr/val", tree, progress=False)))
    assert "    and 5 more; --json FILE names all" in lines and "  misplaced    8, in ./ (8)" in lines
