"""`cir export`: a fine-tuned CLIP as a folder of its own, for every other method and for plain transformers."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import typer
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from cir import config as configs
from cir import runs
from cir.backbones import weights
from cir.errors import InputError
from cir.importers.output import fresh
from cir.methods import checkpoint

METHOD = "clip_finetune"
TOWERS = ("text.", "vision.")
"""Whose parameters lie under these in the checkpoint, and without them in the backbone's own file."""
LEFT = ("*.index.json", "README.md")
"""Small files of a backbone that say what is no longer so."""


def main(path: Path, out: Path, backbone: str) -> None:
    """Write the folder, or say what is wrong in one line; nothing is left at `out` then."""
    folder = runs.find_checkpoint(path)
    described = checkpoint.describe(folder)
    if described["method"] != METHOD:
        raise InputError(f"{folder}: holds {described['method']}; only towers that {METHOD} trained can be exported")
    source = _backbone(backbone or described["backbone"]["name"], described, folder)
    towers = checkpoint.read_weights(folder / checkpoint.WEIGHTS, described["weights"])
    tensors = exchanged(_tensors(source), towers, source)
    with fresh(out) as staged:
        for pattern in weights.SMALL_FILES:
            for file in source.glob(pattern):
                if not any(file.match(left) for left in LEFT):
                    shutil.copyfile(file, staged / file.name)
        config = weights.read_config(source)
        config.pop("torch_dtype", None)
        _write(staged / "config.json", json.dumps({**config, "dtype": "float32"}, indent=2) + "\n")
        save_file(tensors, staged / "model.safetensors", metadata={"format": "pt"})
        _write(staged / "README.md", _card(out.name, described, folder, len(towers), config["model_type"]))
    typer.echo(f"{METHOD}: {len(towers)} of {len(tensors)} tensors are the checkpoint's, the others the backbone's")
    typer.echo(f"written: {out}; use it with backbone.name={out}")


def exchanged(frozen: Mapping[str, Tensor], method: Mapping[str, Tensor], source: Path) -> dict[str, Tensor]:
    """Put a method's towers in the place of the backbone's; all tensors, numbers as float32.

    Raises `InputError`, naming the backbone's folder, where one of the method's has no place of its shape there.
    """
    towers = {name.removeprefix(next(filter(name.startswith, TOWERS), "")): t for name, t in method.items()}
    foreign = sorted(name for name, t in towers.items() if name not in frozen or frozen[name].shape != t.shape)
    if foreign:
        raise InputError(
            f"{source}: has no place for {len(foreign)} of the checkpoint's {len(towers)} tensors, first {foreign[:3]}"
            "; is it the backbone the checkpoint was trained on?"
        )
    merged = {**frozen, **towers}
    return {name: (t.float() if t.is_floating_point() else t).contiguous() for name, t in merged.items()}


def _backbone(name: str, described: Mapping[str, Any], folder: Path) -> Path:
    """Find the backbone a checkpoint was trained on; `InputError` where it is another one."""
    source = weights.locate(name)
    found, known = weights.fingerprint(source), described["backbone"]["fingerprint"]
    if known and found != known:
        raise InputError(
            f"{folder}: trained on backbone {described['backbone']['name']!r} (fingerprint {known}), {source} is "
            f"{found}; name the right one with --backbone"
        )
    return source


def _tensors(folder: Path) -> dict[str, Tensor]:
    """Read all weights of a backbone; position counters, which old files hold, are no weights."""
    found: dict[str, Tensor] = {}
    for path in weights.weight_files(folder):
        try:
            if path.suffix == ".safetensors":
                found |= load_file(path)
            else:
                found |= torch.load(path, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, ValueError, SafetensorError) as error:
            raise InputError(f"{path}: not readable ({str(error).splitlines()[0]:.160})") from None
    return {name: tensor for name, tensor in found.items() if not name.endswith("position_ids")}


def _card(name: str, described: Mapping[str, Any], folder: Path, trained: int, layout: str) -> str:
    """Say where the weights come from, as a model card."""
    own, details = described["backbone"], described.get("details", {})
    run = details.get("run", {})
    kept = runs.config_file(folder)
    preprocess = configs.load(kept).backbone.preprocess if kept is not None else "clip"
    library = "cir" if layout == "clip_resnet" else "transformers"  # which has no convolutional CLIP
    head = {"library_name": library, "base_model": own["name"], "tags": ["clip", "composed-image-retrieval"]}
    options = ", ".join(f"{key} {value}" for key, value in described["options"].items())
    lines = (
        f"# {name}",
        "",
        f"{own['name']} fine-tuned for composed image retrieval by `cir` (method `{METHOD}`: the first stage of"
        " CLIP4Cir, Baldrati et al., TOMM 2023, arXiv:2308.11485) and exported by `cir export`.",
        "",
        f"- method: {options}",
        f"- steps: {details.get('steps', 'unknown')}, seed: {run.get('seed', 'unknown')}, training source:"
        f" {run.get('source', 'unknown')}",
        f"- checkpoint: weights {described['weights']}, {trained} tensors of the towers",
        f"- fine-tuned from: {own['name']}, fingerprint {own['fingerprint'] or 'unknown'}",
        f"- pictures were prepared with `backbone.preprocess={preprocess}`; preprocessor_config.json is the original's",
        "- a composed query is norm(image feature + text feature), of features that are not normalised before",
        "",
        f"    cir evaluate --method sum --backbone {name} cirr/val method.raw=true backbone.preprocess={preprocess}",
    )
    return f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n\n" + "\n".join(lines) + "\n"


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
