"""A small CIRR in the official layout, eight images and two queries, whose counts stand for the published ones."""

import io
import json

import pytest
from PIL import Image

from cir import doctor
from cir.data import cirr

NAMES = [f"dev-{i}-0-img0" for i in range(8)]


def encoded(format="PNG", color=(200, 10, 50), size=(16, 12)):
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, format)
    return buffer.getvalue()


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


@pytest.fixture
def put():
    return write


@pytest.fixture(scope="session")
def picture():
    return encoded


@pytest.fixture
def names():
    return NAMES


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """`tmp_path/data/CIRR`, complete."""
    monkeypatch.setitem(cirr.COUNTS["cirr/val"], "queries", 2)
    monkeypatch.setitem(cirr.COUNTS["cirr/val"], "targets", 2)
    monkeypatch.setitem(cirr.COUNTS["cirr/val"], "gallery", 8)
    monkeypatch.chdir(tmp_path)  # what is kept goes to .cache there
    root = tmp_path / "data"
    row = {
        "pairid": 12, "reference": NAMES[1], "target_hard": NAMES[4], "target_soft": {NAMES[4]: 1.0},
        "caption": "Same animal", "img_set": {"id": 5, "members": NAMES[:6]},
    }  # fmt: skip
    write(root / "CIRR/cirr/captions/cap.rc2.val.json", [row, {**row, "pairid": 7}])
    listed = {name: f"./dev/{name}.png" for name in NAMES}
    write(root / "CIRR/cirr/image_splits/split.rc2.val.json", listed)
    for number, name in enumerate(NAMES):
        write(root / f"CIRR/dev/{name}.png", encoded(color=(number, 2 * number, 0), size=(16 + number, 12)))
    return root


@pytest.fixture
def val(tree):
    """Check the tree and give the one split of the report."""

    def check(**options):
        (split,) = doctor.check("cirr/val", tree, progress=False, **options).splits
        return split

    return check
