"""The cross-batch memory: against the sum written out, the library's own, and a run that was interrupted."""

from dataclasses import dataclass

import pytest
import torch
from pytest import approx
from torch import nn
from torch.nn import functional as F

from cir.config import TrainConfig
from cir.errors import InputError
from cir.methods.base import Method, NoOptions
from cir.objectives import Memory, nt_xent
from cir.train import train


def rows(n, d, seed):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def test_a_memory_adds_its_rows_as_negatives():
    left, right = rows(3, 4, 0).requires_grad_(), rows(3, 4, 1).requires_grad_()
    past, tau = F.normalize(rows(5, 4, 2), dim=-1), 0.3
    z = [row / row.norm() for row in [*left, *right]]
    total = torch.zeros(())
    for i in range(6):
        others = [torch.exp(z[i] @ z[j] / tau) for j in range(6) if j != i]
        others += [torch.exp(z[i] @ key / tau) for key in past]
        total = total + (-z[i] @ z[(i + 3) % 6] / tau + torch.log(sum(others))) / 6
    found = nt_xent(left, right, tau, past)
    torch.testing.assert_close(found, total)
    torch.testing.assert_close(torch.autograd.grad(found, [left, right]), torch.autograd.grad(total, [left, right]))


def test_an_empty_memory_changes_nothing():
    left, right = rows(4, 3, 0), rows(4, 3, 1)
    assert float(nt_xent(left, right, 0.1, Memory(6, 3).rows)) == float(nt_xent(left, right, 0.1))


def test_equals_pytorch_metric_learning_over_several_batches():
    """In value: its memory holds both sides of each batch, the batch's own as constants; no label comes twice."""
    from pytorch_metric_learning.losses import CrossBatchMemory, NTXentLoss

    theirs, ours = CrossBatchMemory(NTXentLoss(temperature=0.2), 5, memory_size=20), Memory(20 - 8, 5)
    for step in range(5):
        x = rows(8, 5, step)
        found = nt_xent(x[:4], x[4:], 0.2, ours.rows)
        assert float(found) == approx(float(theirs(x, torch.arange(4).repeat(2) + 4 * step)), rel=1e-5)
        ours.push(x)


def test_the_oldest_are_forgotten_first():
    memory = Memory(4, 2)
    vectors = F.normalize(torch.tensor([[1.0, 0], [1, 1], [0, 1], [-1, 1], [-1, 0], [-1, -1]]), dim=-1)
    memory.push(3 * vectors[:2])  # kept at unit length
    torch.testing.assert_close(memory.rows, torch.cat([torch.zeros(2, 2), vectors[:2]]))
    memory.push(vectors[2:5])
    torch.testing.assert_close(memory.rows, vectors[1:5])
    memory.push(vectors)  # more than there is room for
    torch.testing.assert_close(memory.rows, vectors[2:])
    with pytest.raises(InputError, match="at least one"):
        Memory(0, 2)


def test_no_gradient_reaches_the_past():
    memory, x = Memory(4, 3), rows(2, 3, 0).requires_grad_()
    memory.push(x)
    assert not memory.rows.requires_grad
    nt_xent(rows(2, 3, 1).requires_grad_(), rows(2, 3, 2), 0.1, memory.rows).backward()
    assert x.grad is None


@dataclass(frozen=True)
class Pairs:
    left: torch.Tensor
    right: torch.Tensor

    def __len__(self):
        return len(self.left)

    def batch(self, rows, random):
        return self.left[list(rows)], self.right[list(rows)]


class Remembering(Method):
    """A linear map, trained against a memory."""

    trains = (r"map\..*",)
    learns_from = "pairs"

    def __init__(self, options, backbone, base=None):
        super().__init__(options, backbone)
        torch.manual_seed(0)
        self.map, self.memory = nn.Linear(6, 4), Memory(20, 4)

    def prepare(self, backbone, source, *, seed, draws, store):
        return Pairs(rows(len(source), 6, 1), rows(len(source), 6, 2))

    def losses(self, backbone, batch):
        left, right = self.map(batch[0]), self.map(batch[1])
        loss = nt_xent(left, right, 0.1, self.memory.rows)
        self.memory.push(left)
        return {"nt_xent": loss}


class Stop(Exception):
    pass


def test_a_resumed_run_goes_on_with_the_same_memory(tiny_backbone, tmp_path):
    config = TrainConfig(steps=9, batch=4, lr=1e-2, log_every=1, save_every=2, evaluate_every=5)

    def interrupt(method, step):
        if step == 5:
            raise Stop
        return {}

    def run(out, evaluate=None):
        method = Remembering(NoOptions(), tiny_backbone)
        train(method, tiny_backbone, range(40), config, out, evaluate=evaluate)
        return method.state_dict()

    whole = run(tmp_path / "whole")
    with pytest.raises(Stop):
        run(tmp_path / "cut", interrupt)
    again = run(tmp_path / "cut")
    assert set(whole) == {"map.weight", "map.bias", "memory.rows"}
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert (whole["memory.rows"].norm(dim=-1) > 0.99).all()  # full: twenty places, thirty-six vectors
