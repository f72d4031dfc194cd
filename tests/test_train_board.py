"""TensorBoard: what a reader of the event files sees, also after a kill, and what the HPARAMS tab makes of cells."""

import io
import json
import subprocess
import sys
from dataclasses import replace

import pytest
from PIL import Image
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams import api_pb2, get_experiment, list_session_groups
from tensorboard.plugins.hparams.backend_context import Context

from cir import config as configs
from cir import runs
from cir.backbones import load
from cir.config import TrainConfig
from cir.methods import build
from cir.train import board, train

CAPTIONS = ["a red dress", "two dogs on grass", "a person holding umbrella", "blue shirt with shorter sleeves"] * 4
CONFIG = TrainConfig(steps=12, batch=8, lr=1e-3, log_every=1, save_every=4, evaluate_every=1, eps=1e-4)


def run(backbone, out, evaluate, pictures=None, config=CONFIG):
    method = build("lincir", {}, backbone, seed=1)
    return train(method, backbone, CAPTIONS, config, out, evaluate=evaluate, pictures=pictures)


def events(folder):
    return EventAccumulator(str(folder / "tensorboard")).Reload()


def steps(found, tag):
    return [event.step for event in found.Scalars(tag)]


def history(folder, name):
    lines = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    return {line["step"]: line[name] for line in lines if name in line}


def test_a_killed_run_that_is_resumed_shows_every_step_once(tiny_clip_folder, tmp_path):
    """Killed at step 7, the last snapshot after step 4: steps 1 to 4 are in the first file, the rest in the second."""
    script = f"""
import os, signal
from pathlib import Path
from cir.backbones import load
from cir.config import TrainConfig
from cir.methods import build
from cir.train import train

def evaluate(method, step):
    if step == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return {{"bench:R@1": float(step)}}

backbone = load({str(tiny_clip_folder)!r}, device="cpu")
train(build("lincir", {{}}, backbone, seed=1), backbone, {CAPTIONS!r}, {CONFIG!r}, Path({str(tmp_path)!r}),
      evaluate=evaluate)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == -9, done.stderr
    assert [path.name for path in sorted((tmp_path / "snapshots").iterdir())] == ["step-00000004"]
    assert steps(events(tmp_path), "train/loss")[:4] == [1, 2, 3, 4], "nothing before the snapshot may be lost"
    run(load(str(tiny_clip_folder), device="cpu"), tmp_path, lambda method, step: {"bench:R@1": float(step)})
    found = events(tmp_path)
    assert steps(found, "train/loss") == steps(found, "val/bench/R@1") == list(range(1, 13))
    losses = {event.step: event.value for event in found.Scalars("train/loss")}
    assert losses == pytest.approx(history(tmp_path, "loss"), rel=1e-6)


def test_steps_behind_the_snapshot_are_void(tiny_backbone, tmp_path):
    """The interrupted run logged 100 more than the resumed one: only the resumed one's values stay."""

    class Interrupt(Exception):
        pass

    def evaluate(more, stop):
        def score(method, step):
            if step == stop:
                raise Interrupt
            return {"bench:R@1": step + more}

        return score

    with pytest.raises(Interrupt):
        run(tiny_backbone, tmp_path, evaluate(100.0, 7))
    before = {event.step: event.value for event in events(tmp_path).Scalars("val/bench/R@1")}
    assert before == {step: step + 100 for step in range(1, 7)}
    run(tiny_backbone, tmp_path, evaluate(0.0, 0))
    after = {event.step: event.value for event in events(tmp_path).Scalars("val/bench/R@1")}
    assert after == {step: step + (100 if step <= 4 else 0) for step in range(1, 13)}


def test_losses_rates_and_norms_are_there(tiny_backbone, tmp_path):
    run(tiny_backbone, tmp_path, lambda method, step: {"world/circo/val:mAP@5": 1.0}, config=replace(CONFIG, steps=2))
    tags = set(events(tmp_path).Tags()["scalars"])
    wanted = ("loss", "mse", "lr", "gradient_norm", "rows_per_second", "seconds")
    assert tags == {f"train/{name}" for name in wanted} | {"val/world/circo/val/mAP@5"}


def test_pictures_come_back(tiny_backbone, tmp_path):
    colours = {"a": (200, 30, 30), "world/b": (30, 30, 200)}

    def pictures():
        return {name: Image.new("RGB", (24, 16), colour) for name, colour in colours.items()}

    config = replace(CONFIG, steps=4, evaluate_every=2)
    run(tiny_backbone, tmp_path, lambda method, step: {"a:R@1": 0.0}, pictures, config)
    found = events(tmp_path)
    assert set(found.Tags()["images"]) == {"ranked/a", "ranked/world/b"}
    for name, colour in colours.items():
        shown = found.Images(f"ranked/{name}")
        assert [event.step for event in shown] == [2, 4] and (shown[0].width, shown[0].height) == (24, 16)
        pixel = Image.open(io.BytesIO(shown[-1].encoded_image_string)).getpixel((5, 5))
        assert pixel == pytest.approx(colour, abs=4)


def test_a_run_shows_its_rankings(small_world, tiny_clip_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "captions.txt").write_text("\n".join(CAPTIONS))
    config = configs.load(
        None,
        ["method.name=lincir", f"backbone.name={tiny_clip_folder}", "backbone.device=cpu", f"data.root={small_world}",
         "train.source=captions.txt", "train.steps=2", "train.batch=8", "train.evaluate_every=2",
         "evaluate=world/fashioniq/val", "prompt.overflow=cut"],
    )  # fmt: skip
    runs.train(config, runs.load_backbone(config), tmp_path / "run")
    found = events(tmp_path / "run")
    parts = {f"world/fashioniq/{part}/val" for part in ("dress", "shirt", "toptee")}
    assert set(found.Tags()["images"]) == {f"ranked/{part}" for part in parts}
    assert {f"val/{name}/R@10" for name in (*parts, "world/fashioniq/val")} <= set(found.Tags()["scalars"])


# What the HPARAMS tab shows, asked of TensorBoard's own backend


def tab(logdir):
    """The columns of the tab, and its rows: settings and averaged metrics by trial."""
    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(logdir)).Reload()
    provider = MultiplexerDataProvider(multiplexer, str(logdir))
    context, request = Context(TBContext(data_provider=provider)), RequestContext()
    experiment = get_experiment.Handler(request, context, "", api_pb2.GetExperimentRequest()).run()
    asked = api_pb2.ListSessionGroupsRequest(
        start_index=0,
        slice_size=100,
        aggregation_type=api_pb2.AGGREGATION_AVG,
        allowed_statuses=[api_pb2.STATUS_SUCCESS],
    )
    rows = list_session_groups.Handler(request, context, "", asked).run().session_groups
    columns = [info.name for info in experiment.hparam_infos], [info.name.tag for info in experiment.metric_infos]
    return columns, {
        row.name: (
            {name: getattr(value, value.WhichOneof("kind")) for name, value in row.hparams.items()},
            {one.name.tag: one.value for one in row.metric_values},
        )
        for row in rows
    }


def test_an_ablations_folder_fills_the_tab(tmp_path):
    """Two cells of two seeds; each also logged a loss, which is no result and gets no column."""
    settings = {"0.1": {"train.lr": 0.1, "method.noise": "none", "ema": True, "train.betas": [0.9, 0.99]}}
    settings["0.2"] = {"train.lr": 0.2, "method.noise": "gaussian", "ema": False, "train.betas": [0.9, 0.999]}
    for row, (cell, varied) in enumerate(settings.items()):
        for seed in (0, 1):
            folder = tmp_path / "noise" / cell / f"seed-{seed}"
            with board.Board(folder, 0) as shown:
                shown.scalars({"loss": 3.0}, 1)
            board.hparams(folder, varied, {"world/circo/val:mAP@5": 10.0 * row + seed})
    (inputs, outputs), rows = tab(tmp_path)
    assert sorted(inputs) == sorted(settings["0.1"]) and outputs == ["final/world/circo/val/mAP@5"]
    told = {cell: {**varied, "train.betas": json.dumps(varied["train.betas"])} for cell, varied in settings.items()}
    assert rows == {
        "0.1 (noise)": (told["0.1"], {"final/world/circo/val/mAP@5": 0.5}),
        "0.2 (noise)": (told["0.2"], {"final/world/circo/val/mAP@5": 10.5}),
    }


def test_cells_of_two_ablations_are_not_averaged(tmp_path):
    for question, value in (("a", 1.0), ("b", 2.0)):
        board.hparams(tmp_path / question / "full" / "seed-0", {"tau": value}, {"x:m": value})
    rows = tab(tmp_path)[1]
    assert {name: metrics for name, (_, metrics) in rows.items()} == {
        "full (a)": {"final/x/m": 1.0},
        "full (b)": {"final/x/m": 2.0},
    }


def test_settings_written_again_replace_what_was_there(tmp_path):
    first = board.hparams(tmp_path / "cell" / "seed-0", {"tau": 0.1}, {"x:m": 1.0})
    again = board.hparams(tmp_path / "cell" / "seed-0", {"tau": 0.1, "noise": ""}, {"x:m": 2.0})
    assert first == again and list(first.parent.iterdir()) == [again]
    ((settings, metrics),) = tab(tmp_path)[1].values()
    assert settings == {"tau": 0.1, "noise": ""} and metrics == {"final/x/m": 2.0}


def test_settings_stay_out_of_what_training_logged(tiny_backbone, tmp_path):
    run(tiny_backbone, tmp_path / "cell" / "seed-0", lambda method, step: {"x:m": 1.0}, config=replace(CONFIG, steps=2))
    board.hparams(tmp_path / "cell" / "seed-0", {"tau": 0.1}, {"x:m": 3.0})
    found = events(tmp_path / "cell" / "seed-0")
    assert steps(found, "train/loss") == [1, 2] and steps(found, "val/x/m") == [1, 2]
    assert [event.value for event in found.Scalars("final/x/m")] == [3.0]
