"""Image methods under torchrun: two processes have the loss and the gradients of one with the whole batch.

Run as a script this file computes both, on its share of the rows.
"""

import sys
import tempfile
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.nn.functional import interpolate

from cir.methods import NoStore, build
from cir.optim import trainables
from cir.randomness import StepRandom
from tests.torchrun import two_processes

CAPTIONS = ("a red dress", "two dogs on grass", "it is", "the photo of a cat", "a sofa", "an umbrella")
NAMES = {
    "pic2word": {},
    "context_i2w": {"depth": 1},
    "searle": {"oti_steps": 2, "oti_mean_over": 32, "hard_negative_fraction": 0.5},
}
PHRASES = """{"concept": "dog", "phrases": ["two dogs on grass", "a dog is a dog"]}
{"concept": "sofa", "phrases": ["a photo of sofa that is red", "the sofa"]}"""


class Noise:
    fingerprint = "noise"

    def __init__(self, backbone):
        self.backbone = backbone
        draw = torch.Generator().manual_seed(0)
        self.pixels = interpolate(torch.randn(6, 3, 4, 4, generator=draw), size=(32, 32))

    def __len__(self):
        return 6

    def text(self, row):
        return CAPTIONS[row]

    def features(self, rows):
        return self.backbone.encode_images(self.pixels[list(rows)])[:, 0]

    def augmented(self, rows, random):
        return self.features(rows)

    def patches(self, rows):
        return self.backbone.encode_patches(self.pixels[list(rows)])


def step(folder, name, start, stop, processes=1):
    """Loss and averaged gradients of rows `start` to `stop` of a batch of six."""
    from cir.backbones import load

    backbone = load(folder, device="cpu")
    method = build(name, NAMES[name], backbone, seed=1).train()
    if name == "searle":
        phrases = Path(tempfile.mkdtemp()) / "phrases.jsonl"
        phrases.write_text(PHRASES)
        method.options.phrases = str(phrases)
    if name == "context_i2w":
        torch.nn.init.constant_(method.im2text.local_gate, 0.5)
    named = trainables(method, method.trains)
    ready = method.prepare(backbone, Noise(backbone), seed=0, draws=100, store=NoStore())
    batch = ready.batch(list(range(start, stop)), StepRandom(0, 0, start, stop, 6))
    loss = sum(method.losses(backbone, batch).values())
    loss.backward()
    if processes > 1:
        dist.all_reduce(loss.detach())
        loss = loss / processes
    for parameter in named.values():
        if processes > 1:
            dist.all_reduce(parameter.grad)
            parameter.grad /= processes
    return {"loss": loss.detach(), **{name: p.grad for name, p in named.items()}}


def main(folder, out):
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    start = 3 * dist.get_rank()
    found = {name: step(folder, name, start, start + 3, processes=2) for name in NAMES}
    if dist.get_rank() == 0:
        torch.save(found, out)
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def shared(tiny_clip_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("processes") / "out"
    two_processes(__file__, tiny_clip_folder, out, timeout=240)
    return torch.load(out, weights_only=True)


@pytest.mark.parametrize("name", NAMES)
def test_two_processes_equal_one_with_the_whole_batch(tiny_clip_folder, shared, name):
    alone = step(str(tiny_clip_folder), name, 0, 6)
    assert alone.keys() == shared[name].keys()
    for key, expected in alone.items():
        torch.testing.assert_close(shared[name][key], expected, atol=1e-5, rtol=2e-3)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
