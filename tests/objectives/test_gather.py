"""Gathered negatives: two processes have the loss and the gradients of one with the concatenated batch."""

import os
import subprocess
import sys

import torch
import torch.distributed as dist
from pytest import approx

from cir.objectives import gather, nt_xent


def sides():
    g = torch.Generator().manual_seed(0)
    return torch.randn(6, 4, generator=g), torch.randn(6, 4, generator=g)


def weight():
    return torch.nn.Parameter(torch.randn(4, 4, generator=torch.Generator().manual_seed(1)))


def work(out):
    dist.init_process_group("gloo")
    w, (left, right) = weight(), sides()
    mine = slice(3 * dist.get_rank(), 3 * dist.get_rank() + 3)
    loss = nt_xent(gather(left[mine] @ w), gather(right[mine] @ w), 0.1)
    loss.backward()
    dist.all_reduce(w.grad)
    if dist.get_rank() == 0:
        torch.save({"loss": loss.detach(), "gradient": w.grad / 2}, out)
    dist.destroy_process_group()


def test_two_processes_equal_one_with_the_concatenated_batch(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*command, __file__, str(tmp_path / "out")],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = torch.load(tmp_path / "out", weights_only=True)
    w, (left, right) = weight(), sides()
    loss = nt_xent(left @ w, right @ w, 0.1)
    loss.backward()
    assert float(found["loss"]) == approx(loss.item(), rel=1e-6)
    torch.testing.assert_close(found["gradient"], w.grad, rtol=1e-5, atol=1e-6)


if __name__ == "__main__":
    work(sys.argv[1])
