"""Pictures to train on, behind one door: image folders, webdataset shards, tables of files, Hugging Face data sets.

Every format gives the same thing: pictures by row, with their names and captions, opened one by one at any row, so
that a resumed run goes on at the exact position without replaying anything.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64
from PIL import Image

from cir.data.bad import Bad
from cir.errors import InputError


@runtime_checkable
class Pictures(Protocol):
    """Pictures by row."""

    format: str
    fingerprint: str
    """Sixteen hex digits over names, order, sizes and captions."""
    stamp: str
    """Sixteen hex digits over the fingerprint and the files' modification times."""
    blocks: tuple[int, ...]
    """Lengths of the runs of rows that lie together on disk (shards); empty where there are none."""
    bad: Bad
    """What was left out."""

    def __len__(self) -> int:
        """Count the pictures."""
        ...

    def name(self, row: int) -> str:
        """Name a picture: its path relative to the root, or its shard and key."""
        ...

    def text(self, row: int) -> str:
        """Return a picture's caption, empty where there is none."""
        ...

    def open(self, row: int) -> Image.Image:
        """Open a picture; raises what Pillow raises on what is damaged, here or when it is decoded."""
        ...


class Part:
    """Some rows of a source, in their order."""

    def __init__(self, whole: Pictures, rows: Int64[np.ndarray, " n"], bad: Bad | None = None) -> None:
        self.whole, self.rows = whole, rows
        self.format = whole.format
        self.bad = whole.bad if bad is None else bad
        self.fingerprint, self.stamp = (_mixed(mark, rows) for mark in (whole.fingerprint, whole.stamp))
        self.blocks = _cut(whole.blocks, rows)

    def __len__(self) -> int:
        """Count the rows."""
        return len(self.rows)

    def name(self, row: int) -> str:
        """Name a picture."""
        return self.whole.name(int(self.rows[row]))

    def text(self, row: int) -> str:
        """Return a picture's caption."""
        return self.whole.text(int(self.rows[row]))

    def open(self, row: int) -> Image.Image:
        """Open a picture."""
        return self.whole.open(int(self.rows[row]))


def load(
    path: Path | str,
    *,
    images: str = "",
    column: str = "",
    allow_bad: float = 0.0,
    limit: int = 0,
    keep: Path | None = None,
    progress: bool = True,
) -> Pictures:
    """Open a source of pictures; nothing is decoded, unless `allow_bad` asks for a look at every picture.

    `path` is a folder of pictures or of `.tar` shards, one shard, a pattern `shards/{00000..00331}.tar`, a `.tsv` or
    `.csv` that names files under the folder `images` (none: its own), `hf:NAME[:SPLIT]`, or a folder that `datasets`
    saved. `column` names the column of captions. `limit` takes the first rows only, 0 for all. `allow_bad` is the
    share of the source that may be unusable: with it every picture is decoded once, at an eighth of its size, to find
    the damaged ones, which are left out; above it, and for anything damaged where it is 0, `InputError`. Indexes and
    the result of that look are kept in the folder `keep`.
    """
    from cir.data.readable import without_damaged

    found = _open(str(path), images, column, keep, progress)
    if limit and limit < len(found):
        found = Part(found, np.arange(limit, dtype=np.int64))
    found.bad.check(len(found), allow_bad, str(path), "samples cannot be used")
    if allow_bad:
        found = without_damaged(found, keep, progress)
        found.bad.check(len(found), allow_bad, str(path), "samples cannot be used")
    if not len(found):
        raise InputError(f"{path}: holds no pictures to train on")
    return found


def _open(path: str, images: str, column: str, keep: Path | None, progress: bool) -> Pictures:
    """Choose the format."""
    from cir.data import hub, picture_folder, picture_table, shards

    place = Path(path)
    if path.startswith(hub.PREFIX) or hub.saved(place):
        return hub.Rows(path, column)
    if "{" in path or place.suffix == ".tar" or shards.inside(place):
        return shards.load(path, keep, progress)
    if place.suffix.lower() in (".tsv", ".csv"):
        return picture_table.load(place, images, column, keep, progress)
    if place.is_dir():
        return picture_folder.load(place)
    if not place.exists():
        raise InputError(f"{path}: no such file or folder; expected pictures to train on")
    raise InputError(f"{path}: not a source of pictures; expected a folder, .tar shards, a .tsv or .csv, or hf:NAME")


def _mixed(mark: str, rows: Sequence[int] | np.ndarray) -> str:
    """Sixteen hex digits over a fingerprint and the rows taken."""
    return hashlib.sha256(mark.encode() + np.asarray(rows, dtype=np.int64).tobytes()).hexdigest()[:16]


def _cut(blocks: tuple[int, ...], rows: Int64[np.ndarray, " n"]) -> tuple[int, ...]:
    """Count how many of the rows lie in each block; blocks of which none is left vanish."""
    counts = np.diff(np.searchsorted(rows, np.concatenate([[0], np.cumsum(blocks, dtype=np.int64)])))
    return tuple(int(count) for count in counts if count)
