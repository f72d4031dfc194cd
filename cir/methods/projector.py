"""Projectors from the joint embedding space into the text tower's word-embedding space."""

from itertools import pairwise

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

    def __init__(self, width: int, word_width: int, dropout: float = 0.5, hidden: int = 0) -> None:
        super().__init__()
        hidden = hidden or 4 * width
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
                x = dropped(x, self.dropout, random, f"phi.layers.{index}")
        return x


class Im2Text(nn.Module):
    """The projector of Pic2Word (arXiv:2302.03084) and KEDs (arXiv:2403.16005).

    [Linear - Dropout - ReLU] times `layers`, then Linear; the first takes `width` to `middle`, 512 for every backbone
    in the published checkpoints. Torch's initialisation, a raw feature as input. Parameter names (`layers.0.0`,
    `layers.1.0`, `fc_out`) are those of the published checkpoints.
    """

    def __init__(self, width: int, word_width: int, middle: int = 512, layers: int = 2, dropout: float = 0.1) -> None:
        super().__init__()
        self.dropout = dropout
        self.layers = hidden_layers(width, middle, layers)
        self.fc_out = nn.Linear(middle if layers else width, word_width)

    def forward(self, image: Float[Tensor, "b d"], random: StepRandom | None = None) -> Float[Tensor, "b w"]:
        """Project; dropout is on in training mode when `random` is given, and takes its masks from there."""
        drawn = random if self.training else None
        return self.fc_out(through(self.layers, image, self.dropout, drawn, "im2text.layers"))


def hidden_layers(width: int, middle: int, layers: int) -> nn.Sequential:
    """Build the hidden layers of `Im2Text`, dropout's place (index 1) kept free: its masks come from outside."""
    widths = [width, *[middle] * layers]
    return nn.Sequential(*(nn.Sequential(nn.Linear(i, o), nn.Identity(), nn.ReLU()) for i, o in pairwise(widths)))


def through(
    layers: nn.Sequential, x: Float[Tensor, "b d"], dropout: float, random: StepRandom | None, name: str
) -> Float[Tensor, "b m"]:
    """Apply `hidden_layers`; with `random`, dropout between each linear layer and its ReLU."""
    for index, layer in enumerate(layers):
        linear, _, relu = layer.children()
        x = linear(x)
        if random is not None:
            x = dropped(x, dropout, random, f"{name}.{index}")
        x = relu(x)
    return x


def dropped(x: Float[Tensor, "b m"], dropout: float, random: StepRandom, name: str) -> Float[Tensor, "b m"]:
    """Drop a share `dropout` of the entries and scale the others up; the mask is the draw called `name`."""
    kept = 1 - dropout
    mask = random.keep(name, kept, x.shape[-1]).to(x.device)
    return torch.where(mask, x / kept, 0.0)
