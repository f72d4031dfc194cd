"""Checkpoint files to tensors by name, without running anything in them: torch's safe loader, or safetensors.

The published files are a bare state dict, or a dictionary with one under a known key; names may carry the `module.` of
DistributedDataParallel.
"""

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cir.errors import InputError

HELD = ("Phi", "state_dict_img2text", "CLIPTextModelWithProjection", "CLIP", "Combiner")
"""Keys under which published containers hold what is imported: SEARLE, LinCIR; Pic2Word, Context-I2W; RTD; CLIP4Cir."""
PASSED_OVER = frozenset({"epoch", "name", "optimizer", "scaler", "state_dict", "step"})
"""Keys of published containers that are left behind: the state of training and, as `state_dict`, the whole CLIP."""


@dataclass(frozen=True)
class Container:
    """Tensors of one file in float32, `module.` stripped; where they lay, and the keys passed over."""

    path: Path
    key: str
    """The container's key, empty for a bare state dict."""
    tensors: dict[str, Tensor]
    passed_over: tuple[str, ...]
    dtype: str
    """What the file stored, for the record."""


def read(path: Path) -> Container:
    """Read a checkpoint file; every top-level key is either imported or known to be left behind.

    Raises `InputError` for files that are no checkpoint, that need pickled classes, or that hold unknown keys.
    """
    if path.is_dir():
        raise InputError(f"{path}: a folder; expected a checkpoint file (only OTI tokens are imported from a folder)")
    loaded = load(path)
    if not isinstance(loaded, Mapping):
        raise InputError(f"{path}: expected a dictionary of tensors, found {type(loaded).__name__}")
    held = [key for key in HELD if key in loaded]
    if len(held) > 1:
        raise InputError(f"{path}: holds {' and '.join(held)}; expected one of them")
    if not held:
        if loaded and all(isinstance(value, Tensor) for value in loaded.values()):
            return _container(path, "", loaded, ())
        keys = [str(key) for key in loaded][:5]
        raise InputError(f"{path}: expected a state dict, or one under {', '.join(HELD)}; found the keys {keys}")
    rest = [str(key) for key in loaded if key not in held]
    unknown = [key for key in rest if key not in PASSED_OVER]
    if unknown:
        raise InputError(
            f"{path}: unexpected keys {unknown[:5]} beside {held[0]}; known: {', '.join(sorted(PASSED_OVER))}"
        )
    return _container(path, held[0], loaded[held[0]], tuple(sorted(rest)))


def load(path: Path) -> Any:
    """Load a `.safetensors` file, or what torch's safe loader takes, memory-mapped where the file allows that."""
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except (OSError, SafetensorError) as error:
            raise InputError(f"{path}: not readable as safetensors ({error})") from None
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # torch raises nearly anything for a file it does not like
        raise InputError(_refusal(path, error)) from None


def _refusal(path: Path, error: Exception) -> str:
    """Tell a file that needs unpickling from one that is not a checkpoint at all."""
    with open(path, "rb") as file:
        pickled = file.read(1) == b"\x80" or zipfile.is_zipfile(path)
    text = " ".join(str(error).split())
    if pickled and ("GLOBAL" in text or "WeightsUnpickler error" in text):
        what = text[text.find("GLOBAL") if "GLOBAL" in text else text.find("WeightsUnpickler error") :][:120]
        return (
            f"{path}: holds pickled objects besides tensors ({what}), and loading them would run code from the file; "
            "where its source tree is installed and trusted, save `model.state_dict()` instead and import that"
        )
    why = f" ({type(error).__name__}: {text[:120]})" if pickled else "; expected a .pt or .safetensors file"
    return f"{path}: not a checkpoint that torch reads{why}"


def _container(path: Path, key: str, state: Any, passed_over: tuple[str, ...]) -> Container:
    """Check that a state dict holds finite floating-point tensors, strip `module.`, convert to float32."""
    if not isinstance(state, Mapping) or not state:
        raise InputError(f"{path}: {key}: expected a state dict, found {type(state).__name__} of {len(state or ())}")
    tensors: dict[str, Tensor] = {}
    kinds = set()
    for raw, tensor in state.items():
        name = str(raw)
        while name.startswith("module."):
            name = name.removeprefix("module.")
        if not isinstance(tensor, Tensor):
            raise InputError(f"{path}: {name}: expected a tensor, found {type(tensor).__name__}")
        if name in tensors:
            raise InputError(f"{path}: {name} occurs twice, with and without `module.`")
        if tensor.is_floating_point():
            kinds.add(str(tensor.dtype).removeprefix("torch."))
            tensor = tensor.float()
            if not bool(torch.isfinite(tensor).all()):
                raise InputError(f"{path}: {name} holds values that are not finite; damaged, or a failed training run?")
        tensors[name] = tensor.detach().clone(memory_format=torch.contiguous_format)
    return Container(path, key, tensors, passed_over, ", ".join(sorted(kinds)))
