"""Projectors from the joint embedding space into the text tower's word-embedding space."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cir.randomness import StepRandom


class Phi(nn.Module):
    """The projector of SEARLE (arXiv:2303.15247), LinCIR (arXiv:2312.01998) and RTD (arXiv:2406.09188).

    Linear(d, 4d) - GELU - Dropout - Linear(4d, 4d) - GELU - Dropout - Linear(4d, w), with the erf GELU and torch's
    initialisation. The input is a raw feature: no normalisation, no residual. Parameter names (`layers.0`,
    `layers.3`, `layers.6`) are those of the published checkpoints.
    """

    def __init__(self, width: int, word_width: int, dropout: float = 0.5) -> None:
        super().__init__()
        hidden = 4 * width
        self.dropout = dropout
        self.layers = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Identity(),
            nn.Linear(hidden, hidden), nn.GELU(), nn.Identity(),
            nn.Linear(hidden, word_width),
        )  # fmt: skip

    def forward(self, image: Float[Tensor, "b d"], random: StepRandom | None = None) -> Float[Tensor, "b w"]:
        """Project; dropout is on in training mode when `random` is given, and takes its masks from there."""
        x = image
        for index, layer in enumerate(self.layers):
            x = layer(x)
            if isinstance(layer, nn.Identity) and self.training and random is not None:
                x = self._drop(x, random, f"phi.layers.{index}")
        return x

    def _drop(self, x: Tensor, random: StepRandom, name: str) -> Tensor:
        kept = 1 - self.dropout
        mask = random.keep(name, kept, x.shape[-1]).to(x.device)
        return torch.where(mask, x / kept, 0.0)
