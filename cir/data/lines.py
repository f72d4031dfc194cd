"""Reading JSON lines: one object a line, every surprise named with its line number."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cir.data.annotations import Row
from cir.errors import InputError


def read_lines(path: Path) -> Iterator[Row]:
    """Yield the objects of a JSONL file one by one, so that a file of any size can be read; blank lines are skipped.

    Not there, a line that is not one JSON object: InputError with the line's number.
    """
    name = str(path)
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.isspace():
                    yield parsed(line, f"{name}, line {number}")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); expected a file of JSON lines") from None


def parsed(line: bytes, where: str) -> Row:
    """Read one line; anything but a JSON object in UTF-8, each key once, is an InputError that begins with `where`."""
    try:
        found = json.loads(line.decode("utf-8-sig"), object_pairs_hook=_once)
    except UnicodeDecodeError:
        raise InputError(f"{where}: not UTF-8; save the file in that encoding") from None
    except json.JSONDecodeError as error:
        raise InputError(
            f"{where}: not JSON ({error.msg}, column {error.colno}); expected one object on each line"
        ) from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not JSON ({error}); expected one object on each line") from None
    if not isinstance(found, dict):
        raise InputError(f"{where}: expected one JSON object on each line, got {line[:40].decode(errors='replace')!r}")
    return Row(found, where)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object; a key that stands there twice would silently lose a value."""
    made = dict(pairs)
    if len(made) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"key {next(key for key in keys if keys.count(key) > 1)!r} occurs twice")
    return made
