"""Webdataset shards: samples inside `.tar` files, read by one seek each, never unpacked.

A sample is the run of members that share a key, the name up to the first dot behind the last slash: `000017.jpg` and
`000017.txt`. Each shard's members are listed once, with the places of their bytes; that index is kept beside the cache,
under the shard's name, size and modification time. Any sample can then be read at any time, so that a resumed run
replays nothing, and a source of any size costs no memory: indexes are memory-mapped.
"""

import hashlib
import io
import os
import re
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cir.data.bad import Bad
from cir.data.keep import digest, kept, state
from cir.data.picture_folder import caption_of
from cir.data.shard_index import INDEX, Entries, scan
from cir.data.tables import SUFFIXES
from cir.errors import InputError
from cir.progress import bar

RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}")


class Shards:
    """Pictures of several shards, one shard behind the other: a block each."""

    format = "webdataset"

    def __init__(self, files: Sequence[Path], entries: Sequence[Entries], bad: Bad, stamps: Sequence[Any]) -> None:
        self.files, self.entries, self.bad = files, entries, bad
        self.blocks = tuple(len(each) for each in entries)
        self._ends = np.cumsum([0, *self.blocks], dtype=np.int64)
        content = hashlib.sha256(str(bad).encode())
        for file, each in zip(files, entries, strict=True):
            content.update(file.name.encode())
            content.update(each.view(np.uint8).data)  # no copy: it may be a memory map
        self.fingerprint = content.hexdigest()[:16]
        self.stamp = digest(self.fingerprint, list(stamps))[:16]

    def __len__(self) -> int:
        """Count the pictures."""
        return int(self._ends[-1])

    def name(self, row: int) -> str:
        """Return shard and key."""
        shard, place = self._place(row)
        return f"{self.files[shard].name}/{self.entries[shard]['key'][place].decode()}"

    def text(self, row: int) -> str:
        """Read a caption from its member; empty where there is none."""
        shard, place = self._place(row)
        entry = self.entries[shard][place]
        if not entry["text_size"]:
            return ""
        try:
            content = self._read(shard, int(entry["text"]), int(entry["text_size"]))
            return caption_of(content, ".json" if entry["json"] else ".txt")
        except (OSError, ValueError) as error:
            raise InputError(f"{self.name(row)}: no caption ({error})") from None

    def open(self, row: int) -> Image.Image:
        """Open a picture from its bytes."""
        shard, place = self._place(row)
        entry = self.entries[shard][place]
        return Image.open(io.BytesIO(self._read(shard, int(entry["image"]), int(entry["image_size"]))))

    def _place(self, row: int) -> tuple[int, int]:
        """Find a row's shard and its place there."""
        if not 0 <= row < len(self):
            raise IndexError(f"picture {row} of {len(self):,}")
        shard = int(np.searchsorted(self._ends, row, side="right")) - 1
        return shard, row - int(self._ends[shard])

    def _read(self, shard: int, start: int, size: int) -> bytes:
        """Read bytes of a shard; opened each time, which is little beside decoding and safe in any thread."""
        with open(self.files[shard], "rb", buffering=0) as file:
            file.seek(start)
            content = b""
            while len(content) < size and (more := file.read(size - len(content))):
                content += more
        if len(content) < size:
            raise OSError(f"{self.files[shard].name}: {len(content)} of {size} bytes; was the shard cut?")
        return content


def inside(folder: Path) -> bool:
    """Tell whether a folder holds shards; InputError where it holds pictures beside them."""
    names = [name.lower() for name in os.listdir(folder)] if folder.is_dir() else []
    if not any(name.endswith(".tar") for name in names):
        return False
    picture = next((name for name in names if name.endswith(SUFFIXES)), None)
    if picture is not None:
        raise InputError(f"{folder}: holds shards and pictures ({picture}); expected one or the other, move them apart")
    return True


def expand(pattern: str) -> list[Path]:
    """List the shards of a pattern, a folder or a single path, in order.

    >>> [str(path) for path in expand("a-{08..10}.tar")]
    ['a-08.tar', 'a-09.tar', 'a-10.tar']
    """
    if Path(pattern).is_dir():
        return sorted(Path(pattern).glob("*.tar"))
    parts: list[list[str]] = []
    done = 0
    for found in RANGE.finditer(pattern):
        parts += [[pattern[done : found.start()]], _choices(found)]
        done = found.end()
    parts.append([pattern[done:]])
    return [Path("".join(choice)) for choice in product(*parts)]


def _choices(found: re.Match[str]) -> list[str]:
    """List what one pair of braces stands for; numbers keep the width of the first."""
    if found[3] is not None:
        return found[3].split(",")
    first, last = int(found[1]), int(found[2])
    if last < first or last - first > 1_000_000:
        raise InputError(f"{found[0]}: expected a range that rises, of at most a million shards")
    return [f"{number:0{len(found[1])}d}" for number in range(first, last + 1)]


def load(pattern: str, keep: Path | None, progress: bool) -> Shards:
    """Index the shards of a pattern, a folder or a path; InputError names the missing ones.

    What is wrong inside a shard is counted: `without image`, `empty`, `truncated shard`, `corrupt shard`. A damaged
    shard gives its samples up to the damage; those behind are counted by what the other shards hold.
    """
    files = expand(pattern)
    missing = [str(file) for file in files if not file.is_file()]
    if missing:
        more = f" and {len(missing) - 10:,} more" if len(missing) > 10 else ""
        raise InputError(f"{pattern}: {len(missing):,} of {len(files):,} shards are missing: "
                         f"{', '.join(missing[:10])}{more}")  # fmt: skip
    stamps = [state(file) for file in files]
    entries: list[Entries] = []
    reports: list[dict[str, Any]] = []
    with bar(len(files), "indexing shards", progress) as shown:
        for file, stamp in zip(files, stamps, strict=True):
            found, report = _indexed(file, stamp, keep)
            entries.append(found)
            reports.append(report)
            shown.advance()
    return Shards(files, entries, _bad(entries, reports), stamps)


def _indexed(file: Path, stamp: list[Any], keep: Path | None) -> tuple[Entries, dict[str, Any]]:
    """Index one shard, or map its kept index."""
    if keep is None:
        return scan(file)

    def make(folder: Path) -> dict[str, Any]:
        entries, report = scan(file)
        np.save(folder / INDEX, entries, allow_pickle=False)
        return {**report, "count": len(entries)}

    folder, report = kept(keep / "shards", digest(stamp), make)
    found = np.load(folder / INDEX, mmap_mode="r" if report["count"] else None, allow_pickle=False)
    return found, report


def _bad(entries: Sequence[Entries], reports: Sequence[dict[str, Any]]) -> Bad:
    """Add up what is wrong; a shard that ends early lacks what a whole one of them holds more."""
    bad = Bad()
    whole = [len(found) for found, report in zip(entries, reports, strict=True) if not report["damage"]]
    usual = int(np.median(whole)) if whole else 0
    for found, report in zip(entries, reports, strict=True):
        bad.merge(Bad(report["bad"], report["first"]))
        if report["damage"]:
            kind, told = report["damage"]
            lost = max(usual - len(found) - sum(report["bad"].values()), 1)
            bad.add(f"in a {kind} shard", f"{told} (about {lost:,} samples lost)", lost)
    return bad
