"""GeneCIS: what is read, what the real files hold, and the whole path from annotations to a record."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cir import config as configs
from cir import runs
from cir.data import BENCHMARKS, expand, genecis, load, subset
from cir.data.images import check
from cir.errors import InputError
from cir.evaluate import evaluate
from cir.schema import View

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
REAL = pytest.mark.skipif(
    not (SHARED / "GeneCIS").is_dir(), reason="needs the benchmarks' annotation files in ../shared/data"
)


def crop(number, *box):
    return {"image_id": str(number), "instance_bbox": list(box or (1, 2, 30, 40))}


def whole(number):
    return {"val_image_id": number}


ATTRIBUTES = [
    {"condition": "color", "reference": crop(1), "target": crop(2, 0, 1.5, 3, 4), "gallery": [crop(3), crop(4)]},
    {  # one twice, the target again, the reference too, and another part of the target's picture
        "condition": "shape", "reference": crop(5), "target": crop(2),
        "gallery": [crop(3), crop(3), crop(2), crop(5), crop(2, 0, 1.5, 3, 4)],
    },
]  # fmt: skip
OBJECTS = [{"condition": "a wall", "reference": whole(9), "target": whole(77), "gallery": [whole(5), whole(123456)]}]


def write(root, task, rows):
    (root / "genecis").mkdir(parents=True, exist_ok=True)
    (root / "genecis" / f"{task}.json").write_text(json.dumps(rows))
    return root


@pytest.fixture
def free(monkeypatch):
    """Nothing is compared with the published counts."""
    for name in genecis.COUNTS:
        monkeypatch.setitem(genecis.COUNTS, name, {})


def test_attribute_tasks_are_parts_of_pictures(tmp_path, free):
    bench = load("genecis/focus_attribute", write(tmp_path, "focus_attribute", ATTRIBUTES))
    first, second = bench.queries
    assert (first.id, second.id) == ("focus_attribute/0000", "focus_attribute/0001")
    assert (first.reference, first.texts, first.targets) == ("1:1,2,30,40", ("color",), ("2:0,1.5,3,4",))
    assert first.candidates == ("2:0,1.5,3,4", "3:1,2,30,40", "4:1,2,30,40")
    assert second.candidates == ("2:1,2,30,40", "3:1,2,30,40", "3:1,2,30,40", "5:1,2,30,40", "2:0,1.5,3,4")
    assert set(bench.gallery) == {*first.candidates, *second.candidates} and bench.open_references
    assert "1:1,2,30,40" not in bench.gallery and set(bench.paths) == {*bench.gallery, first.reference}
    assert bench.views["2:0,1.5,3,4"] == View("dilated-square", (0.0, 1.5, 3.0, 4.0))
    assert set(bench.views) == set(bench.paths) and bench.paths["4:1,2,30,40"] == "VG_100K_all/4.jpg"
    assert bench.notes[1:] == ("1 distractors that are their query's target left out",)
    assert bench.labelled and bench.template == "" and bench.stamps == ()


def test_object_tasks_are_whole_pictures(tmp_path, free):
    bench = load("genecis/change_object", write(tmp_path, "change_object", OBJECTS))
    query = bench.queries[0]
    assert (query.reference, query.targets, query.candidates) == ("9", ("77",), ("77", "5", "123456"))
    assert query.texts == ("a wall",) and query.id == "change_object/0000" and bench.views == {}
    assert bench.paths["123456"] == "val2017/000000123456.jpg" and len(bench.notes) == 1


def test_the_released_variant_feeds_a_constant_to_the_object_tasks_alone(tmp_path, free):
    released = {"protocol": "genecis/lincir-released"}
    write(write(tmp_path, "change_object", OBJECTS), "change_attribute", ATTRIBUTES)
    objects, attributes = (load(f"genecis/change_{kind}", tmp_path, **released) for kind in ("object", "attribute"))
    assert [q.texts for q in objects.queries] == [("0",)] and "constant '0'" in objects.notes[1]
    assert [q.texts for q in attributes.queries] == [("color",), ("shape",)]
    assert objects.protocol == attributes.protocol == "genecis/lincir-released"
    assert objects.fingerprint != load("genecis/change_object", tmp_path).fingerprint


def test_the_constant_is_what_the_released_code_writes():
    """There a batch ends with the targets' slots, which is 0 by construction, and its elements go into the text."""
    batch = torch.utils.data.default_collate([0, 0, 0])
    assert [f"a photo of $ that {element}" for element in batch] == [f"a photo of $ that {genecis.CONSTANT}"] * 3


@pytest.mark.parametrize("outer", ["", "GeneCIS", "genecis"])
@pytest.mark.parametrize("inner", ["", "genecis/"])
def test_folders_are_found_wherever_they_lie(tmp_path, free, outer, inner):
    base = tmp_path / outer
    write(write(base, "focus_attribute", ATTRIBUTES), "focus_object", OBJECTS)
    files = [f"{inner}VG_100K/1.jpg", f"{inner}VG_100K_2/2.jpg", f"{inner}VG_100K_all/3.jpg"]
    for file in (*files, f"{inner}val2017/000000000077.jpg"):
        (base / file).parent.mkdir(exist_ok=True)
        (base / file).write_bytes(b"")
    bench = load("genecis/focus_attribute", tmp_path)
    assert bench.root == base
    assert [bench.paths[f"{n}:1,2,30,40"] for n in (1, 2, 3)] == files
    assert bench.paths["4:1,2,30,40"] == "VG_100K_all/4.jpg"  # not there: the official place is named
    assert load("genecis/focus_object", tmp_path).paths["77"] == f"{inner}val2017/000000000077.jpg"


def test_names_and_counts(tmp_path):
    names = [name for name in BENCHMARKS if name.startswith("genecis/")]
    assert expand("genecis") == names == [f"genecis/{task}" for task in genecis.TASKS]
    write(tmp_path, "focus_object", OBJECTS)
    with pytest.raises(InputError, match=r"queries: expected 1,960, found 1; gallery: expected 2,192, found 3"):
        load("genecis/focus_object", tmp_path)
    assert "expected 1,960, found 1" in load("genecis/focus_object", tmp_path, allow_missing=True).stamps[0]
    with pytest.raises(InputError, match=r"found no genecis/change_object\.json"):
        load("genecis/change_object", tmp_path)
    with pytest.raises(InputError, match="did you mean 'genecis/lincir-released'"):
        load("genecis/focus_object", tmp_path, protocol="genecis/lincir-relesed")


@pytest.mark.parametrize(
    ("task", "change", "message"),
    [
        ("attribute", {"target": None}, "row 1, target: expected an object, got None"),
        ("attribute", {"target": {"image_id": "2"}}, "row 1, target: key 'instance_bbox' is missing"),
        ("attribute", {"target": {"image_id": 2, "instance_bbox": [1, 2, 3, 4]}}, "target, image_id: expected text"),
        ("attribute", {"gallery": [crop(3), crop(3, 1, 2, 3)]}, r"row 1, gallery\[1\], instance_bbox: expected \[left"),
        ("attribute", {"gallery": [crop(3, 1, 2, 0, 4)]}, r"gallery\[0\], instance_bbox: .* got \[1, 2, 0, 4\]"),
        ("attribute", {"gallery": [crop(3, 1, 2, 4, -1)]}, "instance_bbox: expected"),
        ("attribute", {"gallery": [crop(3, True, 2, 4, 1)]}, "instance_bbox: expected"),
        ("attribute", {"gallery": [crop(3, "1", 2, 4, 1)]}, "instance_bbox: expected"),
        ("attribute", {"gallery": [crop(3, float("nan"), 2, 4, 1)]}, "instance_bbox: expected"),
        ("attribute", {"gallery": [crop(3, 1, 2, float("inf"), 1)]}, "instance_bbox: expected"),
        ("attribute", {"gallery": [5]}, r"row 1, gallery\[0\]: expected an object, got 5"),
        ("attribute", {"gallery": None}, "row 1, gallery: expected a list"),
        ("attribute", {"condition": 5}, "row 1, condition: expected text, got 5"),
        ("attribute", {"reference": whole(1)}, "row 1, reference: key 'image_id' is missing"),
        ("attribute", {"reference": crop("../../1")}, "leaves the dataset folder"),
        ("object", {"reference": crop(1)}, "row 1, reference: key 'val_image_id' is missing"),
        ("object", {"target": {"val_image_id": "77"}}, "row 1, target, val_image_id: expected an integer, got '77'"),
    ],
)
def test_malformed_files_are_one_line_with_file_and_row(tmp_path, free, task, change, message):
    row = (ATTRIBUTES if task == "attribute" else OBJECTS)[0]
    write(tmp_path, f"focus_{task}", [row, {**row, **change}])
    with pytest.raises(InputError, match=message) as raised:
        load(f"genecis/focus_{task}", tmp_path)
    assert "\n" not in str(raised.value)


# --- the real files --------------------------------------------------------------------------------------------


@REAL
@pytest.mark.parametrize(
    ("task", "distractors", "conditions", "targets_again", "references_in", "twice"),
    [
        ("focus_attribute", 9, 40, 1, 0, 6),
        ("change_attribute", 14, 400, 0, 79, 5),
        ("focus_object", 14, 97, 0, 0, 0),
        ("change_object", 14, 109, 1, 0, 0),
    ],
)
def test_the_real_files_and_their_blemishes(task, distractors, conditions, targets_again, references_in, twice):
    """Counted in the file, then in what was loaded: nothing is lost but distractors that are the target."""
    rows = json.loads((SHARED / "GeneCIS/genecis" / f"{task}.json").read_text())
    bench = load(f"genecis/{task}", SHARED)
    assert {len(row["gallery"]) for row in rows} == {distractors}
    assert len({row["condition"] for row in rows}) == len({q.texts for q in bench.queries}) == conditions
    again = [i for i, row in enumerate(rows) if row["target"] in row["gallery"]]
    assert len(again) == targets_again == sum(len(q.candidates) != distractors + 1 for q in bench.queries)
    assert all(q.candidates.count(q.targets[0]) == 1 for q in bench.queries)
    inside = [i for i, row in enumerate(rows) if row["reference"] in row["gallery"]]
    assert inside == [i for i, q in enumerate(bench.queries) if q.reference in q.candidates]
    assert len(inside) == references_in and all(row["reference"] != row["target"] for row in rows)
    double = sum(len({json.dumps(x) for x in row["gallery"]}) < distractors for row in rows)
    assert double == twice == sum(max(Counter(q.candidates).values()) == 2 for q in bench.queries)
    for index in (0, len(rows) // 2, len(rows) - 1):
        row, query = rows[index], bench.queries[index]
        assert query.id == f"{task}/{index:04d}" and query.texts == (row["condition"],)
        named = [name for x in (row["target"], *row["gallery"]) for name in [spelled(x)]]
        assert list(query.candidates) == named and query.reference == spelled(row["reference"])


def spelled(image):
    if "val_image_id" in image:
        return str(image["val_image_id"])
    return f"{image['image_id']}:{','.join(json.dumps(edge) for edge in image['instance_bbox'])}"


# --- the whole path --------------------------------------------------------------------------------------------


def draw(bench):
    """Put a small picture where each image of a benchmark is expected, as large as its boxes reach."""
    sizes: dict[str, tuple[int, int]] = {}
    for image, path in bench.paths.items():
        left, top, width, height = bench.views[image].box if image in bench.views else (0, 0, 40, 30)
        wide, high = sizes.get(path, (8, 8))
        sizes[path] = max(wide, round(left + width)), max(high, round(top + height))
    for path, size in sizes.items():
        seed = int(Path(path).stem)
        noise = np.random.default_rng(seed).integers(0, 255, (5, 6, 3), dtype=np.uint8)
        file = bench.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(noise).resize(size, Image.Resampling.NEAREST)
        (picture.convert("L") if seed % 5 == 0 else picture).save(file, quality=60)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """The first ten real annotations of each task, over generated pictures."""
    root = tmp_path_factory.mktemp("genecis")
    for name in expand("genecis"):
        rows = json.loads((SHARED / "GeneCIS" / f"{name}.json").read_text())[:10]
        write(root / "GeneCIS", name.split("/")[1], rows)
        draw(load(name, root, allow_missing=True))
    return root


def official(bench, backbone, query):
    """The released evaluation of one query, image by image: crop, pad, encode, compare, sort, is it the first?"""

    def feature(image):
        with Image.open(bench.root / bench.paths[image]) as picture:
            picture.load()
        if image in bench.views:
            left, top, width, height = bench.views[image].box
            left, top = max(0, left - 0.7 * width), max(0, top - 0.7 * height)
            right, bottom = min(picture.width, left + 1.7 * width), min(picture.height, top + 1.7 * height)
            part = picture.crop((left, top, right, bottom))
            side = max(part.size)
            picture = Image.new(part.mode, (side, side), 0)
            picture.paste(part, ((side - part.width) // 2, (side - part.height) // 2))
        found = backbone.encode_images(backbone.preprocess(picture)[None])[0, 0].double()
        return found / found.norm()

    gallery = torch.stack([feature(image) for image in query.candidates])
    order = (gallery @ feature(query.reference)).sort(descending=True, stable=True).indices.tolist()
    return order.index(0) + 1


@REAL
def test_the_whole_path_on_generated_pictures(tree, tmp_path, tiny_clip_folder, tiny_backbone):
    config = configs.load(
        None,
        [
            "name=g", "method.name=image_only", f"backbone.name={tiny_clip_folder}", f"data.root={tree}",
            "data.subset=8", "data.allow_missing=true", f"backbone.cache={tmp_path / 'cache'}", "backbone.device=cpu",
        ],
    )  # fmt: skip
    method = runs.build(config, tiny_backbone)
    found = evaluate(config, tiny_backbone, method, ["genecis"], progress=False)
    assert [one.record.benchmark.name for one in found] == [*expand("genecis"), "genecis"]
    single = []
    for one in found[:4]:
        bench = one.searched[0].benchmark
        assert check(bench) is bench and len(bench.queries) == 8
        assert "subset of 8 queries" in one.record.benchmark.stamps[-1]
        ranks = [official(bench, tiny_backbone, query) for query in bench.queries]
        assert one.searched[0].ranks.ranks[:, 0].tolist() == ranks
        single.append({f"R@{k}": 100 * float(np.mean([rank <= k for rank in ranks])) for k in (1, 2, 3)})
        assert {name: mean.mean for name, mean in one.record.means.items()} == pytest.approx(single[-1])
    means = {name: mean.mean for name, mean in found[4].record.means.items()}
    assert means == pytest.approx({name: np.mean([one[name] for one in single]) for name in means})
    assert found[0].record.protocol.name == "genecis" and found[4].record.protocol.name == "genecis"


@REAL
def test_a_missing_picture_is_named_once_per_part_and_leaves_on_request(tree, tmp_path):
    bench = subset(load("genecis/change_attribute", tree, allow_missing=True), 6, filler=0)
    image = bench.queries[2].targets[0]
    (bench.root / bench.paths[image]).rename(tmp_path / "kept.jpg")
    try:
        with pytest.raises(InputError, match=rf"{image} .*{bench.paths[image]}: missing"):
            check(bench)
        less = check(bench, allow_missing=True)
        assert image not in less.gallery and bench.queries[2].id not in {query.id for query in less.queries}
        assert "left out (missing or corrupt)" in less.stamps[-1]
    finally:
        (tmp_path / "kept.jpg").rename(bench.root / bench.paths[image])
