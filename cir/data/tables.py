"""Tab- and comma-separated tables of captions and pictures: which column is which, row by row.

A header line names the columns. Conceptual Captions' own files have none (caption, tab, URL); there a column in which
every cell is a URL or the name of a picture is told from one that holds text.
"""

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from cir.errors import InputError, nearest

CAPTIONS = ("text", "caption", "TEXT", "title", "prompt")
"""Names of a column of captions, tried in this order when none is asked for."""
PLACES = ("filepath", "file_name", "filename", "path", "image", "file", "url")
"""Names of a column of picture files, tried in this order."""
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
"""Endings of picture files, in lower case."""
PLACE = re.compile(rf"https?://\S+|[^\t]*({'|'.join(map(re.escape, SUFFIXES))})", re.IGNORECASE)
PEEKED = 20
"""Rows looked at to tell the columns of a table without header."""


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line that cannot be used, and why; `kind` is what it is counted as."""

    file: str
    line: int
    why: str
    kind: str = "unreadable"

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.why}"


@dataclass(frozen=True, slots=True)
class Columns:
    """Where captions and picture files stand, -1 for nowhere; how many columns a row has; is the first row a header."""

    caption: int
    place: int
    width: int
    header: bool


def lines(file: Path) -> Iterator[tuple[int, str | BadLine]]:
    """Read lines of UTF-8; one that is not is bad, the others stand."""
    try:
        with open(file, "rb") as stream:
            for number, raw in enumerate(stream, start=1):
                try:
                    yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
                except UnicodeDecodeError as error:
                    yield number, BadLine(file.name, number, f"not UTF-8 ({error.reason})", "not UTF-8")
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror})") from None


def rows(file: Path, found: Columns) -> Iterator[tuple[int, list[str] | BadLine]]:
    """Yield the rows behind the header with their line numbers; blank lines come as rows without cells."""
    first = True
    separator = _separator(file)
    for number, line in lines(file):
        if isinstance(line, BadLine):
            yield number, line
            continue
        if not line.strip():
            yield number, []
            continue
        cells = split(line, separator)
        header, first = first and found.header, False
        if header:
            continue
        if len(cells) == found.width:
            yield number, cells
        else:
            why = f"expected {found.width} columns, got {len(cells)}"
            yield number, BadLine(file.name, number, why, "of another width")


def split(line: str, separator: str) -> list[str]:
    """Split a line into cells; tabs are never quoted."""
    return line.split("\t") if separator == "\t" else next(csv.reader([line]))


def columns(file: Path, column: str) -> Columns:
    """Find the columns of a table in its first rows; `column` is the captions' name, or number from 1."""
    separator = _separator(file)
    good = (line for _, line in lines(file) if isinstance(line, str) and line.strip())
    table = [split(line, separator) for line in islice(good, PEEKED)]
    if not table:
        return Columns(0, -1, 1, False)
    head = table[0]
    caption = _named(head, [column] if column else CAPTIONS)
    place = _named(head, PLACES)
    if caption >= 0 or (place >= 0 and not column):
        return Columns(caption, place, len(head), True)
    if column.isdigit() and 1 <= int(column) <= len(head):
        places = _places(table)
        return Columns(int(column) - 1, places[0] if places else -1, len(head), False)
    if column:
        raise InputError(f"{file}:1: no column {column!r} in the header; {nearest(column, head)}")
    return _headerless(file, table)


def _headerless(file: Path, table: Sequence[list[str]]) -> Columns:
    """Tell the columns of a table without header by what is in them."""
    width = len(table[0])
    places = _places(table)
    texts = [index for index in range(width) if index not in places]
    if width == 1:
        return Columns(*((-1, 0) if places else (0, -1)), 1, False)
    if len(texts) == 1 and len(places) == 1:
        return Columns(texts[0], places[0], width, False)
    raise InputError(
        f"{file}:1: no column {' or '.join(CAPTIONS)!r} in the header, nor two columns of which one holds URLs or "
        f"picture files; {nearest('text', table[0])}; name the captions' column with train.column, or give its number "
        "if the table has no header"
    )


def _places(table: Sequence[list[str]]) -> list[int]:
    """List the columns in which every cell is a URL or a picture's name."""
    width = len(table[0])
    full = [row for row in table if len(row) == width]
    return [index for index in range(width) if all(PLACE.fullmatch(row[index].strip()) for row in full)]


def _named(head: Sequence[str], names: Sequence[str]) -> int:
    return next((head.index(name) for name in names if name in head), -1)


def _separator(file: Path) -> str:
    """Take tabs for `.tsv`, and for a `.csv` whose first line has one (Pic2Word's file)."""
    if file.suffix.lower() == ".tsv":
        return "\t"
    first = next((line for _, line in lines(file) if isinstance(line, str) and line.strip()), "")
    return "\t" if "\t" in first else ","
