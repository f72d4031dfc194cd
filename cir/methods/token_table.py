"""Folders of pseudo-words by image name: what optimisation-based inversion (SEARLE, arXiv:2303.15247) leaves behind.

`model.safetensors` holds `tokens` "n w", `names.json` the image of each row, `config.json` the backbone they are for.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor

from cir.errors import InputError
from cir.methods import checkpoint

KIND = "tokens"
NAMES = "names.json"


def write(
    folder: Path,
    tokens: Float[Tensor, "n w"],
    names: Sequence[str],
    backbone: Mapping[str, Any],
    details: Mapping[str, Any] | None = None,
) -> Path:
    """Write pseudo-words and the image name of each, the description last; `backbone` as `checkpoint.described`."""
    folder.mkdir(parents=True, exist_ok=True)
    if len(names) != len(tokens) or len(set(names)) != len(names):
        raise InputError(f"{folder}: {len(set(names)):,} distinct names for {len(tokens):,} tokens; expected one each")
    staged = {name: folder / f".{name}.{os.getpid()}" for name in (checkpoint.WEIGHTS, NAMES, checkpoint.CONFIG)}
    save_file({"tokens": tokens.detach().cpu().contiguous()}, staged[checkpoint.WEIGHTS], metadata={"format": "pt"})
    staged[NAMES].write_text(json.dumps(list(names), ensure_ascii=False) + "\n", encoding="utf-8")
    config = {
        "format": checkpoint.FORMAT,
        "kind": KIND,
        "backbone": dict(backbone),
        "weights": checkpoint.digest(staged[checkpoint.WEIGHTS]),
        "details": dict(details or {}),
    }
    staged[checkpoint.CONFIG].write_text(json.dumps(config, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    for name, path in staged.items():
        os.replace(path, folder / name)
    return folder


def describe(folder: Path) -> dict[str, Any] | None:
    """Read a folder's description if it is one of pseudo-words by name, else nothing."""
    try:
        config = json.loads((folder / checkpoint.CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # for the reader of methods to say what is wrong
    return config if isinstance(config, dict) and config.get("kind") == KIND else None


def read(folder: Path) -> tuple[Float[Tensor, "n w"], tuple[str, ...]]:
    """Read pseudo-words and the image name of each; `InputError` where they do not belong together."""
    config = describe(folder)
    if config is None or config.get("format") != checkpoint.FORMAT:
        raise InputError(f"{folder}: no table of pseudo-words; expected {checkpoint.CONFIG} of kind {KIND!r}")
    tokens = checkpoint.read_weights(folder / checkpoint.WEIGHTS, str(config.get("weights"))).get("tokens")
    try:
        names = json.loads((folder / NAMES).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{folder / NAMES}: not readable as JSON ({error})") from None
    if tokens is None or tokens.ndim != 2 or not isinstance(names, list) or len(names) != len(tokens):
        raise InputError(f"{folder}: expected `tokens` n x w and one name in {NAMES} for each row")
    return tokens, tuple(map(str, names))
