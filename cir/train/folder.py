"""A run's folder: what it was started with, its snapshots, its history.

run.json                     what determines the numbers; a resumed run must agree
history.jsonl                one line per logged step
snapshots/step-00000500/     everything a resume needs, the last two kept
last/, best/                 checkpoints of the method
tensorboard/
"""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from cir.errors import InputError
from cir.files import replace_file

KEPT = 2


@dataclass(frozen=True)
class Snapshot:
    """Tensors by name, and the rest as JSON, after `step` steps."""

    step: int
    tensors: dict[str, Tensor]
    state: dict[str, Any]


class Folder:
    """The files of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.history = path / "history.jsonl"
        self.snapshots = path / "snapshots"

    def clear(self) -> None:
        """Delete what an earlier run left, and nothing else."""
        for name in ("snapshots", "tensorboard", "last", "best"):
            shutil.rmtree(self.path / name, ignore_errors=True)
        for name in ("run.json", "history.jsonl"):
            (self.path / name).unlink(missing_ok=True)

    def claim(self, identity: Mapping[str, Any]) -> None:
        """Write what the run is, or refuse a folder that another run started, naming the differing keys."""
        plain = json.loads(json.dumps(identity))
        path = self.path / "run.json"
        if not path.exists():
            self.path.mkdir(parents=True, exist_ok=True)
            write(path, json.dumps(plain, indent=1, sort_keys=True) + "\n")
            return
        try:
            found = flat(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, AttributeError):
            raise InputError(f"{path}: not readable; delete the folder or start afresh") from None
        here = flat(plain)
        differing = [key for key in sorted(found.keys() | here.keys()) if found.get(key) != here.get(key)]
        if differing:
            told = "; ".join(f"{key} is {here.get(key)!r}, was {found.get(key)!r}" for key in differing[:5])
            raise InputError(f"{self.path} holds another run: {told}. Choose another folder, or start afresh")

    def write_snapshot(self, snapshot: Snapshot) -> Path:
        """Write a snapshot under a temporary name, rename it, and delete all but the last two."""
        path = self.snapshots / f"step-{snapshot.step:08d}"
        staged = self.snapshots / f".{path.name}.{os.getpid()}"
        shutil.rmtree(staged, ignore_errors=True)
        staged.mkdir(parents=True)
        save_file({name: t.detach().cpu().contiguous() for name, t in snapshot.tensors.items()}, staged / "tensors")
        (staged / "state.json").write_text(json.dumps({**snapshot.state, "step": snapshot.step}), encoding="utf-8")
        for file in staged.iterdir():
            _flush(file)
        shutil.rmtree(path, ignore_errors=True)
        os.replace(staged, path)
        for old in self.steps()[:-KEPT]:
            shutil.rmtree(old)
        return path

    def steps(self) -> list[Path]:
        """List the snapshots, oldest first."""
        return sorted(self.snapshots.glob("step-*"))

    def latest(self, device: torch.device) -> Snapshot | None:
        """Read the last snapshot, if there is one; remains of an interrupted write are removed."""
        for staged in self.snapshots.glob(".step-*"):
            shutil.rmtree(staged, ignore_errors=True)
        found = self.steps()
        if not found:
            return None
        try:
            state = json.loads((found[-1] / "state.json").read_text(encoding="utf-8"))
            return Snapshot(state["step"], load_file(found[-1] / "tensors", device=str(device)), state)
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise InputError(f"{found[-1]}: not readable ({error}); delete it to resume from the one before") from None

    def cut_history(self, step: int) -> None:
        """Drop lines behind a step: a resumed run writes them again."""
        if not self.history.exists():
            return
        kept = []
        for line in self.history.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
            except (ValueError, KeyError):
                break  # the line a kill interrupted
        write(self.history, "".join(kept))

    def log(self, row: Mapping[str, Any]) -> None:
        """Append one line to the history."""
        with open(self.history, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def write(path: Path, text: str) -> None:
    """Write a file atomically."""
    replace_file(path, text.encode())


def flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested mappings to dotted keys.

    >>> flat({"train": {"lr": 0.1}, "seed": 0})
    {'train.lr': 0.1, 'seed': 0}
    """
    result: dict[str, Any] = {}
    for key, value in nested.items():
        result.update(flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value})
    return result


def _flush(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())
