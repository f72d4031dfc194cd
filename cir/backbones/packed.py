"""CLIP's causal text tower on distinct token prefixes: exact, and without the work on padding and repetition.

Linears, norms and MLPs run on a flat list of the nodes of a trie (`cir.backbones.trie`); only attention knows rows
(`cir.backbones.attention`). In the last layer only the nodes at end-of-text ask, so query, output and MLP are computed
there alone.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor, nn

from cir.backbones.activation import fast
from cir.backbones.attention import ATTENTIONS, Attend, gather
from cir.backbones.base import TextTower
from cir.backbones.counting import TokenCount, count_tokens
from cir.backbones.trie import Part, Trie, grow, upload
from cir.schema import Prompt

__all__ = ["PackedTower", "TokenCount", "count_tokens"]


class PackedTower(TextTower):
    """CLIP's causal text tower that computes every distinct token prefix of a batch once.

    The result is `PaddedTower`'s but for rounding, in value and gradient, whatever the rows have in common. Rows of one
    owner share their words up to the first difference, rows of different owners what comes before the first slot. Where
    the tower is frozen, what no pseudo-word reaches is computed without gradient. Parameter names are those of Hugging
    Face's `CLIPTextModelWithProjection`, whose modules it calls one by one; `attention` names an entry of `ATTENTIONS`.
    The layers' `attention_dropout`, 0 in every published CLIP, is not applied.
    """

    def __init__(self, text_model: Any, text_projection: nn.Linear, attention: str = "rows") -> None:
        super().__init__()
        self.text_model = text_model
        self.text_projection = text_projection
        self.word_width: int = text_model.embeddings.token_embedding.embedding_dim
        self.attention = attention

    def forward(
        self,
        ids: Int[Tensor, "b l"],
        ends: Int[Tensor, " b"],
        slots: Int[Tensor, "b s"] | None = None,
        pseudo: Float[Tensor, "o n w"] | None = None,
        owner: Int[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "b d"]:
        """Encode token rows as `encode` does; the rows are laid out on the CPU, so it waits for a GPU's."""
        places = np.full((len(ids), 0), -1) if slots is None else _array(slots)
        prompt = Prompt(_array(ids), places, _array(ends))
        return self.encode(prompt, None if slots is None else pseudo, None if owner is None else _array(owner))

    def encode(
        self,
        prompt: Prompt,
        pseudo: Float[Tensor, "o n w"] | None = None,
        owner: Int[np.ndarray, " b"] | None = None,
    ) -> Float[Tensor, "b d"]:
        """Encode a rendered prompt on the tower's device; gradients flow unless the caller turned them off."""
        embedding = self.text_model.embeddings.token_embedding.weight
        if not len(prompt):
            return self.text_projection(embedding.new_zeros(0, self.word_width))
        if pseudo is not None:
            _check_owners(len(pseudo), len(prompt), owner)
        split = pseudo is not None and pseudo.requires_grad and not any(p.requires_grad for p in self.parameters())
        trie = grow(prompt, 0 if pseudo is None else pseudo.shape[1], owner, split and torch.is_grad_enabled())
        return self._states(upload(trie, embedding.device), pseudo)

    def _states(self, trie: Trie[Tensor], pseudo: Float[Tensor, "o n w"] | None) -> Float[Tensor, "b d"]:
        """Run the layers over the nodes; project the states where rows end, and hand them out to the rows."""
        model = self.text_model
        attends = ATTENTIONS[self.attention](trie)
        states = [self._embed(part, pseudo) for part in trie.parts]
        *layers, last = model.encoder.layers
        for layer in layers:
            states = self._layer(layer, trie, states, [inner for inner, _ in attends], last=False)
        states = self._layer(last, trie, states, [final for _, final in attends], last=True)
        vectors = self.text_projection(model.final_layer_norm(torch.cat(states)))
        if pseudo is not None and not any(len(part.slots) for part in trie.parts):
            vectors = vectors + pseudo[:0].sum().to(vectors)  # a gradient of zero, where there would be none
        return gather(vectors, trie.rows)

    def _embed(self, part: Part[Tensor], pseudo: Float[Tensor, "o n w"] | None) -> Float[Tensor, "m w"]:
        """Look up tokens, put pseudo-words into their slots, add positions."""
        embeddings = self.text_model.embeddings
        words = embeddings.token_embedding(part.ids)
        if pseudo is not None and len(part.slots):
            flat = pseudo.reshape(-1, pseudo.shape[-1]).to(words.device)
            words = words.index_copy(0, part.slots, gather(flat, part.sources).to(words.dtype))
        return words + embeddings.position_embedding(part.positions)

    def _layer(
        self, layer: Any, trie: Trie[Tensor], states: list[Tensor], attends: Sequence[Attend], last: bool
    ) -> list[Float[Tensor, "_ w"]]:
        """Run one encoder layer part by part; later parts see the keys and values of earlier ones."""
        attention, known, done = layer.self_attn, [], []
        for part, state, attend in zip(trie.parts, states, attends, strict=True):
            with torch.no_grad() if part.constant else nullcontext():
                normed = layer.layer_norm1(state)
                known.append((attention.k_proj(normed), attention.v_proj(normed)))
                keys, values = (torch.cat(each) if len(each) > 1 else each[0] for each in zip(*known, strict=True))
                if last:
                    state, normed = gather(state, part.ends), gather(normed, part.ends)
                state = state + attention.out_proj(attend(attention.q_proj(normed), keys, values, attention))
                mlp, activate = layer.mlp, fast(layer.mlp.activation_fn)
                done.append(state + mlp.fc2(activate(mlp.fc1(layer.layer_norm2(state)))))
        return done


def _array(tensor: Int[Tensor, "..."]) -> Int64[np.ndarray, "..."]:
    """Fetch indices from the device; by way of lists, which `torch.func` lets through."""
    return np.array(tensor.tolist(), dtype=np.int64).reshape(tensor.shape)


def _check_owners(owners: int, rows: int, owner: Int[np.ndarray, " b"] | None) -> None:
    """Refuse rows without pseudo-words, which a GPU would stop at without saying why."""
    if owner is None and owners != rows:
        raise ValueError(f"{owners} owners' pseudo-words for {rows} rows; pass `owner` to say whose each row takes")
    if owner is not None and (len(owner) != rows or owner.min() < 0 or owner.max() >= owners):
        raise ValueError(f"owner: expected one of 0..{owners - 1} for each of {rows} rows")
