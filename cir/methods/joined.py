"""Queries' joined texts as they stand, without a template: what methods encode that add a text to an image."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from cir.backbones.base import Backbone, TextTower
from cir.errors import InputError
from cir.methods.base import averaged
from cir.prompts import Joiner, Overflow, tokenize
from cir.schema import Prompt, Query


def sentences(
    backbone: Backbone, queries: Sequence[Query], join: Joiner, overflow: Overflow = "error"
) -> tuple[Prompt, Int64[Tensor, " n"]]:
    """Lay out the queries' joined texts, without template; a row of the prompt belongs to query `owner[row]`."""
    joined = [join(query.texts) for query in queries]
    empty = [query.id for query, texts in zip(queries, joined, strict=True) if not texts]
    if empty:
        raise InputError(f"{len(empty)} queries have no text, first {empty[:3]}; this method reads texts")
    owner = torch.tensor([i for i, texts in enumerate(joined) for _ in texts], device=backbone.device)
    return tokenize(backbone.tokenizer, [[text] for texts in joined for text in texts], overflow), owner


def text_vectors(
    backbone: Backbone, queries: Sequence[Query], join: Joiner, overflow: Overflow = "error"
) -> Float[Tensor, "b 1 d"]:
    """Encode the queries' joined texts: unit vectors, averaged over a query's joins and normalised again."""
    prompt, owner = sentences(backbone, queries, join, overflow)
    return averaged(backbone.encode_text(prompt), owner, len(queries))


def text_features(
    backbone: Backbone,
    queries: Sequence[Query],
    join: Joiner,
    overflow: Overflow = "error",
    tower: TextTower | None = None,
) -> Float[Tensor, "b d"]:
    """Encode the queries' joined texts: raw features, the mean of them where a query has several joins.

    A `tower` of the method's own takes the place of the backbone's.
    """
    prompt, owner = sentences(backbone, queries, join, overflow)
    vectors = backbone.encode_text(prompt) if tower is None else tower.encode(prompt).float()
    rows = torch.bincount(owner, minlength=len(queries))[:, None]
    return vectors.new_zeros(len(queries), vectors.shape[1]).index_add(0, owner, vectors) / rows
