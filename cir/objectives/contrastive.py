"""Contrastive objectives over matching rows of two sides; every other row of the batch is a negative."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F


def _float32(x: Tensor) -> torch.autocast:
    """Suspend mixed precision: similarities divided by a small temperature need float32."""
    return torch.autocast(x.device.type, enabled=False)


def info_nce(similarity: Float[Tensor, "b g"], labels: Int64[Tensor, " b"] | None = None) -> Float[Tensor, ""]:
    r"""Contrast every query with all targets, in that direction only (InfoNCE, arXiv:1807.03748, equation 4).

    $L = \frac{1}{b} \sum_i \left[ -s_{i y_i} + \log \sum_j \exp(s_{ij}) \right]$ over a similarity matrix that is
    scaled already (divided by the temperature). `labels` say which column is row i's target; without them it is column
    i. In a batch the columns are the batch's targets (CLIP4Cir, SPRC); with a bank of all images and labels it is the
    loss of SPN4CIR (arXiv:2404.11317). Equal targets in two columns are each other's negatives.
    """
    with _float32(similarity):
        if labels is None:
            labels = torch.arange(len(similarity), device=similarity.device)
        return F.cross_entropy(similarity.float(), labels)


def nt_xent(
    left: Float[Tensor, "b d"],
    right: Float[Tensor, "b d"],
    temperature: float,
    memory: Float[Tensor, "m d"] | None = None,
) -> Float[Tensor, ""]:
    r"""Contrast 2b unit vectors with each other: row i of one side is the positive of row i of the other.

    With z = [n(left); n(right)] and p(i) the row matching i,
    $L = \frac{1}{2b} \sum_i \left[ -z_i z_{p(i)} / T + \log \sum_{j \ne i} \exp(z_i z_j / T) \right]$.
    Rows of the same side are negatives too (2b - 2 per anchor), a vector is not its own negative, and the positive
    is in the denominator: the loss SEARLE and RTD share (SimCLR, arXiv:2002.05709, equation 1). By logsumexp, so
    that small temperatures do not overflow. Rows may be raw; they are normalised here. Rows of a `memory`
    (`cir.objectives.Memory`) are further negatives of every anchor, zero rows are none.
    """
    with _float32(left):
        z = F.normalize(torch.cat([left.float(), right.float()]), dim=-1)
        logits = (z @ z.T / temperature).fill_diagonal_(float("-inf"))
        matching = torch.arange(len(z), device=z.device).roll(len(left))
        if memory is not None:
            empty = (memory == 0).all(dim=-1)
            logits = torch.cat([logits, (z @ memory.to(z).T / temperature).masked_fill(empty, float("-inf"))], dim=1)
        return F.cross_entropy(logits, matching)


def clip_ce(left: Float[Tensor, "b d"], right: Float[Tensor, "b d"], scale: float) -> Float[Tensor, ""]:
    """Average the cross-entropies of both directions over scaled cosines (CLIP, arXiv:2103.00020, figure 3).

    `scale` is exp(logit_scale), 100 for OpenAI's weights. Negatives come from the other side only.
    """
    with _float32(left):
        logits = scale * F.normalize(left.float(), dim=-1) @ F.normalize(right.float(), dim=-1).T
        matching = torch.arange(len(left), device=left.device)
        return (F.cross_entropy(logits, matching) + F.cross_entropy(logits.T, matching)) / 2
