"""The benchmark of the image path runs: a kill in the middle, a second run without decoding, equal pixels."""

import importlib
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

FOLDER = Path(__file__).resolve().parents[2] / "experiments" / "speed"
MODULES = ("gallery", "made_up_gallery", "measuring", "pixels")
REAL = Path(__file__).resolve().parents[3] / "shared" / "data"


@pytest.fixture(scope="module")
def speed():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield importlib.import_module("gallery")
    for name in MODULES:
        sys.modules.pop(name, None)


def test_pictures_are_distinct_of_a_photos_size_and_a_function_of_their_number(speed):
    drawn = [speed.made.picture(number) for number in range(12)]
    assert len({picture.tobytes() for picture in drawn}) == 12
    assert {picture.size for picture in drawn} == set(speed.made.SIZES)
    assert speed.made.picture(5).tobytes() == drawn[5].tobytes()


def test_a_folder_is_filled_up_and_what_is_there_stays(speed, tmp_path):
    speed.made.fill(tmp_path, [1, 2, 3])
    kept = tmp_path / speed.made.name(2)
    kept.write_bytes(b"mine")
    (tmp_path / "000000000003.jpg").unlink()
    speed.made.fill(tmp_path, [1, 2, 3, 4])
    assert kept.read_bytes() == b"mine" and sorted(f.name[-5:] for f in tmp_path.iterdir()) == [
        "1.jpg", "2.jpg", "3.jpg", "4.jpg",
    ]  # fmt: skip
    sizes = [(tmp_path / speed.made.name(number)).stat().st_size for number in (1, 3, 4)]
    assert 25e3 < np.mean(sizes) < 50e3
    with Image.open(tmp_path / speed.made.name(4)) as picture:
        assert picture.format == "JPEG"


@pytest.mark.parametrize("images", [60, 2000])
def test_a_gallery_of_any_size_holds_what_its_queries_name(speed, tmp_path, images):
    roots = [None, REAL] if (REAL / "CIRCO").is_dir() else [None]
    for root in roots:
        found = speed.made.benchmark(tmp_path, images, root)  # a benchmark checks that its gallery has its targets
        assert len(found.gallery) == images and 10 < len(found.queries) <= 220
        assert {query.reference for query in found.queries} <= set(found.gallery)
        assert set(found.paths) == set(found.gallery) and len(set(found.paths.values())) == images


def test_the_script_runs_kills_itself_and_writes_its_results(speed, tmp_path, monkeypatch, capsys):
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("memory is measured on Linux only")
    out = tmp_path / "r.json"
    arguments = [str(tmp_path / "work"), "--images", "60", "--pairs", "1", "--json", str(out)]
    monkeypatch.setattr(sys, "argv", ["gallery.py", *arguments])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(FOLDER.parents[1]), str(FOLDER)]))
    speed.main()
    results = json.loads(out.read_text())
    whole = results["gallery"]
    assert set(results) == {"pixels", "path", "gallery", "machine"}
    assert 0 < whole["resumed_rows"] <= 30 and whole["second_run"]["decoded"] == 0
    assert results["pixels"]["fast_most_levels_off"] <= 2
    shown = capsys.readouterr().out
    assert "none computed twice; bits equal on 60" in shown and "second run: 0 decoded" in shown


def test_a_claim_that_does_not_hold_stops_the_script(speed):
    with pytest.raises(SystemExit, match="too much; nothing is reported"):
        speed.require(False, "too much")


def test_the_bound_on_memory_is_below_the_pixels_of_a_real_gallery(speed):
    assert speed.MOST_MIB < speed.ALL * speed.PIXELS_MIB / 100
