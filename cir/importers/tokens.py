"""SEARLE's OTI folders and phrase files: pseudo-words by image name, and what a language model wrote about concepts."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cir.errors import InputError
from cir.importers.containers import load
from cir.importers.pickled import read_plain

TABLES = ("ema_oti_pseudo_tokens.pt", "oti_pseudo_tokens.pt")
"""The averaged tokens, which every later stage of SEARLE takes, and the raw ones."""
NAMES, SETTINGS = "image_names.pkl", "hyperparameters.json"
PHRASES = "phrases.jsonl"


def is_tokens(path: Path) -> bool:
    """Tell a folder of OTI tokens."""
    return path.is_dir() and (path / NAMES).is_file()


def read_tokens(folder: Path) -> tuple[Tensor, list[str], dict[str, Any]]:
    """Read pseudo-words "n w", the image name of each row, and what is worth keeping about their making.

    Raises `InputError` unless the names are a plain list of distinct strings, one per row.
    """
    table = next((folder / name for name in TABLES if (folder / name).is_file()), None)
    if table is None or not (folder / NAMES).is_file():
        raise InputError(f"{folder}: expected {' or '.join(TABLES)} and {NAMES} in a folder of OTI tokens")
    tokens = load(table)
    if not isinstance(tokens, Tensor) or tokens.ndim not in (2, 3) or (tokens.ndim == 3 and tokens.shape[1] != 1):
        shape = tuple(tokens.shape) if isinstance(tokens, Tensor) else type(tokens).__name__
        raise InputError(f"{table}: expected a tensor of images x word width, found {shape}")
    tokens = tokens.detach().float().reshape(len(tokens), -1).contiguous()
    if not bool(torch.isfinite(tokens).all()):
        raise InputError(f"{table}: holds values that are not finite; a failed inversion?")
    return tokens, _names(folder / NAMES, len(tokens)), {"table": table.name, "settings": _settings(folder / SETTINGS)}


def import_phrases(path: Path, out: Path) -> tuple[Path, int, int]:
    """Write `{"concept": ..., "phrases": [...]}` lines of a pickled dictionary; says where, concepts and phrases.

    `out` is a folder, or the `.jsonl` file itself.
    """
    found = read_plain(path)
    if not isinstance(found, dict) or not found:
        raise InputError(f"{path}: expected a dictionary from concepts to phrases, found {type(found).__name__}")
    _check(found, path)
    goal = out if out.suffix == ".jsonl" else out / PHRASES
    if goal.exists():
        raise InputError(f"{goal}: already there; choose another place, or delete it first")
    goal.parent.mkdir(parents=True, exist_ok=True)
    staged = goal.with_name(f".{goal.name}.{os.getpid()}")
    try:
        with open(staged, "w", encoding="utf-8") as file:
            for concept, phrases in found.items():
                file.write(json.dumps({"concept": concept, "phrases": phrases}, ensure_ascii=False) + "\n")
        os.replace(staged, goal)
    finally:
        staged.unlink(missing_ok=True)
    return goal, len(found), sum(map(len, found.values()))


def _check(found: dict[Any, Any], path: Path) -> None:
    for concept, phrases in found.items():
        if not isinstance(phrases, list) or not all(isinstance(text, str) for text in (concept, *phrases)):
            kind = type(phrases).__name__
            raise InputError(f"{path}: expected lists of strings by concept, found {kind} for {concept!r}")


def _names(path: Path, rows: int) -> list[str]:
    found = read_plain(path)
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        raise InputError(f"{path}: expected a list of image names, found {type(found).__name__}")
    if len(found) != rows:
        raise InputError(f"{path}: {len(found):,} names for {rows:,} tokens; from another run?")
    if len(set(found)) != rows:
        raise InputError(f"{path}: {rows - len(set(found)):,} names occur more than once; row i must belong to name i")
    return found


def _settings(path: Path) -> Any:
    """Read the hyperparameters kept beside the tokens, where there are any."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not readable as JSON ({error})") from None
