"""Captions to train on: text, JSON Lines, tab-separated or Parquet files, read into one compact sequence.

    .txt                 one caption per line
    .jsonl, .ndjson      an object per line, or a bare string
    .tsv, .csv           a header line names the columns (a file of one column needs none)
    .parquet             where pyarrow is installed

A folder stands for all such files in it, in order of name.
"""

import csv
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np

from cir.errors import InputError, nearest

COLUMNS = ("text", "caption", "TEXT", "title", "prompt")
"""Column names tried in this order when none is asked for."""
SHOWN = 10


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line that holds no caption, and why."""

    file: str
    line: int
    why: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.why}"


class Captions(Sequence[str]):
    """Captions by number, held as one block of bytes: millions fit in memory, and threads share them.

    `bad` lists the lines that were left out on request, `blank` counts empty ones, which hold nothing to learn.
    """

    def __init__(self, texts: Sequence[str], bad: Sequence[BadLine] = (), blank: int = 0) -> None:
        encoded = [text.encode() for text in texts]
        self._ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
        self._bytes = b"".join(encoded)
        self.bad = tuple(bad)
        self.blank = blank
        digest = hashlib.sha256(self._bytes)
        digest.update(self._ends.tobytes())
        self.fingerprint = digest.hexdigest()[:16]

    def __len__(self) -> int:
        """Count the captions."""
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        """Return one caption, or a list of them."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        place = index + len(self) if index < 0 else index
        if not 0 <= place < len(self):
            raise IndexError(f"caption {index} of {len(self):,}")
        return self._bytes[self._ends[place] : self._ends[place + 1]].decode()


def load(path: Path, *, column: str = "", allow_bad: bool = False) -> Captions:
    """Read captions from a file, or from all caption files of a folder.

    `column` names the key or column that holds them; without it the first of `COLUMNS` present is taken. Lines that
    hold no caption are an `InputError` with the first ten and the total, unless `allow_bad` leaves them out. Blank
    lines are passed over and counted.
    """
    texts: list[str] = []
    bad: list[BadLine] = []
    blank = 0
    for file in _files(Path(path)):
        for _, found in READERS[file.suffix.lower()](file, column):
            if isinstance(found, BadLine):
                bad.append(found)
            elif found.strip():
                texts.append(found)
            else:
                blank += 1
    if bad and not allow_bad:
        told = "; ".join(map(str, bad[:SHOWN]))
        raise InputError(f"{path}: {len(bad):,} lines hold no caption: {told}. Mend them, or allow bad lines")
    if not texts:
        raise InputError(f"{path}: holds no captions")
    return Captions(texts, bad, blank)


Found = Iterator[tuple[int, str | BadLine]]


def _files(path: Path) -> list[Path]:
    """List the caption files a path stands for."""
    if not path.exists():
        raise InputError(f"{path}: no such file; expected captions ({', '.join(READERS)})")
    files = sorted(p for p in path.iterdir() if p.suffix.lower() in READERS) if path.is_dir() else [path]
    if not files or files[0].suffix.lower() not in READERS:
        raise InputError(f"{path}: not a caption file; expected {', '.join(READERS)}, or a folder of such")
    return files


def _lines(file: Path) -> Found:
    """Read lines of UTF-8; one that is not is bad, the others stand."""
    try:
        with open(file, "rb") as stream:
            for number, raw in enumerate(stream, start=1):
                try:
                    yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
                except UnicodeDecodeError as error:
                    yield number, BadLine(file.name, number, f"not UTF-8 ({error.reason})")
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror})") from None


def _text(file: Path, column: str) -> Found:
    """Read one caption per line."""
    yield from _lines(file)


def _json(file: Path, column: str) -> Found:
    """Read objects or strings, one per line."""
    for number, line in _lines(file):
        if isinstance(line, BadLine) or not line.strip():
            yield number, line
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield number, BadLine(file.name, number, f"not JSON ({error})")
            continue
        yield number, _caption(row, column, file.name, number)


def _caption(row: Any, column: str, file: str, number: int) -> str | BadLine:
    """Find the caption in one JSON value; null counts as blank."""
    if isinstance(row, dict):
        key = next((name for name in ([column] if column else COLUMNS) if name in row), None)
        if key is None:
            wanted = repr(column) if column else " or ".join(map(repr, COLUMNS[:2]))
            return BadLine(file, number, f"no key {wanted}, found {', '.join(map(str, row)) or 'none'}")
        row = row[key]
    if row is None:
        return ""
    return row if isinstance(row, str) else BadLine(file, number, f"expected text, got {type(row).__name__}")


def _table(file: Path, column: str) -> Found:
    """Read a tab- or comma-separated table."""
    tab = file.suffix.lower() == ".tsv"
    place, width = 0, 0
    for number, line in _lines(file):
        if isinstance(line, BadLine) or not line.strip():
            yield number, line
            continue
        cells = line.split("\t") if tab else next(csv.reader([line]))
        if not width:
            width = len(cells)
            place, header = _place(file, cells, column)
            if header:
                continue
        if len(cells) != width:
            yield number, BadLine(file.name, number, f"expected {width} columns, got {len(cells)}")
        else:
            yield number, cells[place]


def _place(file: Path, cells: list[str], column: str) -> tuple[int, bool]:
    """Find the captions' column in the first row, and say whether that row is a header."""
    for name in [column] if column else COLUMNS:
        if name in cells:
            return cells.index(name), True
    if column or len(cells) > 1:
        hint = nearest(column or "text", cells) + "; for a table without header, cut the column into a .txt file"
        raise InputError(f"{file}:1: no column {column or ' or '.join(COLUMNS)!r} in the header; {hint}")
    return 0, False


def _parquet(file: Path, column: str) -> Found:
    """Read a column of a Parquet file, block by block."""
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise InputError(f"{file}: Parquet needs pyarrow (pip install pyarrow), or convert it to .jsonl") from None
    try:
        table = parquet.ParquetFile(file)
        place, _ = _place(file, list(table.schema_arrow.names), column)
        number = 0
        for block in table.iter_batches(columns=[table.schema_arrow.names[place]]):
            for value in block.column(0).to_pylist():
                number += 1
                yield number, _caption(value, column, file.name, number)
    except (ArrowException, OSError) as error:
        raise InputError(f"{file}: not readable as Parquet ({error})") from None


READERS = {
    ".txt": _text,
    ".jsonl": _json,
    ".ndjson": _json,
    ".tsv": _table,
    ".csv": _table,
    ".parquet": _parquet,
}
