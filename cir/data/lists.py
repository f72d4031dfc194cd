"""Lists without a header, one image a line, columns separated by blanks: how domain conversion is published."""

from functools import lru_cache
from pathlib import Path

from cir.data.annotations import inside
from cir.errors import InputError

Line = tuple[str, ...]


def read(path: Path, columns: tuple[str, ...]) -> tuple[Line, ...]:
    """Read a list whose first column is a path; `columns` name what a line holds, for messages.

    A file is parsed once per process, and again when its size or time changes. Not there, not text, a line with
    other columns, or a path that leaves the dataset are InputErrors with file and line.
    """
    try:
        found = path.stat()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); expected a list of {' '.join(columns)}") from None
    return _parsed(path, columns, found.st_mtime_ns, found.st_size)


@lru_cache(maxsize=8)
def _parsed(path: Path, columns: tuple[str, ...], changed: int, size: int) -> tuple[Line, ...]:
    """Parse a file as it was at a time, with a size; both are part of the key alone."""
    try:
        lines = path.read_text(encoding="utf-8").rstrip().split("\n")
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}); download the file again") from None
    rows = []
    for number, line in enumerate(lines, 1):
        row = line.split()
        if len(row) != len(columns):
            raise InputError(
                f"{path}, line {number}: expected {' '.join(columns)}, separated by blanks, got {line[:60]!r}; a name "
                "with a blank in it, or another file?"
            )
        rows.append((inside(row[0], f"{path}, line {number}"), *row[1:]))
    return tuple(rows)
