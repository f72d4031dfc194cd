"""SPRC: sentence-level prompts from a picture and a text, on BLIP-2's Q-Former.

Bai et al., "Sentence-level Prompts Benefit Composed Image Retrieval", ICLR 2024, arXiv:2310.05473; in detail as the
released code computes it (docs/methods/sprc.md).
"""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from cir.backbones.base import Backbone, ImageSide, TextTower
from cir.errors import InputError
from cir.methods.base import Batches, ImageTriplets, Method, Store, averaged
from cir.methods.qformer import (
    QFormerImages,
    TextRows,
    TripletBatch,
    TripletRows,
    as_text,
    copied,
    drawing,
    embedded,
    sentences,
    targets,
)
from cir.objectives import gather, info_nce, max_similarity, mse
from cir.prompts import Joiner, Template
from cir.schema import Query


@dataclass
class SPRCOptions:
    """SPRC's settings; the defaults are those of the released command for CIRR."""

    rtc: float = 0.4
    """Weight of the contrast between the text with the shared prompts and the target."""
    align: float = 0.4
    """Weight of the alignment of the sentence prompts with the shared prompts."""
    dropout: float = 0.1
    """Share of the Q-Former's states dropped in training; BERT's, which BLIP-2 begins with."""
    second_stage: bool = False
    """Whether queries have a text encoder of their own, which a second stage (SPN) trains; set by that."""


class SPRC(Method):
    """The picture becomes a sentence in front of the text; both together are encoded as text.

    The Q-Former reads reference and text together, and what its query tokens then hold, the "sentence prompt", is put
    before the text and encoded again, as text. Reads patch tokens; the gallery is the trained Q-Former's own.
    """

    trains = (r"parts\.(?!itm_head\.).*", "prompt_tokens", "temperature")
    paper = "Bai et al., ICLR 2024, arXiv:2310.05473"
    learns_from = "image_triplets"
    reads = "patches"
    copies = True
    Options = SPRCOptions

    def __init__(self, options: SPRCOptions, backbone: Backbone, base: Method | None = None) -> None:
        super().__init__(options, backbone)
        self.parts: Any = copied(backbone, "sprc", options.dropout)
        self.parts.itm_head.requires_grad_(False)
        count, width = self.parts.query_tokens.shape[1:]
        length = self.parts.embeddings.position_embeddings.num_embeddings
        if count + backbone.tokenizer.context > length:
            raise InputError(f"method sprc: {count} prompts and {backbone.tokenizer.context} text positions need as "
                             f"many position embeddings; {backbone.name} has {length}")  # fmt: skip
        self.prompt_tokens = nn.Parameter(0.02 * torch.randn(1, count, width))
        self.temperature = nn.Parameter(torch.tensor(1 / backbone.logit_scale))
        self.query_text: TextTower | None = None
        if options.second_stage:
            self.query_side(backbone)

    def image_side(self, backbone: Backbone) -> ImageSide:
        """Encode the gallery with the trained Q-Former: pass 3."""
        return QFormerImages(backbone, self.parts, self.settled)

    def query_side(self, backbone: Backbone) -> tuple[str, ...]:
        """Give pass 2 a copy of the text encoder: what SPN's second stage trains, while pass 1 and 3 stay."""
        if self.query_text is None:
            self.options = replace(self.options, second_stage=True)
            self.query_text = deepcopy(backbone.text).float()
            own = self.parts.state_dict()
            self.query_text.load_state_dict({name: own[name] for name in self.query_text.state_dict()})
        return (r"query_text\..*",)

    def compose(
        self,
        backbone: Backbone,
        reference: Float[Tensor, "b p v"],
        queries: Sequence[Query],
        template: Template,
        join: Joiner,
    ) -> Float[Tensor, "b 1 d"]:
        """Fuse reference and joined text into prompts, encode prompts and text (passes 1 and 2).

        Texts stand as they are, without template, cut to the text tower's context as in the released code; several per
        query (two caption orders) are averaged as unit vectors.
        """
        text, owner = sentences(backbone, queries, join)
        side: Any = self.parts if self.query_text is None else self.query_text
        prompts = self._fused(self.parts.normed(reference)[owner], text)
        states = as_text(side, *_before(prompts, embedded(side, text.ids), text))
        return averaged(side.text_projection(states[:, prompts.shape[1]]), owner, len(queries))

    def prepare(self, backbone: Backbone, source: ImageTriplets, *, seed: int, draws: int, store: Store) -> Batches:
        """Make triplets ready: the vision tower's tokens are kept by the source, `ln_vision` behind them is trained.

        Raises `InputError` for a method whose text encoder a second stage has trained.
        """
        if self.query_text is not None:
            raise InputError(
                "method sprc: its queries have a text encoder of a second stage (spn), which this training would pass "
                "by; train the first stage's checkpoint"
            )
        return TripletRows(backbone, source)

    def losses(self, backbone: Backbone, batch: TripletBatch) -> dict[str, Tensor]:
        """Contrast queries, and texts with shared prompts, with targets; align the prompts.

        One direction, the batch's other targets as negatives, a target's best vector counts. The weights of the options
        are in the terms.
        """
        tokens, text, random = self.parts.normed(batch.patches), batch.text, batch.random
        with drawing(self.parts, random, "fuse"):
            prompts = self._fused(tokens[batch.reference], text)
        with drawing(self.parts, random, "target"):
            target = targets(self.parts, tokens[batch.target])
        words, mask = _before(prompts, embedded(self.parts, text.ids), text)
        if self.options.rtc:  # passes 2 and 4 are equally long, and both text
            words, mask = torch.cat([words, self._between(text)]), torch.cat([mask, mask])
        with drawing(self.parts, random, *(("query", "text") if self.options.rtc else ("query",))):
            states = as_text(self.parts, words, mask)
        rows, count = len(prompts), prompts.shape[1]
        losses = {"itc": self._contrast(states[:rows, count], target)}
        if self.options.rtc:
            losses["rtc"] = self.options.rtc * self._contrast(states[rows:, 0], target)
        if self.options.align:
            aim = self.prompt_tokens.detach().mean(dim=1).expand(rows, -1)
            losses["align"] = self.options.align * mse(prompts.mean(dim=1), aim)
        return losses

    def _contrast(self, states: Float[Tensor, "b h"], target: Float[Tensor, "b t d"]) -> Float[Tensor, ""]:
        """InfoNCE from projected text states to targets, those of all processes."""
        query = gather(self.parts.text_projection(states)).unsqueeze(1)
        everywhere = gather(target.flatten(1)).unflatten(1, target.shape[1:])
        return info_nce(max_similarity(query, everywhere) / self.temperature)

    def _fused(self, tokens: Float[Tensor, "b p v"], text: TextRows) -> Float[Tensor, "b t h"]:
        """Pass 1: let the query tokens read picture and text; what they hold then is the sentence prompt."""
        return self.parts.fuse(tokens, text.ids, text.mask)[:, : self.parts.vectors]

    def _between(self, text: TextRows) -> Float[Tensor, "b n h"]:
        """Lay out pass 4: [CLS], the shared prompts, the rest of the text; positions count through all of them.

        Its mask is that of prompts before the text: [CLS], which changes places with them, is never masked.
        """
        count = self.prompt_tokens.shape[1]
        words = [
            self.parts.embed(text.ids[:, :1]),
            self.parts.embed(None, self.prompt_tokens.expand(len(text.ids), -1, -1), offset=1),
            self.parts.embed(text.ids[:, 1:], offset=1 + count),
        ]
        return torch.cat(words, dim=1)


def _before(
    prompts: Float[Tensor, "b t h"], words: Float[Tensor, "b l h"], text: TextRows
) -> tuple[Float[Tensor, "b n h"], Bool[Tensor, "b n"]]:
    """Lay out pass 2, prompts, then the text, and say what is seen; prompts have no positions."""
    seen = torch.cat([text.mask.new_ones(prompts.shape[:2]), text.mask], dim=1)
    return torch.cat([prompts, words], dim=1), seen
