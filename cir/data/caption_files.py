"""Files of captions, read row by row: text, JSON Lines, tables, Parquet."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cir.data import tables
from cir.data.tables import CAPTIONS, BadLine
from cir.errors import InputError, nearest

Found = Iterator[tuple[int, str | BadLine]]


def _text(file: Path, column: str) -> Found:
    """Read one caption per line."""
    yield from tables.lines(file)


def _json(file: Path, column: str) -> Found:
    """Read objects or strings, one per line."""
    for number, line in tables.lines(file):
        if isinstance(line, BadLine) or not line.strip():
            yield number, line
            continue
        try:
            yield number, _caption(json.loads(line), column, file.name, number)
        except (ValueError, RecursionError) as error:
            yield number, BadLine(file.name, number, f"not JSON ({error})", "not JSON")


def _caption(row: Any, column: str, file: str, number: int) -> str | BadLine:
    """Find the caption in one value; what is wrong is a bad line."""
    try:
        return caption_in(row, column)
    except ValueError as error:
        return BadLine(file, number, str(error), "without caption")


def caption_in(row: Any, column: str) -> str:
    """Find the caption in a JSON value: the value itself or one of its keys; null is blank. ValueError if none."""
    if isinstance(row, dict):
        key = next((name for name in ([column] if column else CAPTIONS) if name in row), None)
        if key is None:
            wanted = repr(column) if column else " or ".join(map(repr, CAPTIONS[:2]))
            raise ValueError(f"no key {wanted}, found {', '.join(map(str, row)) or 'none'}")
        row = row[key]
    if row is None:
        return ""
    if not isinstance(row, str):
        raise ValueError(f"expected text, got {type(row).__name__}")
    return row


def _table(file: Path, column: str) -> Found:
    """Read a tab- or comma-separated table."""
    found = tables.columns(file, column)
    if found.caption < 0:
        raise InputError(f"{file}: a table of picture files without captions; name the captions' column (train.column)")
    for number, cells in tables.rows(file, found):
        yield number, cells if isinstance(cells, BadLine) else cells[found.caption] if cells else ""


def _parquet(file: Path, column: str) -> Found:
    """Read a column of a Parquet file, block by block."""
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        hint = "pip install 'cir[parquet]', or convert it to .jsonl"
        raise InputError(f"{file}: Parquet needs pyarrow ({hint})") from None
    try:
        table = parquet.ParquetFile(file)
        chosen = named(list(table.schema_arrow.names), column, str(file))
        number = 0
        for block in table.iter_batches(columns=[chosen]):
            for value in block.column(0).to_pylist():
                number += 1
                yield number, _caption(value, column, file.name, number)
    except (ArrowException, OSError) as error:
        raise InputError(f"{file}: not readable as Parquet ({error})") from None


def named(names: list[str], column: str, where: str) -> str:
    """Choose the captions' column of a data set; one of a single column needs no name."""
    for name in [column] if column else CAPTIONS:
        if name in names:
            return name
    if len(names) == 1 and not column:
        return names[0]
    wanted = repr(column) if column else " or ".join(map(repr, CAPTIONS))
    raise InputError(f"{where}: no column {wanted}; {nearest(column or 'text', names)}; choose one with train.column")


READERS: dict[str, Callable[[Path, str], Found]] = {
    ".txt": _text,
    ".jsonl": _json,
    ".ndjson": _json,
    ".tsv": _table,
    ".csv": _table,
    ".parquet": _parquet,
}
"""Readers by ending of the file's name: each yields line number and caption, or what is wrong with the line."""


def files_of(path: Path) -> list[Path]:
    """List the caption files a path stands for, in order of name."""
    if not path.exists():
        raise InputError(f"{path}: no such file; expected captions ({', '.join(READERS)})")
    files = sorted(p for p in path.iterdir() if p.suffix.lower() in READERS) if path.is_dir() else [path]
    if not files or files[0].suffix.lower() not in READERS:
        raise InputError(f"{path}: not a caption file; expected {', '.join(READERS)}, or a folder of such")
    return files
