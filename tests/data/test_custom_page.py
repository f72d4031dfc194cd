"""What docs/benchmarks/custom.md shows is what happens, on generated pictures."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from cir.cli import app

PAGE = Path(__file__).parents[2] / "docs" / "benchmarks" / "custom.md"
PHOTOS = ("beach.jpg", "beach-sunset.jpg", "dog.jpg", "dog-snow.jpg", "trip/hut.png", "trip/hut-night.png")


@pytest.fixture
def photos(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for index, name in enumerate((*PHOTOS, "trip/sledge.jpg")):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(index).integers(0, 255, (5, 6, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((36, 30)).save(path)


def run(command, backbone):
    assert command[0] == "cir", command
    words = [backbone if word.startswith("openai/") else word for word in command[1:]]
    return CliRunner().invoke(app, words, catch_exceptions=False)


def test_the_page_is_executed(photos, tiny_clip_folder):
    commands = []
    for kind, name, body in re.findall(r"```(\w+) ?(\S*)\n(.*?)```", PAGE.read_text(), re.DOTALL):
        if kind == "text":
            Path(name).write_text(body)
        elif kind == "python":
            exec(compile(body, str(PAGE), "exec"), {})
        for command, output in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", body, re.MULTILINE):
            done = run(shlex.split(command), str(tiny_clip_folder))
            commands.append(command.split()[1])
            assert done.exit_code == (2 if output.startswith("error") else 0), done.output
            assert not output or done.output == output
    assert commands == ["data", "data", "data", "evaluate", "score"]
    assert list(Path("pages").rglob("*.html"))
    scores = json.loads(Path("scores.json").read_text())
    assert scores["benchmark"] == "custom/holiday" and scores["queries"] == 3
    assert scores["scores"]["R@1"]["mean"] == 0 and scores["scores"]["R@10"]["mean"] == 100  # of seven pictures
    assert set(scores["aspects"]["tags"]) == {"weather", "light"}
    assert not Path("datasets/custom/other").exists()


def test_the_page_names_every_key_and_protocol():
    from cir.data.custom import PROTOCOLS
    from cir.data.custom_queries import KEYS

    text = PAGE.read_text()
    assert all(f"| `{key}` |" in text for key in KEYS) and all(f"**`{name}`**" in text for name in PROTOCOLS)
