"""The index of one webdataset shard: where in the `.tar` each sample's picture and caption lie."""

import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped

from cir.data.bad import Bad
from cir.data.tables import SUFFIXES
from cir.errors import InputError

INDEX = "index.npy"
BLOCK = tarfile.BLOCKSIZE
FIELDS = [("image", "<i8"), ("image_size", "<i8"), ("text", "<i8"), ("text_size", "<i8"), ("json", "?")]
Entries = Shaped[np.ndarray, " _"]
"""Structured rows: `FIELDS`, places and sizes in bytes, and `key`."""
IMAGES = tuple(suffix.removeprefix(".") for suffix in SUFFIXES)
TEXTS = ("txt", "json")
"""Endings of captions, the first that a sample has."""


def scan(file: Path) -> tuple[Entries, dict[str, Any]]:
    """List a shard's samples and say what is wrong: `bad` by kind, `first` named, `damage` (kind, text) or none."""
    bad = Bad()
    rows: list[tuple[Any, ...]] = []
    damage: list[str] = []
    for key, members in _samples(file, damage):
        image = next((members[ending] for ending in IMAGES if ending in members), None)
        if image is None:
            bad.add("without image", f"{file.name}/{key}: no {', '.join(IMAGES[:4])}; has {', '.join(members)}")
        elif not image[1]:
            bad.add("empty", f"{file.name}/{key}: a picture of no bytes")
        else:
            kind = next((ending for ending in TEXTS if ending in members), "")
            rows.append((*image, *members.get(kind, (0, 0)), kind == "json", key.encode(errors="surrogateescape")))
    longest = max((len(row[-1]) for row in rows), default=1)
    entries = np.array(rows, dtype=[*FIELDS, ("key", f"S{longest}")])
    return entries, {"bad": dict(bad.counts), "first": bad.first, "damage": damage or None}


def _samples(file: Path, damage: list[str]) -> Iterator[tuple[str, dict[str, tuple[int, int]]]]:
    """Group consecutive members by key: their (place, size) by ending."""
    current, members = "", dict[str, tuple[int, int]]()
    for name, start, size in _members(file, damage):
        folder, slash, base = name.rpartition("/")
        stem, _, ending = base.partition(".")
        if not stem or not ending:  # hidden files, and notes without an ending
            continue
        key = f"{folder}{slash}{stem}"
        if key != current and members:
            yield current, members
            members = {}
        current = key
        members[ending.lower()] = (start, size)
    if members and not damage:  # the last sample of a damaged shard may lack what was lost
        yield current, members


def _members(file: Path, damage: list[str]) -> Iterator[tuple[str, int, int]]:
    """Yield name, place and size of every whole file member; what ends the list early goes into `damage`."""
    try:
        total = os.path.getsize(file)
        with tarfile.open(file, "r:") as shard:
            while (member := shard.next()) is not None:
                shard.members = []  # type: ignore[attr-defined]  # the list it keeps would hold every member of the shard
                if member.offset_data + member.size > total:
                    raise tarfile.ReadError(f"ends inside {member.name}")
                if member.isreg():
                    yield member.name, member.offset_data, member.size
            problem = _ending(file, shard.offset, total)
    except (tarfile.TarError, EOFError, UnicodeError, ValueError) as error:
        problem = ("truncated", str(error)) if _cut(error) else ("corrupt", str(error))
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror or error})") from None
    if problem:
        damage[:] = [problem[0], f"{file}: {problem[1]}"]


def _cut(error: Exception) -> bool:
    return "ends inside" in str(error) or "unexpected end" in str(error) or "empty file" in str(error)


def _ending(file: Path, offset: int, total: int) -> tuple[str, str] | None:
    """Look at the block that the reader took for the end: it takes a damaged header for one, too."""
    with open(file, "rb") as stream:
        stream.seek(offset)
        block = stream.read(BLOCK)
    if len(block) < BLOCK:
        return "truncated", f"no end-of-archive mark after {total:,} bytes"
    return ("corrupt", f"no member's header at byte {offset:,}") if any(block) else None
