"""What reading a training source computes once: folders under the cache, made whole or not at all.

Kept beside the cache and not beside the data, which may be read-only.
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cir.errors import InputError, RunError

META = "meta.json"
LAYOUT = 1
"""Part of every digest: raise it when the meaning of what is kept changes."""


def digest(*parts: Any) -> str:
    """Twenty-four hex digits over JSON values."""
    return hashlib.sha256(json.dumps([LAYOUT, *parts]).encode()).hexdigest()[:24]


def state(file: Path) -> list[Any]:
    """Say which state of a file this is: name, size, modification time."""
    try:
        found = file.stat()
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror})") from None
    return [file.name, found.st_size, found.st_mtime_ns]


def kept(root: Path, name: str, make: Callable[[Path], dict[str, Any]]) -> tuple[Path, dict[str, Any]]:
    """Return the folder `root/name` and its description; `make(folder)` fills it and describes it where it is absent.

    Another process that wants the same waits. A `make` that is killed leaves nothing that is taken for whole.
    """
    folder = root / name
    found = _meta(folder)
    if found is None:
        with locked(root / f"{name}.lock"):
            found = _meta(folder)  # another process may have made it meanwhile
            if found is None:
                found = _build(folder, make)
    return folder, found


def _build(folder: Path, make: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """Fill a folder under another name, then rename it."""
    staged = folder.with_name(f".{folder.name}.part")
    try:
        shutil.rmtree(staged, ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)
        staged.mkdir(parents=True)
        described = make(staged)
        (staged / META).write_text(json.dumps(described), encoding="utf-8")
        os.replace(staged, folder)
    except OSError as error:
        raise RunError(f"{folder}: could not be written ({error}); is the disk full?") from None
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return described


def _meta(folder: Path) -> dict[str, Any] | None:
    try:
        found = json.loads((folder / META).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock file; the kernel drops the lock when its owner dies, so that it is never stale."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = open(path, "a")
    except OSError as error:
        raise InputError(f"cache {path.parent}: not writable ({error}); choose another folder") from None
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
