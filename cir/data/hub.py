"""Hugging Face data sets as training sources, by `hf:NAME[:SPLIT]` or as a folder that `datasets` saved.

No code that comes with a data set is run, and only pictures whose bytes lie in the data set are opened: a path in a
stranger's row could name any file of this machine.
"""

import hashlib
import io
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from PIL import Image

from cir.data.bad import Bad
from cir.data.caption_files import caption_in, named
from cir.data.tables import CAPTIONS, BadLine
from cir.errors import InputError

PREFIX = "hf:"
SPLIT = "train"
BLOCK = 1000
"""Rows read at once."""


def saved(path: Path) -> bool:
    """Tell whether a folder was written by `save_to_disk`."""
    return any((path / name).is_file() for name in ("state.json", "dataset_dict.json"))


def open_dataset(path: str) -> Any:
    """Open a data set, by `hf:NAME[:SPLIT]` (split `train` where none is named) or a saved folder's path."""
    datasets = _package(path)
    name, _, split = path.removeprefix(PREFIX).partition(":") if path.startswith(PREFIX) else (path, "", "")
    try:
        if saved(Path(name)):
            found = datasets.load_from_disk(name)
        else:
            found = datasets.load_dataset(name, split=split or SPLIT)
    except (OSError, ValueError, RuntimeError) as error:  # the hub's and the builders' own errors are among these
        raise InputError(f"{path}: could not be opened ({' '.join(str(error).split())[:200]})") from None
    if isinstance(found, dict):
        wanted = split or SPLIT
        if wanted not in found:
            raise InputError(f"{path}: no split {wanted!r}; it has {', '.join(found)}")
        found = found[wanted]
    return found


def _package(path: str) -> Any:
    """Import Hugging Face datasets; by name, since a checkout has a folder `datasets` of its own."""
    try:
        return import_module("datasets")
    except ImportError:
        raise InputError(f"{path}: needs Hugging Face datasets (pip install 'cir[datasets]')") from None


def captions(path: str, column: str) -> Iterator[str | BadLine]:
    """Yield the captions of a data set in order; a row that holds none is a bad line."""
    found = open_dataset(path)
    chosen = named(found.column_names, column, path)
    number = 0
    for block in found.select_columns([chosen]).iter(BLOCK):
        for value in block[chosen]:
            number += 1
            try:
                yield caption_in(value, column)
            except ValueError as error:
                yield BadLine(path, number, str(error), "without caption")


class Rows:
    """Pictures of a data set, by row number."""

    format = "Hugging Face"
    blocks: tuple[int, ...] = ()

    def __init__(self, path: str, column: str) -> None:
        ImageFeature = _package(path).Image
        found = open_dataset(path)
        pictures = [name for name, kind in found.features.items() if isinstance(kind, ImageFeature)]
        if not pictures:
            raise InputError(f"{path}: no column of pictures; it has {', '.join(found.column_names)}")
        self._image = pictures[0]
        texts = [column] if column else [name for name in CAPTIONS if name in found.column_names]
        self._text = named(found.column_names, texts[0], path) if texts else ""
        raw = found.cast_column(self._image, ImageFeature(decode=False))
        self._rows = raw.select_columns([name for name in (self._image, self._text) if name])
        self.bad = Bad()
        self.fingerprint = self.stamp = self._digest()

    def __len__(self) -> int:
        """Count the rows."""
        return len(self._rows)

    def name(self, row: int) -> str:
        """Return the row's number: rows have no names."""
        return f"{row:08d}"

    def text(self, row: int) -> str:
        """Return a row's caption."""
        if not self._text:
            return ""
        try:
            return caption_in(self._rows.select_columns([self._text])[row][self._text], "").strip()
        except ValueError as error:
            raise InputError(f"row {row}, {self._text}: {error}") from None

    def open(self, row: int) -> Image.Image:
        """Open a picture from its bytes."""
        cell = self._rows[row][self._image]
        content = (cell or {}).get("bytes")
        if not content:
            raise ValueError("the row holds no bytes of a picture; save the data set with its pictures embedded")
        return Image.open(io.BytesIO(content))

    def _digest(self) -> str:
        """Sixteen hex digits over captions and the lengths of the pictures' bytes, which are not read for that."""
        import pyarrow.compute as arrow

        total = hashlib.sha256()
        for block in self._rows.with_format("arrow").iter(BLOCK):
            lengths = arrow.binary_length(arrow.struct_field(block[self._image], "bytes"))
            total.update(repr(lengths.to_pylist()).encode())
            if self._text:
                total.update(repr(block[self._text].to_pylist()).encode())
        return total.hexdigest()[:16]
