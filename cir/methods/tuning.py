"""Which part of a text tower trains: all of it, its last blocks, one kind of layer, or LoRA adapters.

LoRA (Hu et al., ICLR 2022, arXiv:2106.09685) is made by `peft`. Adapters are never merged: a checkpoint keeps the
frozen weights bit for bit and the adapters beside them, under peft's own names.
"""

import re

import torch
from torch import nn

from cir.backbones.base import TextTower
from cir.errors import InputError

LAYERS = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2", "query", "key", "value", "dense")
"""The layers of a transformer block that take adapters, by Hugging Face's names (CLIP's and SigLIP's, then those of
BLIP-2's Q-Former); the tower's projection does not."""
KINDS = {
    "all": r"text\..*",
    "projection": r"text\.(.*\.)?(text_projection|head)\..*",
    "attention": r"text\..*\.(q_proj|k_proj|v_proj|out_proj|attention\.(query|key|value|output\.dense))\..*",
    "layer_norm": r"text\..*(layer_norm\d?|LayerNorm|layernorm)\..*",
}
"""Parts that a pattern names: the tower, its projection, the four layers of every block's attention, every norm."""


def prepared(trainable: str, tower: TextTower, alpha: int = 16) -> tuple[str, ...]:
    """Make a tower ready for what shall train, in place, and return the name patterns of it.

    One of `KINDS`, `last_<k>` (last k blocks, projection, and final norm where there is one), or `lora_<rank>`; the
    patterns are for a method that calls the tower `text`. `alpha` over the rank scales adapters. Raises `InputError`
    for anything else.
    """
    if trainable in KINDS:
        return (KINDS[trainable],)
    numbers = {int(found[1]) for name, _ in tower.named_parameters() if (found := re.search(r"layers?\.(\d+)\.", name))}
    blocks = max(numbers, default=-1) + 1
    wanted = re.fullmatch(r"(last|lora)_([1-9]\d*)", trainable)
    if not wanted or (wanted[1] == "last" and int(wanted[2]) > blocks):
        raise InputError(
            f"trainable {trainable!r}: expected {', '.join(KINDS)}, lora_<rank>, or last_1 to last_{blocks}"
        )
    if wanted[1] == "lora":
        adapt(tower, int(wanted[2]), alpha)
        return (r"text\..*\.lora_[AB]\..*",)
    last = "|".join(map(str, range(blocks - int(wanted[2]), blocks)))
    patterns = [rf"text\..*layers?\.({last})\..*", KINDS["projection"]]
    if any("final_layer_norm" in name for name, _ in tower.named_parameters()):  # BERT's blocks end with theirs
        patterns.append(r"text\..*final_layer_norm\..*")
    return tuple(patterns)


def adapt(tower: TextTower, rank: int, alpha: int) -> None:
    """Put adapters into a tower's blocks, in place: y = W x + (alpha / rank) B A x, B starting at zero.

    The tower computes what it did before, until B is trained. Raises `InputError` without peft, for a tower without
    such layers, a rank above theirs, and a tower that would not run its adapters.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise InputError("trainable lora: needs peft (pip install 'cir[lora]'), or train all or last_<k>") from None
    found = [m for name, m in tower.named_modules() if name.split(".")[-1] in LAYERS and isinstance(m, nn.Linear)]
    if not found:
        raise InputError(f"trainable lora: this text tower has no layers called {', '.join(LAYERS)}; train all instead")
    widest = max(min(layer.in_features, layer.out_features) for layer in found)
    if rank > widest:
        raise InputError(f"trainable lora_{rank}: the tower's layers have rank {widest} at most")
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(LAYERS), lora_dropout=0.0, bias="none")
    inject_adapter_in_model(config, tower)
    _check_run(tower)


@torch.no_grad()
def _check_run(tower: TextTower) -> None:
    """Refuse a tower that reads a layer's weight past its adapters: it would train nothing, silently."""
    device = next(tower.parameters()).device
    length = int(getattr(tower, "context", 3))
    ids, ends = torch.arange(length, device=device)[None] % 3, torch.tensor([length - 1], device=device)
    before = tower(ids, ends)
    for name, parameter in tower.named_parameters():
        if ".lora_B." not in name:
            continue
        parameter.fill_(0.1)
        seen = not torch.equal(before, tower(ids, ends))
        parameter.zero_()
        if not seen:
            raise InputError(f"trainable lora: {type(tower).__name__} passes over the adapter {name}; "
                             "set backbone.text_tower=padded")  # fmt: skip
