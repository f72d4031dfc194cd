"""Every objective under two processes has the value and the gradients of one with the concatenated batch."""

import sys

import pytest
import torch
import torch.distributed as dist
from pytest import approx

from cir.objectives import clip_ce, cosine, gather, info_nce, max_similarity, mse, nt_xent
from tests.torchrun import two_processes


def sides():
    g = torch.Generator().manual_seed(0)
    return torch.randn(6, 4, generator=g), torch.randn(6, 4, generator=g)


def weight():
    return torch.nn.Parameter(torch.randn(4, 4, generator=torch.Generator().manual_seed(1)))


def pairs(rows):
    """Two vectors of two numbers for every row of four."""
    return rows.unflatten(-1, (2, 2))


MEMORY = torch.nn.functional.normalize(torch.randn(5, 4, generator=torch.Generator().manual_seed(2)), dim=-1)
OBJECTIVES = {
    "nt_xent": lambda a, b: nt_xent(gather(a), gather(b), 0.1),
    "nt_xent with a memory": lambda a, b: nt_xent(gather(a), gather(b), 0.1, MEMORY),
    "clip_ce": lambda a, b: clip_ce(gather(a), gather(b), 100.0),
    "info_nce": lambda a, b: info_nce(max_similarity(pairs(gather(a)), pairs(gather(b))) / 0.1),
    "cosine": cosine,  # a mean over rows: equal shares need no gathering
    "mse": mse,
}


def outcome(objective, rows):
    """The loss of some rows and its gradient at the weight, which both sides go through."""
    w, (left, right) = weight(), sides()
    loss = OBJECTIVES[objective](left[rows] @ w, right[rows] @ w)
    loss.backward()
    return {"loss": loss.detach().clone(), "gradient": w.grad}


def work(out):
    dist.init_process_group("gloo")
    rank, found = dist.get_rank(), {}
    for name in OBJECTIVES:
        for what, value in outcome(name, slice(3 * rank, 3 * rank + 3)).items():
            dist.all_reduce(value)
            found[f"{name}/{what}"] = value / 2
    if rank == 0:
        torch.save(found, out)
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    out = tmp_path_factory.mktemp("gather") / "out"
    two_processes(__file__, out, timeout=120)
    return torch.load(out, weights_only=True)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_two_processes_equal_one_with_the_concatenated_batch(shared, objective):
    one = outcome(objective, slice(None))
    assert float(shared[f"{objective}/loss"]) == approx(float(one["loss"]), rel=1e-5)
    torch.testing.assert_close(shared[f"{objective}/gradient"], one["gradient"], rtol=1e-5, atol=1e-5)
    assert one["gradient"].abs().max() > 1e-3


if __name__ == "__main__":
    work(sys.argv[1])
