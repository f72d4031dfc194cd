"""Folders and tables of pictures: what is found, in which order, what is left out."""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from cir.data import pictures, readable
from cir.data.keep import kept
from cir.data.pictures import Part
from cir.errors import InputError


def picture(path, seed=0, side=24):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    return path


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def names(found):
    return [found.name(row) for row in range(len(found))]


def texts(found):
    return [found.text(row) for row in range(len(found))]


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "pictures"
    for seed, name in enumerate(("b.PNG", "a.jpg", "deep/er/d.webp", "deep/c.png", ".hidden/x.png", ".y.png")):
        picture(root / name, seed)
    (root / "notes.md").write_text("no picture")
    (root / "a.txt").write_text(" a caption\n")
    (root / "b.json").write_text('{"caption": "from JSON", "id": 3}')
    return root


def test_a_folder_is_its_pictures_by_name_then_its_folders(folder):
    found = pictures.load(folder)
    assert names(found) == ["a.jpg", "b.PNG", "deep/c.png", "deep/er/d.webp"]
    assert texts(found) == ["a caption", "from JSON", "", ""]
    assert found.format == "folder" and found.blocks == () and not found.bad
    with Image.open(folder / "deep/c.png") as image, found.open(2) as opened:
        assert np.array_equal(np.asarray(image), np.asarray(opened))


def test_the_fingerprint_follows_content_and_the_stamp_times_too(folder):
    first = pictures.load(folder)
    os.utime(folder / "a.jpg", ns=(1, 1))
    touched = pictures.load(folder)
    assert touched.fingerprint == first.fingerprint and touched.stamp != first.stamp
    (folder / "a.txt").write_text("another caption")
    assert pictures.load(folder).fingerprint != first.fingerprint
    (folder / "a.txt").unlink()
    without = pictures.load(folder)
    picture(folder / "z.png")
    assert len({first.fingerprint, without.fingerprint, pictures.load(folder).fingerprint}) == 3


def test_a_link_in_a_circle_is_refused_and_other_links_are_followed(folder, tmp_path):
    picture(tmp_path / "elsewhere" / "e.png")
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    assert "link/e.png" in names(pictures.load(folder))
    (folder / "deep" / "up").symlink_to(folder)
    with pytest.raises(InputError, match="a link to a folder around it"):
        pictures.load(folder)


def test_the_first_rows_are_another_source(folder):
    whole, first = pictures.load(folder), pictures.load(folder, limit=3)
    assert names(first) == names(whole)[:3] and texts(first) == texts(whole)[:3]
    assert first.fingerprint != whole.fingerprint and first.stamp != whole.stamp
    assert pictures.load(folder, limit=9).fingerprint == whole.fingerprint


def test_damaged_pictures_are_found_once_left_out_and_limited(folder, tmp_path, monkeypatch):
    keep = tmp_path / "keep"
    cut(folder / "deep/c.png")
    assert len(pictures.load(folder)) == 4  # without an allowance nothing is decoded
    found = pictures.load(folder, allow_bad=0.25, keep=keep)
    assert names(found) == ["a.jpg", "b.PNG", "deep/er/d.webp"]
    assert found.bad.counts == {"damaged": 1} and "deep/c.png: " in found.bad.first[0]
    assert found.fingerprint != pictures.load(folder).fingerprint
    monkeypatch.setattr(readable, "_chunks", lambda *_: pytest.fail("looked again"))
    assert pictures.load(folder, allow_bad=0.25, keep=keep).fingerprint == found.fingerprint
    with pytest.raises(InputError, match=r"1 samples cannot be used \(1 damaged\).*25\.00%.*20\.00% are allowed"):
        pictures.load(folder, allow_bad=0.2, keep=keep)


def test_an_allowance_that_is_not_needed_changes_nothing(folder):
    assert pictures.load(folder, allow_bad=0.5).fingerprint == pictures.load(folder).fingerprint


def test_a_look_that_was_killed_goes_on(tmp_path, monkeypatch):
    for number in range(10):
        path = picture(tmp_path / "p" / f"{number}.png", number)
        if number in (2, 7):
            cut(path)
    monkeypatch.setattr(readable, "CHUNK", 3)
    seen = []
    honest = readable.trouble

    def dying(source, row):
        seen.append(row)
        if row == 7:
            raise KeyboardInterrupt
        return honest(source, row)

    monkeypatch.setattr(readable, "trouble", dying)
    with pytest.raises(KeyboardInterrupt):
        pictures.load(tmp_path / "p", allow_bad=0.5, keep=tmp_path / "keep")
    seen.clear()
    monkeypatch.setattr(readable, "trouble", lambda source, row: (seen.append(row), honest(source, row))[1])
    found = pictures.load(tmp_path / "p", allow_bad=0.5, keep=tmp_path / "keep")
    assert sorted(seen[:4]) == [6, 7, 8, 9]  # rows 0 to 5 were kept
    assert names(found) == [f"{number}.png" for number in (0, 1, 3, 4, 5, 6, 8, 9)]


def test_parts_keep_the_blocks_they_are_cut_from(folder):
    class Blocked:
        format, fingerprint, stamp, blocks, bad = "made", "f", "s", (2, 3, 1), None

        def __len__(self):
            return 6

        def name(self, row):
            return str(row)

        text = open = name

    part = Part(Blocked(), np.array([0, 1, 3, 5]), bad=pictures.load(folder).bad)
    assert part.blocks == (2, 1, 1) and names(part) == ["0", "1", "3", "5"]


def test_a_truncated_jpeg_is_found_though_few_of_its_pixels_are_made(tmp_path):
    smooth = np.add.outer(np.arange(300), np.arange(200)).astype(np.uint8)
    for name in ("a.jpg", "b.jpg"):
        Image.fromarray(smooth).convert("RGB").save(tmp_path / name)
    path = tmp_path / "b.jpg"
    path.write_bytes(path.read_bytes()[:-400])
    found = pictures.load(tmp_path, allow_bad=0.5)
    assert names(found) == ["a.jpg"] and "truncated" in found.bad.first[0]


def test_shards_and_pictures_in_one_folder_are_not_guessed_at(folder):
    (folder / "s.tar").write_bytes(b"")
    with pytest.raises(InputError, match="holds shards and pictures"):
        pictures.load(folder)


def test_what_is_kept_is_made_once_whoever_asks(tmp_path):
    made = []

    def make(place):
        made.append(place)
        (place / "content").write_text("whole")
        return {"number": len(made)}

    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda _: kept(tmp_path / "keep", "entry", make), range(12)))
    assert len(made) == 1 and all(described == {"number": 1} for _, described in found)
    assert (tmp_path / "keep/entry/content").read_text() == "whole"


# Tables


@pytest.fixture
def rows(tmp_path):
    for number in range(4):
        picture(tmp_path / "images" / "sub" / f"{number}.png", number)
    return [(f"sub/{number}.png", f"picture {number}") for number in range(4)]


def table(path, rows, header="filepath\ttitle", tab="\t"):
    lines = [header] * bool(header) + [tab.join(row) for row in rows]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize(
    ("name", "header", "swap", "tab"),
    [
        ("train.tsv", "filepath\ttitle", False, "\t"),
        ("train.csv", "filepath\ttitle", False, "\t"),
        ("train.csv", "caption,path", True, ","),
        ("train.tsv", "", True, "\t"),
    ],
)
def test_tables_name_pictures_under_a_folder(tmp_path, rows, keep, name, header, swap, tab):
    told = [row[::-1] for row in rows] if swap else rows
    path = table(tmp_path / name, told, header, tab)
    options = {"images": str(tmp_path / "images"), "keep": tmp_path / "keep" if keep else None}
    found = pictures.load(path, **options)
    assert list(zip(names(found), texts(found), strict=True)) == rows
    again = pictures.load(path, **options)
    assert (again.fingerprint, again.stamp) == (found.fingerprint, found.stamp) and names(again) == names(found)
    with Image.open(tmp_path / "images/sub/3.png") as image, found.open(3) as opened:
        assert np.array_equal(np.asarray(image), np.asarray(opened))


def test_paths_are_relative_to_the_table_unless_a_folder_is_named(tmp_path, rows):
    path = table(tmp_path / "images" / "t.tsv", rows)
    assert names(pictures.load(path)) == [name for name, _ in rows]
    absolute = [(str(tmp_path / "images" / name), text) for name, text in rows]
    assert names(pictures.load(table(path, absolute))) == [name for name, _ in rows]


@pytest.mark.parametrize("wrong", ["../secret.png", "/etc/secret.png", "sub/../../secret.png", "C:\\secret.png"])
def test_a_path_that_leaves_the_folder_is_refused(tmp_path, rows, wrong):
    picture(tmp_path / "secret.png")
    path = table(tmp_path / "t.tsv", [*rows, (wrong, "stolen")])
    with pytest.raises(InputError, match=r"t\.tsv:6: the path .* leaves the dataset folder"):
        pictures.load(path, images=str(tmp_path / "images"), allow_bad=1.0)


@pytest.mark.parametrize("keep", [False, True])
def test_pictures_that_change_or_vanish_behind_a_table_are_noticed(tmp_path, rows, keep):
    path, images = table(tmp_path / "t.tsv", rows), tmp_path / "images"
    options = {"images": str(images), "keep": tmp_path / "keep" if keep else None}
    first = pictures.load(path, **options)
    os.utime(images / "sub/2.png", ns=(1, 1))
    touched = pictures.load(path, **options)
    assert touched.fingerprint == first.fingerprint and touched.stamp != first.stamp
    (images / "sub/1.png").unlink()
    with pytest.raises(InputError, match=r"\(1 missing\), first sub/1\.png"):
        pictures.load(path, **options)
    left = pictures.load(path, allow_bad=0.25, **options)
    assert texts(left) == ["picture 0", "picture 2", "picture 3"] and left.fingerprint != first.fingerprint


def test_urls_are_refused(tmp_path, rows):
    path = table(tmp_path / "t.tsv", [("a cat", "https://example.org/1.jpg")], header="")
    with pytest.raises(InputError, match=r"a URL, 'https://example\.org/1\.jpg'; download the pictures"):
        pictures.load(path)


def test_missing_and_broken_rows_are_counted_by_kind(tmp_path, rows):
    path = table(tmp_path / "t.tsv", [*rows, ("sub/9.png", "gone"), ("only one cell",)])
    images = str(tmp_path / "images")
    with pytest.raises(
        InputError,
        match=r"2 samples cannot be used \(1 missing, 1 of another width\), first t\.tsv:7: .* got 1; sub/9\.png",
    ):
        pictures.load(path, images=images)
    found = pictures.load(path, images=images, allow_bad=0.4)
    assert names(found) == [name for name, _ in rows] and found.bad.total == 2
    assert found.fingerprint != pictures.load(table(tmp_path / "u.tsv", rows), images=images).fingerprint


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda place: place / "absent", "no such file or folder"),
        (lambda place: place / "absent.tsv", "no such file; expected a table"),
        (lambda place: place, "holds no pictures to train on"),
        (lambda place: (place / "x.bin").write_text("x") and place / "x.bin", "not a source of pictures"),
        (lambda place: table(place / "t.tsv", [("a", "b")], "id\ttitle"), "no column of picture files"),
    ],
)
def test_what_is_no_source_says_so(tmp_path, make, message):
    with pytest.raises(InputError, match=message):
        pictures.load(make(tmp_path))
