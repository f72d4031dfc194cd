"""Counts of the matrix products behind a text tower: exact, free of noise, and the same on every machine."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass
class TokenCount:
    """Work done in the linears of a text tower's layers, in token passes.

    One token pass is one token through every linear of every layer once: its multiply-adds are the unit, so a token
    that skips a linear counts as the fraction it still costs. A frozen forward over 77 positions is 77 `forward`; a
    gradient to pseudo-words through them another 77 `backward_inputs`; gradients of the weights another 77
    `weight_gradients`, which a frozen tower must not have.
    """

    forward: float = 0.0
    backward_inputs: float = 0.0
    weight_gradients: float = 0.0

    @property
    def total(self) -> float:
        """All three."""
        return self.forward + self.backward_inputs + self.weight_gradients


@contextmanager
def count_tokens(tower: nn.Module) -> Iterator[TokenCount]:
    """Count what a text tower multiplies until the block ends, backward passes included.

    `tower` is anything with Hugging Face's `text_model.encoder.layers`. A product of a backward pass counts when the
    gradient of the linear's output arrives; which products it asks for was settled in the forward pass.
    """
    layers = tower.get_submodule("text_model.encoder.layers")
    linears = [module for module in layers.modules() if isinstance(module, nn.Linear)]
    whole = sum(linear.weight.numel() for linear in linears)
    count = TokenCount()

    def after(linear: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        assert isinstance(linear, nn.Linear)
        passes = output.numel() // linear.out_features * linear.weight.numel() / whole
        count.forward += passes
        if output.requires_grad:
            to_input, to_weight = inputs[0].requires_grad, linear.weight.requires_grad

            def arrived(grad: Tensor) -> None:
                count.backward_inputs += passes * to_input
                count.weight_gradients += passes * to_weight

            output.register_hook(arrived)

    handles = [linear.register_forward_hook(after) for linear in linears]
    try:
        yield count
    finally:
        for handle in handles:
            handle.remove()
