"""Custom benchmarks: what `cir data new` makes, what it refuses and on which line, and the whole path to a number."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from cir import config as configs
from cir import data, runs
from cir.cli import app
from cir.data import custom, custom_new
from cir.data.custom_new import new
from cir.errors import InputError
from cir.protocols import PROTOCOLS
from cir.schema import Embeddings
from cir.score import score
from cir.search import search

NAMES = ["a.jpg", "b.jpg", "c.png", "d.jpg", "e.jpg", "sub/a.jpg", "sub/deep/f.webp"]
GOOD = [
    {"reference": "a.jpg", "text": "is red", "targets": ["b"]},
    {"reference": "c", "text": ["is blue", "has dots"], "targets": ["./sub/a.jpg", "d.jpg"], "tags": ["colour"]},
    {"reference": "sub/deep/f", "text": "is small", "targets": ["e.jpg"], "id": "mine"},
]
CANDIDATES = [
    {"reference": "a.jpg", "text": "is red", "targets": ["b"], "candidates": ["c", "b", "d"]},
    {"reference": "c", "text": "is blue", "targets": ["d", "a"], "candidates": ["e", "a", "d", "c"]},
]


def pictures(folder, names=NAMES):
    for index, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(index).integers(0, 255, (5, 6, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((36, 30)).save(path)
    return folder


def lines(path, rows):
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return path


@pytest.fixture
def make(tmp_path):
    """Make a benchmark `custom/own` of rows, with the pictures beside the datasets."""
    photos = pictures(tmp_path / "photos")

    def made(rows, name="own", **options):
        return new(name, lines(tmp_path / "queries.jsonl", rows), photos, root=tmp_path / "datasets", **options)

    return made


# --- what is made ----------------------------------------------------------------------------------------------


def test_a_folder_style_benchmark(make, tmp_path):
    bench = make(GOOD)
    assert bench.name == "custom/own" and bench.protocol == "custom" and bench.labelled and not bench.open_references
    assert bench.gallery == tuple(sorted(NAMES)) and bench.paths == {name: name for name in NAMES}
    assert [query.id for query in bench.queries] == ["own/0000", "own/0001", "mine"]
    assert bench.queries[1].targets == ("sub/a.jpg", "d.jpg") and bench.queries[1].texts == ("is blue", "has dots")
    assert bench.queries[1].tags == ("colour",) and bench.queries[2].reference == "sub/deep/f.webp"
    folder = tmp_path / "datasets/custom/own"
    assert sorted(path.name for path in folder.iterdir()) == ["benchmark.json", "queries.jsonl"]
    assert (folder / "queries.jsonl").read_bytes() == (tmp_path / "queries.jsonl").read_bytes()
    told = json.loads((folder / "benchmark.json").read_text())
    assert told["counts"] == {"queries": 3, "gallery": 7, "targets": 4} and told["format"] == 1
    assert sorted(path.name for path in folder.parent.iterdir()) == ["own"]  # nothing else is left there


def test_it_is_a_benchmark_like_any_other(make, tmp_path):
    made = make(GOOD)
    for root in (tmp_path / "datasets", tmp_path / "datasets/custom", tmp_path / "datasets/custom/own"):
        loaded = data.load("custom/own", root)
        assert loaded == made and loaded.fingerprint == made.fingerprint
    assert data.expand("custom/own") == ["custom/own"] and data.dataset("custom/own") == "custom"
    assert data.origin("custom/own") is custom.SOURCE
    assert data.find("custom/own").protocols == ("custom", "custom/reference-removed", "custom/candidates")
    for name in ("custom", "custom/", "custom/a/b", "custom/.hidden"):
        with pytest.raises(InputError, match="unknown benchmark"):
            data.find(name)
    with pytest.raises(InputError, match=r"there is no world\.json"):
        data.load("world/custom/own", tmp_path / "datasets")


def test_relative_pictures_move_with_the_benchmark_and_absolute_ones_stay(make, tmp_path, monkeypatch):
    absolute = make(GOOD)
    monkeypatch.chdir(tmp_path)
    new("near", tmp_path / "queries.jsonl", tmp_path.__class__("photos"), root=tmp_path.__class__("datasets"))
    told = json.loads((tmp_path / "datasets/custom/near/benchmark.json").read_text())
    assert told["images"] == os.path.join("..", "..", "..", "photos")
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    (tmp_path / "datasets").rename(moved / "datasets")
    assert data.load("custom/own", moved / "datasets").root == absolute.root == tmp_path / "photos"
    with pytest.raises(InputError, match="photos: cannot be listed"):
        data.load("custom/near", moved / "datasets")
    (tmp_path / "photos").rename(moved / "photos")
    assert data.load("custom/near", moved / "datasets").gallery == absolute.gallery


def test_a_gallery_list_keeps_its_order_and_leaves_references_out(make, tmp_path):
    listed = tmp_path / "list.txt"
    listed.write_text("e.jpg\n\nb\nsub/a\r\nd.jpg\n")
    bench = make(GOOD, gallery=listed)
    assert bench.gallery == ("e.jpg", "b.jpg", "sub/a.jpg", "d.jpg") and bench.open_references
    assert set(bench.paths) == {*bench.gallery, "a.jpg", "c.png", "sub/deep/f.webp"}
    assert data.load("custom/own", tmp_path / "datasets") == bench and bench.notes[0] == "gallery: gallery.txt"


@pytest.mark.parametrize(
    ("rows", "options", "protocol"),
    [
        (GOOD, {}, "custom"),
        (GOOD, {"remove_reference": True}, "custom/reference-removed"),
        (CANDIDATES, {}, "custom/candidates"),
        ([*CANDIDATES, GOOD[2]], {}, "custom"),
        (CANDIDATES, {"remove_reference": True}, "custom/reference-removed"),
    ],
)
def test_the_default_protocol_is_the_one_it_was_made_for(make, tmp_path, rows, options, protocol):
    assert make(rows, **options).protocol == protocol
    assert data.load("custom/own", tmp_path / "datasets").protocol == protocol
    assert data.load("custom/own", tmp_path / "datasets", protocol="custom").protocol == "custom"


def test_labels_may_be_hidden_for_all_queries(make):
    bench = make([{**row, "targets": []} for row in GOOD])
    assert not bench.labelled and all(query.targets == () for query in bench.queries)
    bench = make([{"reference": "a", "text": "x"}], name="bare")
    assert not bench.labelled


def test_the_candidates_protocol_needs_them_on_every_line(make, tmp_path):
    make([*CANDIDATES, GOOD[0]])
    with pytest.raises(InputError, match=r"1 of 3 queries have no candidates, first \['own/0002'\]"):
        data.load("custom/own", tmp_path / "datasets", protocol="custom/candidates")


# --- every problem with its line -------------------------------------------------------------------------------


def row(**changes):
    changed = {**GOOD[0], **changes}
    return {key: value for key, value in changed.items() if value is not None}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("{", r"queries\.jsonl, line 2: not JSON \(.*column 2\)"),
        ("[1]", r"line 2: expected one JSON object on each line, got '\[1\]"),
        ('{"text": "a", "text": "b"}', r"line 2: not JSON \(key 'text' occurs twice\)"),
        (row(refrence="a"), r"line 2: unknown key 'refrence'; did you mean 'reference'"),
        (row(reference=None), r"line 2: key 'reference' is missing; the row has targets, text"),
        (row(text=None), "line 2: key 'text' is missing"),
        (row(reference=5), "line 2, reference: expected text, got 5"),
        (row(text=True), "line 2, text: expected text, got True"),
        (row(text=["a", 1]), r"line 2, text\[1\]: expected text, got 1"),
        (row(text="  "), "line 2: text is empty"),
        (row(text=[]), "line 2: text is empty"),
        (row(text=["a", ""]), "line 2: text is empty"),
        (row(targets="b.jpg"), "line 2, targets: expected a list, got 'b.jpg'"),
        (row(tags="red"), "line 2, tags: expected a list"),
        (row(id=7), "line 2, id: expected text, got 7"),
        (row(id=" "), "line 2: id is empty"),
        (row(reference="aa.jpg"), r"line 2, reference: 'aa.jpg' is not in .*photos; did you mean 'a.jpg'"),
        (row(reference="B.JPG"), r"line 2, reference: 'B.JPG' is not in .*; did you mean 'b.jpg'"),
        (row(reference="other/e.jpg"), "did you mean 'e.jpg'"),
        (row(reference="zzzzzzzz"), r"line 2, reference: 'zzzzzzzz' is not in .*photos$"),
        (row(targets=["twin"]), r"line 2, targets: 'twin' may be twin.jpg or twin.png; give it with its ending"),
        (row(targets=["../b.jpg"]), "line 2, targets: the path '../b.jpg' leaves the dataset folder"),
        (row(targets=["/etc/passwd"]), "line 2, targets: the path '/etc/passwd' leaves"),
        (row(targets=["b", "b.jpg"]), "line 2, targets: 'b.jpg' is named twice"),
        (row(targets=["a"]), "line 2: the target 'a.jpg' is the reference"),
        (row(candidates=["c", "d"]), r"line 2: target 'b.jpg' is not among the candidates"),
        (row(candidates=["b", "c", "c.png"]), "line 2, candidates: 'c.png' is named twice"),
        (row(id="own/0000"), "line 2: id 'own/0000' is that of line 1; ids are unique"),
        (row(targets=None), "line 2: no targets, but other lines have some"),
    ],
)
def test_every_problem_names_its_line(make, tmp_path, bad, message):
    pictures(tmp_path / "photos", [*NAMES, "twin.jpg", "twin.png"])
    with pytest.raises(InputError, match=message) as raised:
        make([GOOD[0], bad])
    assert "\n" not in str(raised.value) and "queries.jsonl" in str(raised.value)
    assert not (tmp_path / "datasets").exists()  # nothing half-written


def test_an_earlier_line_may_take_the_id_of_a_later_one(make):
    with pytest.raises(InputError, match="line 2: id 'own/0001' is that of line 1"):
        make([row(id="own/0001"), GOOD[0]])


def test_problems_are_collected_and_ten_are_shown(make):
    rows = [GOOD[0], *[row(reference=f"no{n}") for n in range(12)], row(text="")]
    with pytest.raises(InputError, match="13 lines are wrong") as raised:
        make(rows)
    told = str(raised.value).split("\n")
    assert len(told) == 12 and told[1].startswith("  line 2, reference") and told[-1] == "  and 3 more"


def test_bytes_that_are_no_text_are_named_too(make, tmp_path):
    photos = tmp_path / "photos"
    (tmp_path / "bytes.jsonl").write_bytes(b'\xef\xbb\xbf{"reference": "a", "text": "x"}\n\n{"text": "\xff"}\n')
    with pytest.raises(InputError, match="line 3: not UTF-8"):
        new("own", tmp_path / "bytes.jsonl", photos, root=tmp_path / "datasets")
    (tmp_path / "bytes.jsonl").write_bytes(b'\xef\xbb\xbf{"reference": "a", "text": "x"}\r\n\r\n')  # a BOM is none
    assert len(new("own", tmp_path / "bytes.jsonl", photos, root=tmp_path / "datasets").queries) == 1


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        ("b.jpg\nzz\n", "list.txt, line 2: 'zz' is not in"),
        ("b.jpg\n\nb\n", "list.txt, line 3: 'b' is on line 1 already"),
        ("\n", "list.txt: names no picture"),
        ("e.jpg\nd.jpg\n", "queries.jsonl, line 1, targets: 'b' is not in the gallery"),
    ],
)
def test_problems_of_a_gallery_list(make, tmp_path, listed, message):
    (tmp_path / "list.txt").write_text(listed)
    with pytest.raises(InputError, match=message):
        make(GOOD[:1], gallery=tmp_path / "list.txt")


def test_what_is_not_there_is_named(make, tmp_path):
    queries, root = lines(tmp_path / "q.jsonl", GOOD), tmp_path / "datasets"
    with pytest.raises(InputError, match=r"none\.jsonl: cannot be read \(No such file.*expected queries"):
        new("own", tmp_path / "none.jsonl", tmp_path / "photos", root=root)
    with pytest.raises(InputError, match="nowhere: no such folder"):
        new("own", queries, tmp_path / "nowhere", root=root)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty: holds no picture"):
        new("own", queries, tmp_path / "empty", root=root)
    with pytest.raises(InputError, match="no query; expected lines such as"):
        make([""])
    with pytest.raises(InputError, match=r"custom/none: not under .*none has been made there"):
        data.load("custom/none", tmp_path)
    make(GOOD)
    with pytest.raises(InputError, match=r"custom/owm: not under .*did you mean 'own'"):
        data.load("custom/owm", root)
    for name in ("", "../up", "a/b", ".hidden", "-x", "a b", "x" * 65):
        with pytest.raises(InputError, match="expected letters, digits"):
            new(name, queries, tmp_path / "photos", root=root)
    assert new("custom/two", queries, tmp_path / "photos", root=root).name == "custom/two"


# --- changes behind its back -----------------------------------------------------------------------------------


def test_a_folder_that_grew_or_shrank_is_noticed(make, tmp_path):
    make(GOOD)
    pictures(tmp_path / "photos", ["later.jpg"])
    with pytest.raises(InputError, match=r"gallery: expected 7, found 8.*data new --overwrite"):
        data.load("custom/own", tmp_path / "datasets")
    stamped = data.load("custom/own", tmp_path / "datasets", allow_missing=True)
    assert len(stamped.gallery) == 8 and "expected 7, found 8" in stamped.stamps[0]
    (tmp_path / "photos/later.jpg").unlink()
    (tmp_path / "photos/b.jpg").unlink()
    with pytest.raises(InputError, match=r"queries\.jsonl, line 1, targets: 'b' is not in"):
        data.load("custom/own", tmp_path / "datasets")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "format 2, this version reads 1"),
        ({"name": "other"}, r"is of custom/other; expected custom/own"),
        ({"protocol": "cirr"}, "has no protocol 'cirr'"),
        ({"images": 3}, "images: expected text, got 3"),
        ({"counts": [1]}, "counts: expected an object"),
    ],
)
def test_a_description_that_was_tampered_with(make, tmp_path, change, message):
    make(GOOD)
    path = tmp_path / "datasets/custom/own/benchmark.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(InputError, match=message):
        data.load("custom/own", tmp_path / "datasets")


def test_queries_that_are_gone_are_named(make, tmp_path):
    make(GOOD)
    (tmp_path / "datasets/custom/own/queries.jsonl").unlink()
    with pytest.raises(InputError, match=r"queries\.jsonl: cannot be read"):
        data.load("custom/own", tmp_path / "datasets")


# --- all or nothing --------------------------------------------------------------------------------------------


def test_a_benchmark_is_replaced_only_when_asked(make, tmp_path):
    first = make(GOOD)
    with pytest.raises(InputError, match="is there already; --overwrite replaces it"):
        make(CANDIDATES)
    assert data.load("custom/own", tmp_path / "datasets") == first
    assert make(CANDIDATES, overwrite=True).protocol == "custom/candidates"
    assert sorted(path.name for path in (tmp_path / "datasets/custom").iterdir()) == ["own"]
    (tmp_path / "datasets/custom/own/notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"holds \['notes.txt'\], not made by"):
        make(GOOD, overwrite=True)
    pictures(tmp_path / "datasets/custom/other")
    with pytest.raises(InputError, match="not made by"):
        make(GOOD, name="other", overwrite=True)


@pytest.mark.parametrize("step", [1, 2])
@pytest.mark.parametrize("there", [False, True])
def test_an_interruption_leaves_what_was_there(make, tmp_path, monkeypatch, step, there):
    before = make(GOOD) if there else None
    real, calls = os.replace, []

    def interrupted(source, target):
        calls.append(target)
        if len(calls) == step:
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(custom_new.os, "replace", interrupted)
    if not there and step == 2:
        assert make(CANDIDATES).protocol == "custom/candidates"  # one move is all a new benchmark takes
        return
    with pytest.raises(KeyboardInterrupt):
        make(CANDIDATES, overwrite=True)
    monkeypatch.undo()
    assert [path.name for path in (tmp_path / "datasets/custom").iterdir()] == (["own"] if there else [])
    if there:
        assert data.load("custom/own", tmp_path / "datasets") == before


def test_a_kill_while_writing_leaves_no_benchmark(tmp_path):
    pictures(tmp_path / "photos")
    lines(tmp_path / "q.jsonl", GOOD)
    code = (
        "import sys, time; from pathlib import Path; from cir.data import custom_new\n"
        "write = Path.write_bytes\n"
        "def slow(path, data): write(path, data[:5]); print('writing', flush=True); time.sleep(60)\n"
        "Path.write_bytes = slow\n"
        "custom_new.new('own', Path('q.jsonl'), Path('photos'), root=Path('datasets'))\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"writing\n"
        process.send_signal(signal.SIGKILL)
    with pytest.raises(InputError, match="none has been made there"):
        data.load("custom/own", tmp_path / "datasets")
    assert new("own", tmp_path / "q.jsonl", tmp_path / "photos", root=tmp_path / "datasets").name == "custom/own"


# --- the whole path --------------------------------------------------------------------------------------------


def features(bench, seed=0, width=6):
    generator = np.random.default_rng(seed)
    images = generator.normal(size=(len(bench.gallery), width)).astype(np.float32)
    asked = generator.normal(size=(len(bench.queries), width)).astype(np.float32)
    return asked, images


def slow_scores(bench, asked, images, protocol):
    """Write the definitions out: rank the competitors of every query by cosine, look where the targets are."""
    values = {}
    for query, vector in zip(bench.queries, asked, strict=True):
        cosine = images @ vector / np.linalg.norm(images, axis=1) / np.linalg.norm(vector)
        order = [bench.gallery[i] for i in np.argsort(-cosine)]
        if protocol == "custom/reference-removed":
            order.remove(query.reference)
        if protocol == "custom/candidates":
            order = [name for name in order if name in query.candidates]
        ranks = sorted(order.index(name) + 1 for name in query.targets)
        cuts = (1, 2, 3) if protocol == "custom/candidates" else (1, 5, 10, 50)
        for k in cuts:
            values.setdefault(f"R@{k}", []).append(float(ranks[0] <= k))
        if protocol != "custom/candidates":
            found = [(place, rank) for place, rank in enumerate(ranks, 1) if rank <= 10]
            precision = sum(place / rank for place, rank in found) / min(len(ranks), 10)
            values.setdefault("mAP@10", []).append(precision)
    return {name: 100 * np.mean(column) for name, column in values.items()}


@pytest.mark.parametrize("protocol", ["custom", "custom/reference-removed", "custom/candidates"])
def test_score_agrees_with_the_definitions_written_out(tmp_path, protocol):
    generator = np.random.default_rng(1)
    names = [f"{i:03d}.jpg" for i in range(60)]
    photos = pictures(tmp_path / "photos", names)
    rows = []
    for _ in range(25):
        drawn = [names[i] for i in generator.permutation(60)[:9]]
        targets = drawn[1 : 2 + int(generator.integers(3))]
        rows.append({"reference": drawn[0], "text": "x", "targets": targets, "candidates": drawn[1:]})
    bench = new("many", lines(tmp_path / "q.jsonl", rows), photos, root=tmp_path)
    asked, images = features(bench)
    np.savez(tmp_path / "q.npz", ids=np.array([query.id for query in bench.queries]), vectors=asked)
    np.savez(tmp_path / "g.npz", ids=np.array(bench.gallery), vectors=images)
    found = score("custom/many", tmp_path, tmp_path / "q.npz", tmp_path / "g.npz", protocol=protocol)
    expected = slow_scores(bench, asked, images, protocol)
    assert found["protocol"]["name"] == protocol and found["tied_queries"] == 0
    assert {name: value["mean"] for name, value in found["scores"].items()} == pytest.approx(expected, abs=1e-9)
    assert 0 < expected["R@1"] < 100


def test_candidates_are_searched_alone(make):
    bench = make(CANDIDATES)
    asked, images = features(bench)
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (asked, images)]
    sides = (
        Embeddings(tuple(q.id for q in bench.queries), unit[0][:, None]),
        Embeddings(bench.gallery, unit[1][:, None]),
    )
    found = search(*sides, 4, within=[query.candidates for query in bench.queries])
    assert all(set(found.row(i)) == set(query.candidates) for i, query in enumerate(bench.queries))


@pytest.mark.parametrize(("rows", "protocol"), [(GOOD, "custom"), (CANDIDATES, "custom/candidates")])
def test_evaluate_runs_from_pixels_to_a_record(make, tmp_path, tiny_clip_folder, tiny_backbone, rows, protocol):
    make(rows)
    overrides = [
        "method.name=sum", f"backbone.name={tiny_clip_folder}", "backbone.device=cpu",
        f"backbone.cache={tmp_path / 'cache'}", f"data.root={tmp_path / 'datasets'}",
    ]  # fmt: skip
    config = configs.load(None, overrides)
    method = runs.build(config, tiny_backbone)
    (found,) = runs.evaluate(config, tiny_backbone, method, ["custom/own"], out=tmp_path / "records")
    assert found.record.protocol.name == protocol and found.record.benchmark.name == "custom/own"
    assert found.record.benchmark.queries == len(rows) and found.record.benchmark.stamps == []
    assert found.record.benchmark.gallery == 7 and found.record.means["R@1"].queries == len(rows)
    assert list(found.record.means) == list(PROTOCOLS[protocol].metrics)


def test_the_command_says_what_it_made_and_what_comes_next(make, tmp_path):
    make(GOOD, name="first")
    arguments = ["--queries", str(tmp_path / "queries.jsonl"), "--images", str(tmp_path / "photos")]
    arguments += ["--root", str(tmp_path / "datasets")]
    done = CliRunner().invoke(app, ["data", "new", "own", *arguments])
    assert done.exit_code == 0, done.output
    assert "custom/own  3 queries, gallery of 7 images" in done.stdout and "protocol  custom\n" in done.stdout
    for line in done.stdout.split("next:\n")[1].splitlines():
        assert line.split()[0] == "cir" and "custom/own" in line
    checked = CliRunner().invoke(app, ["data", "check", "custom/own", "--root", str(tmp_path / "datasets")])
    assert checked.exit_code == 0, checked.output
    shown = CliRunner().invoke(app, ["data", "show", "custom/own", "--root", str(tmp_path / "datasets")])
    assert "own/0000: a.jpg (a.jpg), 'is red'" in shown.stdout
    again = CliRunner().invoke(app, ["data", "new", "own", *arguments])
    assert again.exit_code == 2 and again.stderr.startswith("error: ") and "--overwrite" in again.stderr
    assert "custom/NAME" in CliRunner().invoke(app, ["list", "benchmarks"]).stdout
