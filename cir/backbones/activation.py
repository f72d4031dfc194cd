"""The activation of OpenAI's CLIP, x sigmoid(1.702 x), in fewer passes over memory than as written."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

SLOPE = 1.702


class QuickGELU(torch.autograd.Function):
    """x sigmoid(1.702 x) = silu(u) / 1.702 with u = 1.702 x, whose derivative is that of silu at u: one fused pass."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Float[Tensor, "m h"]) -> tuple[Float[Tensor, "m h"], Float[Tensor, "m h"]]:
        """Return the value, and u for the backward pass."""
        u = x * SLOPE
        return F.silu(u).mul_(1 / SLOPE), u

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
        """Keep u only."""
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1])

    @staticmethod
    def backward(ctx: Any, *grads: Float[Tensor, "m h"]) -> Float[Tensor, "m h"]:
        """Multiply by silu'(u)."""
        product: Tensor = torch.ops.aten.silu_backward(grads[0], ctx.saved_tensors[0])
        return product


def quick_gelu(x: Float[Tensor, "m h"]) -> Float[Tensor, "m h"]:
    """Compute x sigmoid(1.702 x), equal to the expression but for the last bits."""
    if torch.is_grad_enabled() and x.requires_grad:
        value: Tensor = QuickGELU.apply(x)[0]
        return value
    return F.silu(x * SLOPE, inplace=True).mul_(1 / SLOPE)


def fast(module: Any) -> Callable[[Tensor], Tensor]:
    """Return the quick version of an activation module of Hugging Face, or the module itself."""
    found: Callable[[Tensor], Tensor] = quick_gelu if type(module).__name__ == "QuickGELUActivation" else module
    return found
