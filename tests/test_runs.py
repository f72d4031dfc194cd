"""Whole runs through the command line: train, evaluate, wrap, report."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from cir import config as configs
from cir import provenance, records, runs
from cir.cli import app
from cir.errors import InputError
from cir.methods import checkpoint

CAPTIONS = ["a red dress", "two dogs on grass", "a person holding umbrella", "blue shirt with shorter sleeves"]


def cir(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def write_circo(root):
    """CIRCO's layout with five queries on twelve images, marked as a world so that its own counts hold."""
    rows = [
        {
            "id": index,
            "reference_img_id": index,
            "target_img_id": index + 3,
            "gt_img_ids": [index + 3, 11],
            "relative_caption": CAPTIONS[index % 4],
            "shared_concept": "a dog",
            "semantic_aspects": ["addition"],
        }
        for index in range(5)
    ]
    images = root / "COCO2017_unlabeled" / "unlabeled2017"
    images.mkdir(parents=True)
    for index in range(12):
        noise = np.random.default_rng(index).integers(0, 255, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((32, 32)).save(images / f"{index:012d}.png")
    (root / "annotations").mkdir()
    (root / "annotations" / "val.json").write_text(json.dumps(rows))
    counts = {"circo": {"val": {"queries": 5, "gallery": 12, "targets": 10}}}
    (root / "world.json").write_text(json.dumps({"counts": counts}))


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny_clip_folder):
    """A working folder with a benchmark, training texts and two runs, the second wrapping the first."""
    place = tmp_path_factory.mktemp("place")
    write_circo(place / "CIRCO")
    (place / "captions.txt").write_text("\n".join(CAPTIONS * 4))
    keys = ("reference_caption", "conditioning_caption", "target_caption")
    triplets = [dict(zip(keys, (CAPTIONS[i], "is red", CAPTIONS[(i + 1) % 4]), strict=True)) for i in range(4)]
    (place / "triplets.json").write_text(json.dumps(triplets * 4))
    common = f"""
        backbone: {{name: {tiny_clip_folder}, device: cpu, cache: cache}}
        data: {{root: CIRCO}}
        evaluate: [circo/val]
    """
    lincir = f"name: lincir\nmethod: {{name: lincir}}\ntrain: {{source: captions.txt, steps: 3, batch: 8}}{common}"
    rtd = f"name: rtd\nmethod: {{name: rtd}}\ntrain: {{source: triplets.json, steps: 2, batch: 8}}{common}"
    (place / "lincir.yaml").write_text("\n".join(line.strip() for line in lincir.splitlines()))
    (place / "rtd.yaml").write_text("\n".join(line.strip() for line in f"{rtd}\nbase: runs/lincir/seed-0".splitlines()))
    return place


@pytest.fixture(scope="module")
def trained(place):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        for name in ("lincir", "rtd"):
            result = cir("train", f"{name}.yaml")
            assert result.exit_code == 0, result.output
            assert "mAP@5" in result.stdout
    return place


@pytest.fixture(autouse=True)
def inside(place, monkeypatch):
    monkeypatch.chdir(place)


def only_record(folder):
    (record,) = records.find([Path(folder)]).values()
    return record


def test_training_leaves_a_config_a_checkpoint_and_a_record(trained):
    record = only_record("runs/lincir/seed-0/records")
    assert record.run == "lincir"
    assert record.method.training is not None
    assert record.method.training.steps == 3
    assert record.method.training.seconds > 0
    assert record.method.trained_count == sum(
        p.numel() for n, p in runs_method("runs/lincir/seed-0").named_parameters() if n in record.method.trained
    )
    assert record.method.checkpoint == checkpoint.describe(Path("runs/lincir/seed-0/last"))["weights"]
    assert configs.load("runs/lincir/seed-0/config.yaml") == configs.load("lincir.yaml")


def test_a_record_says_what_training_cost_and_a_wrappers_what_its_base_did(trained, tmp_path):
    lincir, rtd = (only_record(f"runs/{name}/seed-0/records").method for name in ("lincir", "rtd"))
    for method in (lincir, rtd):
        assert method.training.peak_mb > 10 and method.training.prepare_seconds > 0
        assert (method.training.processes, method.training.device) == (1, provenance.processor())
    assert rtd.base == lincir.training and lincir.base is None
    cost = cir("table", "runs", "--cost", "--metric", "mAP@5").stdout
    header = (
        "| Run | world/circo/val:mAP@5 | train:minutes | train:prepare_minutes | train:peak_mb | train:parameters |"
    )
    assert header in cost and f"{lincir.trained_count:,}" in cost and "rtd: without its base, which took" in cost


def test_the_cost_of_the_best_checkpoint_is_that_of_the_whole_run(trained, tmp_path):
    shutil.copytree("runs/lincir/seed-0", tmp_path / "run")
    shutil.copytree(tmp_path / "run" / "last", tmp_path / "run" / "best")
    config = tmp_path / "run" / "best" / checkpoint.CONFIG
    early = json.loads(config.read_text())
    early["details"]["cost"] |= {"seconds": 0.0, "peak_mb": 1.0}
    config.write_text(json.dumps(early))
    whole = runs.training_info(tmp_path / "run" / "last")
    assert runs.training_info(tmp_path / "run" / "best") == whole
    early["details"]["run"]["seed"] = 99  # the last of another run says nothing about this one
    config.write_text(json.dumps(early))
    assert runs.training_info(tmp_path / "run" / "best").peak_mb == 1.0


def test_an_older_checkpoint_still_says_its_time(trained, tmp_path):
    shutil.copytree("runs/lincir/seed-0", tmp_path / "run")
    config = tmp_path / "run" / "last" / checkpoint.CONFIG
    old = json.loads(config.read_text())
    cost = old["details"].pop("cost")
    config.write_text(json.dumps(old))
    found = runs.training_info(tmp_path / "run" / "last")
    assert found.seconds == pytest.approx(cost["seconds"]) and found.peak_mb is None and found.device == ""


def runs_method(folder):
    config = configs.load(Path(folder) / "config.yaml")
    return runs.load_trained(runs.find_checkpoint(Path(folder)), runs.load_backbone(config))[0]


@pytest.mark.parametrize("target", ["runs/lincir/seed-0", "runs/lincir/seed-0/last", "lincir.yaml"])
def test_evaluating_the_checkpoint_gives_the_numbers_of_the_training_run(trained, target, tmp_path):
    result = cir("evaluate", target, "circo/val", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    before, after = only_record("runs/lincir/seed-0/records"), only_record(tmp_path)
    assert after.means == before.means
    assert after.fingerprint == before.fingerprint


def test_rankings_are_kept_on_request_and_exported(trained, tmp_path):
    for folder, options in ((tmp_path / "bare", ()), (tmp_path / "ranked", ("--rankings",))):
        assert cir("evaluate", "lincir.yaml", "--out", folder, *options).exit_code == 0
    bare, ranked = only_record(tmp_path / "bare"), only_record(tmp_path / "ranked")
    assert bare.ranking is None and ranked.means == bare.means
    path = next((tmp_path / "ranked").glob("*.json"))
    ranking = records.read_ranking(path, ranked)
    assert ranking.query_ids == records.read_values(path, ranked).ids and ranking.order.shape == (5, 12)
    result = cir("records", "export", tmp_path / "ranked", "--trec", tmp_path / "trec")
    assert "computed again from the files: mAP@5, mAP@10, R@5, R@10" in result.stdout, result.output
    assert cir("records", "check", tmp_path).exit_code == 0


def test_a_wrapper_loads_its_base_from_the_run_that_trained_it(trained):
    record = only_record("runs/rtd/seed-0/records")
    assert record.method.name == "rtd"
    assert record.method.trained and not any(name.startswith("base.") for name in record.method.trained)
    assert checkpoint.describe(Path("runs/rtd/seed-0/last"))["base"]["method"] == "lincir"


def test_training_again_changes_nothing_and_fresh_starts_over(trained):
    weights = Path("runs/lincir/seed-0/last/model.safetensors")
    before = weights.read_bytes()
    assert cir("train", "lincir.yaml").exit_code == 0
    assert weights.read_bytes() == before
    changed = cir("train", "lincir.yaml", "train.lr=0.5")
    assert changed.exit_code == 2 and "train.lr" in changed.stderr
    assert weights.read_bytes() == before


def test_baselines_need_no_config_and_the_report_compares_them(trained, place, tmp_path, tiny_clip_folder):
    options = ["--backbone", tiny_clip_folder, "--data", "CIRCO", "backbone.cache=cache"]
    result = cir("evaluate", "--method", "sum", *options, "circo/val", "--report", tmp_path / "report")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "report" / "index.html").is_file()
    assert (tmp_path / "report" / "sum-world-circo-val.html").is_file()
    table = cir("table", "runs", "--metric", "mAP@5")
    assert table.stdout.startswith("| Run | world/circo/val:mAP@5 |")
    assert {"lincir", "rtd", "sum"} <= {line.split(" | ")[0].strip("| ") for line in table.stdout.splitlines()}
    written = cir("table", "runs", "--format", "latex", "--out", tmp_path / "deep" / "table.tex")
    assert written.exit_code == 0
    assert r"\toprule" in (tmp_path / "deep" / "table.tex").read_text()
    compared = cir("compare", "runs/rtd", "runs/sum")
    assert compared.exit_code == 0, compared.output
    assert "world/circo/val:mAP@5  rtd against sum:" in compared.stdout
    assert cir("data", "check", "circo/val", "--root", "CIRCO").stdout.startswith("world/circo/val: 5 queries and 12")


def test_smoke_runs_are_named_and_stamped(place):
    result = cir("train", "lincir.yaml", "--smoke")
    assert result.exit_code == 0, result.output
    record = only_record("runs/lincir-smoke/seed-0/records")
    assert record.run == "lincir-smoke"
    assert "smoke run" in record.benchmark.stamps


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "lincir.yaml", "train.source="], "train.source"),
        (["train", "lincir.yaml", "train.source=''"], "learns from captions; name a file of them"),
        (["train", "lincir.yaml", "method.name=sum"], "nothing to train"),
        (["train", "rtd.yaml", "base=runs/absent"], "runs/absent: no checkpoint here"),
        (["train", "rtd.yaml", "base=''"], "rtd wraps another method"),
        (["evaluate", "lincir.yaml", "seed=9"], "train it first: cir train lincir.yaml"),
        (["evaluate", "."], "no checkpoint here"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "says",
)
def test_runs_that_cannot_be_are_one_line(place, arguments, message):
    result = cir(*arguments)
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert result.stderr.startswith("error: ")


def test_no_checkpoint_is_found_where_there_is_none(tmp_path):
    with pytest.raises(InputError, match="expected a checkpoint, a run folder"):
        runs.find_checkpoint(tmp_path)
