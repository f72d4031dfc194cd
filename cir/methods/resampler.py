"""A perceiver-style resampler: a few learned latents read many tokens (arXiv:2103.03206, 2204.14198).

Parameter names are those of the layout most open implementations share: `latents`; in layer i
`layers.{i}.0.norm_media`, `.norm_latents`, `.to_q`, `.to_kv`, `.to_out` (attention), `layers.{i}.1.0` (norm), `.1.1`
and `.1.3` (linear); last `norm`.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


class Resampler(nn.Module):
    """`latents` vectors of the tokens' width, read from the tokens in `depth` layers of cross-attention."""

    def __init__(self, width: int, depth: int = 6, heads: int = 8, head_width: int = 64, latents: int = 4) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(latents, width))
        self.layers = nn.ModuleList(
            nn.ModuleList([LatentAttention(width, heads, head_width), _mlp(width)]) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: Float[Tensor, "b p v"]) -> Float[Tensor, "b r v"]:
        """Read the tokens; no order among them but what they carry themselves."""
        latents = self.latents.expand(len(tokens), -1, -1)
        for layer in self.layers:
            attention, mlp = layer.children()
            latents = latents + attention(tokens, latents)
            latents = latents + mlp(latents)
        return self.norm(latents)


class LatentAttention(nn.Module):
    """Latents attend to the tokens and to themselves: queries from latents, keys and values from both; no biases."""

    def __init__(self, width: int, heads: int, head_width: int) -> None:
        super().__init__()
        self.heads = heads
        inner = heads * head_width
        self.norm_media = nn.LayerNorm(width)
        self.norm_latents = nn.LayerNorm(width)
        self.to_q = nn.Linear(width, inner, bias=False)
        self.to_kv = nn.Linear(width, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, width, bias=False)

    def forward(self, tokens: Float[Tensor, "b p v"], latents: Float[Tensor, "b r v"]) -> Float[Tensor, "b r v"]:
        """Attend, scaled by the square root of a head's width."""
        latents = self.norm_latents(latents)
        both = torch.cat([self.norm_media(tokens), latents], dim=1)
        q, k, v = (self._split(x) for x in (self.to_q(latents), *self.to_kv(both).chunk(2, dim=-1)))
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.to_out(mixed.transpose(1, 2).flatten(2))

    def _split(self, x: Float[Tensor, "b n i"]) -> Float[Tensor, "b h n e"]:
        """Separate the heads."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def _mlp(width: int) -> nn.Sequential:
    """Build a pre-norm MLP of four times the width, without biases, with the erf GELU."""
    return nn.Sequential(
        nn.LayerNorm(width), nn.Linear(width, 4 * width, bias=False), nn.GELU(), nn.Linear(4 * width, width, bias=False)
    )
