"""Checkpoints of methods: a folder with `model.safetensors` and `config.json`, nothing that can execute code.

`config.json` says how to build the method (a wrapper's base included) and which backbone it belongs to; the weights
are the method's own, the base's too, never the frozen backbone's.
"""

import dataclasses
import hashlib
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from cir.backbones.base import Backbone, BackboneLike
from cir.errors import InputError
from cir.methods import build, name_of
from cir.methods.base import Method
from cir.methods.shape import BackboneShape

logger = logging.getLogger(__name__)

FORMAT = 1
WEIGHTS, CONFIG = "model.safetensors", "config.json"


def save(folder: Path, method: Method, backbone: BackboneLike, details: Mapping[str, Any] | None = None) -> Path:
    """Write a checkpoint, each file atomically, the configuration last; `details` (JSON) are kept beside it.

    The configuration holds the weights' digest, so that a pair of files from two different writes is refused.
    """
    return write(folder, method.state_dict(), recipe(method), described(backbone), details)


def write(
    folder: Path,
    tensors: Mapping[str, Tensor],
    made: Mapping[str, Any],
    backbone: Mapping[str, Any],
    details: Mapping[str, Any] | None = None,
) -> Path:
    """Write a checkpoint of tensors, the recipe (`recipe`) they belong to, and the backbone (`described`)."""
    folder.mkdir(parents=True, exist_ok=True)
    staged = folder / f".{WEIGHTS}.{os.getpid()}"
    try:
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(plain, staged, metadata={"format": "pt"})
        config = {
            "format": FORMAT,
            **made,
            "backbone": dict(backbone),
            "weights": digest(staged),
            "details": dict(details or {}),
        }
        os.replace(staged, folder / WEIGHTS)
        staged = folder / f".{CONFIG}.{os.getpid()}"
        staged.write_text(json.dumps(config, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        os.replace(staged, folder / CONFIG)
    finally:
        staged.unlink(missing_ok=True)
    return folder


def described(backbone: BackboneLike) -> dict[str, Any]:
    """Say in JSON which backbone a checkpoint belongs to; an empty fingerprint is one that is not known."""
    return {
        "name": backbone.name,
        "fingerprint": backbone.fingerprint,
        "width": backbone.width,
        "word_width": backbone.word_width,
        "vision_width": int(getattr(backbone, "vision_width", 0)),
    }


def load(folder: Path, backbone: Backbone) -> Method:
    """Build the method a checkpoint describes and give it its weights; every key accounted for.

    An imported checkpoint does not know its backbone's fingerprint: there the widths alone are compared, and a backbone
    of another name is worth a warning. Raises `InputError` for a folder that is no checkpoint, another backbone than it
    was trained on, or weights that do not fit.
    """
    config = describe(folder)
    check_backbone(config["backbone"], backbone, folder)
    method = _build(config, backbone)
    restore(folder, method)
    for part in method.modules():
        if isinstance(part, Method):  # a wrapper's base too
            part.settled = True
    return method.eval()


def check_backbone(trained_on: Mapping[str, Any], backbone: Backbone, folder: Path) -> None:
    """Compare the backbone a checkpoint says it belongs to with the one it is to be used with (`load`)."""
    compared = ["width", "word_width", *(["fingerprint"] if trained_on["fingerprint"] else [])]
    for key in compared:
        if trained_on[key] != getattr(backbone, key):
            raise InputError(
                f"{folder}: trained on backbone {trained_on['name']!r} ({key} {trained_on[key]}), this is "
                f"{backbone.name!r} ({key} {getattr(backbone, key)}); load that backbone"
            )
    if not trained_on["fingerprint"] and trained_on["name"] != backbone.name:
        known = f"belongs to {trained_on['name']!r}" if trained_on["name"] else "does not say which backbone it is for"
        logger.warning("%s %s, loaded with %r: only the widths were compared", folder, known, backbone.name)


def projector(folder: Path, device: torch.device | str = "cpu") -> Method:
    """Load what maps an image's features to pseudo-words, without any backbone: of a wrapper, the innermost base.

    Raises `InputError` as `load` does.
    """
    config = describe(folder)
    own, inner, prefix = config["backbone"], innermost(config), ""
    while config is not inner:
        config, prefix = config["base"], f"{prefix}base."
    shape = BackboneShape(
        own["width"],
        own["word_width"],
        vision_width=own.get("vision_width", 0),
        name=own["name"],
        fingerprint=own["fingerprint"],
        device=device,
    )
    method = _build(config, shape)
    restore(folder, method, prefix)
    return method.eval()


def innermost(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Go down from a wrapper's description to that of the base which wraps nothing."""
    while config.get("base"):
        config = config["base"]
    return config


def describe(folder: Path) -> dict[str, Any]:
    """Read and check a checkpoint's configuration."""
    path = Path(folder) / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{folder}: no checkpoint here; expected {CONFIG} and {WEIGHTS}") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not readable as JSON ({error})") from None
    if isinstance(config, dict) and config.get("kind") == "tokens":
        raise InputError(f"{folder}: a table of OTI tokens, not a method; cir.load reads it, searle takes it as tokens")
    needed = {"format": int, "method": str, "options": dict, "backbone": dict, "weights": str}
    wrong = [key for key, kind in needed.items() if not isinstance(config, dict) or type(config.get(key)) is not kind]
    wrong = wrong or [f"backbone.{key}" for key in ("name", "fingerprint", "width", "word_width")
                      if key not in config["backbone"]]  # fmt: skip
    if wrong:
        raise InputError(f"{path}: {', '.join(wrong)} absent or of another type; not a checkpoint of this project?")
    if config["format"] != FORMAT:
        raise InputError(f"{path}: checkpoint format {config['format']}, this version reads {FORMAT}")
    return dict(config)


def restore(folder: Path, method: Method, prefix: str = "") -> None:
    """Copy a checkpoint's weights into a method of the same make; strict about names and shapes.

    With a `prefix`, the weights under it are the method's, and the others are left alone.
    """
    found = read_weights(Path(folder) / WEIGHTS, describe(folder)["weights"])
    fill(method, {name.removeprefix(prefix): t for name, t in found.items() if name.startswith(prefix)}, str(folder))


def fill(method: Method, tensors: Mapping[str, Tensor], origin: str) -> None:
    """Copy tensors into a method; `InputError` naming the `origin` unless names and shapes are exactly its own."""
    own = method.state_dict()
    missing, unknown = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    shapes = [n for n in own.keys() & tensors.keys() if own[n].shape != tensors[n].shape]
    if missing or unknown or shapes:
        raise InputError(
            f"{origin}: weights do not fit the method: {len(missing)} missing {missing[:3]}, {len(unknown)} unknown "
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


def read_weights(path: Path, expected: str) -> dict[str, Tensor]:
    """Read a file of weights whose digest is `expected`; `InputError` for an edited or unreadable one."""
    try:
        if digest(path) != expected:
            raise InputError(f"{path}: differs from what {CONFIG} describes; edited, or an interrupted copy?")
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: not readable as safetensors ({error})") from None


def digest(path: Path) -> str:
    """Sixteen hex digits over a file's bytes."""
    with open(path, "rb") as file:
        running = hashlib.sha256()
        while chunk := file.read(1 << 20):
            running.update(chunk)
    return running.hexdigest()[:16]
