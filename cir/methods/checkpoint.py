"""Checkpoints of methods: a folder with `model.safetensors` and `config.json`, nothing that can execute code.

`config.json` says how to build the method (a wrapper's base included) and which backbone it belongs to; the weights
are the method's own, the base's too, never the frozen backbone's.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from cir.backbones.base import Backbone, BackboneLike
from cir.errors import InputError
from cir.methods import build, name_of
from cir.methods.base import Method

FORMAT = 1
WEIGHTS, CONFIG = "model.safetensors", "config.json"


def save(folder: Path, method: Method, backbone: BackboneLike, details: Mapping[str, Any] | None = None) -> Path:
    """Write a checkpoint, each file atomically, the configuration last; `details` (JSON) are kept beside it.

    The configuration holds the weights' digest, so that a pair of files from two different writes is refused.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in method.state_dict().items()}
    staged = folder / f".{WEIGHTS}.{os.getpid()}"
    save_file(tensors, staged, metadata={"format": "pt"})
    config = {
        "format": FORMAT,
        **recipe(method),
        "backbone": {
            "name": backbone.name,
            "fingerprint": backbone.fingerprint,
            "width": backbone.width,
            "word_width": backbone.word_width,
        },
        "weights": _digest(staged),
        "details": dict(details or {}),
    }
    os.replace(staged, folder / WEIGHTS)
    staged = folder / f".{CONFIG}.{os.getpid()}"
    staged.write_text(json.dumps(config, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(staged, folder / CONFIG)
    return folder


def load(folder: Path, backbone: Backbone) -> Method:
    """Build the method a checkpoint describes and give it its weights; every key accounted for.

    Raises `InputError` for a folder that is no checkpoint, another backbone than it was trained on, or weights that
    do not fit.
    """
    config = describe(folder)
    trained_on = config["backbone"]
    for key in ("width", "word_width", "fingerprint"):
        if trained_on[key] != getattr(backbone, key):
            raise InputError(
                f"{folder}: trained on backbone {trained_on['name']!r} ({key} {trained_on[key]}), this is "
                f"{backbone.name!r} ({key} {getattr(backbone, key)}); load that backbone"
            )
    method = _build(config, backbone)
    restore(folder, method)
    return method.eval()


def describe(folder: Path) -> dict[str, Any]:
    """Read and check a checkpoint's configuration."""
    path = Path(folder) / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{folder}: no checkpoint here; expected {CONFIG} and {WEIGHTS}") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not readable as JSON ({error})") from None
    needed = {"format": int, "method": str, "options": dict, "backbone": dict, "weights": str}
    wrong = [key for key, kind in needed.items() if not isinstance(config, dict) or type(config.get(key)) is not kind]
    wrong = wrong or [f"backbone.{key}" for key in ("name", "fingerprint", "width", "word_width")
                      if key not in config["backbone"]]  # fmt: skip
    if wrong:
        raise InputError(f"{path}: {', '.join(wrong)} absent or of another type; not a checkpoint of this project?")
    if config["format"] != FORMAT:
        raise InputError(f"{path}: checkpoint format {config['format']}, this version reads {FORMAT}")
    return dict(config)


def restore(folder: Path, method: Method) -> None:
    """Copy a checkpoint's weights into a method of the same make; strict about names and shapes."""
    tensors = _read(Path(folder) / WEIGHTS, describe(folder)["weights"])
    own = method.state_dict()
    missing, unknown = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    shapes = [n for n in own.keys() & tensors.keys() if own[n].shape != tensors[n].shape]
    if missing or unknown or shapes:
        raise InputError(
            f"{folder}: weights do not fit the method: {len(missing)} missing {missing[:3]}, {len(unknown)} unknown "
            f"{unknown[:3]}, {len(shapes)} of another shape {sorted(shapes)[:3]}"
        )
    method.load_state_dict(tensors)


def recipe(method: Method) -> dict[str, Any]:
    """Say in JSON how to build a method: its name, its options, its base's recipe."""
    options = dataclasses.asdict(method.options)
    made = {"method": name_of(method), "options": options}
    return {**made, "base": recipe(method.base)} if method.wraps else made  # type: ignore[arg-type]


def _build(config: Mapping[str, Any], backbone: Backbone) -> Method:
    base = _build(config["base"], backbone) if config.get("base") else None
    return build(config["method"], config["options"], backbone, base)


def _read(path: Path, digest: str) -> dict[str, Tensor]:
    try:
        if _digest(path) != digest:
            raise InputError(f"{path}: differs from what {CONFIG} describes; edited, or an interrupted copy?")
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: not readable as safetensors ({error})") from None


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()[:16]
