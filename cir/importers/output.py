"""The folder an import makes: built beside its place, moved there whole or not at all."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from cir.errors import InputError, RunError
from cir.importers.formats import Format

SETTINGS = "config.yaml"


@contextmanager
def fresh(out: Path) -> Iterator[Path]:
    """Yield a folder to write into, which becomes `out` when the block ends well and vanishes when it does not.

    Raises `InputError` where something other than an empty folder is at `out`.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: already there; choose another folder, or delete it first")
    out = out.absolute()
    staged = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        staged.mkdir(parents=True)
        yield staged
        os.replace(staged, out)
    except OSError as error:
        raise RunError(f"{out}: could not be written ({error})") from None
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def settings(folder: Path, made: Format, name: str, backbone: str, preprocess: str, method: Mapping[str, Any]) -> None:
    """Write the configuration that evaluation takes from beside a checkpoint: backbone, preprocessing, sentence."""
    content = {
        "name": name,
        "method": dict(method),
        "backbone": {"name": backbone, "preprocess": preprocess},
        "prompt": {"template": made.template, "join": made.join},
    }
    (folder / SETTINGS).write_text(yaml.safe_dump(content, sort_keys=False, width=120), encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Write JSON as the project's folders hold it."""
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
