"""Text towers: token rows with pseudo-words in, raw vectors out.

The room of every implementation of `cir.backbones.base.TextTower`; `TEXT_TOWERS` names those `load` can build for a
causal CLIP text model.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from cir.backbones.base import TextTower, splice
from cir.backbones.packed import PackedTower
from cir.schema import Prompt

GROUP, GROUPS = 16, 4
"""A padded batch is encoded in at most `GROUPS` pieces of at least `GROUP` rows."""


def causal_mask(length: int, like: Tensor) -> Float[Tensor, "1 1 l l"]:
    """Build the additive mask: 0 on and below the diagonal, the dtype's minimum above."""
    mask = torch.full((length, length), torch.finfo(like.dtype).min, dtype=like.dtype, device=like.device)
    return mask.triu(1)[None, None]


def by_length(
    encode: Callable[..., Float[Tensor, "b d"]],
    prompt: Prompt,
    pseudo: Float[Tensor, "o n w"] | None,
    owner: Int[np.ndarray, " b"] | None,
) -> Float[Tensor, "b d"]:
    """Encode rows of similar length together (`TextTower.encode`), so that short ones are not padded to the longest."""
    order = np.argsort(prompt.ends, kind="stable")
    groups = np.array_split(order, min(GROUPS, max(1, len(order) // GROUP)))
    if len({int(prompt.ends[group[-1]]) for group in groups if len(group)}) <= 1:
        return encode(prompt, pseudo, owner)
    owner = np.arange(len(prompt)) if owner is None else owner
    vectors = torch.cat([encode(prompt[group], pseudo, owner[group]) for group in groups])
    return vectors[torch.from_numpy(np.argsort(order, kind="stable")).to(vectors.device)]


class PaddedTower(TextTower):
    """CLIP's causal text tower on padded rows, cut to the longest prompt of the batch.

    The cut is exact: positions behind end-of-text cannot reach it. `encode` takes rows of similar length together, so
    that short rows are not padded to the longest of all. Parameter names are those of Hugging Face's
    `CLIPTextModelWithProjection`.
    """

    def __init__(self, text_model: Any, text_projection: nn.Linear) -> None:
        super().__init__()
        self.text_model = text_model
        self.text_projection = text_projection
        self.word_width: int = text_model.embeddings.token_embedding.embedding_dim

    def forward(
        self,
        ids: Int[Tensor, "b l"],
        ends: Int[Tensor, " b"],
        slots: Int[Tensor, "b s"] | None = None,
        pseudo: Float[Tensor, "o n w"] | None = None,
        owner: Int[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "b d"]:
        """Embed, splice, encode causally, and project the state at end-of-text, as OpenAI's CLIP does."""
        model = self.text_model
        ids = ids[:, : int(ends.max()) + 1] if len(ends) else ids[:, :1]
        words = model.embeddings.token_embedding(ids)
        if slots is not None and pseudo is not None:
            words = splice(words, slots, pseudo if owner is None else pseudo[owner])
        states = model.embeddings(inputs_embeds=words)
        # Under another argument name the encoder takes the mask silently and runs bidirectionally (transformers 5).
        states = model.encoder(inputs_embeds=states, attention_mask=causal_mask(ids.shape[1], states))[0]
        # Pooled where the prompt ends, not where the config's eos_token_id says: old configs carry a wrong one.
        last = states[torch.arange(len(states), device=states.device), ends]
        return self.text_projection(model.final_layer_norm(last))

    def encode(
        self,
        prompt: Prompt,
        pseudo: Float[Tensor, "o n w"] | None = None,
        owner: Int[np.ndarray, " b"] | None = None,
    ) -> Float[Tensor, "b d"]:
        """Encode a rendered prompt on the tower's device, rows of similar length together."""
        return by_length(super().encode, prompt, pseudo, owner)


class WholeTower(TextTower):
    """SigLIP's text tower: every position sees every other, padding included, pooled at the last one.

    Rows must have the full context (`Tokenizer.fixed_length`). Parameter names are Hugging Face's.
    """

    def __init__(self, text_model: Any) -> None:
        super().__init__()
        self.text_model = text_model
        self.word_width: int = text_model.embeddings.token_embedding.embedding_dim
        self.context: int = text_model.embeddings.position_embedding.num_embeddings

    def forward(
        self,
        ids: Int[Tensor, "b l"],
        ends: Int[Tensor, " b"],
        slots: Int[Tensor, "b s"] | None = None,
        pseudo: Float[Tensor, "o n w"] | None = None,
        owner: Int[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "b d"]:
        """Embed, splice, encode without a mask, and put the last position through the head (arXiv:2303.15343)."""
        if ids.shape[1] != self.context:
            raise ValueError(f"this tower is not causal: rows must have {self.context} positions, not {ids.shape[1]}")
        model = self.text_model
        words = model.embeddings.token_embedding(ids)
        if slots is not None and pseudo is not None:
            words = splice(words, slots, pseudo if owner is None else pseudo[owner])
        states = model.encoder(inputs_embeds=model.embeddings(inputs_embeds=words), attention_mask=None)[0]
        return model.head(model.final_layer_norm(states[:, -1]))


TEXT_TOWERS: dict[str, Callable[[Any, nn.Linear], TextTower]] = {
    "packed": PackedTower,
    "packed_flex": partial(PackedTower, attention="flex"),
    "padded": PaddedTower,
}
"""Ways to run a causal CLIP text model, by the name `load(text_tower=...)` takes; `auto` is the first."""
