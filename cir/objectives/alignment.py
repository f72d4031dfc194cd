"""Objectives that pull one vector towards another, without negatives."""

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def mse(prediction: Float[Tensor, "b d"], target: Float[Tensor, "b d"]) -> Float[Tensor, ""]:
    """Mean squared difference over rows and features of raw (not normalised) vectors (LinCIR, arXiv:2312.01998).

    >>> import torch
    >>> mse(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 4.0]]))
    tensor(2.)
    """
    return (prediction.float() - target.float()).square().mean()


def cosine(prediction: Float[Tensor, "b d"], target: Float[Tensor, "b d"]) -> Float[Tensor, ""]:
    """Mean over rows of one minus the cosine (SEARLE, arXiv:2303.15247, section 3).

    >>> import torch
    >>> cosine(torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 2.0]]))
    tensor(1.)
    """
    return (1 - (F.normalize(prediction.float(), dim=-1) * F.normalize(target.float(), dim=-1)).sum(dim=-1)).mean()
