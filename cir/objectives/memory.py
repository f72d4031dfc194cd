"""Cross-batch memory: vectors of past batches as further negatives (XBM, Wang et al., CVPR 2020, arXiv:1912.06798)."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from cir.errors import InputError


class Memory(nn.Module):
    """The last `size` vectors pushed, oldest first, at unit length; zero rows are places not yet taken.

    For `nt_xent(..., memory=memory.rows)`: read, then push what the next batches shall be contrasted with. The rows are
    a buffer of the module, so a method that holds a memory has it in its snapshots and a resumed run goes on with the
    same negatives. Under several processes push gathered rows, and every process keeps the same memory. With
    accumulation each micro-batch is a batch of its own. Nothing here trains with a memory by default.
    """

    rows: Float[Tensor, "m d"]

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        if size < 1:
            raise InputError(f"memory: expected room for at least one vector, got {size}")
        self.register_buffer("rows", torch.zeros(size, width))

    @torch.no_grad()
    def push(self, vectors: Float[Tensor, "b d"]) -> None:
        """Remember vectors, without their gradient, and forget the oldest."""
        fresh = F.normalize(vectors.detach().float(), dim=-1).to(self.rows)
        self.rows = torch.cat([self.rows[len(fresh) :], fresh])[-len(self.rows) :]
