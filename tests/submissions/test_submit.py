"""`cir submit` from the command line: runs, vectors, and files of other people."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from cir import data
from cir.cli import app
from cir.submissions import check

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


def cir(*arguments):
    return CliRunner().invoke(app, ["submit", *(str(argument) for argument in arguments)])


def draw(bench):
    """Put a picture of 32 x 32 where each image of a benchmark should lie: what it shows depends on its number."""
    for number, name in enumerate(bench.gallery):
        path = bench.root / bench.paths[name]
        path.parent.mkdir(parents=True, exist_ok=True)
        colour = [(number * factor) % 256 for factor in (37, 101, 7)]
        Image.new("RGB", (32, 32), tuple(colour)).save(path)


@pytest.fixture
def vectors(tmp_path, root):
    """Two npz files of seeded vectors of a benchmark."""

    def make(name, where=root):
        bench = data.load(name, where)
        rng, files = np.random.default_rng(0), []
        for side, ids in (("queries", [q.id for q in bench.queries]), ("gallery", bench.gallery)):
            files += [f"--{side}", tmp_path / f"{side}.npz"]
            np.savez(files[-1], ids=np.array(ids), vectors=rng.standard_normal((len(ids), 8)).astype(np.float32))
        return files

    return make


def written(out):
    return sorted(path for path in out.glob("*.json") if not path.name.endswith(".provenance.json"))


# --- runs ------------------------------------------------------------------------------------------------------


@pytest.fixture
def pictures(root, tmp_path):
    """The small trees with pictures, and the options that run a baseline on them."""
    for name in ("cirr/test1", "cirr/val", "circo/test"):
        draw(data.load(name, root))

    def options(folder):
        return [
            "--method", "sum", "--backbone", folder, "--data", root, "--out", tmp_path / "out", "backbone.device=cpu",
            "train.workers=1", f"backbone.cache={tmp_path / 'cache'}",
        ]  # fmt: skip

    return options


def test_a_baseline_writes_both_files_of_cirr(pictures, root, tmp_path, tiny_clip_folder):
    result = cir("cirr", *pictures(tiny_clip_folder))
    assert result.exit_code == 0, result.output
    recall, subset = written(tmp_path / "out")
    assert recall.name.startswith("cirr-test1-sum-") and recall.name.endswith("-recall.json")
    assert subset.name == recall.name.replace("recall", "recall_subset")
    for path in (recall, subset):
        report = check(path, root)
        assert not report.problems and report.sha256 in result.stdout and str(path) in result.stdout
    assert "cirr.cecs.anu.edu.au" in result.stdout and "divides by 7" in result.stdout
    told = json.loads(recall.with_name(f"{recall.stem}.provenance.json").read_text())
    run = told["origin"]["run"]
    assert run["fingerprint"] in recall.name and run["method"]["name"] == "sum" and run["means"] == {}
    assert run["benchmark"]["name"] == "cirr/test1" and run["backbone"]["weights"]


def test_the_fingerprint_is_that_of_the_evaluation(pictures, tmp_path, tiny_clip_folder):
    options = pictures(tiny_clip_folder)
    assert cir("circo", *options).exit_code == 0
    out = tmp_path / "records"
    options[options.index("--out") + 1] = out
    evaluated = CliRunner().invoke(app, ["evaluate", *map(str, options), "circo/test"])
    assert evaluated.exit_code == 0, evaluated.output
    (record,) = out.glob("*.json")
    (path,) = written(tmp_path / "out")
    assert json.loads(record.read_text())["fingerprint"] in path.name


def test_val_prints_its_score_in_both_denominators(pictures, tmp_path, tiny_clip_folder):
    result = cir("cirr", "--split", "val", *pictures(tiny_clip_folder))
    assert result.exit_code == 0, result.output
    assert [path.name[:13] for path in written(tmp_path / "out")] == ["cirr-val-sum-"] * 2
    assert "R@50" in result.stdout and "Rs@1" in result.stdout and "as the server would print it" in result.stdout
    assert "nothing to upload" in result.stdout and "cirr.cecs" not in result.stdout


@pytest.mark.parametrize("key", ["data.subset=2", "data.allow_missing=true"])
def test_a_partial_split_is_refused_before_anything_is_encoded(pictures, root, tmp_path, tiny_clip_folder, key):
    (root / "CIRR/test1/test1-3-0-img1.png").unlink()
    result = cir("cirr", key, *pictures(tiny_clip_folder))
    assert result.exit_code == 2 and "needs the whole split" in result.stderr
    assert not (tmp_path / "out").exists() and not (tmp_path / "cache").exists()


def test_the_worlds_val(small_world, tmp_path, tiny_clip_folder):
    options = ["--method", "sum", "--backbone", tiny_clip_folder, "--data", small_world, "--out", tmp_path / "out",
               f"backbone.cache={tmp_path / 'cache'}"]  # fmt: skip
    result = cir("world/circo", *options, "--split", "val")
    assert result.exit_code == 0, result.output
    (path,) = written(tmp_path / "out")
    assert path.name.startswith("world-circo-val-sum-") and "mAP@5" in result.stdout
    again = cir("--validate", path, "--data", small_world)
    assert again.exit_code == 0 and "world/circo/val" in again.stdout and "no errors" in again.stdout
    absent = cir("circo", *options)
    assert absent.exit_code == 2 and "annotations/test.json" in absent.stderr


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the benchmarks' annotation files in ../shared/data")
def test_cirr_test1_with_its_real_annotations(tmp_path, tiny_clip_folder, kept):
    """All 4,148 queries and 2,315 images, made small, through decoding, a random tower, and search."""
    root = tmp_path / "CIRR"
    root.mkdir()
    (root / "cirr").symlink_to(SHARED / "CIRR" / "cirr")
    draw(data.load("cirr/test1", root))
    result = cir("cirr", "--method", "sum", "--backbone", tiny_clip_folder, "--data", root, "--out", tmp_path / "out",
                 "backbone.device=cpu", f"backbone.cache={tmp_path / 'cache'}", "train.workers=1",
                 "prompt.overflow=cut")  # fmt: skip
    assert result.exit_code == 0, result.output
    recall, subset = written(tmp_path / "out")
    assert "divides by 4,150" in result.stdout and "99.952" in result.stdout
    assert "prompts longer than the text tower takes are cut" in result.stdout  # the file is whole, its makers are told
    assert 3_500_000 < recall.stat().st_size < 5_000_000 and subset.stat().st_size < 400_000
    for path in (recall, subset):
        assert cir("--validate", path, "--data", SHARED).exit_code == 0


# --- vectors ---------------------------------------------------------------------------------------------------


def test_vectors_of_anybody(root, tmp_path, vectors):
    result = cir("circo", *vectors("circo/test"), "--data", root, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    (path,) = written(tmp_path / "out")
    assert path.name.startswith("circo-test-vectors-") and "circo.micc.unifi.it/evaluation" in result.stdout
    told = json.loads(path.with_name(f"{path.stem}.provenance.json").read_text())
    assert told["origin"]["vectors"]["queries"]["file"] == "queries.npz"
    listed = json.loads(cir("circo", *vectors("circo/test"), "--data", root, "--out", tmp_path, "--json").stdout)
    assert listed[0]["valid"] and listed[0]["sha256"] == told["sha256"]


def test_vectors_of_another_split_are_named(root, tmp_path, vectors):
    result = cir("cirr", *vectors("cirr/val"), "--data", root, "--out", tmp_path / "out")
    assert result.exit_code == 2 and "queries.npz: query: 5 ids are missing" in result.stderr


# --- checking --------------------------------------------------------------------------------------------------


def test_validate_ends_with_zero_or_two(root, right, tmp_path):
    path = tmp_path / "theirs.json"
    content = right("circo/test")
    path.write_text(json.dumps(content))
    result = cir("--validate", path, "--data", root)
    assert result.exit_code == 0 and result.stdout.rstrip().endswith("no errors, no warnings")
    content["4"][10] = content["4"][2]
    path.write_text(json.dumps(content))
    result = cir("--validate", path, "--data", root)
    assert result.exit_code == 2 and "query 4: 1014 stands at ranks 3, 11" in result.stdout
    assert "the upload is refused, naming the query" in result.stdout and "1 error: do not upload" in result.stdout
    plain = cir("circo", "--validate", path, "--data", root, "--json")
    assert plain.exit_code == 2 and json.loads(plain.stdout)["problems"][0]["query"] == "4"
    content["4"][10] = str(1000 + 7 * 60)
    path.write_text(json.dumps(content))
    assert cir("--validate", path, "--data", root, "--split", "test").exit_code == 0  # a warning only


def test_validate_of_bytes_needs_no_annotations(tmp_path):
    (tmp_path / "a.json").write_text('{"0": [1, 2')
    result = cir("--validate", tmp_path / "a.json", "--data", tmp_path / "nowhere")
    assert result.exit_code == 2 and "ends in the middle" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "name the benchmark first, cirr or circo"),
        (["seed=1"], "name the benchmark first"),
        (["fashioniq", "--method", "sum"], "no test server for 'fashioniq'"),
        (["cir", "--method", "sum"], "did you mean"),
        (["circo", "--split", "train"], "no split 'train'; expected val or test"),
        (["circo", "--queries", "q.npz"], "vectors are two files"),
        (["circo", "x=1", "--queries", "q.npz", "--gallery", "g.npz"], "no model and no override"),
        (["circo"], "name a config, a checkpoint folder, or --method"),
        (["circo", "cirr", "--method", "sum"], "got 'cirr'"),
        (["--validate", "none.json"], "no such file"),
        (["circo", "x", "--validate", "none.json"], "with --validate name cirr or circo at most"),
    ],
)
def test_wrong_arguments_are_one_line(arguments, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = cir(*arguments)
    assert result.exit_code == 2 and text in result.stderr and len(result.stderr.splitlines()) == 1
