"""Similarities between queries and targets of several vectors each: what a contrastive loss and the search compare."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def max_similarity(queries: Float[Tensor, "b n d"], targets: Float[Tensor, "g t d"]) -> Float[Tensor, "b g"]:
    """Compare by the greatest cosine over all pairs of vectors of both sides, float32.

    With n = t = 1 it is the cosine; with one query vector and the t = 32 query outputs of a BLIP-2 Q-Former it is the
    image-text similarity of BLIP-2 (arXiv:2301.12597, section 3.2) and SPRC (arXiv:2310.05473). Rows may be raw. It
    holds b x g x n x t numbers: callers with many targets go through them in blocks.

    >>> queries = torch.tensor([[[3.0, 0.0]]])
    >>> max_similarity(queries, torch.tensor([[[0.0, 1.0], [2.0, 0.0]]]))
    tensor([[1.]])
    """
    with torch.autocast(queries.device.type, enabled=False):
        left, right = F.normalize(queries.float(), dim=-1), F.normalize(targets.float(), dim=-1)
        return torch.einsum("bnd,gtd->bgnt", left, right).amax(dim=(2, 3))
