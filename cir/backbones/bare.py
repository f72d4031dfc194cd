"""A text tower from a state dict alone: sizes are read off the shapes, heads and activation told or inferred."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cir.backbones.base import TextTower
from cir.backbones.text import PaddedTower
from cir.backbones.weights import read_config
from cir.errors import InputError


@dataclass(frozen=True)
class Computation:
    """What shapes do not say: the attention heads of a text tower, and its activation."""

    heads: int
    activation: str
    known: bool
    """Whether the backbone's own config said so."""


def computation(name: str, word_width: int) -> Computation:
    """Read heads and activation from a local backbone's config; else OpenAI's QuickGELU or GELU, heads 64 wide."""
    if name and (Path(name).expanduser() / "config.json").is_file():
        text = read_config(Path(name).expanduser()).get("text_config") or {}
        if "num_attention_heads" in text:
            return Computation(int(text["num_attention_heads"]), str(text.get("hidden_act", "quick_gelu")), True)
    quick = name.startswith(("openai/", "facebook/metaclip"))
    return Computation(max(word_width // 64, 1), "quick_gelu" if quick else "gelu", False)


def text_tower(tensors: Mapping[str, Tensor], how: Computation, origin: str) -> TextTower:
    """Build `CLIPTextModelWithProjection`'s computation around a state dict with its names; every key accounted for.

    Raises `InputError`, naming the `origin`, for missing, unexpected or ill-shaped weights.
    """
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    sizes = _sizes(tensors, origin)
    if sizes["hidden_size"] % how.heads:
        raise InputError(
            f"{origin}: width {sizes['hidden_size']} does not divide into {how.heads} heads; wrong backbone?"
        )
    ids = {"bos_token_id": sizes["vocab_size"] - 2, "eos_token_id": sizes["vocab_size"] - 1}
    config = CLIPTextConfig(**sizes, **ids, num_attention_heads=how.heads, hidden_act=how.activation)
    model = CLIPTextModelWithProjection(config)
    own = model.state_dict()
    missing, unknown = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    shapes = sorted(name for name in own.keys() & tensors.keys() if own[name].shape != tensors[name].shape)
    if missing or unknown or shapes:
        raise InputError(
            f"{origin}: not a whole CLIP text tower: {len(missing)} missing {missing[:3]}, {len(unknown)} unexpected "
            f"{unknown[:3]}, {len(shapes)} of another shape {shapes[:3]}"
        )
    model.load_state_dict(dict(tensors))
    return PaddedTower(model.text_model, model.text_projection).eval()


@torch.no_grad()
def try_tower(tower: TextTower, origin: str) -> None:
    """Encode two made-up rows with a pseudo-word; `InputError` unless the vectors are finite and differ."""
    vocabulary = len(tower.get_parameter("text_model.embeddings.token_embedding.weight"))
    ids = torch.tensor([[0, 1, 2, vocabulary - 1], [0, 2, 1, vocabulary - 1]])
    pseudo = torch.randn(2, 1, tower.word_width, generator=torch.Generator().manual_seed(0))
    vectors = tower(ids, torch.tensor([3, 3]), torch.tensor([[1], [1]]), pseudo)
    if not bool(vectors.isfinite().all()) or torch.equal(vectors[0], vectors[1]):
        raise InputError(f"{origin}: the text tower gives vectors that are not finite or all alike; damaged weights?")


def _sizes(tensors: Mapping[str, Tensor], origin: str) -> dict[str, Any]:
    """Read the config's sizes off the shapes."""
    try:
        vocabulary, width = tensors["text_model.embeddings.token_embedding.weight"].shape
        positions = len(tensors["text_model.embeddings.position_embedding.weight"])
        inner = len(tensors["text_model.encoder.layers.0.mlp.fc1.weight"])
        joint = len(tensors["text_projection.weight"])
    except KeyError as error:
        raise InputError(f"{origin}: not a whole CLIP text tower: {error.args[0]} is missing") from None
    numbers = {int(found[1]) for name in tensors if (found := re.match(r"text_model\.encoder\.layers\.(\d+)\.", name))}
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": len(numbers),
        "max_position_embeddings": positions,
        "projection_dim": joint,
    }
