"""Noise that stands for the modality gap: text features are perturbed where image features come at test time."""

from jaxtyping import Float
from torch import Tensor

from cir.errors import InputError, nearest
from cir.randomness import StepRandom

NOISES = ("none", "gaussian", "uniform", "uniform_gaussian")


def check(kind: str) -> None:
    """Refuse an unknown kind of noise."""
    if kind not in NOISES:
        raise InputError(f"noise {kind!r} is unknown; {nearest(kind, NOISES)}")


def perturb(features: Float[Tensor, "b d"], kind: str, scale: float, random: StepRandom) -> Float[Tensor, "b d"]:
    """Add noise of a named distribution, times `scale`, to raw features.

    `uniform_gaussian` is u g with one u ~ U(0, 1) per row and g ~ N(0, I): what LinCIR (arXiv:2312.01998, scale 1)
    and RTD (arXiv:2406.09188, scale 0.5) train with. `gaussian` is g alone; `uniform` is U(-1, 1) per feature.
    """
    check(kind)
    if kind == "none":
        return features
    if kind == "uniform":
        noise = 2 * random.uniform("noise.uniform", features.shape[-1]) - 1
    else:
        noise = random.normal("noise.gaussian", features.shape[-1])
    if kind == "uniform_gaussian":
        noise = noise * random.uniform("noise.scale", 1)
    return features + scale * noise.to(features)
