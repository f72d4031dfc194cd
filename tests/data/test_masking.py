"""Objects on white: which pixels stay, which annotation is found, and what a second run does."""

import json

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from cir.cli import app
from cir.data import load, masking
from cir.data.images import check
from cir.errors import InputError, RunError

NAMES = ("000000000005.jpg", "000000000009.jpg", "000000000011.jpg")
ROWS = [
    f"{NAMES[0]},4.0;2.0;10.0;8.0 ,dog,person",
    f"{NAMES[1]},0.0;0.0;6.0;12.0 ,person,",
    f"{NAMES[2]},1.01;2.0;6.0;7.01 ,dog,",
]
SQUARE = [4, 2, 10, 2, 10, 8, 4, 8]


def annotation(number, image, box, segmentation, category=1):
    return {"id": number, "image_id": image, "category_id": category, "bbox": box, "segmentation": segmentation}


def write(root, rows=ROWS, change=None):
    """A small COCO: a polygon, a crowd's runs, and two objects that share a box."""
    runs = {"size": [12, 16], "counts": [0, 6, 12 * 16 - 6]}
    content = {
        "images": [
            {"id": int(name[:12]), "file_name": name, "height": 12, "width": 16}
            for name in (*NAMES, "000000000099.jpg")
        ],
        "categories": [{"id": 1, "name": "dog"}, {"id": 18, "name": "person"}],
        "annotations": [
            annotation(1, 5, [0, 0, 3, 3], [[0, 0, 3, 0, 3, 3]]),
            annotation(2, 5, [4, 2, 6, 6], [SQUARE]),
            annotation(3, 9, [0, 0, 6, 12], runs, 18),
            annotation(4, 11, [1, 2, 5, 5], [[1, 2, 6, 2, 6, 7, 1, 7]], 18),
            annotation(5, 11, [1, 2, 5, 5], [[1, 2, 3, 2, 3, 7, 1, 7]], 1),
            annotation(6, 99, [1, 2, 5, 5], "ignored"),
        ],
    }
    (root / "annotations").mkdir(parents=True)
    (root / "val2017").mkdir()
    (root / "coco_eval.csv").write_text("id,query_regions,query_class,classes\n" + "\n".join(rows) + "\n")
    if change:
        change(content)
    (root / "annotations/instances_val2017.json").write_text(json.dumps(content))
    for index, name in enumerate(NAMES):
        Image.new("L" if index == 1 else "RGB", (16, 12), 40 if index == 1 else (10, 60, 20)).save(
            root / "val2017" / name, quality=95
        )
    return root


def outside(path):
    """Where a masked picture is white, allowing for what JPEG does."""
    with Image.open(path) as image:
        return np.asarray(image.convert("L")) > 200


def test_everything_but_the_object_is_white(tmp_path):
    root = write(tmp_path / "coco")
    seen = []
    counts = masking.write(tmp_path, workers=2, progress=lambda listed: (seen.append(one) or one for one in listed))
    assert counts == {"written": 3, "kept": 0, "foreign": 0} and len(seen) == 3
    found = masking.objects(root)
    assert [one.annotation.data["id"] for one in found] == [2, 3, 5]  # by box, and by class where boxes are equal
    image = Image.new("RGB", (16, 12), (1, 2, 3))
    square = np.zeros((12, 16), dtype=bool)
    square[2:8, 4:10] = True
    exact = np.asarray(masking.on_white(image, square))
    assert (exact[square] == (1, 2, 3)).all() and (exact[~square] == 255).all()
    grey = masking.on_white(image.convert("L"), square)
    assert grey.mode == "L" and (np.asarray(grey)[~square] == 255).all()
    assert masking.on_white(image.convert("CMYK"), square).mode == "RGB"
    with Image.open(root / "val2017_masked" / NAMES[1]) as crowd:
        assert crowd.mode == "L" and crowd.size == (16, 12)
    runs = outside(root / "val2017_masked" / NAMES[1])
    assert not runs[:5, 0].any() and runs[8:, 4:].all()  # six pixels of the first column


def test_files_are_the_reference_s_own_jpeg_but_for_the_comment(tmp_path):
    root = write(tmp_path)
    masking.write(root)
    with Image.open(root / "val2017" / NAMES[0]) as image:
        square = np.zeros((12, 16, 1), dtype=np.uint8)
        square[2:8, 4:10] = 1
        pixels = np.asarray(image)
        Image.fromarray(pixels * square + (1 - square) * 255).save(tmp_path / "plain.jpg")  # the script's arithmetic
    with Image.open(tmp_path / "plain.jpg") as plain, Image.open(root / "val2017_masked" / NAMES[0]) as written:
        assert np.array_equal(np.asarray(plain), np.asarray(written))
        assert written.info["comment"] == b"4.0;2.0;10.0;8.0"


def test_a_second_run_writes_what_is_missing_and_what_shows_another_object(tmp_path):
    root = write(tmp_path)
    masking.write(root)
    first, second, third = (root / "val2017_masked" / name for name in NAMES)
    before = first.read_bytes()
    second.unlink()
    third.write_bytes(b"half")
    stamp = first.stat().st_mtime_ns
    assert masking.write(root) == {"written": 2, "kept": 1, "foreign": 0}
    assert first.read_bytes() == before and first.stat().st_mtime_ns == stamp
    check(load("coco/val2017", root, allow_missing=True))
    rows = [f"{NAMES[0]},0;0;3;3,dog,", *ROWS[1:]]  # another draw: another object of the first picture
    (root / "coco_eval.csv").write_text("id,query_regions,query_class,classes\n" + "\n".join(rows) + "\n")
    assert masking.write(root) == {"written": 1, "kept": 2, "foreign": 0} and first.read_bytes() != before
    assert not list(root.glob("val2017_masked/.*"))


def test_pictures_made_elsewhere_stay_unless_asked(tmp_path):
    root = write(tmp_path)
    (root / "val2017_masked").mkdir()
    Image.new("RGB", (16, 12), (200, 0, 0)).save(root / "val2017_masked" / NAMES[0])
    Image.new("RGB", (16, 12), (200, 0, 0)).save(root / "val2017_masked" / NAMES[1], comment="made by a camera")
    assert masking.write(root) == {"written": 1, "kept": 0, "foreign": 2}
    assert masking.write(root, overwrite=True)["written"] == 3
    assert masking.write(root) == {"written": 0, "kept": 3, "foreign": 0}


def test_an_interrupted_run_goes_on(tmp_path):
    root = write(tmp_path)

    def stopped(listed):
        yield listed[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        masking.write(root, workers=1, progress=stopped)
    there = len(list((root / "val2017_masked").glob("*.jpg")))
    assert there >= 1 and not list(root.glob("val2017_masked/.*"))
    assert masking.write(root) == {"written": 3 - there, "kept": there, "foreign": 0}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [f"{NAMES[0]},4.0;2.0;10.0;8.1 ,dog,"],
            r"line 2: no object of 000000000005\.jpg has the box 4.0;2.0;10.0;8.1",
        ),
        (["000000000006.jpg,4;2;10;8,dog,"], r"line 2: 000000000006\.jpg is no image of .*instances_val2017\.json"),
        ([*ROWS[:2], "000000000099.jpg,1;2;6;7,dog,"], "000000000099.jpg.*missing"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, rows, message):
    with pytest.raises(InputError, match=message) as raised:
        masking.write(write(tmp_path, rows))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["images"][0].update(width=17), "16 x 12 pixels, the annotations say 17 x 12"),
        (lambda c: c["annotations"][1].update(segmentation=[]), r"annotations\[1\]: segmentation is empty"),
        (lambda c: c["annotations"][1].update(bbox=[1, 2, 3]), r"annotations\[1\]: bbox is \[1, 2, 3\]"),
        (lambda c: c.pop("categories"), "key 'categories' is missing"),
    ],
)
def test_annotations_that_do_not_fit_are_named(tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        masking.write(write(tmp_path, change=change))


def test_a_folder_that_cannot_be_written(tmp_path):
    root = write(tmp_path)
    (root / "val2017_masked").write_text("a file")
    with pytest.raises(RunError, match="could not be written"):
        masking.write(root)


def test_the_command(tmp_path):
    root = write(tmp_path / "coco")
    Image.new("RGB", (16, 12)).save(root / "plain.jpg")
    (root / "val2017_masked").mkdir()
    (root / "plain.jpg").rename(root / "val2017_masked" / NAMES[0])
    done = CliRunner().invoke(app, ["data", "mask", "coco", "--root", str(tmp_path)])
    assert done.exit_code == 0 and "2 written, 0 were there" in done.output and "1 were made elsewhere" in done.output
    for arguments, message in (
        (["data", "mask", "cirr", "--root", str(tmp_path)], "'cirr' has no masked pictures; expected coco"),
        (["data", "mask", "coco", "--root", str(tmp_path / "val2017_masked")], "no such folder"),
    ):
        failed = CliRunner().invoke(app, arguments)
        assert failed.exit_code == 2 and message in failed.output
