"""COCO object composition: by hand, on the real draw of objects, and through the whole path."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cir import config as configs
from cir import runs
from cir.data import coco, images, load
from cir.data.views import VIEWS
from cir.errors import InputError
from cir.evaluate import evaluate
from cir.retrieval import encode
from cir.score import score

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
REAL = pytest.mark.skipif(
    not (SHARED / "coco").is_dir(), reason="needs the benchmarks' annotation files in ../shared/data"
)
HEADER = "id,query_regions,query_class,classes\n"
LINES = [
    "000000000007.jpg,1.5;2.9;8.99;9.0 ,dog,person;frisbee",
    "000000000003.jpg,0.0;0.0;4.2;3.7 ,stop sign,",
]


def write(root, lines=LINES):
    root.mkdir(parents=True, exist_ok=True)
    (root / "coco_eval.csv").write_text(HEADER + "".join(f"{line}\n" for line in lines))
    return root


@pytest.mark.parametrize("folder", ["", "coco"])
def test_an_object_and_class_names_ask_for_the_picture(tmp_path, folder):
    write(tmp_path / folder)
    bench = load("coco/val2017", tmp_path, allow_missing=True)
    assert bench.gallery == ("000000000007.jpg", "000000000003.jpg")  # in the order of the file
    first, second = bench.queries
    assert (first.id, first.reference) == ("val2017/0000", "000000000007.jpg#region")
    assert first.texts == ("dog and person and frisbee",) and second.texts == ("stop sign and",)
    assert (first.targets, second.targets) == (("000000000007.jpg",), ("000000000003.jpg",))
    assert bench.paths["000000000007.jpg"] == "val2017/000000000007.jpg"
    assert bench.paths["000000000007.jpg#region"] == "val2017_masked/000000000007.jpg"
    assert str(bench.views["000000000003.jpg#region"]) == "squashed-region 0.0,0.0,4.2,3.7"
    assert set(bench.views) == {query.reference for query in bench.queries} and bench.open_references
    assert bench.template == "a photo of $ and {text}" and bench.root == tmp_path / folder
    assert "a draw of its own" in bench.notes[0] and bench.notes[1].startswith("1 of 2 objects")


def test_another_draw_is_another_fingerprint_and_line_ends_are_not(tmp_path):
    first = load("coco/val2017", write(tmp_path), allow_missing=True)
    file = tmp_path / "coco_eval.csv"
    file.write_bytes(file.read_bytes().replace(b"\n", b"\r\n"))
    again = load("coco/val2017", tmp_path, allow_missing=True)
    assert (again.fingerprint, again.notes) == (first.fingerprint, first.notes)
    other = load("coco/val2017", write(tmp_path, [LINES[0].replace("1.5", "1.25"), LINES[1]]), allow_missing=True)
    assert other.fingerprint != first.fingerprint and other.notes[0] != first.notes[0]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a.jpg,1;2;3,dog,", r"line 2: query_regions is '1;2;3'; expected x1;y1;x2;y2"),
        ("a.jpg,1;2;x;4,dog,", "line 2: query_regions is"),
        ("a.jpg,1;2;nan;4,dog,", "line 2: query_regions is"),
        ("a.jpg,1.2;2;1.9;4 ,dog,", r"line 2: the region 1.2;2;1.9;4 holds no pixel"),
        ("../a.jpg,1;2;3;4,dog,", "line 2: the path '../a.jpg' leaves"),
        ("a.jpg,1;2;3;4", "line 2: expected id,query_regions,query_class,classes, got 2 values"),
        ("a.jpg,1;2;3;4,dog,\na.jpg,1;2;3;4,dog,", "gallery: 1 ids occur more than once"),
    ],
)
def test_what_is_refused(tmp_path, line, message):
    with pytest.raises(InputError, match=message) as raised:
        load("coco/val2017", write(tmp_path, [line]), allow_missing=True)
    assert "\n" not in str(raised.value)


def test_a_region_loses_fractions_and_is_squashed():
    """Columns 2 to 5 and rows 3 to 7 of the picture: edges are cut, not rounded, and nothing is cropped."""
    ys, xs = np.mgrid[:12, :10]
    picture = Image.fromarray(np.stack([20 * xs, 20 * ys, 0 * xs], axis=-1).astype(np.uint8))
    cut = VIEWS["squashed-region"](picture, (2.9, 3.999, 6.7, 8.5), (4, 5))
    assert np.array_equal(np.asarray(cut), np.asarray(picture)[3:8, 2:6])  # its own size: nothing is interpolated
    wide = VIEWS["squashed-region"](picture, (2.9, 3.999, 6.7, 8.5), (32, 32))
    assert wide.size == (32, 32)
    assert np.array_equal(np.asarray(wide), np.asarray(cut.resize((32, 32), Image.Resampling.BICUBIC)))
    grey = VIEWS["squashed-region"](picture.convert("L"), (0.0, 0.0, 2.0, 2.0), (2, 2))
    assert grey.mode == "RGB"


@REAL
def test_the_real_draw():
    bench = load("coco/val2017", SHARED)
    assert len(bench.queries) == len(bench.gallery) == 4765 and bench.stamps == ()
    assert sum(query.texts[0].endswith(" and") for query in bench.queries) == 869
    assert len({query.texts[0].split(" and ")[0].removesuffix(" and") for query in bench.queries}) == 80
    assert "the public draw of SunTongtongtong" in bench.notes[0] and bench.notes[1].startswith("869 of 4,765")
    assert list(bench.gallery) == sorted(bench.gallery)
    boxes = np.array([view.box for view in bench.views.values()])
    sides = boxes[:, 2:] - boxes[:, :2]
    assert int((sides.prod(axis=1) < 32 * 32).sum()) == 917  # specks are in it, as published


@REAL
def test_the_real_draw_scores_as_the_definition_written_out(tmp_path):
    """Ranks from a full sort of every row, as Pic2Word's evaluation has them, on seeded features."""
    rng = np.random.default_rng(3)
    bench = load("coco/val2017", SHARED)
    gallery = rng.standard_normal((4765, 16)).astype(np.float32)
    asked = (gallery + 1.4 * rng.standard_normal(gallery.shape)).astype(np.float32)
    np.savez(tmp_path / "q.npz", ids=np.array([query.id for query in bench.queries]), vectors=asked)
    np.savez(tmp_path / "g.npz", ids=np.array(bench.gallery), vectors=gallery)
    found = score("coco/val2017", SHARED, tmp_path / "q.npz", tmp_path / "g.npz", resamples=2)
    q, g = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (asked.astype(np.float64), gallery))
    places = np.argmax(np.argsort(-(q @ g.T), axis=1) == np.arange(4765)[:, None], axis=1)
    expected = {f"R@{k}": 100 * float((places < k).mean()) for k in (1, 5, 10)}
    assert {name: value["mean"] for name, value in found["scores"].items()} == pytest.approx(expected)
    assert 5 < expected["R@1"] < expected["R@5"] < expected["R@10"] < 95  # the case tells the cuts apart
    assert found["protocol"]["name"] == "coco"


@REAL
def test_the_whole_path_on_the_real_draw(tmp_path, tiny_backbone, tiny_clip_folder):
    """Every file is there and is looked at; a part is encoded, and the regions are what is encoded."""
    root = tmp_path / "data" / "coco"
    for place in ("val2017", "val2017_masked", "seeds"):
        (root / place).mkdir(parents=True)
    (root / "coco_eval.csv").write_bytes((SHARED / "coco" / "coco_eval.csv").read_bytes())
    bench = load("coco/val2017", root)
    for seed in range(25):
        noise = np.random.default_rng(seed).integers(0, 255, (12, 16, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((640, 480), Image.Resampling.BICUBIC).save(root / f"seeds/{seed}.jpg")
    for number, path in enumerate(bench.paths.values()):
        os.link(root / f"seeds/{number % 25}.jpg", root / path)
    assert images.check(bench) is bench
    overrides = [f"data.root={tmp_path / 'data'}", "data.subset=40", f"backbone.name={tiny_clip_folder}"]
    config = configs.load(None, [*overrides, "name=sum", "backbone.device=cpu", f"backbone.cache={tmp_path / 'cache'}"])
    method = runs.build(config, tiny_backbone)
    evaluation = evaluate(config, tiny_backbone, method, ["coco/val2017"], progress=False)[0]
    searched, small = evaluation.searched[0], evaluation.searched[0].benchmark
    assert len(small.queries) == 40 and small.gallery[:40] == bench.gallery[:40] and len(small.gallery) == 120
    assert set(searched.scores.values) == {"R@1", "R@5", "R@10"}
    assert "prompt: a photo of $ and {text}" in evaluation.record.benchmark.notes
    assert any("public draw" in note for note in evaluation.record.benchmark.notes)
    reference = bench.queries[5].reference
    with Image.open(root / bench.paths[reference]) as picture:
        region = VIEWS["squashed-region"](picture, bench.views[reference].box, (32, 32))
    expected = tiny_backbone.encode_images(tiny_backbone.preprocess(region)[None]).numpy()[0]
    encoded = encode(small, config, tiny_backbone, progress=False).take([reference])[0]
    assert np.allclose(encoded, expected, atol=1e-5)
    (root / "val2017_masked/000000000139.jpg").unlink()
    with pytest.raises(InputError, match=r"000000000139\.jpg#region .*val2017_masked/000000000139\.jpg: missing"):
        images.check(bench)


def test_the_source_says_how_masked_pictures_are_made():
    assert "cir data mask coco" in coco.SOURCE.images
