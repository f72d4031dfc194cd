"""One entry of the feature cache on disk: opened only if whole, written so that a kill costs little.

An entry is `<kind>-<digest>.npy` and a `.json` beside it with the key, the size and the SHA-256 of the file. While it
is being computed it is a `.part` with a journal, renewed at every checkpoint; a lock that the kernel releases with its
owner keeps a second process waiting.
"""

import fcntl
import hashlib
import io
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped

from cir.errors import InputError, RunError

logger = logging.getLogger(__name__)

KEPT = frozenset(np.dtype(kind).str for kind in (bool, "u1", "u2", "i1", "i2", "i4", "i8", "f2", "f4", "f8"))
"""Types of rows an entry may hold."""

_verified: set[tuple[str, int, int, int]] = set()
"""Files whose hash this process has checked: path, inode, size, mtime."""


class Partial:
    """An entry under construction: the .npy file growing row by row, a running hash, a journal of what is safe.

    `name` names a row in a message; without a `dtype` rows are stored in the type of the first block.
    """

    def __init__(
        self, path: Path, key: dict[str, Any], count: int, name: Callable[[int], str], dtype: type[np.generic] | None
    ) -> None:
        self.path = path
        self.key = key
        self.count = count
        self.name = name
        self.dtype = None if dtype is None else np.dtype(dtype)
        self.data = path.with_suffix(".part")
        self.journal = path.with_suffix(".part.json")
        self.rows = 0
        self.shape: tuple[int, ...] = ()
        self.digest = hashlib.sha256()
        self.bytes = 0
        with _disk(path):
            self.file = open(self.data, "r+b" if self.data.exists() else "w+b")
            self._resume()

    def _resume(self) -> None:
        """Take over what the journal vouches for, and cut the file there."""
        journal = _read_json(self.journal)
        if journal and journal.get("key") == self.key and self._takes(str(journal.get("dtype"))):
            hashed, size = _hash(self.file, int(journal["bytes"]))
            if size == journal["bytes"] and hashed.hexdigest() == journal["sha256"]:
                self.rows, self.shape = int(journal["done"]), tuple(journal["shape"])
                self.dtype, self.digest, self.bytes = np.dtype(journal["dtype"]), hashed, size
                logger.info("%s: going on from row %d of %d", self.path, self.rows, self.count)
            else:
                logger.warning("%s: the interrupted computation is damaged; starting again", self.data)
        self.file.truncate(self.bytes)
        self.file.seek(self.bytes)

    def _takes(self, dtype: str) -> bool:
        """Tell whether rows of a journal's type can be gone on with."""
        return dtype == self.dtype.str if self.dtype is not None else dtype in KEPT

    def append(self, block: Shaped[np.ndarray, "b ..."]) -> None:
        """Write rows, after the header if they are the first."""
        if self.dtype is None:
            self.dtype = block.dtype
            if self.dtype.str not in KEPT:
                raise RunError(f"{self.path.name}: rows of {self.dtype} cannot be kept; expected plain numbers")
        with np.errstate(over="ignore"):  # what float16 cannot hold is named below
            stored = np.ascontiguousarray(block, dtype=self.dtype)
        if not self.shape:
            self.shape = (self.count, *block.shape[1:])
            self._write(_header(self.dtype, self.shape))
        if stored.shape[1:] != self.shape[1:] or self.rows + len(stored) > self.shape[0]:
            raise RunError(f"{self.path.name}: a block of {stored.shape} at row {self.rows} of {self.shape}")
        finite = np.isfinite(stored).reshape(len(stored), -1).all(axis=1)
        if not finite.all():
            bad = self.name(self.rows + int(np.argmin(finite)))
            raise RunError(
                f"the {self.key['kind']} features of {bad!r} are not finite as {self.dtype}; try dtype=float32"
            )
        self._write(stored.tobytes())
        self.rows += len(stored)

    def _write(self, data: bytes) -> None:
        """Append bytes to the file and to the hash."""
        with _disk(self.path):
            self.file.write(data)
        self.digest.update(data)
        self.bytes += len(data)

    def checkpoint(self) -> None:
        """Make what is there safe from a kill."""
        state = {"key": self.key, **self._layout(), "done": self.rows}
        with _disk(self.path):
            self.file.flush()
            os.fsync(self.file.fileno())
            _write_json(self.journal, {**state, "bytes": self.bytes, "sha256": self.digest.hexdigest()})

    def _layout(self) -> dict[str, Any]:
        """Describe type and shape."""
        return {"dtype": "" if self.dtype is None else self.dtype.str, "shape": self.shape}

    def finish(self) -> None:
        """Turn the part into the entry: its description first, so that data never lie there without one."""
        if not self.shape or self.rows != self.shape[0]:
            raise RunError(f"{self.path.name}: {self.rows} rows computed, {self.count} expected")
        self.checkpoint()
        described = {"key": self.key, **self._layout()}
        with _disk(self.path):
            side = self.path.with_suffix(".json")
            _write_json(side, {**described, "bytes": self.bytes, "sha256": self.digest.hexdigest()})
            os.replace(self.data, self.path)
            self.journal.unlink(missing_ok=True)
        _verified.add(_identity(self.path))

    def close(self) -> None:
        """Close the file; the part stays for the next run unless it was finished."""
        with suppress(OSError):  # rows behind the last checkpoint may be lost, as the error on its way says
            self.file.close()


@contextmanager
def _disk(path: Path) -> Iterator[None]:
    """Turn what the disk refuses into one clear line."""
    try:
        yield
    except OSError as error:
        raise RunError(f"{path}: could not be written ({error}); is the disk full?") from None


def _header(dtype: np.dtype, shape: tuple[int, ...]) -> bytes:
    """Write the header of a .npy file."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": dtype.str, "fortran_order": False, "shape": tuple(int(n) for n in shape)}
    )
    return buffer.getvalue()


def open_entry(path: Path, key: dict[str, Any], warn: bool = False) -> np.ndarray | None:
    """Map an entry if it is whole; say what is wrong with it otherwise."""
    try:
        problem = _problem(path, key)
        if not problem:
            return np.load(path, mmap_mode="r", allow_pickle=False)
    except (FileNotFoundError, NotADirectoryError):  # absent, or just being replaced by another process
        return None
    if warn:
        logger.warning("cache file %s %s; computing it again", path, problem)
    return None


def _problem(path: Path, key: dict[str, Any]) -> str:
    """Compare a file with its description: size every time, hash once per process and state of the file."""
    identity = _identity(path)
    side = _read_json(path.with_suffix(".json"))
    if not side or side.get("key") != key:
        return "has no description that matches"
    if identity[2] != side.get("bytes"):
        return f"has {identity[2]} bytes instead of {side.get('bytes')}"
    if identity in _verified:
        return ""
    with path.open("rb") as file:
        hashed, _ = _hash(file, identity[2])
    if hashed.hexdigest() != side.get("sha256"):
        return "was changed (its checksum differs)"
    _verified.add(identity)
    return ""


def _identity(path: Path) -> tuple[str, int, int, int]:
    """Tell one state of a file from another."""
    stat = path.stat()
    return str(path.resolve()), stat.st_ino, stat.st_size, stat.st_mtime_ns


def _hash(file: Any, size: int) -> tuple[Any, int]:
    """Hash the first `size` bytes of an open file; say how many there were."""
    digest, done = hashlib.sha256(), 0
    file.seek(0)
    while done < size and (block := file.read(min(1 << 22, size - done))):
        digest.update(block)
        done += len(block)
    return digest, done


def _read_json(path: Path) -> dict[str, Any] | None:
    """Read a description; none where it is absent or damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a description whole or not at all."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".tmp")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        json.dump(content, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(name, path)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the entry's lock; the kernel drops it when its owner dies, so that it is never stale."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = open(path.with_suffix(".lock"), "a")
    except OSError as error:
        raise InputError(f"feature cache {path.parent}: not writable ({error}); choose another folder") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info("%s is being computed by another process; waiting", path)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
