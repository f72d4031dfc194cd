"""Several processes, one training: started by torchrun, gradients averaged explicitly."""

import atexit
import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True)
class Processes:
    """The place of a process among those that train together.

    Gradients are averaged by hand after the backward pass, not by a wrapper's hooks: a loss that calls a module's
    parts would slip past a wrapper's forward, and every process would train a model of its own.
    """

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes files, logs and evaluates."""
        return self.rank == 0

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors by their mean over processes, in one message."""
        if self.size == 1:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(flat)
        flat /= self.size
        for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def average_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Average gradients; a parameter one process did not use counts as zero there."""
        if self.size == 1:
            return
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self.average([parameter.grad for parameter in parameters if parameter.grad is not None])

    @torch.no_grad()
    def same_start(self, parameters: Sequence[nn.Parameter]) -> None:
        """Give every process the first one's weights."""
        if self.size > 1:
            for parameter in parameters:
                dist.broadcast(parameter.data, 0)

    def wait(self) -> None:
        """Wait for all."""
        if self.size > 1:
            dist.barrier()


def join(device: torch.device) -> Processes:
    """Join the processes torchrun started (none: a single one); the group lasts until the interpreter ends.

    A second group in one life would find the first one's addresses in torchrun's store and fail now and then.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        atexit.register(_leave)
    return Processes(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else Processes()


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
