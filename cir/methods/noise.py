"""Noise that stands for the modality gap: text features are perturbed where image features come at test time."""

from jaxtyping import Float
from torch import Tensor

from cir.errors import InputError, nearest
from cir.randomness import StepRandom

NOISES = ("none", "gaussian", "uniform", "uniform_gaussian", "student_t", "chi_square")
STUDENT_FREEDOM = 3
"""Degrees of freedom of `student_t`: the fewest whole ones with a finite variance (3)."""


def check(kind: str) -> None:
    """Refuse an unknown kind of noise."""
    if kind not in NOISES:
        raise InputError(f"noise {kind!r} is unknown; {nearest(kind, NOISES)}")


def perturb(features: Float[Tensor, "b d"], kind: str, scale: float, random: StepRandom) -> Float[Tensor, "b d"]:
    """Add noise of a named distribution, times `scale`, to raw features; drawn for the global batch.

    `uniform_gaussian` is u g with one u ~ U(0, 1) per row and g ~ N(0, I): what the released code of LinCIR
    (arXiv:2312.01998, scale 1) and of RTD (arXiv:2406.09188, scale 0.5) draws. The others are for studies over
    distributions as LinCIR's paper has one, independent per feature: `gaussian` N(0, 1), `uniform` U(-1, 1),
    `student_t` with 3 degrees of freedom, `chi_square` with one, not centred (mean 1, variance 2). Their parameters are
    this project's: the paper's are not in the released code.
    """
    check(kind)
    if kind == "none":
        return features
    return features + scale * _draw(kind, features.shape[-1], random).to(features)


def _draw(kind: str, width: int, random: StepRandom) -> Float[Tensor, "b d"]:
    if kind == "uniform":
        return 2 * random.uniform("noise.uniform", width) - 1
    gaussian = random.normal("noise.gaussian", width)
    if kind == "uniform_gaussian":
        return gaussian * random.uniform("noise.scale", 1)
    if kind == "chi_square":
        return gaussian.square()
    if kind == "student_t":
        return gaussian / random.normal("noise.freedom", STUDENT_FREEDOM, width).square().mean(dim=1).sqrt()
    return gaussian
