"""RTD shared by two processes: what `gather_negatives`, `all_reduce` and the released preset mean.

Run as a script this file trains one tower per entry of MODES.
"""

import os
import random
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cir.config import TrainConfig
from cir.methods import NoStore, build
from cir.objectives import nt_xent
from cir.optim import adamw, trainables
from cir.train import train
from cir.train.order import Feed, Share
from tests.torchrun import two_processes

WORDS = "a red blue dress shirt two dogs cats on grass sofa person umbrella rain the photo of shorter sleeves".split()
CONFIG = TrainConfig(steps=5, batch=8, lr=1e-3, log_every=1, eps=1e-4)
MODES = {
    "gathered": ({}, CONFIG),
    "own_negatives": ({"gather_negatives": False}, CONFIG),
    "released": ({"preset": "released"}, CONFIG),
    "lora": ({"trainable": "lora_2"}, CONFIG),
}


@dataclass(frozen=True)
class Row:
    reference: str
    text: str
    target: str


def rows(count=30):
    rng = random.Random(1)
    texts = [" ".join(rng.choices(WORDS, k=rng.randint(3, 9))) for _ in range(3 * count)]
    return [Row(*texts[3 * i : 3 * i + 3]) for i in range(count)]


def make(folder, options):
    from cir.backbones import load

    backbone = load(str(folder), device="cpu")
    return backbone, build(
        "rtd", options, backbone, build("lincir", {}, backbone, seed=3), seed=int(os.getenv("RANK", 0))
    )


def main(folder, out):
    torch.set_num_threads(1)
    for name, (options, config) in MODES.items():
        backbone, method = make(folder, options)
        train(method, backbone, rows(), config, out / name)


@pytest.fixture(scope="module")
def shared(tiny_clip_folder, tmp_path_factory):
    pytest.importorskip("peft")
    out = tmp_path_factory.mktemp("shared")
    two_processes(__file__, tiny_clip_folder, out, timeout=280)
    return {name: load_file(out / name / "last" / "model.safetensors") for name in MODES}


def by_hand(folder, options, config, shares, loss_of):
    """Train with the rows of some shares; `loss_of(method, backbone, batches)` says what of them counts."""
    backbone, method = make(folder, options)
    named = trainables(method.train(), method.trains)
    source = rows()
    batches = method.prepare(backbone, source, seed=0, draws=config.steps * config.batch, store=NoStore())
    optimizer = adamw(named, lr=config.lr, weight_decay=config.weight_decay, eps=config.eps)
    feeds = [Feed(batches, share, 0, 0, torch.device("cpu")) for share in shares]
    for step in range(config.steps):
        optimizer.zero_grad()
        loss_of(method, backbone, [feed.make(step, 0) for feed in feeds]).backward()
        optimizer.step()
    return method.state_dict()


def mean(method, backbone, batches):
    return sum(method.losses(backbone, batch)["nt_xent"] for batch in batches) / len(batches)


def whole(method, backbone, batches):
    """One contrast over the rows of all, in the order in which processes send them."""
    queries = torch.cat([method._queries(batch) for batch in batches])
    anchors = torch.cat([method._anchors(batch) for batch in batches])
    return nt_xent(anchors, queries, method.options.tau)


HALVES = (Share(8, 1, 0, 2), Share(8, 1, 1, 2))


def assert_close(one, two, name):
    assert one.keys() == two.keys()
    for key in one:
        torch.testing.assert_close(one[key], two[key], atol=2e-5, rtol=1e-3, msg=f"{name}: {key}")


def differs(one, two):
    return any(not torch.allclose(one[key], two[key], atol=1e-4) for key in one)


@pytest.mark.parametrize("name", ["gathered", "lora"])
def test_gathered_negatives_make_one_process_with_the_whole_batch(tiny_clip_folder, shared, name):
    expected = by_hand(tiny_clip_folder, *MODES[name], (Share(8),), mean)
    assert_close(shared[name], expected, name)
    in_parts = by_hand(tiny_clip_folder, *MODES[name], HALVES, whole)
    assert_close(shared[name], in_parts, name)


def test_without_gathering_each_contrasts_its_own_rows_and_gradients_are_averaged(tiny_clip_folder, shared):
    expected = by_hand(tiny_clip_folder, *MODES["own_negatives"], HALVES, mean)
    assert_close(shared["own_negatives"], expected, "own_negatives")
    assert differs(shared["own_negatives"], shared["gathered"])


def test_released_the_first_process_ends_as_if_alone_with_its_rows(tiny_clip_folder, shared):
    expected = by_hand(tiny_clip_folder, *MODES["released"], HALVES[:1], mean)
    assert_close(shared["released"], expected, "released")
    assert differs(shared["released"], shared["own_negatives"])


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
