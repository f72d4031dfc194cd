"""BLIP-2's retrieval model written out in plain torch over LAVIS's own names, to try a converted folder against.

Nothing here is shared with `cir.backbones`: no module, no key map, no fused attention. Weights are turned into float32
one at a time, so that a large tower in half precision is never held twice.
"""

import math
from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from cir.importers.lavis_keys import BLOCK, BLOCKS, HEAD, PRE, TOWER, QFormer
from cir.importers.lavis_keys import Tower as Sizes


class Plain:
    """The forward passes of a source file, in float32, for one picture or text at a time or several."""

    def __init__(self, tensors: Mapping[str, Tensor], tower: Sizes, qformer: QFormer) -> None:
        self._tensors = tensors
        self._tower = tower
        self._qformer = qformer

    def patches(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b p v"]:
        """Run the vision tower: the last block's tokens, before `ln_vision`."""
        x = self._eva(pixels) if self._tower.kind == "eva" else self._clip(pixels)
        for i in range(self._tower.depth):
            x = self._eva_block(x, i) if self._tower.kind == "eva" else self._clip_block(x, i)
        return x

    def image(self, patches: Float[Tensor, "b p v"]) -> Float[Tensor, "b t d"]:
        """Give the projected query outputs, not normalised."""
        queries = self._get("query_tokens").expand(len(patches), -1, -1)
        return self._linear("vision_proj", self._run(queries, self._norm("ln_vision", patches), None, queries.shape[1]))

    def text(self, ids: Int[Tensor, "b l"]) -> Float[Tensor, "b d"]:
        """Give the projected [CLS] state of texts of one length, not normalised."""
        return self._linear("text_proj", self._run(self._words(ids), None, ids, 0)[:, 0])

    def match(self, patches: Float[Tensor, "b p v"], ids: Int[Tensor, "b l"]) -> Float[Tensor, " b"]:
        """Give the probability that pictures and texts belong together."""
        queries = self._get("query_tokens").expand(len(patches), -1, -1)
        both = torch.cat([queries, self._words(ids)], dim=1)
        states = self._run(both, self._norm("ln_vision", patches), ids, queries.shape[1])[:, : queries.shape[1]]
        return self._linear("itm_head", states).mean(dim=1).softmax(dim=1)[:, 1]

    def _get(self, name: str) -> Tensor:
        return self._tensors[name].float()

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self._get(f"{name}.weight").T + self._get(f"{name}.bias")

    def _norm(self, name: str, x: Tensor, eps: float = 1e-5) -> Tensor:
        centred = x - x.mean(dim=-1, keepdim=True)
        variance = centred.pow(2).mean(dim=-1, keepdim=True)
        return centred / (variance + eps).sqrt() * self._get(f"{name}.weight") + self._get(f"{name}.bias")

    def _eva(self, pixels: Tensor) -> Tensor:
        x = self._cut(pixels, "patch_embed.proj") + self._get(f"{TOWER}patch_embed.proj.bias")
        return torch.cat([self._get(f"{TOWER}cls_token").expand(len(x), -1, -1), x], dim=1) + self._get(
            f"{TOWER}pos_embed"
        )

    def _eva_block(self, x: Tensor, i: int) -> Tensor:
        at = f"{BLOCKS['eva']}{i}."
        q, k, v = (self._norm(f"{at}norm1", x, 1e-6) @ self._get(f"{at}attn.qkv.weight").T).chunk(3, dim=-1)
        q, v = q + self._get(f"{at}attn.q_bias"), v + self._get(f"{at}attn.v_bias")
        x = x + self._linear(f"{at}attn.proj", _attend(q, k, v, HEAD["eva"]))
        inner = F.gelu(self._linear(f"{at}mlp.fc1", self._norm(f"{at}norm2", x, 1e-6)))
        return x + self._linear(f"{at}mlp.fc2", inner)

    def _clip(self, pixels: Tensor) -> Tensor:
        x = self._cut(pixels, "conv1")
        first = self._get(f"{TOWER}class_embedding").expand(len(x), 1, -1)
        return self._norm(f"{TOWER}ln_pre", torch.cat([first, x], dim=1) + self._get(f"{TOWER}positional_embedding"))

    def _clip_block(self, x: Tensor, i: int) -> Tensor:
        at = f"{BLOCKS['clip']}{i}."
        packed = self._norm(f"{at}ln_1", x) @ self._get(f"{at}attn.in_proj_weight").T
        q, k, v = (packed + self._get(f"{at}attn.in_proj_bias")).chunk(3, dim=-1)
        x = x + self._linear(f"{at}attn.out_proj", _attend(q, k, v, HEAD["clip"]))
        inner = self._linear(f"{at}mlp.c_fc", self._norm(f"{at}ln_2", x))
        return x + self._linear(f"{at}mlp.c_proj", inner * torch.sigmoid(1.702 * inner))

    def _cut(self, pixels: Tensor, name: str) -> Tensor:
        """Cut pictures into patches and project each, row by row; without the bias, which CLIP does not have."""
        n = self._tower.patch
        b, _, height, width = pixels.shape
        grid = pixels.reshape(b, 3, height // n, n, width // n, n).permute(0, 2, 4, 1, 3, 5)
        return grid.reshape(b, -1, 3 * n * n) @ self._get(f"{TOWER}{name}.weight").flatten(1).T

    def _words(self, ids: Tensor) -> Tensor:
        positions = self._get(f"{PRE}position_embeddings.weight")[: ids.shape[1]]
        return self._tensors[f"{PRE}word_embeddings.weight"][ids].float() + positions

    def _run(self, x: Tensor, tokens: Tensor | None, ids: Tensor | None, queries: int) -> Tensor:
        """Run the Q-Former; the first positions are queries, which alone see the picture's tokens."""
        x = self._norm(f"{PRE}LayerNorm", x, 1e-12)
        for i in range(self._qformer.layers):
            at = f"{BLOCK}{i}."
            x = self._bert_attention(f"{at}attention", x, x)
            asked, said = x[:, :queries], x[:, queries:]
            if queries and tokens is not None and i % self._qformer.every == 0:
                asked = self._bert_attention(f"{at}crossattention", asked, tokens)
            parts = [self._feed(at, "_query", asked)] if queries else []
            x = torch.cat([*parts, *([self._feed(at, "", said)] if ids is not None else [])], dim=1)
        return x

    def _bert_attention(self, at: str, x: Tensor, seen: Tensor) -> Tensor:
        q = self._linear(f"{at}.self.query", x)
        k, v = self._linear(f"{at}.self.key", seen), self._linear(f"{at}.self.value", seen)
        mixed = self._linear(f"{at}.output.dense", _attend(q, k, v, HEAD["qformer"]))
        return self._norm(f"{at}.output.LayerNorm", x + mixed, 1e-12)

    def _feed(self, at: str, kind: str, x: Tensor) -> Tensor:
        inner = F.gelu(self._linear(f"{at}intermediate{kind}.dense", x))
        return self._norm(f"{at}output{kind}.LayerNorm", x + self._linear(f"{at}output{kind}.dense", inner), 1e-12)


def _attend(q: Tensor, k: Tensor, v: Tensor, width: int) -> Tensor:
    """Attend head by head; nothing is masked."""
    heads = [
        (qs @ ks.transpose(1, 2) / math.sqrt(width)).softmax(dim=-1) @ vs
        for qs, ks, vs in zip(q.split(width, -1), k.split(width, -1), v.split(width, -1), strict=True)
    ]
    return torch.cat(heads, dim=-1)
