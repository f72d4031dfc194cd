"""Every verdict and every error of a check, provoked once."""

import itertools
import json
import os
import shutil
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cir import data, doctor
from cir.doctor import match, pictures
from cir.doctor.findings import Count
from cir.doctor.look import Look
from cir.doctor.shelf import Shelf
from cir.doctor.tree import MARKER, Tree, search, stem
from cir.errors import InputError
from cir.schema import Benchmark, Query, View

CAPTIONS, SPLIT = "cirr/captions/cap.rc2.val.json", "cirr/image_splits/split.rc2.val.json"

NOISE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)


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
    assert "queries: expected 2, found 1" in split.problem and any("not the published" in line for line in split.advice)


def test_a_file_that_another_one_replaces_is_not_needed(tmp_path, monkeypatch, picture, put):
    monkeypatch.chdir(tmp_path)
    row = {"reference_img_id": 1, "target_img_id": 2, "gt_img_ids": [2], "relative_caption": "x", "shared_concept": "y"}
    put(tmp_path / "annotations/val.json", [{**row, "id": 0}])
    for number in (1, 2):
        put(tmp_path / f"COCO2017_unlabeled/unlabeled2017/{number:012d}.jpg", picture("JPEG"))
    split = doctor.check("circo/val", tmp_path, progress=False).splits[0]
    assert [state.state for state in split.annotations] == ["found", "unneeded"] and split.images.found == 2
    assert split.counts["gallery"] == Count(2, 123403)


# --- images ----------------------------------------------------------------------------------------------------


def test_a_missing_image(tree, val, names):
    (tree / f"CIRR/dev/{names[2]}.png").unlink()
    split = val()
    bad = only(split)
    assert (bad.id, bad.place, bad.verdict, bad.at) == (names[2], f"dev/{names[2]}.png", "missing", ())
    assert (split.images.files, split.images.found) == (8, 7) and split.status == "incomplete"
    assert any("goo.gl/forms" in line for line in split.advice) and any(
        "allow_missing" in line for line in split.advice
    )


def test_a_link_that_leads_nowhere_is_missing(tree, val, names):
    file = tree / f"CIRR/dev/{names[2]}.png"
    file.unlink()
    file.symlink_to(tree / "gone.png")
    assert only(val()).verdict == "missing" and only(val()).trouble == "a link that leads nowhere"


def test_a_folder_in_the_place_of_an_image_is_missing(tree, val, names):
    file = tree / f"CIRR/dev/{names[2]}.png"
    file.unlink()
    file.mkdir()
    assert only(val()).verdict == "missing"


@pytest.mark.parametrize(
    ("content", "trouble"),
    [
        (lambda whole: b"", "empty, 0 bytes"),
        (lambda whole: whole[: len(whole) // 2], "runcated"),
        (lambda whole: b"<html>404</html>", "not an image"),
    ],
)
def test_a_corrupt_image(tree, val, names, put, content, trouble):
    file = tree / f"CIRR/dev/{names[2]}.png"
    Image.fromarray(NOISE).save(file)
    put(file, content(file.read_bytes()))
    split = val()
    assert only(split).verdict == "corrupt" and trouble in only(split).trouble and split.images.found == 7
    assert only(split).at == (f"CIRR/dev/{names[2]}.png",)
    assert any("corrupt images again" in line for line in split.advice)


def test_only_decoding_sees_damage_inside_a_file(tree, val, names, put):
    file = tree / f"CIRR/dev/{names[2]}.png"
    Image.fromarray(NOISE).save(file)
    content = bytearray(file.read_bytes())
    content[3000:3200] = bytes(200)
    put(file, bytes(content))
    assert val().status == "complete"
    assert only(val(pixels=True)).verdict == "corrupt"
    assert val().status == "incomplete"  # what decoding found is known from now on


@pytest.mark.parametrize("place", ["other/{}.png", "CIRR/dev/{}.JPEG", "CIRR/DEV/{}.png", "CIRR/dev/upper/{}.webp"])
def test_a_misplaced_image(tree, val, names, place):
    goal = tree / place.format(names[2])
    goal.parent.mkdir(parents=True, exist_ok=True)
    (tree / f"CIRR/dev/{names[2]}.png").rename(goal)
    split = val()
    assert (only(split).verdict, only(split).at) == ("misplaced", (place.format(names[2]),))
    assert split.images.found == 7 and any("--fix-layout OUT" in line for line in split.advice)


def test_a_name_in_another_case_is_misplaced(tree, val, names):
    (tree / f"CIRR/dev/{names[2]}.png").rename(tree / f"CIRR/dev/{names[2].upper()}.PNG")
    assert only(val()).at == (f"CIRR/dev/{names[2].upper()}.PNG",)


def test_the_place_that_is_most_alike_wins(tree, val, names, put, picture):
    (tree / f"CIRR/dev/{names[2]}.png").unlink()
    put(tree / f"a/dev/{names[2]}.png", picture(color=(1, 1, 1)))
    put(tree / f"a/{names[2]}.png", picture(color=(2, 2, 2)))
    put(tree / f"a/dev/{names[2]}.jpg", picture("JPEG"))
    assert only(val()).at == (f"a/dev/{names[2]}.png",)


def test_an_ambiguous_image(tree, val, names, put, picture):
    (tree / f"CIRR/dev/{names[2]}.png").unlink()
    put(tree / f"a/{names[2]}.png", picture(color=(1, 1, 1)))
    put(tree / f"b/{names[2]}.png", picture(color=(2, 2, 2), size=(9, 9)))
    bad = only(val())
    assert (bad.verdict, bad.at) == ("ambiguous", (f"a/{names[2]}.png", f"b/{names[2]}.png"))
    assert any("keep the right one" in line for line in val().advice)
    shutil.copy(tree / f"a/{names[2]}.png", tree / f"b/{names[2]}.png")
    assert only(val()).verdict == "misplaced"  # copies of one another


def test_images_that_share_a_name_are_told_apart_by_their_folders(tmp_path, put):
    """The definition: a file is an image if so much of its path agrees as no other named image shares."""
    paths = [f"r/{wnid}/cartoon_{n}.jpg" for wnid in ("n1", "n2", "n3") for n in (1, 2)] + [
        "q/n1/cartoon_1.jpg",
        "u.png",
    ]
    for path in ("n1/cartoon_1.jpg", "r/n2/cartoon_1.jpg", "x/n3/cartoon_2.PNG", "deep/er/u.jpeg", "cartoon_2.jpg"):
        put(tmp_path / "moved" / path, path.encode())
    found = match.images(paths, paths, search(tmp_path, {stem(path) for path in paths}, progress=False))

    def suffix(path, depth):
        return tuple(part.casefold() for part in (*Path(path).parts[:-1][::-1][:depth], Path(path).stem))

    for path in paths:
        files = [file for file in (tmp_path / "moved").rglob("*") if file.is_file()]
        depth = next(
            d for d in itertools.count() if sum(suffix(other, d) == suffix(path, d) for other in paths) == 1
        )  # fmt: skip
        fitting = {file for file in files if suffix(file, depth) == suffix(path, depth)}
        assert set(found[path].files if path in found else ()) == fitting, path
    assert {path for path in found} == {"r/n2/cartoon_1.jpg", "r/n3/cartoon_2.jpg", "u.png"}


def test_archives_that_were_not_unpacked(tree, val, names):
    with zipfile.ZipFile(tree / "CIRR/dev.zip", "w") as packed:
        for name in names:
            packed.write(tree / f"CIRR/dev/{name}.png", f"dev/{name}.png")
    with tarfile.open(tree / "images.tar", "w") as packed:
        packed.add(tree / "CIRR/dev", "nlvr2/dev")
    (tree / "broken.zip").write_bytes(b"PK but not really")
    with zipfile.ZipFile(tree / "other.zip", "w") as packed:
        packed.writestr("readme.txt", "nothing here")
    for name in names[:3]:
        (tree / f"CIRR/dev/{name}.png").unlink()
    advice = val().advice
    base = tree / "CIRR"
    assert f"unpack CIRR/dev.zip in {base}: it holds 3 of the missing files" in advice
    assert f"unpack images.tar in {base}/dev: it holds some of the missing files" in advice
    assert sum(line.startswith("broken.zip cannot be opened") for line in advice) == 1
    assert not any("other.zip" in line for line in advice)


def test_boxes_outside_their_pictures():
    query = Query("q", "a", ("x",), targets=("b",))
    views = {"a": View("dilated-square", (10.0, 0.0, 5.0, 5.0)), "b": View("dilated-square", (9.5, 0.0, 5.0, 5.0))}
    views |= {"c": View("squashed-region", (0.0, 12.0, 5.0, 14.0)), "d": View("squashed-region", (0.0, 9.0, 5.0, 14.0))}
    ids = tuple("abcd")
    bench = Benchmark(
        "x", "1", "val", "cirr", (query,), ids, Path("."), {name: "one.jpg" for name in ids}, views=views
    )  # fmt: skip
    shelf = Shelf(Path("."))
    found = pictures.bad(bench, pictures.files(bench), set(), {"one.jpg": Look(1, 1, 10, 12)}, {}, shelf, Path("."))
    assert [(image.id, image.verdict) for image in found] == [("a", "outside"), ("c", "outside")]
    assert "picture of 10 x 12" in found[0].trouble
    with pytest.raises(InputError, match="leaves the dataset folder"):
        pictures.files(replace(bench, paths={name: "../one.jpg" for name in ids}))


# --- the root --------------------------------------------------------------------------------------------------


def test_loops_of_links_end(tree, val, names):
    (tree / "CIRR/loop").symlink_to(tree)
    (tree / "CIRR/self").symlink_to("self")
    shutil.move(tree / f"CIRR/dev/{names[2]}.png", tree / "CIRR")
    assert only(val()).at == (f"CIRR/{names[2]}.png",)


def test_a_linked_folder_is_searched(tree, tmp_path, val, names):
    (tmp_path / "disk").mkdir()
    shutil.move(tree / f"CIRR/dev/{names[2]}.png", tmp_path / "disk")
    (tree / "linked").symlink_to(tmp_path / "disk")
    assert only(val()).at == (f"linked/{names[2]}.png",)


def test_hidden_folders_and_trees_of_links_are_not_searched(tree, names, put):
    put(tree / ".trash" / f"{names[2]}.png", b"x")
    put(tree / "view" / MARKER, b"")
    put(tree / "view" / f"{names[2]}.png", b"x")
    assert search(tree, {stem(names[2])}, progress=False).files == {stem(names[2]): [tree / f"CIRR/dev/{names[2]}.png"]}


@pytest.mark.parametrize("folder", ["CIRR/locked", "CIRR/dev"])
def test_an_unreadable_folder_is_named(tree, names, monkeypatch, folder):
    (tree / "CIRR/locked").mkdir()
    (tree / f"CIRR/dev/{names[2]}.png").unlink()
    real = os.scandir

    def guarded(place="."):
        if Path(place) == tree / folder:
            raise PermissionError(13, "Permission denied", str(place))
        return real(place)

    monkeypatch.setattr(os, "scandir", guarded)
    report = doctor.check("cirr/val", tree, progress=False)
    assert any(str(tree / folder) in told for told in report.unreadable) and not report.well


def test_a_root_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match=r"gone: no such folder; --root is the folder"):
        doctor.check("cirr/val", tmp_path / "gone")


def test_unknown_names_and_protocols(tree):
    with pytest.raises(InputError, match="did you mean 'cirr/val'"):
        doctor.check("cirr/vall", tree)
    with pytest.raises(InputError, match="has no protocol 'cirr/sofd'; did you mean 'cirr/soft'"):
        doctor.check("cirr/val", tree, protocol="cirr/sofd")


# --- names that stand for several ------------------------------------------------------------------------------


def test_a_dataset_is_asked_for_what_is_here(tree):
    report = doctor.check("cirr", tree, progress=False)
    assert [(split.name, split.status) for split in report.splits] == [
        ("cirr/val", "complete"), ("cirr/test1", "not here"),
    ]  # fmt: skip
    assert report.well and report.splits[1].advice == ()
    (tree / "CIRR" / CAPTIONS).unlink()  # its own captions are gone, its split file is here
    assert [split.status for split in doctor.check("cirr", tree, progress=False).splits] == ["incomplete", "not here"]


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
