"""BLIP-2's Q-Former: the parts that methods train, in LAVIS's numerics, and its text pass as a text tower.

Li et al., "BLIP-2: Bootstrapping Language-Image Pre-training with Frozen Image Encoders and Large Language Models",
ICML 2023, arXiv:2301.12597, section 3. A BERT whose layers attend to a picture in every second layer, and whose
positions go through one of two feed-forward networks: one for the learned queries, one for text. The modules are those
of `transformers`, and so are their names. All of it computes in float32, whatever the vision tower computes in, as in
LAVIS; a caller's autocast is respected.
"""

from copy import deepcopy
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from cir.backbones.base import TextTower, splice
from cir.backbones.text import by_length
from cir.schema import Prompt

LN_VISION_EPS = 1e-5
"""Epsilon of the norm over a picture's tokens in LAVIS; `transformers` gives it the vision tower's 1e-6."""


class QFormerParts(nn.Module):
    """All of BLIP-2's retrieval model behind the vision tower, as functions a method composes; all differentiable.

    Submodules are named as in `transformers.Blip2ForImageTextRetrieval`, but for `post_layernorm` (LAVIS's
    `ln_vision`), which lies outside the vision tower here, because SPRC trains it while the tower is frozen. Deep-copy
    them to train them.
    """

    def __init__(self, model: Any, post_layernorm: nn.LayerNorm) -> None:
        """Take the parts of a loaded `Blip2ForImageTextRetrieval`; weights are shared, and become float32."""
        super().__init__()
        self.embeddings = model.embeddings
        self.qformer = model.qformer
        self.query_tokens = model.query_tokens
        self.vision_projection = model.vision_projection
        self.text_projection = model.text_projection
        self.itm_head = model.itm_head
        self.post_layernorm = post_layernorm
        self.post_layernorm.eps = LN_VISION_EPS
        self.float()

    @property
    def vectors(self) -> int:
        """Count the query tokens: t, vectors per image."""
        return int(self.query_tokens.shape[1])

    def normed(self, patches: Float[Tensor, "b p v"]) -> Float[Tensor, "b p v"]:
        """Put a picture's tokens through `ln_vision`, in float32."""
        return self.post_layernorm(patches.float())

    def image(self, tokens: Float[Tensor, "b p v"]) -> Float[Tensor, "b t h"]:
        """Let the query tokens look at pictures (normed tokens): what `vision_projection` makes joint vectors of."""
        queries = self.query_tokens.expand(len(tokens), -1, -1)
        return self.qformer(
            query_embeds=queries, query_length=self.vectors, encoder_hidden_states=tokens
        ).last_hidden_state

    def fuse(
        self,
        tokens: Float[Tensor, "b p v"],
        ids: Int[Tensor, "b l"],
        mask: Bool[Tensor, "b l"] | Int[Tensor, "b l"],
        queries: Float[Tensor, "b t h"] | None = None,
        words: Float[Tensor, "b l h"] | None = None,
    ) -> Float[Tensor, "b n h"]:
        """Run queries and text together, queries first (n = t + l): image-text matching, and SPRC's first pass.

        Every position sees all queries and the text where `mask` is on; only queries look at the picture (normed
        tokens), and only they go through the queries' feed-forward network. `queries` are the model's own unless
        given; `words` replace the word embeddings of `ids` (pseudo-words spliced in).
        """
        if queries is None:
            queries = self.query_tokens.expand(len(ids), -1, -1)
        count = queries.shape[1]
        return self.qformer(
            query_embeds=torch.cat([queries, self.embed(ids, words)], dim=1),
            query_length=count,
            attention_mask=torch.cat([mask.new_ones(len(mask), count), mask], dim=1),
            encoder_hidden_states=tokens,
        ).last_hidden_state

    def text(
        self, words: Float[Tensor, "b m h"], mask: Bool[Tensor, "b m"] | Int[Tensor, "b m"]
    ) -> Float[Tensor, "b m h"]:
        """Run embedded words alone: no picture, and the text's feed-forward network at every position.

        `words` have their positions (`embed`) and are not normed yet: the Q-Former begins with that norm.
        """
        return self.qformer(query_embeds=words, query_length=0, attention_mask=mask).last_hidden_state

    def embed(
        self, ids: Int[Tensor, "b l"] | None, words: Float[Tensor, "b l h"] | None = None, offset: int = 0
    ) -> Float[Tensor, "b l h"]:
        """Add position embeddings, from position `offset` on, to word embeddings: those of `ids`, or the given ones."""
        if words is None:
            words = self.embeddings.word_embeddings(ids)
        return words + self.embeddings.position_embeddings.weight[offset : offset + words.shape[1]]

    def matching(self, fused: Float[Tensor, "b n h"]) -> Float[Tensor, "b 2"]:
        """Give the logits of "does not fit" and "fits": the matching head, averaged over the query positions."""
        return self.itm_head(fused[:, : self.vectors]).mean(dim=1)


class Blip2TextTower(TextTower):
    """BLIP-2's text side: the Q-Former's text pass, the state at [CLS] projected into the joint space.

    It holds what that pass uses and nothing else (of ViT-g's Q-Former 109 of 186 million weights), and equals
    `transformers` in value and gradient. Rows see all of their own tokens and no padding. Parameter names are those of
    `Blip2ForImageTextRetrieval`.
    """

    def __init__(self, parts: QFormerParts) -> None:
        """Build it around a model's parts; weights are shared with them until it is deep-copied."""
        super().__init__()
        self.embeddings = parts.embeddings
        self.qformer = _text_only(parts.qformer)
        self.text_projection = parts.text_projection
        self.word_width: int = parts.embeddings.word_embeddings.embedding_dim

    def forward(
        self,
        ids: Int[Tensor, "b l"],
        ends: Int[Tensor, " b"],
        slots: Int[Tensor, "b s"] | None = None,
        pseudo: Float[Tensor, "o n w"] | None = None,
        owner: Int[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "b d"]:
        """Embed, splice, add positions, encode what lies up to [SEP], and project the state at [CLS], position 0."""
        ids, mask = up_to_end(ids, ends)
        words = spliced(self.embeddings, ids, slots, pseudo, owner)
        words = words + self.embeddings.position_embeddings.weight[: words.shape[1]]
        states = self.qformer(query_embeds=words, query_length=0, attention_mask=mask).last_hidden_state
        return self.text_projection(states[:, 0])

    def encode(
        self,
        prompt: Prompt,
        pseudo: Float[Tensor, "o n w"] | None = None,
        owner: Int[np.ndarray, " b"] | None = None,
    ) -> Float[Tensor, "b d"]:
        """Encode a rendered prompt on the tower's device, rows of similar length together, as `PaddedTower` does."""
        return by_length(super().encode, prompt, pseudo, owner)


def up_to_end(ids: Int[Tensor, "b l"], ends: Int[Tensor, " b"]) -> tuple[Int[Tensor, "b m"], Bool[Tensor, "b m"]]:
    """Cut rows to the longest of them, and mark what lies up to each one's end."""
    ids = ids[:, : int(ends.max()) + 1] if len(ends) else ids[:, :1]
    return ids, torch.arange(ids.shape[1], device=ids.device) <= ends[:, None]


def spliced(
    embeddings: Any,
    ids: Int[Tensor, "b l"],
    slots: Int[Tensor, "b s"] | None,
    pseudo: Float[Tensor, "o n w"] | None,
    owner: Int[Tensor, " b"] | None,
) -> Float[Tensor, "b l w"]:
    """Look up word embeddings and put pseudo-words into their slots, as `TextTower.forward` says; no positions yet."""
    words = embeddings.word_embeddings(ids)
    if slots is None or pseudo is None:
        return words
    return splice(words, slots, pseudo if owner is None else pseudo[owner])


def _text_only(qformer: Any) -> Any:
    """Copy the modules of a Q-Former's text pass; they share their weights with the original."""
    shared = {id(parameter): parameter for parameter in qformer.parameters()}
    copy = deepcopy(qformer, shared)
    for layer in copy.encoder.layer:
        for name in ("crossattention", "intermediate_query", "output_query"):
            if hasattr(layer, name):
                delattr(layer, name)
    return copy
