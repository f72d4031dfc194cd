"""Every verdict on an image, provoked once, and the search for what is missing."""

import itertools
import os
import shutil
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cir import doctor
from cir.doctor import match, pictures
from cir.doctor.look import Look
from cir.doctor.shelf import Shelf
from cir.doctor.tree import MARKER, search, stem
from cir.errors import InputError
from cir.schema import Benchmark, Query, View

NOISE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)


def verdicts(split):
    return {image.id: image.verdict for image in split.images.bad}


def only(split):
    (image,) = split.images.bad
    return image


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


def test_a_box_outside_its_picture_is_reported_with_its_image(tmp_path, monkeypatch, picture, put):
    """The whole way: a smaller copy of a picture whose boxes were drawn on the original."""
    monkeypatch.chdir(tmp_path)
    boxes = {"1": [0, 0, 10, 10], "2": [300, 5.5, 20, 20], "3": [2, 2, 5, 5]}
    crop = {key: {"image_id": key, "instance_bbox": box} for key, box in boxes.items()}
    row = {"reference": crop["1"], "target": crop["2"], "gallery": [crop["3"]] * 9, "condition": "colour"}
    put(tmp_path / "GeneCIS/genecis/focus_attribute.json", [row])
    for key in boxes:
        put(tmp_path / f"GeneCIS/VG_100K_all/{key}.jpg", picture("JPEG", size=(64, 48)))
    (split,) = doctor.check("genecis/focus_attribute", tmp_path, progress=False).splits
    assert (split.images.named, split.images.files, split.images.found) == (3, 3, 3)
    assert only(split).verdict == "outside" and only(split).place == "VG_100K_all/2.jpg"
    assert any("smaller copies" in line for line in split.advice)


# --- the root --------------------------------------------------------------------------------------------------


def test_loops_of_links_end(tree, val, names):
    (tree / "CIRR/loop").symlink_to(tree)
    (tree / "CIRR/self").symlink_to("self")
    shutil.move(tree / f"CIRR/dev/{names[2]}.png", tree / "CIRR")
    assert only(val()).at == (f"CIRR/{names[2]}.png",)
    met = search(tree, {stem(names[2])}, progress=False)
    assert met.files == {stem(names[2]): [tree / f"CIRR/{names[2]}.png"]} and met.unreadable == []  # met once


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
