"""Published projectors to methods of this project: widths read off the shapes, every key accounted for."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cir.errors import InputError
from cir.importers.formats import Format
from cir.methods import METHODS, build, checkpoint
from cir.methods.base import Method
from cir.methods.shape import BackboneShape

INSIDE = {"searle": "phi.", "lincir": "phi.", "pic2word": "im2text.", "context_i2w": "im2text."}
"""Where a method keeps the module whose parameter names are the published ones."""


@dataclass(frozen=True)
class Widths:
    """What the shapes of a projector say: d, w, the vision tower's width (0: not read), and the method's options."""

    width: int
    word_width: int
    vision_width: int
    options: Mapping[str, Any]


def widths(holds: str, tensors: Mapping[str, Tensor], path: Path) -> Widths:
    """Read the widths of a projector off its shapes."""
    try:
        return {"phi": _phi, "im2text": _im2text, "context": _context}[holds](tensors)
    except KeyError as error:
        raise InputError(f"{path}: {error.args[0]} is missing; an incomplete file?") from None
    except (ValueError, IndexError):
        raise InputError(f"{path}: not the shapes of a projector; a damaged file?") from None


def as_method(made: Format, found: Widths, tensors: Mapping[str, Tensor], backbone: str, path: Path) -> Method:
    """Build the method and give it the weights; `InputError` names what is missing, unexpected or of another shape."""
    if made.method not in METHODS:
        raise InputError(f"{path}: method {made.method} is not part of this version; {made.what} cannot be used")
    shape = BackboneShape(found.width, found.word_width, vision_width=found.vision_width, name=backbone)
    method = build(made.method, found.options, shape)
    prefix = INSIDE[made.method]
    checkpoint.fill(method, {prefix + name: tensor for name, tensor in tensors.items()}, str(path))
    return method.eval()


@torch.no_grad()
def self_test(method: Method, found: Widths, path: Path) -> str:
    """Run the projector on random features: pseudo-words of the right shape, finite. Says what was run."""
    random = torch.Generator().manual_seed(0)
    image = torch.randn(3, found.width, generator=random)
    if found.vision_width:
        patches = torch.randn(3, 10, found.vision_width, generator=random)
        words = method.im2text(patches, image)[:, None]  # type: ignore[operator]  # here the features are the context's
    else:
        words = method.words(image)  # type: ignore[operator]
    if words.shape != (3, 1, found.word_width) or not bool(words.isfinite().all()):
        raise InputError(f"{path}: random features gave pseudo-words that are not finite; damaged weights?")
    return f"3 random features of width {found.width} gave finite pseudo-words of width {found.word_width}"


def _phi(tensors: Mapping[str, Tensor]) -> Widths:
    """Read Linear(d, h) - Linear(h, h) - Linear(h, w); h is 4d in every published file."""
    hidden, width = tensors["layers.0.weight"].shape
    return Widths(width, len(tensors["layers.6.weight"]), 0, {"hidden": hidden} if hidden != 4 * width else {})


def _im2text(tensors: Mapping[str, Tensor]) -> Widths:
    """Read Linear(d, m), more of Linear(m, m), Linear(m, w)."""
    middle, width = tensors["layers.0.0.weight"].shape
    layers = sum(name.startswith("layers.") and name.endswith(".0.weight") for name in tensors)
    return Widths(width, len(tensors["fc_out.weight"]), 0, {"middle": middle, "layers": layers})


def _context(tensors: Mapping[str, Tensor]) -> Widths:
    """Read d and v off `to_c` (v, d), w off `fc_out` (w, m), the depth off the resampler's layers."""
    vision, width = tensors["to_c.weight"].shape
    words, middle = tensors["fc_out.weight"].shape
    layers = {name.split(".")[2] for name in tensors if name.startswith("VT_Extractor.layers.")}
    return Widths(width, words, vision, {"middle": middle, "depth": len(layers)})


def renamed(made: Format, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give parameters the names and shapes they have here: of weight norm as newer torch saves it, of the gate."""
    if made.holds != "context":
        return dict(tensors)
    news = {
        "W_R.parametrizations.weight.original0": "W_R.weight_g",
        "W_R.parametrizations.weight.original1": "W_R.weight_v",
    }
    plain = {news.get(name, name): tensor for name, tensor in tensors.items()}
    gate = plain.get("local_gate")
    return {**plain, "local_gate": gate.reshape(())} if gate is not None and gate.numel() == 1 else plain
