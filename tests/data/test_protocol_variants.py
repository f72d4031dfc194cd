"""What the loaders read for the variants of CIRR, CIRCO and FashionIQ."""

import json
from pathlib import Path

import pytest

from cir.data import BENCHMARKS, load, reduce
from cir.errors import InputError
from cir.protocols import PROTOCOLS

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
REAL = pytest.mark.skipif(not SHARED.is_dir(), reason="needs the benchmarks' annotation files in ../shared/data")
NAMES = [f"dev-{n}-0-img0" for n in range(8)]


def put(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def cirr(root, soft=None, folder="dev"):
    row = {
        "pairid": 12, "reference": NAMES[1], "target_hard": NAMES[4], "caption": "Same animal",
        "target_soft": {NAMES[4]: 1, NAMES[7]: 0.5, NAMES[2]: -1.0} if soft is None else soft,
        "img_set": {"id": 5, "members": NAMES[:6], "reference_rank": 0, "target_rank": 1},
    }  # fmt: skip
    put(root / "cirr/captions/cap.rc2.val.json", [row])
    put(root / "cirr/image_splits/split.rc2.val.json", {name: f"./{folder}/{name}.png" for name in reversed(NAMES)})
    return root


def test_graded_labels_are_read_only_where_the_protocol_asks(tmp_path):
    root = cirr(tmp_path)
    put(root / f"dev/{NAMES[0]}.png", "")
    for protocol in ("cirr", "cirr/soft", "cirr/folder", "cirr/covr"):
        bench = load("cirr/val", root, protocol=protocol, allow_missing=True)
        graded = ((NAMES[4], 1.0), (NAMES[7], 0.5), (NAMES[2], -1.0)) if protocol in ("cirr/soft", "cirr/covr") else ()
        assert bench.queries[0].soft == graded and bench.protocol == protocol
    hard, soft = (load("cirr/val", root, protocol=name, allow_missing=True) for name in ("cirr", "cirr/soft"))
    assert hard.gallery == soft.gallery and hard.fingerprint != soft.fingerprint


@pytest.mark.parametrize(
    ("soft", "message"),
    [
        ({NAMES[4]: "1.0"}, "target_soft, dev-4-0-img0: expected a number, got '1.0'"),
        ({NAMES[4]: True}, "target_soft, dev-4-0-img0: expected an integer, got True"),
        ({NAMES[4]: 2}, "target_soft, dev-4-0-img0: expected a weight between -1 and 1, got 2"),
        ([NAMES[4]], "row 0, target_soft: expected an object"),
    ],
)
def test_malformed_graded_labels_are_one_line(tmp_path, soft, message):
    root = cirr(tmp_path, soft)
    assert load("cirr/val", root, allow_missing=True).queries  # not read there
    with pytest.raises(InputError, match=message):
        load("cirr/val", root, protocol="cirr/soft", allow_missing=True)


@pytest.mark.parametrize("folder", ["dev", "img_raw/dev", "cirr/img_raw/dev"])
def test_the_folder_gallery_is_the_split_then_the_neighbours_by_name(tmp_path, folder):
    root = cirr(tmp_path)
    for name in (*NAMES, "dev-99-0-img1", "dev-50-0-img0"):
        put(root / folder / f"{name}.png", "")
    for other in ("notes.txt", ".hidden.png", "._dev-1-0-img0.png", "deeper/dev-77-0-img0.png", f"{NAMES[0]}.jpg"):
        put(root / folder / other, "")
    put(root / folder / "dev-60-0-img0.JPG", "")
    bench = load("cirr/val", root, protocol="cirr/folder", allow_missing=True)
    assert bench.gallery == (*reversed(NAMES), "dev-50-0-img0", "dev-60-0-img0", "dev-99-0-img1")
    assert bench.paths["dev-60-0-img0"] == f"{folder}/dev-60-0-img0.JPG"
    assert bench.paths[NAMES[0]] == f"{folder}/{NAMES[0]}.png"  # the split file's own, not its twin
    assert bench.notes == (f"gallery: every image of {folder}/",)
    assert any("gallery: expected 8,102, found 11" in stamp for stamp in bench.stamps)
    with pytest.raises(InputError, match="gallery: expected 8,102, found 11"):
        load("cirr/val", root, protocol="cirr/folder")
    assert len(load("cirr/val", root, allow_missing=True).gallery) == 8


def test_a_folder_without_images_is_no_gallery(tmp_path):
    with pytest.raises(
        InputError, match=r"cirr/covr: the gallery is the image folder itself.* is in dev/ of .*put the"
    ):
        load("cirr/val", cirr(tmp_path), protocol="cirr/covr", allow_missing=True)


@pytest.mark.parametrize(
    ("name", "protocol", "reason"),
    [
        ("cirr/test1", "cirr/folder", "the server of test1 scores hard labels"),
        ("cirr/test1", "cirr/soft", "the server of test1 scores hard labels"),
        ("fashioniq/dress/test", "fashioniq/reference-removed", "never published"),
        ("fashioniq/dress/train", "fashioniq/val-union", "how well a method fits"),
        ("cirr/train", "cirr/soft", "how well a method fits"),
        ("circo/val", "cirr/soft", "known: circo, circo/reference-removed"),
    ],
)
def test_what_a_split_refuses_and_why(tmp_path, name, protocol, reason):
    with pytest.raises(InputError, match=f"{name}: has no protocol '{protocol}'; .*{reason}"):
        load(name, tmp_path, protocol=protocol)


def test_what_is_refused_exists_and_is_not_offered():
    for name, entry in BENCHMARKS.items():
        assert set(entry.refused) <= set(PROTOCOLS) - set(entry.protocols), name
        assert all(len(reason) > 20 for reason in entry.refused.values())


def test_less_than_the_whole_keeps_what_graded_labels_name(tmp_path):
    root = cirr(tmp_path)
    rows = json.loads((root / "cirr/captions/cap.rc2.val.json").read_text())
    put(root / "cirr/captions/cap.rc2.val.json", [rows[0], {**rows[0], "pairid": 13}])
    bench = load("cirr/val", root, protocol="cirr/soft", allow_missing=True)
    assert NAMES[7] in reduce.subset(bench, 1, filler=0).gallery  # outside the group of six
    smaller = reduce.without(bench, [NAMES[7]], "missing")
    assert len(smaller.queries) == 2 and dict(smaller.queries[0].soft) == {NAMES[4]: 1.0, NAMES[2]: -1.0}


@REAL
@pytest.mark.usefixtures("unchecked")
def test_the_real_graded_labels():
    queries = load("cirr/val", SHARED, protocol="cirr/soft").queries
    weights = [weight for query in queries for _, weight in query.soft]
    assert {w: weights.count(w) for w in set(weights)} == {1.0: 4216, 0.5: 62, 0.2: 6, -1.0: 807}
    assert sum(len(query.soft) == 1 for query in queries) == 3536
    assert sum(any(name not in query.candidates for name, _ in query.soft) for query in queries) == 261
    assert sum(query.reference in dict(query.soft) for query in queries) == 37


@REAL
@pytest.mark.usefixtures("unchecked")
def test_variants_share_queries_and_gallery_where_they_say_so():
    for name in ("circo/val", "fashioniq/shirt/val"):
        first, *_, last = (load(name, SHARED, protocol=protocol) for protocol in BENCHMARKS[name].protocols)
        assert last.protocol.endswith("/reference-removed") and last.protocol != first.protocol
        assert (first.queries, first.gallery, first.fingerprint) == (last.queries, last.gallery, last.fingerprint)
