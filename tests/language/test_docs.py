"""What docs/triplets.md shows is what happens."""

import re
import shlex
from pathlib import Path

from typer.testing import CliRunner

from cir.cli import app
from cir.data import triplets
from cir.language.llm import PROMPT
from cir.language.templates import FIELDS

PAGE = Path(__file__).parents[2] / "docs" / "triplets.md"


def run(command):
    if command[0] == "head":
        return "".join(Path(command[3]).read_text().splitlines(keepends=True)[: int(command[2])])
    assert command[0] == "cir", command
    done = CliRunner().invoke(app, command[1:], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_the_page_is_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown = 0
    for kind, name, body in re.findall(r"```(\w+) ?(\S*)\n(.*?)```", PAGE.read_text(), re.DOTALL):
        if kind == "text":
            Path(name).write_text(body)
            continue
        for command, output in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", body, re.MULTILINE):
            assert run(shlex.split(command)) == output
            shown += 1
    assert shown == 4
    assert len(triplets.load(Path("triplets.jsonl"))) == 10
    assert len(triplets.load(tmp_path)) == 14  # what lies beside the files is not read with them


def test_the_page_names_every_form_and_field():
    text = PAGE.read_text()
    for form, fields in FIELDS.items():
        line = next(line for line in text.splitlines() if line.startswith(f"| `{form}`"))
        assert all(f"`{{{field}}}`" in line for field in fields)
    assert all(key in text and key in PROMPT for key in ("conditioning_caption", "target_caption"))
