"""Checks as a whole: annotations, counts, names that stand for several; every error provoked once."""

import json
import shutil
from pathlib import Path

import pytest

from cir import data, doctor
from cir.doctor import match, pictures
from cir.doctor.findings import Count
from cir.doctor.look import Look
from cir.doctor.tree import Tree

CAPTIONS, SPLIT = "cirr/captions/cap.rc2.val.json", "cirr/image_splits/split.rc2.val.json"
SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


def verdicts(split):
    return {image.id: image.verdict for image in split.images.bad}


def only(split):
    (image,) = split.images.bad
    return image


def states(split):
    return {state.place: state.state for state in split.annotations}


# --- all is well -----------------------------------------------------------------------------------------------


def test_a_complete_benchmark(tree, val, names):
    split = val()
    assert (split.name, split.status, split.protocol, split.base) == (
        "cirr/val",
        "complete",
        "cirr",
        str(tree / "CIRR"),
    )
    assert states(split) == {CAPTIONS: "found", SPLIT: "found"} and split.problem == ""
    assert split.counts == {"queries": Count(2, 2), "gallery": Count(8, 8), "targets": Count(2, 2)}
    found = split.images
    assert (found.named, found.files, found.found, found.bad) == (8, 8, 8, ())
    assert (found.folders, found.suffixes, found.links, found.extra) == ({"dev": 8}, {".png": 8}, 0, 0)
    assert split.fingerprint == data.load("cirr/val", tree).fingerprint and split.advice == ()


def test_the_root_may_be_the_dataset_itself(tree):
    report = doctor.check("cirr/val", tree / "CIRR", progress=False)
    assert report.well and not report.searched and report.splits[0].annotations[0].at == (CAPTIONS,)


def test_the_data_fingerprint_is_of_the_content(tree, val, picture, put, names):
    before = val().data_fingerprint
    shutil.copytree(tree, tree.parent / "elsewhere")
    assert doctor.check("cirr/val", tree.parent / "elsewhere", progress=False).splits[0].data_fingerprint == before
    file = tree / f"CIRR/dev/{names[3]}.png"
    kept = file.read_bytes()
    put(file, picture(size=(5, 5)))
    changed = val()
    assert changed.status == "complete" and changed.data_fingerprint != before
    assert changed.fingerprint == val().fingerprint  # the annotations are the same
    file.unlink()
    assert val().data_fingerprint not in (before, changed.data_fingerprint)
    put(file, kept)
    assert val().data_fingerprint == before


def test_the_data_fingerprint_reads_every_part(tree):
    bench = data.load("cirr/val", tree)
    files, counts = pictures.files(bench), {"queries": 2}
    seen = {path: Look(100, 5, 16, 12) for path in files}
    place = next(iter(files))
    made = [
        pictures.fingerprint(bench, given, files, {**seen, place: one} if one else {})
        for given, one in (
            (counts, seen[place]), ({"queries": 3}, seen[place]), (counts, Look(101, 5, 16, 12)),
            (counts, Look(100, 5, 17, 12)), (counts, Look(100, 5, 16, 13)), (counts, None),
        )
    ]  # fmt: skip
    assert len(set(made)) == len(made)
    assert made[0] == pictures.fingerprint(bench, counts, files, {**seen, place: Look(100, 9, 16, 12, decoded=True)})


def test_extra_images_and_links_are_told_and_no_fault(tree, val, picture, put, names):
    put(tree / "CIRR/dev/stranger.png", picture())
    put(tree / "CIRR/dev/notes.txt", b"no image")
    file = tree / f"CIRR/dev/{names[0]}.png"
    file.rename(tree / "kept.png")
    file.symlink_to(tree / "kept.png")
    split = val()
    assert split.status == "complete" and split.images.links == 1
    assert (split.images.extra, split.images.extra_first) == (1, ("dev/stranger.png",))


def test_another_variant_of_the_layout_is_recognised(tree, val, names):
    (tree / "CIRR/images").mkdir()
    (tree / "CIRR/dev").rename(tree / "CIRR/images/dev")
    file = tree / f"CIRR/images/dev/{names[0]}.png"
    file.rename(file.with_suffix(".jpg"))
    split = val()
    assert split.status == "complete" and split.images.folders == {"images/dev": 8}
    assert split.images.suffixes == {".png": 7, ".jpg": 1}


def test_another_protocol_has_another_gallery(tree, val, picture, put):
    put(tree / "CIRR/dev/dev-9-0-img0.png", picture())
    split = val(protocol="cirr/folder")
    assert split.protocol == "cirr/folder" and split.counts["gallery"] == Count(9, 8102)
    assert split.images.found == 9 and split.status == "incomplete"


# --- annotations -----------------------------------------------------------------------------------------------


def test_a_missing_annotation_file(tree, val):
    (tree / "CIRR" / SPLIT).unlink()
    split = val()
    assert states(split) == {CAPTIONS: "found", SPLIT: "missing"} and split.images is None
    assert "split.rc2.val.json: no such file" in split.problem and split.status == "incomplete"
    assert any("git clone -b cirr_dataset" in line and SPLIT in line for line in split.advice)


def test_a_misplaced_annotation_file(tree, val):
    shutil.move(tree / "CIRR" / SPLIT, tree / "split.rc2.val.json")
    split = val()
    assert states(split)[SPLIT] == "misplaced" and split.annotations[1].at == ("split.rc2.val.json",)
    assert any(line.startswith("move split.rc2.val.json to") for line in split.advice)
    assert any("--fix-layout OUT" in line for line in split.advice)


def test_an_ambiguous_annotation_file(tree, val, put):
    shutil.move(tree / "CIRR" / SPLIT, put(tree / "a/x", b"").with_name("split.rc2.val.json"))
    put(tree / "b/split.rc2.val.json", {})
    split = val()
    assert states(split)[SPLIT] == "ambiguous"
    assert split.annotations[1].at == ("a/split.rc2.val.json", "b/split.rc2.val.json")
    shutil.copy(tree / "a/split.rc2.val.json", tree / "b/split.rc2.val.json")
    assert states(val())[SPLIT] == "misplaced"  # copies of one another


@pytest.mark.parametrize(
    ("file", "content", "line"),
    [
        (CAPTIONS, b'[{"pairid": 1', "not JSON"),
        (CAPTIONS, [{"pairid": 1}], "row 0: key 'img_set' is missing"),
        (SPLIT, ["dev"], "expected an object"),
        (SPLIT, {"dev-1-0-img0": "../../etc/passwd"}, "leaves the dataset folder"),
        (SPLIT, {"dev-1-0-img0": "/etc/passwd"}, "leaves the dataset folder"),
    ],
)
def test_a_broken_annotation_file_is_told_by_the_loaders_line(tree, val, put, file, content, line):
    put(tree / "CIRR" / file, content)
    split = val()
    broken = next(state for state in split.annotations if state.place == file)
    assert broken.state == "broken" and line in broken.trouble == split.problem
    assert [state.state for state in split.annotations].count("found") == 1
    assert split.status == "incomplete" and any(line.startswith("download CIRR/cirr/") for line in split.advice)


def test_wrong_counts_do_not_stop_the_look_at_the_images(tree, val, put, names):
    rows = json.loads((tree / "CIRR" / CAPTIONS).read_text())
    put(tree / "CIRR" / CAPTIONS, rows[:1])
    (tree / f"CIRR/dev/{names[7]}.png").unlink()
    split = val()
    assert split.status == "incomplete" and split.counts["queries"] == Count(1, 2) and not split.counts["queries"].right
    assert split.counts["gallery"].right and verdicts(split) == {names[7]: "missing"}
    assert "queries: expected 2, found 1" in split.problem and any(
        "not the expected ones" in line for line in split.advice
    )


def test_a_file_that_another_one_replaces_is_not_needed(tmp_path, monkeypatch, picture, put):
    monkeypatch.chdir(tmp_path)
    row = {"reference_img_id": 1, "target_img_id": 2, "gt_img_ids": [2], "relative_caption": "x", "shared_concept": "y"}
    put(tmp_path / "annotations/val.json", [{**row, "id": 0}])
    for number in (1, 2):
        put(tmp_path / f"COCO2017_unlabeled/unlabeled2017/{number:012d}.jpg", picture("JPEG"))
    split = doctor.check("circo/val", tmp_path, progress=False).splits[0]
    assert [state.state for state in split.annotations] == ["found", "unneeded"] and split.images.found == 2
    assert split.counts["gallery"] == Count(2, 123403)


# --- names that stand for several ------------------------------------------------------------------------------


def test_a_dataset_is_asked_for_what_is_here(tree):
    report = doctor.check("cirr", tree, progress=False)
    assert [(split.name, split.status) for split in report.splits] == [
        ("cirr/val", "complete"), ("cirr/test1", "not here"), ("cirr/train", "not here"),
    ]  # fmt: skip
    assert report.well and report.splits[1].advice == ()
    (tree / "CIRR" / CAPTIONS).unlink()  # its own captions are gone, its split file is here
    states = [split.status for split in doctor.check("cirr", tree, progress=False).splits]
    assert states == ["incomplete", "not here", "not here"]


def test_a_dataset_of_which_nothing_is_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    report = doctor.check("circo", tmp_path, progress=False)
    assert {split.status for split in report.splits} == {"not here"} and not report.well
    assert all(any("github.com/miccunifi/CIRCO" in line for line in split.advice) for split in report.splits)


def test_a_file_that_two_splits_share_does_not_make_both_be_here(tmp_path, monkeypatch, put):
    monkeypatch.chdir(tmp_path)
    put(tmp_path / "CIRCO/COCO2017_unlabeled/annotations/unlabeled2017_image_ids.txt", b"1\n2\n")
    assert not doctor.check("circo", tmp_path, progress=False).well
    assert {split.status for split in doctor.check("circo", tmp_path, progress=False).splits} == {"not here"}


def test_a_group_is_wanted_in_full(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    report = doctor.check("fashioniq/val", tmp_path, progress=False)
    assert [split.status for split in report.splits] == ["incomplete"] * 3 and len(report.splits) == 3


@pytest.mark.parametrize("name", ["fashioniq/val", "world/cirr/val", "circo", "world/cirr"])
def test_the_bundled_world_is_complete(small_world, name, tmp_path):
    report = doctor.check(name, small_world, cache=tmp_path, progress=False)
    assert report.well, [(split.name, split.status, split.problem) for split in report.splits]
    here = [split for split in report.splits if split.status == "complete"]
    assert all(split.name.startswith("world/") and split.counts["queries"].right for split in here)


def test_an_empty_tree_matches_nothing():
    assert match.images(["a/b.png"], ["a/b.png"], Tree()) == {} and match.annotation(["a.json"], Tree()) is None


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the benchmarks' annotation files in ../shared/data")
@pytest.mark.parametrize("name", ["fashioniq/dress/val", "genecis/focus_object", "coco/val2017", "circo/val"])
def test_the_real_annotations_without_images(name, tmp_path):
    report = doctor.check(name, SHARED, cache=tmp_path, progress=False)
    (split,) = report.splits
    assert split.problem == "" and all(state.state == "found" for state in split.annotations)
    assert all(count.right for count in split.counts.values()) and split.images.found == 0
    assert split.images.count("missing") == split.images.files > 0 and not report.well
    assert any(line.startswith("get the images: ") for line in split.advice)
    assert split.advice[-1].endswith(data.origin(name).page)
