"""Training in processes of its own: killed and resumed, stopped, shared by two.

Run as a script this file trains LinCIR, then RTD on it.
"""

import json
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from cir.config import TrainConfig
from cir.methods import build
from cir.train import Stopped, train
from tests.torchrun import ENVIRONMENT, two_processes

WORDS = "a red blue dress shirt two dogs cats on grass sofa person umbrella rain the photo of shorter sleeves".split()
CONFIG = TrainConfig(steps=12, batch=8, lr=1e-3, log_every=1, save_every=4, eps=1e-4)


@dataclass(frozen=True)
class Row:
    reference: str
    text: str
    target: str


def captions(count=60, seed=0):
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randint(3, 9))) for _ in range(count)]


def rows(count=40):
    texts = captions(3 * count, seed=1)
    return [Row(*texts[3 * i : 3 * i + 3]) for i in range(count)]


def weights(folder):
    return load_file(folder / "model.safetensors")


def history(folder):
    lines = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in ("seconds", "rows_per_second")} for line in lines]


def assert_same(one, two):
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def script(folder, out, wait=True):
    command = [sys.executable, __file__, str(folder), str(out)]
    process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if wait:
        said, _ = process.communicate(timeout=240)
        assert process.returncode == 0, said[-3000:]
    return process


def interrupt_at(process, path, step, number):
    """Send a signal once the history has reached a step."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if path.exists() and path.read_text().count("\n") >= step:
            process.send_signal(number)
            break
        time.sleep(0.002)
    said, _ = process.communicate(timeout=120)
    return said


def main(folder, out):
    from cir.backbones import load

    torch.set_num_threads(1)
    backbone = load(str(folder), device="cpu")
    config = replace(CONFIG, steps=80, save_every=15, ema=0.9)
    lincir = build("lincir", {}, backbone, seed=1)
    rtd = None
    try:
        train(lincir, backbone, captions(), config, out / "lincir")
        rtd = build("rtd", {}, backbone, lincir)
        train(rtd, backbone, rows(), replace(config, steps=50, schedule="cosine"), out / "rtd")
    except Stopped as stopped:
        sys.exit(f"stopped: {stopped}")


@pytest.fixture(scope="module")
def uninterrupted(tiny_clip_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("uninterrupted")
    script(tiny_clip_folder, out)
    return out


def test_a_run_killed_at_random_steps_ends_bit_identical(tiny_clip_folder, uninterrupted, tmp_path):
    rng = random.Random()  # another step every time the tests run
    steps = [("lincir", rng.randint(2, 40), signal.SIGTERM), ("lincir", rng.randint(45, 75), signal.SIGKILL),
             ("rtd", rng.randint(2, 30), signal.SIGKILL)]  # fmt: skip
    for name, step, number in steps:
        process = script(tiny_clip_folder, tmp_path, wait=False)
        said = interrupt_at(process, tmp_path / name / "history.jsonl", step, number)
        if number == signal.SIGKILL:
            assert process.returncode == -signal.SIGKILL, (steps, said[-2000:])
        else:
            assert process.returncode == 1 and "stopped after step" in said and "goes on from there" in said, said[
                -2000:
            ]
    script(tiny_clip_folder, tmp_path)
    for name in ("lincir", "rtd"):
        assert_same(weights(uninterrupted / name / "last"), weights(tmp_path / name / "last"))
        assert history(uninterrupted / name) == history(tmp_path / name), steps


def test_two_processes_equal_one_with_the_concatenated_batch(tiny_clip_folder, uninterrupted, tmp_path):
    two_processes(__file__, tiny_clip_folder, tmp_path, timeout=240)
    for name in ("lincir", "rtd"):
        one, two = history(uninterrupted / name), history(tmp_path / name)
        assert [line["step"] for line in one] == [line["step"] for line in two]
        np.testing.assert_allclose([x["loss"] for x in one], [x["loss"] for x in two], rtol=2e-4)
        np.testing.assert_allclose(
            [x["gradient_norm"] for x in one[:10]], [x["gradient_norm"] for x in two[:10]], rtol=1e-3
        )
        single, shared = weights(uninterrupted / name / "last"), weights(tmp_path / name / "last")
        for key in single:
            torch.testing.assert_close(single[key], shared[key], atol=5e-4, rtol=5e-3)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
