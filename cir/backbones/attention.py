"""Attention along the paths of a trie, from a flat list of queries, keys and values and back to one.

Two ways with the same result: `rows` gathers each path into a row for the causal kernels, `flex` masks one sequence.
"""

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from cir.backbones.trie import Bucket, Trie

Attend = Callable[[Tensor, Tensor, Tensor, Any], Tensor]
"""Queries "n w", keys and values "m w" and Hugging Face's attention module (its heads and scale) to outputs "n w"."""


class Gather(torch.autograd.Function):
    """`values[index]` whose backward sums in float32: 16 bits would lose what many rows send to a shared prefix."""

    generate_vmap_rule = True

    @staticmethod
    def forward(values: Float[Tensor, "n w"], index: Int[Tensor, " m"]) -> Float[Tensor, "m w"]:
        """Pick rows."""
        return values.index_select(0, index)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        """Keep the index, not the values."""
        ctx.count = len(inputs[0])
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, *grads: Float[Tensor, "m w"]) -> tuple[Float[Tensor, "n w"], None]:
        """Sum what the rows send back."""
        (grad,) = grads
        total = grad.new_zeros(ctx.count, grad.shape[1], dtype=torch.promote_types(grad.dtype, torch.float32))
        return total.index_add(0, ctx.saved_tensors[0], grad.to(total.dtype)).to(grad.dtype), None


def gather(values: Float[Tensor, "n w"], index: Int[Tensor, " m"]) -> Float[Tensor, "m w"]:
    """Pick rows, differentiably."""
    picked: Tensor = Gather.apply(values, index)
    return picked


def by_rows(trie: Trie[Tensor]) -> Sequence[tuple[Attend, Attend]]:
    """Make, per part, the attention of all its nodes and that of its last layer, on gathered rows."""
    return [
        (partial(_rows, part.inner, part.picked, True), partial(_rows, part.last, None, False)) for part in trie.parts
    ]


def _rows(
    buckets: Sequence[Bucket[Tensor]],
    picked: Int[Tensor, " n"] | None,
    causal: bool,
    queries: Float[Tensor, "q w"],
    keys: Float[Tensor, "m w"],
    values: Float[Tensor, "m w"],
    module: Any,
) -> Float[Tensor, "n w"]:
    """Attend in padded rows, one kernel call per bucket, and take every node's output from the row it was met in."""
    outputs = [queries[:0]]
    for bucket in buckets:
        q, k, v = (
            gather(flat, index.flatten()).view(*index.shape, -1, module.head_dim).transpose(1, 2)
            for flat, index in ((queries, bucket.queries), (keys, bucket.keys), (values, bucket.keys))
        )
        mask = None
        if not causal:
            mask = (torch.arange(k.shape[2], device=k.device) < bucket.lengths[:, None])[:, None, None]
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, scale=module.scale)
        outputs.append(out.transpose(1, 2).reshape(-1, queries.shape[1]))
    flat = outputs[1] if len(outputs) == 2 else torch.cat(outputs)
    return flat if picked is None else gather(flat, picked)


def by_flex(trie: Trie[Tensor]) -> Sequence[tuple[Attend, Attend]]:
    """Make the same two of one sequence of nodes in depth-first order: a node sees the intervals it lies in."""
    made, before = [], 0
    for part in trie.parts:
        upto = before + len(part.ids)
        enter, leave = trie.enter[:upto], trie.leave[:upto]
        own = enter[before:]
        made.append((partial(_flex, own, enter, leave, []), partial(_flex, own[part.ends], enter, leave, [])))
        before = upto
    return made


def _flex(
    place: Int[Tensor, " q"],
    enter: Int[Tensor, " m"],
    leave: Int[Tensor, " m"],
    masks: list[Any],
    queries: Float[Tensor, "q w"],
    keys: Float[Tensor, "m w"],
    values: Float[Tensor, "m w"],
    module: Any,
) -> Float[Tensor, "q w"]:
    """Attend under the block mask of the trie, made in the first layer and kept in `masks`."""
    if not len(queries):
        return queries
    from torch.nn.attention.flex_attention import create_block_mask

    q, k, v = (x.view(1, len(x), -1, module.head_dim).transpose(1, 2) for x in (queries, keys, values))
    if q.device.type == "cpu" and any(x.requires_grad for x in (q, k, v)):  # PyTorch has no backward of it there
        mask = (enter <= place[:, None]) & (place[:, None] < leave)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=module.scale)
    else:
        if not masks:
            masks.append(
                create_block_mask(
                    lambda b, h, i, j: (enter[j] <= place[i]) & (place[i] < leave[j]),
                    None, None, len(queries), len(keys), device=str(q.device),
                )
            )  # fmt: skip
        out = _kernel(q.device.type)(q, k, v, block_mask=masks[0], scale=module.scale)
    return out.transpose(1, 2).reshape(queries.shape)


@cache
def _kernel(device: str) -> Callable[..., Tensor]:
    """Compile FlexAttention for a GPU, once, for any number of nodes; elsewhere it runs as written."""
    from torch.nn.attention.flex_attention import flex_attention

    kernel: Any = flex_attention
    return torch.compile(kernel, dynamic=True) if device == "cuda" else kernel


ATTENTIONS: dict[str, Callable[[Trie[Tensor]], Sequence[tuple[Attend, Attend]]]] = {"rows": by_rows, "flex": by_flex}
"""Ways to attend, by name."""
