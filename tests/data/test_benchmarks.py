"""The three loaders on small trees in the official layouts, and on the real annotation files where they are."""

import json
from pathlib import Path

import pytest

from cir.data import BENCHMARKS, expand, load, origin, subset
from cir.data import fashioniq as fashioniq_file
from cir.errors import InputError
from cir.protocols import PROTOCOLS

REPOSITORY = Path(__file__).resolve().parents[2]
SHARED = REPOSITORY.parent / "shared" / "data"
REAL = pytest.mark.skipif(not SHARED.is_dir(), reason="needs the benchmarks' annotation files in ../shared/data")


def put(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def fashioniq(root, split="val", captions="captions", category="dress"):
    rows = [
        {"target": "B2", "candidate": "B1", "captions": [" is red", ""], "tags": ["colour"]},
        {"target": "B3", "candidate": "B1", "captions": ["is red", "is longer"]},
    ]
    if split == "test":
        rows = [{key: value for key, value in row.items() if key != "target"} for row in rows]
    put(root / captions / f"cap.{category}.{split}.json", rows)
    put(root / "image_splits" / f"split.{category}.{split}.json", ["B9", "B3", "B1", "B2"])
    return root


def cirr(root, split="val", inner="cirr/", folder="dev"):
    names = [f"dev-{i}-0-img0" for i in range(8)]
    row = {
        "pairid": 12, "reference": names[1], "target_hard": names[4], "target_soft": {names[4]: 1.0},
        "caption": "Same animal", "img_set": {"id": 5, "members": names[:6], "reference_rank": 0, "target_rank": 1},
    }  # fmt: skip
    if split == "test1":
        del row["target_hard"], row["target_soft"], row["img_set"]["target_rank"]
    put(root / f"{inner}captions/cap.rc2.{split}.json", [row, {**row, "pairid": 7}])
    places = {name: f"./{folder}/{name}.png" for name in reversed(names)}
    put(root / f"{inner}image_splits/split.rc2.{split}.json", places)
    return root


def circo(root, split="val", source="info"):
    row = {
        "reference_img_id": 123, "target_img_id": 77, "relative_caption": "has two of them",
        "shared_concept": "a yellow umbrella", "gt_img_ids": [77, 5], "id": 0, "semantic_aspects": ["addition"],
    }  # fmt: skip
    if split == "test":
        row = {key: row[key] for key in ("reference_img_id", "relative_caption", "shared_concept", "id")}
    put(root / "annotations" / f"{split}.json", [row])
    coco = root / "COCO2017_unlabeled"
    images = [{"id": n, "file_name": f"{n:012d}.jpg"} for n in (77, 123, 5, 9)]
    if source == "info":
        put(coco / "annotations/image_info_unlabeled2017.json", {"images": images})
    if source in ("info", "list"):  # the plain list is there, too, and comes second
        put(coco / "annotations/unlabeled2017_image_ids.txt", "9\n77\n123\n5\n")
    if source == "folder":
        for image in images:
            put(coco / "unlabeled2017" / image["file_name"], "")
    return root


def as_world(root, name, counts):
    for part in reversed(name.split("/")):
        counts = {part: counts}
    put(root / "world.json", {"version": 1, "counts": counts})
    return root


# --- what is read ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("captions", ["captions", "json"])
@pytest.mark.parametrize("inner", ["", "FashionIQ"])
def test_fashioniq(tmp_path, captions, inner):
    fashioniq(tmp_path / inner, captions=captions)
    put(tmp_path / inner / "images" / "B1.png", "")
    put(tmp_path / inner / "images" / "B2.jpg", "")
    bench = load("fashioniq/dress/val", tmp_path, allow_missing=True)
    assert bench.gallery == ("B9", "B3", "B1", "B2")  # the order of the split file
    assert [q.id for q in bench.queries] == ["dress/0000", "dress/0001"]
    assert bench.queries[0].texts == (" is red", "") and bench.queries[0].tags == ("colour",)  # as annotated
    assert bench.queries[1].reference == "B1" and bench.queries[1].targets == ("B3",)
    assert bench.paths["B1"] == "images/B1.png" and bench.paths["B2"] == "images/B2.jpg"
    assert bench.root == tmp_path / inner and bench.protocol == "fashioniq/original"
    assert captions in bench.notes[1] and "expected 2,017, found 2" in bench.stamps[0]


def test_fashioniq_val_union_keeps_only_what_queries_name(tmp_path):
    bench = load("fashioniq/dress/val", fashioniq(tmp_path), protocol="fashioniq/val-union", allow_missing=True)
    assert bench.gallery == ("B3", "B1", "B2") and bench.protocol == "fashioniq/val-union"
    with pytest.raises(InputError, match="has no protocol"):
        load("fashioniq/dress/test", fashioniq(tmp_path, "test"), protocol="fashioniq/val-union", allow_missing=True)
    with pytest.raises(InputError, match="did you mean 'fashioniq/val-union'"):
        load("fashioniq/dress/val", tmp_path, protocol="fashioniq/val_union")


@pytest.mark.parametrize("inner", ["cirr/", ""])
@pytest.mark.parametrize("images", ["", "img_raw/", "images/", "cirr/img_raw/"])
def test_cirr(tmp_path, inner, images):
    cirr(tmp_path, inner=inner)
    put(tmp_path / f"{images}dev/dev-3-0-img0.png", "")
    put(tmp_path / f"{images}dev/dev-4-0-img0.jpg", "")
    bench = load("cirr/val", tmp_path, allow_missing=True)
    if inner or not images.startswith("cirr/"):
        assert bench.paths["dev-3-0-img0"] == f"{images}dev/dev-3-0-img0.png"
        assert bench.paths["dev-4-0-img0"] == f"{images}dev/dev-4-0-img0.jpg"
    assert bench.paths["dev-5-0-img0"] == "dev/dev-5-0-img0.png"  # not there: the official place is named
    assert bench.gallery[0] == "dev-7-0-img0" and len(bench.gallery) == 8
    query = bench.queries[0]
    assert (query.id, query.targets, query.texts) == ("12", ("dev-4-0-img0",), ("Same animal",))
    assert query.candidates == tuple(f"dev-{i}-0-img0" for i in range(6)) and bench.version == "rc2"


@pytest.mark.parametrize(
    ("source", "order", "note"),
    [
        ("info", ("77", "123", "5", "9"), "image_info_unlabeled2017.json"),
        ("list", ("9", "77", "123", "5"), "unlabeled2017_image_ids.txt"),
        ("folder", ("5", "9", "77", "123"), "the folder COCO2017_unlabeled/unlabeled2017"),
    ],
)
def test_circo_prefers_the_official_list(tmp_path, source, order, note):
    bench = load("circo/val", circo(tmp_path, source=source), allow_missing=True)
    assert bench.gallery == order and bench.notes == (f"gallery: {note}",)
    assert bench.paths["123"] == "COCO2017_unlabeled/unlabeled2017/000000000123.jpg"
    query = bench.queries[0]
    assert (query.id, query.reference, query.targets) == ("0", "123", ("77", "5"))
    assert (query.concept, query.tags) == ("a yellow umbrella", ("addition",))


def test_circo_puts_the_single_target_first(tmp_path):
    root = circo(tmp_path)
    row = json.loads((root / "annotations/val.json").read_text())[0]
    put(root / "annotations/val.json", [{**row, "gt_img_ids": [5, 9, 77]}])
    assert load("circo/val", root, allow_missing=True).queries[0].targets == ("77", "5", "9")


@pytest.mark.parametrize(
    ("name", "write"), [("fashioniq/dress/test", fashioniq), ("cirr/test1", cirr), ("circo/test", circo)]
)
def test_hidden_labels_load_with_empty_targets(tmp_path, name, write):
    bench = load(name, write(tmp_path, name.rsplit("/", 1)[1]), allow_missing=True)
    assert bench.queries and not bench.labelled and all(query.targets == () for query in bench.queries)


# --- names, worlds, counts -------------------------------------------------------------------------------------


def test_names():
    assert expand("fashioniq/val") == [f"fashioniq/{c}/val" for c in ("dress", "shirt", "toptee")]
    assert expand("world/fashioniq/val")[2] == "world/fashioniq/toptee/val" and expand("cirr/val") == ["cirr/val"]
    with pytest.raises(InputError, match="did you mean 'cirr/val'"):
        expand("cir/val")
    with pytest.raises(InputError, match="did you mean 'circo/test'"):
        load("circo/test1", ".")
    with pytest.raises(InputError, match="fashioniq/dress/val, fashioniq/shirt/val"):
        load("fashioniq/val", ".")
    with pytest.raises(InputError, match="has no protocol 'fashioniq/val-union'"):
        load("cirr/val", ".", protocol="fashioniq/val-union")


@pytest.mark.parametrize("name", list(BENCHMARKS))
def test_what_every_benchmark_declares(name):
    entry, found = BENCHMARKS[name], origin(name)
    assert entry.files and all(places for places in entry.files) and entry.counts.get("gallery", 1) > 0
    assert entry.protocols and set(entry.protocols) <= set(PROTOCOLS)
    assert found.folders and all((found.title, found.annotations, found.images))
    assert (REPOSITORY / found.page).is_file()


def test_wrong_counts_stop_and_name_both(tmp_path):
    with pytest.raises(InputError, match=r"queries: expected 4,181, found 2; gallery: expected 2,297, found 8"):
        load("cirr/val", cirr(tmp_path))


def test_a_world_is_called_so_and_has_its_own_counts(tmp_path):
    cirr(tmp_path / "CIRR")
    as_world(tmp_path, "cirr/val", {"queries": 2, "gallery": 8})
    for root in (tmp_path, tmp_path / "CIRR"):
        for name in ("cirr/val", "world/cirr/val"):
            bench = load(name, root)
            assert bench.name == "world/cirr/val" and bench.stamps == () and bench.protocol == "cirr"
            assert PROTOCOLS[bench.protocol].label(bench).startswith("world/cirr")
    as_world(tmp_path, "cirr/val", {"queries": 3, "gallery": 8})
    with pytest.raises(InputError, match=r"world/cirr/val .*queries: expected 3, found 2"):
        load("cirr/val", tmp_path)
    as_world(tmp_path, "circo/val", {"queries": 3, "gallery": 8})
    with pytest.raises(InputError, match=r"world.json, counts: key 'cirr' is missing"):
        load("cirr/val", tmp_path)


def test_a_world_with_fashioniq_counts_nested_by_category(tmp_path):
    fashioniq(tmp_path / "FashionIQ")
    as_world(tmp_path, "fashioniq/dress/val", {"queries": 2, "gallery": 4})
    assert load("world/fashioniq/dress/val", tmp_path).name == "world/fashioniq/dress/val"
    assert len(load("fashioniq/dress/val", tmp_path, protocol="fashioniq/val-union").gallery) == 3


def test_a_world_name_insists_on_a_world(tmp_path):
    with pytest.raises(InputError, match=r"there is no world\.json"):
        load("world/cirr/val", cirr(tmp_path), allow_missing=True)


def test_what_incomplete_files_cannot_answer_is_left_out_and_stamped(tmp_path):
    root = circo(tmp_path, source="folder")
    (root / "COCO2017_unlabeled/unlabeled2017/000000000005.jpg").unlink()
    bench = load("circo/val", root, allow_missing=True)
    assert bench.queries == () and bench.stamps[-1] == "1 queries left out (images not in the gallery)"


def flat(name, counts):
    if all(isinstance(count, int) for count in counts.values()):
        return {name: counts}
    return {key: c for part, inner in counts.items() for key, c in flat(f"{name}/{part}", inner).items()}


def test_the_counts_people_read_are_the_ones_checked():
    shown = {}
    for file in sorted((REPOSITORY / "datasets").glob("*/counts.json")):
        shown |= flat(file.parent.name, json.loads(file.read_text()))
    assert shown == {name: dict(entry.counts) for name, entry in BENCHMARKS.items() if entry.counts}


def lies_here(name):
    """Whether every annotation file of a benchmark is among the real ones; a few could not be collected."""
    bases = [SHARED, *(SHARED / folder for folder in origin(name).folders)]
    return all(any((base / place).is_file() for base in bases for place in places) for places in BENCHMARKS[name].files)


@REAL
@pytest.mark.parametrize("name", list(BENCHMARKS))
def test_the_real_annotations(name):
    if not lies_here(name):
        pytest.skip("needs all of its annotation files in ../shared/data")
    bench = load(name, SHARED)
    expected = BENCHMARKS[name].counts
    assert (len(bench.queries), len(bench.gallery)) == (expected["queries"], expected["gallery"])
    assert sum(len(query.targets) for query in bench.queries) == expected["targets"]
    assert bench.stamps == () and bench.labelled == (expected["targets"] > 0) and bench.name == name
    if name.startswith("fashioniq"):
        assert all(len(query.texts) == 2 for query in bench.queries)
    if name.startswith("fashioniq") and name.endswith("/val"):
        assert len(load(name, SHARED, protocol="fashioniq/val-union").gallery) == expected["union"]
    if name.startswith("cirr"):
        assert all(len(q.candidates) == 6 and q.reference in q.candidates for q in bench.queries)
    if name == "circo/val":
        assert max(len(query.targets) for query in bench.queries) == 14
        assert sum("negation" in query.tags for query in bench.queries) == 21
        assert all(query.reference not in query.targets for query in bench.queries)


@REAL
@pytest.mark.usefixtures("unchecked")
def test_the_real_blemishes_survive():
    found = {
        split: [
            sum(text.strip() == "" for q in load(f"fashioniq/{category}/{split}", SHARED).queries for text in q.texts)
            for category in ("dress", "shirt", "toptee")
        ]
        for split in ("val", "train")
    }
    assert found == {"val": [0, 1, 2], "train": [0, 0, 12]}


@REAL
@pytest.mark.usefixtures("unchecked")
def test_a_replica_of_cirr_train_with_the_real_split_file(tmp_path):
    """The caption file of train could not be collected: pairs of the real names, as many as the paper counts."""
    splits = tmp_path / "CIRR/cirr/image_splits"
    listed = json.loads((SHARED / "CIRR/cirr/image_splits/split.rc2.train.json").read_text())
    put(splits / "split.rc2.train.json", listed)
    names, rows = list(listed), []
    for index in range(28225):
        start = index % (len(names) // 6) * 6
        members = names[start : start + 6]
        pair = members[index % 6], members[(index + 1) % 6]
        rows.append({"pairid": index, "reference": pair[0], "target_hard": pair[1], "target_soft": {pair[1]: 1.0},
                     "caption": "another one", "img_set": {"id": start, "members": members}})  # fmt: skip
    captions = put(splits.parent / "captions/cap.rc2.train.json", rows)
    bench = load("cirr/train", tmp_path)
    assert bench.name == "cirr/train" and bench.stamps == () and bench.protocol == "cirr" and bench.labelled
    assert bench.gallery == tuple(names) and bench.queries[7].targets == (rows[7]["target_hard"],)
    assert bench.paths["train-11041-2-img0"] == "train/34/train-11041-2-img0.png"
    put(captions, rows[:-1])
    with pytest.raises(InputError, match=r"queries: expected 28,225, found 28,224"):
        load("cirr/train", tmp_path)


# --- what is refused -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not JSON"),
        ({"a": 1}, "expected a list, got {'a': 1}"),
        (["x"], "row 0: expected an object"),
        ([{"target": "B2", "captions": []}], "row 0: key 'candidate' is missing; the row has captions, target"),
        ([{"target": "B2", "candidate": 5, "captions": []}], "row 0, candidate: expected text, got 5"),
        ([{"target": "B2", "candidate": "B1", "captions": "red"}], "row 0, captions: expected a list"),
        ([{"target": "B2", "candidate": "B1", "captions": [None]}], r"row 0, captions\[0\]: expected text"),
        ([{"candidate": "B1", "captions": []}], "row 0: key 'target' is missing"),
        ([{"target": "B0", "candidate": "B1", "captions": []}] * 2017, "names .*B0.* absent from the gallery"),
    ],
)
def test_malformed_annotations_are_one_line_with_file_and_row(tmp_path, content, message, monkeypatch):
    root = fashioniq(tmp_path)
    monkeypatch.setitem(fashioniq_file.COUNTS, "fashioniq/dress/val", {})
    file = put(root / "captions/cap.dress.val.json", content)
    with pytest.raises(InputError, match=message) as raised:
        load("fashioniq/dress/val", root)
    assert "\n" not in str(raised.value) and (file.name in str(raised.value) or "absent" in message)


def test_integers_are_not_booleans_and_targets_belong_to_the_group(tmp_path):
    root = cirr(tmp_path)
    file = root / "cirr/captions/cap.rc2.val.json"
    row = json.loads(file.read_text())[0]
    for change, message in (
        ({"pairid": True}, "pairid: expected an integer, got True"),
        ({"target_hard": "dev-7-0-img0"}, "target_hard 'dev-7-0-img0' is not in img_set"),
        ({"img_set": {}}, "img_set: key 'members' is missing"),
    ):
        put(file, [row, {**row, **change}])
        with pytest.raises(InputError, match=f"row 1.*{message}"):
            load("cirr/val", root, allow_missing=True)


@pytest.mark.parametrize("place", ["/etc/x.png", "../x.png", "dev/../../x.png", "C:\\x.png", "..\\x.png", ""])
def test_paths_do_not_leave_the_root(tmp_path, place):
    cirr(tmp_path / "a")
    file = tmp_path / "a/cirr/image_splits/split.rc2.val.json"
    listed = json.loads(file.read_text())
    put(file, {**listed, "dev-0-0-img0": place})
    with pytest.raises(InputError, match="leaves the dataset folder"):
        load("cirr/val", tmp_path / "a", allow_missing=True)


def test_image_ids_are_no_way_out_either(tmp_path):
    root = fashioniq(tmp_path / "f")
    put(root / "image_splits/split.dress.val.json", ["B1", "B2", "B3", "../../B4"])
    with pytest.raises(InputError, match="leaves the dataset folder"):
        load("fashioniq/dress/val", root, allow_missing=True)
    root = circo(tmp_path / "c")
    info = root / "COCO2017_unlabeled/annotations/image_info_unlabeled2017.json"
    put(info, {"images": [{"id": 77, "file_name": "../../../x.jpg"}]})
    with pytest.raises(InputError, match="leaves the dataset folder"):
        load("circo/val", root, allow_missing=True)


def test_missing_pieces_are_named(tmp_path):
    with pytest.raises(InputError, match="no such folder; expected the folder of CIRR"):
        load("cirr/val", tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"found no cirr/captions/cap.rc2.val.json or captions/cap.rc2.val.json"):
        load("cirr/val", tmp_path)
    with pytest.raises(InputError, match=r"neither .*image_info_unlabeled2017\.json nor unlabeled2017_image_ids\.txt"):
        load("circo/val", circo(tmp_path, source="none"))
    (fashioniq(tmp_path) / "image_splits/split.dress.val.json").unlink()
    with pytest.raises(InputError, match=r"split.dress.val\.json: no such file"):
        load("fashioniq/dress/val", tmp_path)
    put(tmp_path / "COCO2017_unlabeled/annotations/unlabeled2017_image_ids.txt", "77\n123\n5\n77\n")
    with pytest.raises(InputError, match="1 image ids occur more than once"):
        load("circo/val", tmp_path)
    put(tmp_path / "COCO2017_unlabeled/annotations/unlabeled2017_image_ids.txt", "77\n5\nfive\n")
    with pytest.raises(InputError, match=r"entry 3: expected an image id, got 'five'"):
        load("circo/val", tmp_path)


# --- subsets ---------------------------------------------------------------------------------------------------


def test_subset_keeps_what_is_named_adds_filler_and_says_so(tmp_path):
    bench = load("fashioniq/dress/val", fashioniq(tmp_path), allow_missing=True)
    small = subset(bench, 1, filler=1)
    assert [q.id for q in small.queries] == ["dress/0000"] and len(small.gallery) == 3
    assert {"B1", "B2"} < set(small.gallery) and set(small.paths) == set(small.gallery)
    assert [name for name in bench.gallery if name in small.gallery] == list(small.gallery)  # order stays
    assert small.stamps[-1] == "subset of 1 queries, gallery of 3"
    assert subset(bench, 1, seed=3, filler=1) == subset(bench, 1, seed=3, filler=1)
    assert subset(bench, 1, filler=0).gallery == ("B1", "B2")
    assert subset(bench, 2) is bench
    with pytest.raises(InputError, match="at least one query"):
        subset(bench, 0)
