import json
from pathlib import Path

import numpy as np
import pytest

from cir.data import circo, cirr, load
from cir.errors import InputError
from cir.protocols import PROTOCOLS
from cir.score import aligned, rank_and_score, read_vectors, score, summary, write_json, write_values

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
IMAGES = (9, 77, 123, 5, 1004, 31)
QUERIES = ((123, [77, 5]), (9, [1004]), (31, [123, 9, 5]))


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A tiny CIRCO in its official layout, with counts of its own."""
    monkeypatch.setitem(circo.COUNTS, "circo/val", {"queries": 3, "gallery": 6, "targets": 6})
    monkeypatch.setitem(circo.COUNTS, "circo/test", {"queries": 3, "gallery": 6, "targets": 0})
    rows = [
        {
            "reference_img_id": reference, "target_img_id": targets[0], "gt_img_ids": targets, "id": i,
            "relative_caption": "is red", "shared_concept": "a cat", "semantic_aspects": ["negation", "addition"][: i],
        }
        for i, (reference, targets) in enumerate(QUERIES)
    ]  # fmt: skip
    hidden = [{k: row[k] for k in ("reference_img_id", "id", "relative_caption", "shared_concept")} for row in rows]
    for path, content in (
        ("annotations/val.json", json.dumps(rows)),
        ("annotations/test.json", json.dumps(hidden)),
        ("COCO2017_unlabeled/annotations/unlabeled2017_image_ids.txt", "\n".join(map(str, IMAGES))),
    ):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(content)
    return tmp_path


def vectors(n, d=8, seed=0):
    return np.random.default_rng(seed).standard_normal((n, d)) * 5  # any length: scoring normalises


def save(path, ids, values):
    np.savez(path, ids=np.array(ids), vectors=values)
    return path


@pytest.fixture
def files(tmp_path):
    queries = save(tmp_path / "q.npz", ["2", "0", "1"], vectors(3).astype(np.float32))
    return queries, save(tmp_path / "g.npz", list(IMAGES), vectors(6, seed=1).astype(np.float16))


def by_hand(queries, gallery):
    """AP@5 and R@5 from a plain sort, in the order of the queries 0, 1, 2."""
    q, g = (v / np.linalg.norm(v.astype(np.float64), axis=1, keepdims=True) for v in (queries, gallery))
    precision, recall = [], []
    for row, (_, targets) in zip(q[[1, 2, 0]], QUERIES, strict=True):
        ranking = [IMAGES[i] for i in np.argsort(-(g @ row), kind="stable")]
        hits = [place for place, image in enumerate(ranking[:5], 1) if image in targets]
        precision.append(sum((i + 1) / place for i, place in enumerate(hits)) / min(len(targets), 5))
        recall.append(float(targets[0] in ranking[:5]))
    return np.array(precision), np.array(recall)


def test_scores_equal_a_sort_by_hand_in_percent(root, files, tmp_path):
    result = score("circo/val", root, *files, per_query=tmp_path / "out" / "values.npz")
    precision, recall = by_hand(vectors(3), vectors(6, seed=1).astype(np.float16))
    assert result["scores"]["mAP@5"]["mean"] == pytest.approx(100 * precision.mean())
    assert result["scores"]["R@5"]["mean"] == pytest.approx(100 * recall.mean())
    assert list(result["scores"]) == list(PROTOCOLS["circo"].metrics) and result["unit"] == "percent"
    assert result["benchmark"] == "circo/val" and result["protocol"]["name"] == "circo"
    assert (result["queries"], result["gallery"], result["tied_queries"], result["stamps"]) == (3, 6, 0, [])
    assert result["notes"] == ["gallery: unlabeled2017_image_ids.txt"]
    assert result["aspects"]["tags"]["negation"]["queries"] == 2 and result["aspects"]["metric"] == "mAP@10"
    for cell in result["scores"].values():
        assert cell["low"] <= cell["mean"] <= cell["high"]
    with np.load(tmp_path / "out" / "values.npz", allow_pickle=False) as kept:
        assert kept["ids"].tolist() == ["0", "1", "2"] and kept["mAP@5"] == pytest.approx(precision)
    write_json(tmp_path / "r.json", result)
    assert json.loads((tmp_path / "r.json").read_text()) == result
    assert [f.name for f in tmp_path.glob(".*")] == []  # no temporary file stays


def test_the_order_and_length_of_given_vectors_do_not_matter(root, files, tmp_path):
    mixed = [3, 1, 5, 0, 2, 4]
    g = save(tmp_path / "g2.npz", [IMAGES[i] for i in mixed], vectors(6, seed=1).astype(np.float16)[mixed])
    q = save(tmp_path / "q2.npz", [1, 2, 0], (vectors(3).astype(np.float32) * 7)[[2, 0, 1]])
    assert score("circo/val", root, q, g)["scores"] == score("circo/val", root, *files)["scores"]


@pytest.mark.parametrize("write", [str, "{:012d}".format, int])
def test_image_ids_in_any_of_their_forms(root, files, tmp_path, write):
    g = save(tmp_path / "g2.npz", [write(i) for i in IMAGES], vectors(6, seed=1).astype(np.float16))
    assert score("circo/val", root, files[0], g) == score("circo/val", root, *files)


@pytest.mark.parametrize("ids", [("dress/2", "dress/0"), ("dress/0002", "dress/0000"), ("dress/00002", "dress/00")])
def test_zeros_before_the_number_of_an_id_do_not_matter(ids):
    given = np.eye(2, dtype=np.float32)[:, None]
    found = aligned(ids, given, ["dress/0000", "dress/0002"])
    assert found.ids == ("dress/0000", "dress/0002") and np.array_equal(found.vectors, given[::-1])


@pytest.mark.parametrize(
    ("ids", "wanted", "message"),
    [
        (["dress/01"], ["dress/1", "dress/001"], r"id 'dress/01' may be any of \['dress/1', 'dress/001'\]"),
        (["01", "2"], ["1", "001"], "id '01' may be any of"),
        (["dress/1", "dress/0001"], ["dress/0001", "dress/0002"], r"occur more than once, first \['dress/0001'\]"),
        (["shirt/1"], ["dress/0001"], r"missing, first \['dress/0001'\]"),
        (["dev-1-img0"], ["dev-01-img0"], "missing"),  # no number behind a slash
        (["1"], ["dress/0001"], "missing"),  # the prefix is part of the id
        (["7:01"], ["7:1"], "missing"),
        (["dress/\u0661"], ["dress/1"], "missing"),  # a digit, but of another script
    ],
)
def test_ids_that_fit_none_or_several_are_refused(ids, wanted, message):
    with pytest.raises(InputError, match=message):
        aligned(ids, np.ones((len(ids), 1, 3), dtype=np.float32), wanted)


def test_an_exact_id_wins_over_one_with_other_zeros():
    given = np.eye(3, dtype=np.float32)[:, None]
    found = aligned(["a/01", "a/1", "b"], given, ["a/1", "a/01", "b"])
    assert np.array_equal(found.vectors, given[[1, 0, 2]])


def test_several_vectors_per_image_take_the_maximum(root, files, tmp_path):
    gallery = vectors(6, seed=1).astype(np.float16)
    several = np.stack([gallery, -gallery[:, ::-1]], axis=1)
    ids, values = read_vectors(save(tmp_path / "g2.npz", list(IMAGES), several))
    assert values.shape == (6, 2, 8)
    bench = load("circo/val", root)
    queries = aligned(*read_vectors(files[0]), ["0", "1", "2"])
    found = rank_and_score(bench, PROTOCOLS["circo"], queries, aligned(ids, values, bench.gallery))
    unit = values / np.linalg.norm(values, axis=-1, keepdims=True)
    scores = np.einsum("qd,gtd->qgt", queries.vectors[:, 0], unit).max(axis=2)
    ranks = [1 + int((row > row[IMAGES.index(t[0])]).sum()) for row, (_, t) in zip(scores, QUERIES, strict=True)]
    assert found.scores.values["R@5"].tolist() == [float(rank <= 5) for rank in ranks]


def test_collapsed_vectors_are_reported_as_ties(root, files, tmp_path):
    g = save(tmp_path / "g2.npz", list(IMAGES), np.ones((6, 8)))
    result = score("circo/val", root, files[0], g)
    by_gallery_order = ((1 / 2 + 2 / 4) / 2 + 1 / 5 + (1 + 2 / 3 + 3 / 4) / 3) / 3
    assert result["tied_queries"] == 3 and result["scores"]["mAP@5"]["mean"] == pytest.approx(100 * by_gallery_order)


def test_cirr_deletes_the_reference_and_ranks_the_six(tmp_path, monkeypatch):
    monkeypatch.setitem(cirr.COUNTS, "cirr/val", {})
    names = [f"dev-{i}" for i in range(9)]
    rows = [
        {"pairid": 40 + i, "reference": names[i], "target_hard": names[i + 1], "caption": "c",
         "img_set": {"members": names[i : i + 6]}}
        for i in range(3)
    ]  # fmt: skip
    for path, content in (("captions", rows), ("image_splits", {name: f"dev/{name}.png" for name in names})):
        (tmp_path / path).mkdir()
        file = "cap.rc2.val.json" if path == "captions" else "split.rc2.val.json"
        (tmp_path / path / file).write_text(json.dumps(content))
    gallery = vectors(9, seed=5)
    g = save(tmp_path / "g.npz", names, gallery)
    q = save(tmp_path / "q.npz", [40, 41, 42], gallery[:3])  # the query is the reference's own vector
    result = score("cirr/val", tmp_path, q, g)
    unit = gallery / np.linalg.norm(gallery, axis=1, keepdims=True)
    first = [int(np.argsort(-(np.delete(unit, i, 0) @ unit[i]))[0]) == i for i in range(3)]  # i + 1 moves to place i
    group = [int(np.argmax(unit[i + 1 : i + 6] @ unit[i])) == 0 for i in range(3)]
    assert result["scores"]["R@1"]["mean"] == pytest.approx(100 * np.mean(first))
    assert result["scores"]["Rs@1"]["mean"] == pytest.approx(100 * np.mean(group))
    assert result["scores"]["R@10"]["mean"] == 100


def test_groups_and_hidden_labels(root, files):
    with pytest.raises(InputError, match="fashioniq/dress/val, fashioniq/shirt/val, fashioniq/toptee/val one by one"):
        score("fashioniq/val", root, *files)
    with pytest.raises(InputError, match="labels of this split are hidden"):
        score("circo/test", root, *files)


@pytest.mark.parametrize(
    ("ids", "values", "message"),
    [
        ([0, 1], vectors(2), r"1 ids are missing, first \['2'\]"),
        ([0, 1, 2, 3], vectors(4), r"1 ids are unknown, first \['3'\]"),
        ([0, 1, 1, 2], vectors(4), r"1 ids occur more than once, first \['1'\]"),
        (["0", "01", "1", "2"], vectors(4), "occur more than once"),
        (
            ["a", "b", "c"],
            vectors(3),
            r"3 ids are missing, first .*the file has \['a', 'b'\], the benchmark \['0', '1'\]",
        ),
        ([0, 1, 2], np.where(np.arange(24).reshape(3, 8) == 9, np.nan, 1.0), r"not finite .* first \['1'\]"),
        ([0, 1, 2], np.where(np.arange(24).reshape(3, 8) == 9, np.inf, 1.0), "not finite"),
        ([0, 1, 2], np.where(np.arange(24).reshape(3, 8) == 9, 1e300, 1.0), "not finite"),
        ([0, 1, 2], np.arange(24.0).reshape(3, 8) * [[1], [1], [0]], r"zero, first \['2'\]"),
        ([0, 1, 2], vectors(3, d=7), "7 wide, the gallery 8"),
        ([0, 1, 2], vectors(2), r"3 ids for vectors \(2, 8\)"),
        ([0, 1, 2], vectors(3).astype(int), "vectors are int64"),
        ([0, 1, 2], vectors(3)[0], "expected floats"),
        ([0.0, 1.0, 2.0], vectors(3), "ids are float64"),
        ([b"0", b"1", b"2"], vectors(3), r"ids are \|S1"),
        ([[0], [1], [2]], vectors(3), "expected one axis"),
    ],
)
def test_wrong_vectors_are_one_clear_line(root, files, tmp_path, ids, values, message):
    with pytest.raises(InputError, match=message) as raised:
        score("circo/val", root, save(tmp_path / "bad.npz", ids, values), files[1])
    assert "\n" not in str(raised.value)


def test_files_that_are_no_plain_npz(root, files, tmp_path):
    np.save(tmp_path / "bare.npy", vectors(3))
    np.savez(tmp_path / "names.npz", names=[1], vectors=vectors(1))
    np.savez(tmp_path / "objects.npz", ids=np.array(["a", None]), vectors=vectors(2))
    (tmp_path / "text.npz").write_text("hello")
    (tmp_path / "cut.npz").write_bytes(files[0].read_bytes()[:300])
    for name, message in (
        ("bare.npy", "one bare array"),
        ("names.npz", r"lacks \['ids'\]"),
        ("objects.npz", "not objects"),
        ("text.npz", "not a readable .npz"),
        ("cut.npz", "not a readable .npz"),
        ("nowhere.npz", "no such file"),
    ):
        with pytest.raises(InputError, match=message):
            read_vectors(tmp_path / name)


def test_writing_is_all_or_nothing(tmp_path):
    write_json(tmp_path / "r.json", {"a": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "r.json", {"a": object()})
    assert json.loads((tmp_path / "r.json").read_text()) == {"a": 1}
    assert [f.name for f in tmp_path.iterdir()] == ["r.json"]


def test_the_real_cirr_scores_from_vectors_at_full_size(tmp_path):
    if not SHARED.is_dir():
        pytest.skip("needs the benchmarks' annotation files in ../shared/data")
    bench = load("cirr/val", SHARED)
    images = vectors(len(bench.gallery), d=16)
    at = {name: row for row, name in enumerate(bench.gallery)}
    noisy = np.stack([images[at[q.targets[0]]] for q in bench.queries]) + vectors(4181, d=16, seed=1)
    queries = aligned([q.id for q in bench.queries], noisy[:, None], [q.id for q in bench.queries])
    outcome = rank_and_score(bench, PROTOCOLS["cirr"], queries, aligned(bench.gallery, images[:, None], bench.gallery))
    unit = images / np.linalg.norm(images, axis=1, keepdims=True)
    scores = queries.vectors[:, 0].astype(np.float64) @ unit.T
    scores[np.arange(4181), [at[q.reference] for q in bench.queries]] = -9
    own = scores[np.arange(4181), [at[q.targets[0]] for q in bench.queries]]
    expected = ((scores > own[:, None]).sum(axis=1) < 10).mean()
    assert outcome.scores.values["R@10"].mean() == pytest.approx(expected, abs=1 / 4181)
    assert 0.3 < expected < 0.95 and not outcome.tied
    told = summary(bench, PROTOCOLS["cirr"], outcome, resamples=200)
    assert told["scores"]["Avg"]["low"] < told["scores"]["Avg"]["mean"] < told["scores"]["Avg"]["high"]
    write_values(tmp_path / "v.npz", outcome.scores)


def test_what_is_written_has_the_mode_of_any_new_file(tmp_path):
    (tmp_path / "plain").touch()
    write_json(tmp_path / "made" / "scores.json", {"a": 1})
    assert (tmp_path / "made" / "scores.json").stat().st_mode == (tmp_path / "plain").stat().st_mode
