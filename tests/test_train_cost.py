"""What a run costs is measured, survives being interrupted, and stays what it was when there is nothing left to do."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from cir import provenance
from cir.config import TrainConfig
from cir.methods import build, checkpoint
from cir.methods.lincir import LinCIR
from cir.train import train
from cir.train.cost import Cost
from cir.train.folder import Folder

CONFIG = TrainConfig(steps=6, batch=4, lr=1e-3, log_every=1, save_every=2)
CAPTIONS = ["a red dress", "two dogs on grass", "a person holding umbrella", "blue shirt with shorter sleeves"] * 3


class Stop(Exception):
    pass


def run(backbone, out, config=CONFIG, evaluate=None):
    return train(build("lincir", {}, backbone, seed=1), backbone, CAPTIONS, config, out, evaluate=evaluate)


def details(result):
    return checkpoint.describe(result.checkpoint)["details"]["cost"]


def test_a_run_measures_itself(tiny_backbone, tmp_path):
    result = run(tiny_backbone, tmp_path)
    cost = details(result)
    assert cost == result.cost
    assert cost["seconds"] == result.seconds > 0 and cost["prepare_seconds"] > 0
    assert result.peak_mb == cost["peak_mb"] > 50
    assert cost["gpu_peak_mb"] is None
    assert (cost["device"], cost["processes"]) == (provenance.processor(), 1)
    assert cost["threads"] == torch.get_num_threads()


def test_a_finished_run_keeps_its_cost(tiny_backbone, tmp_path):
    first = run(tiny_backbone, tmp_path)
    held = np.ones(30_000_000)  # this process grows, the run does not
    second = run(tiny_backbone, tmp_path)
    assert second.cost == first.cost == details(second) and held.sum() == 3e7


def test_an_interrupted_run_adds_its_time_and_keeps_its_peak(tiny_backbone, tmp_path):
    def interrupt(method, step):
        if step == 5:
            raise Stop
        return {}

    with pytest.raises(Stop):
        run(tiny_backbone, tmp_path, replace(CONFIG, evaluate_every=5), interrupt)
    state = Folder(tmp_path).steps()[-1] / "state.json"
    kept = json.loads(state.read_text())
    before = kept["cost"]["seconds"]
    assert kept["step"] == 4 and before > 0
    kept["cost"] |= {
        "peak_mb": 5e6,
        "seconds": 1000.0 + before,
        "prepare_seconds": 50.0,
    }  # a larger machine's first half
    state.write_text(json.dumps(kept))
    cost = details(run(tiny_backbone, tmp_path, replace(CONFIG, evaluate_every=5)))
    assert cost["peak_mb"] == 5e6
    assert 1000 + before < cost["seconds"] < 1000 + before + 60 and 50 < cost["prepare_seconds"] < 110


def test_a_snapshot_from_before_costs_were_kept_is_resumed(tiny_backbone, tmp_path):
    cost = Cost()
    cost.resume({"step": 4, "best": None, "seconds": 12.5})
    assert (cost.seconds, cost.peak_mb, cost.device) == (12.5, 0.0, "")


def test_time_to_prepare_is_told_apart(tiny_backbone, tmp_path, monkeypatch):
    import time

    prepare = LinCIR.prepare

    def slow(self, *given, **named):
        time.sleep(0.4)
        return prepare(self, *given, **named)

    monkeypatch.setattr(LinCIR, "prepare", slow)
    cost = run(tiny_backbone, tmp_path).cost
    assert cost["prepare_seconds"] >= 0.4
    steps = [json.loads(line)["seconds"] for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert steps[0] < cost["seconds"] == steps[-1]


def test_the_peak_can_be_counted_afresh():
    """What the process held before a run began is not the run's; where the system cannot tell, it says so."""
    big = np.ones(60_000_000)  # 480 MB
    high = provenance.peak_mb()
    del big
    if not provenance.reset_peak():
        pytest.skip("this system cannot reset the peak")
    low = provenance.peak_mb()
    assert low < high - 300
    again = np.ones(30_000_000)  # 240 MB
    assert low + 200 < provenance.peak_mb() < high and again.size


def test_the_processor_has_a_name():
    assert provenance.processor().strip()
