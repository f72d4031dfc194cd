"""`--fix-layout`: a tree of links that loads, and nothing else changed."""

import json
import os
import shutil
from pathlib import Path

import pytest

from cir import data, doctor
from cir.doctor import view
from cir.doctor.tree import MARKER
from cir.errors import InputError

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
CAPTIONS = "cirr/captions/cap.rc2.val.json"


def snapshot(root):
    files = [path for path in sorted(root.rglob("*")) if not path.is_dir()]
    return {path: (path.lstat().st_size, path.lstat().st_mtime_ns, path.is_symlink()) for path in files}


def links(out):
    return {str(path.relative_to(out)): os.readlink(path) for path in sorted(out.rglob("*")) if path.is_symlink()}


def fix(root, out, name="cirr/val", **options):
    return doctor.fix(name, root, out, progress=False, **options)


def scatter(tree, names):
    """Move annotations and images around, as people do."""
    shutil.move(tree / "CIRR" / CAPTIONS, tree / "cap.rc2.val.json")
    (tree / "nlvr2").mkdir()
    for name in names[:3]:
        shutil.move(tree / f"CIRR/dev/{name}.png", tree / "nlvr2")
    (tree / f"CIRR/dev/{names[3]}.png").rename(tree / f"CIRR/{names[3]}.jpg")
    (tree / f"CIRR/dev/{names[4]}.png").rename(tree / f"CIRR/dev/{names[4]}.JPEG")
    (tree / "CIRR/img_raw/dev").mkdir(parents=True)
    shutil.move(tree / f"CIRR/dev/{names[5]}.png", tree / "CIRR/img_raw/dev")


def test_scattered_files_load_from_the_view(tree, tmp_path, names):
    scatter(tree, names)
    before, out = snapshot(tree), tmp_path / "out"
    assert not doctor.check("cirr/val", tree, progress=False).well
    fixed = fix(tree, out)
    assert fixed.report.well and (fixed.links, fixed.new) == (10, 10) and snapshot(tree) == before
    bench = data.load("cirr/val", out)
    assert bench.root == out / "CIRR" and all((bench.root / path).is_file() for path in bench.paths.values())
    assert (
        links(out)
        == {
            f"CIRR/{CAPTIONS}": str(tree / "cap.rc2.val.json"),
            "CIRR/cirr/image_splits/split.rc2.val.json": str(tree / "CIRR/cirr/image_splits/split.rc2.val.json"),
            **{f"CIRR/dev/{name}.png": str(tree / f"nlvr2/{name}.png") for name in names[:3]},
            f"CIRR/dev/{names[3]}.jpg": str(tree / f"CIRR/{names[3]}.jpg"),  # the loader looks for it
            f"CIRR/dev/{names[4]}.png": str(tree / f"CIRR/dev/{names[4]}.JPEG"),  # it does not look for that
            f"CIRR/dev/{names[5]}.png": str(tree / f"CIRR/img_raw/dev/{names[5]}.png"),
            **{f"CIRR/dev/{name}.png": str(tree / f"CIRR/dev/{name}.png") for name in names[6:]},
        }
    )


def test_again_changes_nothing_and_what_is_missing_is_added(tree, tmp_path, names):
    scatter(tree, names)
    out = tmp_path / "out"
    fix(tree, out)
    before = links(out)
    assert fix(tree, out).new == 0 and links(out) == before
    for name in names[:2]:  # as a kill would leave it
        (out / f"CIRR/dev/{name}.png").unlink()
    (out / f"CIRR/dev/{names[6]}.png").unlink()
    (out / f"CIRR/dev/{names[6]}.png").symlink_to(tmp_path / "moved since")
    assert fix(tree, out).new == 3 and links(out) == before


def test_a_killed_run_goes_on(tree, tmp_path, names, monkeypatch):
    scatter(tree, names)
    made, real = [], os.symlink

    def dies(*arguments, **options):
        if len(made) == 5:
            raise KeyboardInterrupt
        made.append(arguments)
        real(*arguments, **options)

    monkeypatch.setattr(os, "symlink", dies)
    with pytest.raises(KeyboardInterrupt):
        fix(tree, tmp_path / "out")
    monkeypatch.setattr(os, "symlink", real)
    fixed = fix(tree, tmp_path / "out")
    assert fixed.report.well and 0 < fixed.new < 10


def test_what_cannot_be_found_stays_missing_and_ambiguous_ones_are_not_linked(tree, tmp_path, names, put):
    (tree / f"CIRR/dev/{names[0]}.png").unlink()
    (tree / f"CIRR/dev/{names[1]}.png").unlink()
    put(tree / f"a/{names[1]}.png", b"one")
    put(tree / f"b/{names[1]}.png", b"two, different")
    fixed = fix(tree, tmp_path / "out")
    assert {image.id: image.verdict for image in fixed.report.splits[0].images.bad} == dict.fromkeys(
        names[:2], "missing"
    )
    assert fixed.links == 8


def test_what_is_in_place_is_linked_whatever_lies_elsewhere(tree, tmp_path, names, put):
    (tree / "CIRR/img_raw").mkdir()
    (tree / "CIRR/dev").rename(tree / "CIRR/img_raw/dev")  # a place that the loader knows
    put(tree / f"x/dev/{names[1]}.png", b"another")
    fixed = fix(tree, tmp_path / "out")
    assert fixed.report.well
    assert links(tmp_path / "out")[f"CIRR/dev/{names[1]}.png"] == str(tree / f"CIRR/img_raw/dev/{names[1]}.png")


def test_a_view_inside_the_root_is_not_searched(tree, names):
    scatter(tree, names)
    fix(tree, tree / "view")
    split = doctor.check("cirr/val", tree / "CIRR", progress=False).splits[0]
    assert split.status == "incomplete"
    again = fix(tree, tree / "view")
    assert again.new == 0 and again.report.well


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda out: out.mkdir() or (out / "x").write_text(""), "not empty, and not made by this command"),
        (lambda out: out.write_text(""), "not a folder"),
        (lambda out: out.mkdir() or [(out / n).write_text("") for n in (MARKER, "x")], "x is no link"),
    ],
)
def test_a_folder_with_anything_else_in_it_is_refused(tree, tmp_path, prepare, message):
    out = tmp_path / "out"
    prepare(out)
    before = snapshot(tmp_path)
    with pytest.raises(InputError, match=message):
        fix(tree, out)
    assert snapshot(tmp_path) == before


def test_a_folder_around_the_root_is_refused(tree, tmp_path):
    for out in (tree, tmp_path, tmp_path / "data" / ".." / "data"):
        with pytest.raises(InputError, match=r"holds .* itself; choose a new folder"):
            fix(tree, out)
    assert not (tree / MARKER).exists()
    with pytest.raises(InputError, match="no such folder"):
        fix(tmp_path / "gone", tmp_path / "out")
    with pytest.raises(InputError, match=r"custom/mine has no official layout"):
        fix(tree, tmp_path / "out", "custom/mine")


def test_only_links_are_replaced(tmp_path):
    (tmp_path / "file").write_text("kept")
    with pytest.raises(InputError, match="is no link"):
        view._link(tmp_path / "file", tmp_path / "other")
    assert (tmp_path / "file").read_text() == "kept"


def test_the_world_keeps_its_counts(small_world, tmp_path):
    fixed = fix(small_world, tmp_path / "out", "world/fashioniq/val", cache=tmp_path)
    assert fixed.report.well and fixed.report.splits[0].name.startswith("world/")
    assert data.load("fashioniq/dress/val", tmp_path / "out").stamps == ()


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the benchmarks' annotation files in ../shared/data")
def test_the_real_annotations_of_cirr_with_scattered_images(tmp_path, picture):
    root, out = tmp_path / "download", tmp_path / "data"
    shutil.copytree(SHARED / "CIRR/cirr/captions", root / "captions")
    shutil.copytree(SHARED / "CIRR/cirr/image_splits", root / "splits")
    (root / "nlvr2/dev").mkdir(parents=True)
    (root / "more").mkdir()
    content = picture(size=(4, 4))
    for number, name in enumerate(json.loads((root / "splits/split.rc2.val.json").read_text())):
        (root / ("nlvr2/dev" if number % 3 else "more") / f"{name}.png").write_bytes(content)
    fixed = fix(root, out, cache=tmp_path / "cache")
    assert fixed.report.well and fixed.links == 2297 + 2
    (split,) = fixed.report.splits
    assert {key: count.found for key, count in split.counts.items()} == {
        "queries": 4181, "gallery": 2297, "targets": 4181,
    }  # fmt: skip
    assert split.images.found == 2297 and split.images.links == 2297
    assert split.fingerprint == data.load("cirr/val", SHARED).fingerprint
