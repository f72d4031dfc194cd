"""Comma-separated annotation files: rows by their columns, every surprise one line with file and number."""

import csv
from collections.abc import Sequence
from pathlib import Path

from cir.data.annotations import Row
from cir.errors import InputError


def read_csv(path: Path, columns: Sequence[str], *, header: bool) -> list[Row]:
    """Read the named columns of a file, as text; further columns are ignored, empty lines skipped.

    With a `header` the first line says where the columns stand; without one they are the first of every line. Values
    keep their blanks. Raises InputError for a file that cannot be read, a column that the header lacks, and a line
    that is too short.
    """
    lines = _lines(path)
    names = list(columns)
    if header:
        _, names = lines.pop(0) if lines else (1, [])
        absent = [name for name in columns if name not in names]
        if absent:
            raise InputError(f"{path}: the header lacks {', '.join(absent)}; expected {','.join(columns)} in line 1")
    places = {name: names.index(name) for name in columns}
    rows = []
    for number, cells in lines:
        where = f"{path}, line {number}"
        if len(cells) <= max(places.values()):
            raise InputError(f"{where}: expected {','.join(names)}, got {len(cells)} values: {','.join(cells)[:60]!r}")
        rows.append(Row({name: cells[place] for name, place in places.items()}, where))
    return rows


def _lines(path: Path) -> list[tuple[int, list[str]]]:
    """Split a file into numbered lines of cells."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream)
            return [(reader.line_num, cells) for cells in reader if cells]
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read as a comma-separated file ({error}); download it again") from None
