"""The tables of docs/protocol-differences.md are what the script prints."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared" / "data"
SCRIPT = ROOT / "experiments" / "protocol_differences.py"


def printed(*arguments):
    done = subprocess.run(
        [sys.executable, SCRIPT, *map(str, arguments)], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return done.stdout.strip()


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the benchmarks' annotation files in ../shared/data")
@pytest.mark.parametrize("part", ["cirr", "circo", "collapsed"])
def test_the_page_shows_what_the_script_prints(part):
    text = printed(SHARED, "--only", part)
    assert text.startswith("**") and "not here" not in text
    assert text in (ROOT / "docs" / "protocol-differences.md").read_text()


def test_what_is_not_here_is_said(tmp_path):
    text = printed(tmp_path)
    assert [line.split(":")[0] for line in text.splitlines() if line] == [
        "fashioniq", "cirr", "circo", "domains", "collapsed",
    ]  # fmt: skip
    assert text.count("not here (") == 5
