"""Rows of all processes, with gradient: what a contrastive loss needs to see the global batch."""

from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor


class _Gather(torch.autograd.Function):
    """All-gather whose backward sums the gradients that every process has for the local rows."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        """Collect the rows of all processes, in the order of their ranks."""
        blocks = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(blocks, rows.contiguous())
        return torch.cat(blocks)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """Sum over processes and keep the local rows' part."""
        total = gradient.contiguous()
        dist.all_reduce(total)
        return total.chunk(dist.get_world_size())[dist.get_rank()]


def gather(rows: Float[Tensor, "b d"]) -> Float[Tensor, "g d"]:
    """Concatenate every process's rows in rank order; without processes, return the rows as they are.

    When each process computes the same loss on gathered rows and parameter gradients are *averaged* over
    processes, the result is the gradient of that loss on one process with the concatenated batch. All processes
    must hold equally many rows.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return rows
    return _Gather.apply(rows)
