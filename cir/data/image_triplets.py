"""Human triplets to learn from, reference picture, texts, target picture: the train splits of the benchmarks.

Pictures are numbered by content: those that show the same pixels share a number, so that no picture is ever a negative
of its own copy (as in the released code of SPN4CIR, arXiv:2404.11317). Every picture is decoded once for that, which
also finds the damaged ones.
"""

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
from jaxtyping import Int64, UInt8
from PIL import Image

from cir import data
from cir.data import layout
from cir.data.bad import Bad
from cir.data.keep import digest, locked
from cir.data.readable import UNREADABLE
from cir.errors import InputError, RunError, nearest
from cir.progress import bar
from cir.schema import Benchmark, Query

MARK = 16
"""Bytes that stand for a picture's pixels; all zero where it cannot be decoded."""
CHUNK = 1024
"""Pictures between two points from which an interrupted look can go on."""

Value = TypeVar("Value")


class AnnotatedTriplets:
    """Triplets by row; their pictures by number, each distinct picture once, in the order in which rows name them."""

    def __init__(
        self, title: str, queries: Sequence[Query], files: Mapping[str, Path], marks: Mapping[str, bytes], bad: Bad
    ) -> None:
        self.format, self.queries, self.bad = title, tuple(queries), bad
        numbers: dict[bytes, int] = {}
        named: list[str] = []

        def number(name: str) -> int:
            if marks[name] not in numbers:
                numbers[marks[name]] = len(named)
                named.append(name)
            return numbers[marks[name]]

        pairs = [(number(query.reference), number(query.targets[0])) for query in queries]
        self.reference: Int64[np.ndarray, " n"] = np.array([first for first, _ in pairs], dtype=np.int64)
        """The number of each row's reference picture."""
        self.target: Int64[np.ndarray, " n"] = np.array([second for _, second in pairs], dtype=np.int64)
        """The number of each row's target picture."""
        self.names = tuple(named)
        """Of every picture, the first id it goes by."""
        self.files = tuple(files[name] for name in named)
        """Of every picture, where it lies."""
        total = hashlib.sha256()
        for query in queries:
            pictures = [marks[name].hex() for name in (query.reference, query.targets[0])]
            total.update(json.dumps([query.texts, *pictures]).encode())
        self.fingerprint = total.hexdigest()[:16]
        """Sixteen hex digits over the texts and the pixels of every pair, in order: not over names or places."""

    def __len__(self) -> int:
        """Count the triplets."""
        return len(self.queries)

    def query(self, row: int) -> Query:
        """Return a triplet as annotated."""
        return self.queries[row]


def load(
    name: str,
    root: Path | str,
    *,
    roots: Mapping[str, str] | None = None,
    limit: int = 0,
    allow_bad: float = 0.0,
    allow_missing: bool = False,
    keep: Path | None = None,
    progress: bool = True,
) -> AnnotatedTriplets:
    """Read a train split, `cirr/train`, `fashioniq/dress/train`, or a group of them, `fashioniq/train`.

    It is found as the benchmark of that name is: under `root`, or where `roots` says for its dataset. `limit` takes
    the first triplets only, 0 for all. Triplets that need a missing or damaged picture are left out if they are at most
    the share `allow_bad` of all; otherwise `InputError`. Annotation files that have not the published counts are an
    InputError, too; with `allow_missing` what is there is read, and `format` says so. What the look at the pictures
    found is kept in the folder `keep`.
    """
    splits = [split for split in (*data.BENCHMARKS, *data.GROUPS) if split.endswith("/train")]
    if name.removeprefix(data.WORLD) not in splits:
        raise InputError(f"train.source {name!r}: no split with human triplets to learn from; {nearest(name, splits)}")
    place = Path((roots or {}).get(data.dataset(name), root))
    parts = [_split(part, place, allow_missing) for part in data.expand(name)]
    files = {image: part.root / path for part in parts for image, path in part.paths.items()}
    rows = [query for part in parts for query in part.queries][: limit or None]
    images = dict.fromkeys(image for query in rows for image in (query.reference, query.targets[0]))

    states = dict(zip(images, _mapped(_state, [files[image] for image in images]), strict=True))
    trouble = {image: f"missing, {files[image]}" for image, state in states.items() if not state}
    rows, bad = _usable(rows, trouble, Bad(), "missing")
    bad.check(len(rows), allow_bad, name, "triplets cannot be used")
    there = [image for image in images if states[image]]
    of = digest("pixels", [[image, states[image]] for image in there])
    looked = _looked([files[image] for image in there], of, keep, progress)
    marks = {image: mark.tobytes() for image, mark in zip(there, looked, strict=True)}
    trouble = {image: f"damaged, {files[image]}" for image, mark in marks.items() if not any(mark)}
    rows, bad = _usable(rows, trouble, bad, "damaged")
    bad.check(len(rows), allow_bad, name, "triplets cannot be used")
    if not rows:
        raise InputError(f"{name}: holds no triplets to learn from")
    stamps = [stamp for part in parts for stamp in part.stamps]
    return AnnotatedTriplets("; ".join([name, *stamps]), rows, files, marks, bad)


def _split(name: str, root: Path, allow_missing: bool) -> Benchmark:
    """Load one split; a world that was built before it had train splits is told how to get them."""
    try:
        return data.load(name, root, allow_missing=allow_missing)
    except InputError as error:
        if layout.world_file(root) is None:
            raise
        raise InputError(f"{error}; an older world gets its train splits from `cir world build {root}`") from None


def _usable(rows: list[Query], trouble: Mapping[str, str], bad: Bad, kind: str) -> tuple[list[Query], Bad]:
    """Leave out the rows that need one of the pictures in trouble, and count them."""
    left = []
    for query in rows:
        needed = [image for image in (query.reference, query.targets[0]) if image in trouble]
        if needed:
            bad.add(kind, f"{query.id}: {needed[0]} ({trouble[needed[0]]})")
        else:
            left.append(query)
    return left, bad


def _state(file: Path) -> tuple[int, int] | None:
    """Give size and modification time, or none for what is no file."""
    try:
        found = file.stat()
    except OSError:
        return None
    return (found.st_size, found.st_mtime_ns) if file.is_file() else None


def pixels(file: Path) -> bytes:
    """Give a digest of a picture's pixels as an encoder sees them, in RGB; zeros where it cannot be decoded.

    A copy in another format, or with other metadata, has the same digest where compression lost nothing.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd metadata
            with Image.open(file) as image:
                shown = image if image.mode == "RGB" else image.convert("RGB")
                return hashlib.blake2b(repr(shown.size).encode() + shown.tobytes(), digest_size=MARK).digest()
    except UNREADABLE:
        return bytes(MARK)


def _looked(files: Sequence[Path], of: str, keep: Path | None, progress: bool) -> UInt8[np.ndarray, "n 16"]:
    """Look at the pixels of every picture, or read what a look has found before; a look that was cut short goes on.

    `of` stands for which pictures they are, in which state.
    """
    if keep is None:
        found = b"".join(_chunks(files, 0, progress))
    else:
        path = keep / f"pixels-{of}.bin"
        if not _whole(path, len(files)):
            with locked(path.with_suffix(".lock")):
                if not _whole(path, len(files)):  # another process may have finished it meanwhile
                    _write(path, files, progress)
        found = path.read_bytes()
    return np.frombuffer(found, dtype=np.uint8).reshape(-1, MARK)


def _write(path: Path, files: Sequence[Path], progress: bool) -> None:
    """Grow the file of digests chunk by chunk under another name."""
    part = path.with_suffix(".part")
    done = part.stat().st_size // MARK if part.exists() else 0
    try:
        with open(part, "ab") as file:
            file.truncate(done * MARK)
            for chunk in _chunks(files, done, progress):
                file.write(chunk)
                file.flush()
        os.replace(part, path)
    except OSError as error:
        raise RunError(f"{path}: could not be written ({error}); is the disk full?") from None


def _whole(path: Path, count: int) -> bool:
    return path.is_file() and path.stat().st_size == count * MARK


def _chunks(files: Sequence[Path], start: int, progress: bool) -> Iterator[bytes]:
    """Decode with threads, chunk by chunk from a picture on."""
    with bar(len(files), "looking at images", progress) as shown:
        shown.skip(start)
        for first in range(start, len(files), CHUNK):
            chunk = files[first : first + CHUNK]
            yield b"".join(_mapped(pixels, chunk))
            shown.advance(len(chunk))


def _mapped(look: Callable[[Path], Value], files: Sequence[Path]) -> list[Value]:
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1), thread_name_prefix="look") as pool:
        return list(pool.map(look, files))
