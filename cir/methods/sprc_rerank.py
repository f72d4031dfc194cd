"""SPRC's re-ranker: a Q-Former that reads reference, text and candidate together and says whether they fit.

Bai et al., ICLR 2024, arXiv:2310.05473: not in the paper, but in its released code, without weights. It is image-text
matching (BLIP-2, arXiv:2301.12597, section 3.2) over the tokens of two pictures.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional as F

from cir.backbones.base import Backbone
from cir.errors import InputError
from cir.methods.base import Batches, ImageTriplets, Method, Store
from cir.methods.qformer import TextRows, TripletBatch, TripletRows, copied, drawing, sentences, targets
from cir.objectives import gather, max_similarity
from cir.prompts import Joiner, Template
from cir.schema import Query

MATCHED_AT_ONCE = 64
"""Pairs of a query and a candidate scored in one pass: two pictures of ViT-g's tokens are 2.9 MB per pair."""
EXCLUDED = -10000.0
"""The released code's score of what must not be drawn as a negative."""


@dataclass
class SPRCRerankOptions:
    """The re-ranker's settings."""

    dropout: float = 0.1
    """Share of the Q-Former's states dropped in training; BERT's, which BLIP-2 begins with."""


class SPRCRerank(Method):
    """Scores candidates of another method's ranking; makes no query vectors of its own."""

    trains = (r"parts\.(embeddings|qformer|post_layernorm|itm_head)\..*", r"parts\.query_tokens")
    paper = "Bai et al., ICLR 2024, arXiv:2310.05473"
    learns_from = "image_triplets"
    reads = "patches"
    copies = True
    matches = True
    Options = SPRCRerankOptions

    def __init__(self, options: SPRCRerankOptions, backbone: Backbone, base: Method | None = None) -> None:
        super().__init__(options, backbone)
        self.parts: Any = copied(backbone, "sprc_rerank", options.dropout)
        del self.parts.vision_projection, self.parts.text_projection  # nothing here has a joint space

    def compose(
        self,
        backbone: Backbone,
        reference: Float[Tensor, "b p v"],
        queries: Sequence[Query],
        template: Template,
        join: Joiner,
    ) -> Float[Tensor, "b t d"]:
        """Refuse: there is no vector to search with."""
        raise InputError(
            "method sprc_rerank: it re-ranks another method's ranking and cannot search by itself; evaluate that "
            "method with rerank.top=50 rerank.method=CHECKPOINT"
        )

    @torch.no_grad()
    def match(
        self,
        backbone: Backbone,
        reference: Float[Tensor, "b p v"],
        queries: Sequence[Query],
        template: Template,
        join: Joiner,
        candidates: Float[Tensor, "b k p v"],
    ) -> Float[Tensor, "b k"]:
        """Give the probability that reference, joined text and candidate fit; the mean over a query's texts.

        Texts stand as they are, without template, cut to the text tower's context, as in training.
        """
        text, owner = sentences(backbone, queries, join)
        rows, kept = len(owner), candidates.shape[1]
        row = torch.arange(rows, device=owner.device).repeat_interleave(kept)
        place = torch.arange(kept, device=owner.device).repeat(rows)
        scores = []
        for pair in torch.arange(rows * kept, device=owner.device).split(MATCHED_AT_ONCE):
            query = owner[row[pair]]
            own = self.parts.normed(reference[query].to(owner.device))
            seen = self.parts.normed(candidates[query, place[pair]].to(owner.device))
            scores.append(self._logits(own, seen, text[row[pair]]).float().softmax(dim=1)[:, 1])
        total = scores[0].new_zeros(len(queries), kept).index_add(0, owner, torch.cat(scores).view(rows, kept))
        return total / torch.bincount(owner, minlength=len(queries))[:, None]

    def prepare(self, backbone: Backbone, source: ImageTriplets, *, seed: int, draws: int, store: Store) -> Batches:
        """Make triplets ready: the vision tower's tokens are kept by the source, `ln_vision` behind them is trained."""
        return TripletRows(backbone, source)

    def losses(self, backbone: Backbone, batch: TripletBatch) -> dict[str, Tensor]:
        """Tell fitting triplets from those with another target and those with another query: cross-entropy, 3b rows.

        The others come from the batch of all processes, drawn by what the frozen model finds alike: of the targets one
        that the text resembles, of the queries one whose text resembles the target. Raises `InputError` for a batch of
        one, which has no others.
        """
        reference, target = batch.patches[batch.reference], batch.patches[batch.target]
        others = [gather(tokens.flatten(1)).unflatten(1, tokens.shape[1:]) for tokens in (reference, target)]
        texts = TextRows(_gathered(batch.text.ids), _gathered(batch.text.mask).bool())
        other_target, other_query = negatives(backbone, batch)
        reference, target = self.parts.normed(reference), self.parts.normed(target)
        with drawing(self.parts, batch.random, "fits", "other target", "other query"):
            logits = self._logits(
                torch.cat([reference, reference, self.parts.normed(others[0][other_query])]),
                torch.cat([target, self.parts.normed(others[1][other_target]), target]),
                TextRows(
                    torch.cat([batch.text.ids, batch.text.ids, texts.ids[other_query]]),
                    torch.cat([batch.text.mask, batch.text.mask, texts.mask[other_query]]),
                ),
            )
        fits = torch.arange(len(logits), device=logits.device) < len(batch.reference)
        return {"itm": F.cross_entropy(logits.float(), fits.long())}

    def _logits(
        self, reference: Float[Tensor, "n p v"], candidate: Float[Tensor, "n p v"], text: TextRows
    ) -> Float[Tensor, "n 2"]:
        """Let the query tokens read the text and both pictures' tokens in a row; the head's mean over them."""
        return self.parts.matching(self.parts.fuse(torch.cat([reference, candidate], dim=1), text.ids, text.mask))


@torch.no_grad()
def negatives(backbone: Backbone, batch: TripletBatch) -> tuple[Int64[Tensor, " b"], Int64[Tensor, " b"]]:
    """Draw for every row another target, and another query, of the batch of all processes.

    From the softmax of the frozen model's text-to-target similarities over its temperature: for a text over targets,
    for a target over texts. Rows with the same target picture are not drawn.
    """
    frozen: Any = backbone
    vectors = targets(frozen.parts, frozen.parts.normed(batch.patches[batch.target]))
    texts = backbone.encode_text(batch.prompt)
    every_target, every_text = gather(vectors.flatten(1)).unflatten(1, vectors.shape[1:]), gather(texts)
    same = batch.number[:, None] == _gathered(batch.number[:, None])[:, 0]
    if same.shape[1] < 2:
        raise InputError("method sprc_rerank: negatives come from the batch; expected train.batch of at least 2, got 1")
    of_text = max_similarity(texts.unsqueeze(1), every_target)
    of_target = max_similarity(every_text.unsqueeze(1), vectors).T
    return (
        _draw(of_text * backbone.logit_scale, same, batch.random.uniform("other target")),
        _draw(of_target * backbone.logit_scale, same, batch.random.uniform("other query")),
    )


def _draw(
    similarity: Float[Tensor, "b g"], excluded: Bool[Tensor, "b g"], draw: Float[Tensor, " b"]
) -> Int64[Tensor, " b"]:
    """Draw a column per row from the softmax of those not excluded, by a number from [0, 1)."""
    shares = similarity.double().masked_fill(excluded, EXCLUDED).softmax(dim=1).cumsum(dim=1)
    point = draw.to(shares)[:, None] * shares[:, -1:]
    return torch.searchsorted(shares, point, right=True)[:, 0].clamp(max=shares.shape[1] - 1)


def _gathered(rows: Int64[Tensor, "b n"] | Bool[Tensor, "b n"]) -> Int64[Tensor, "g n"]:
    """Concatenate whole numbers of all processes."""
    return gather(rows.double()).long()
