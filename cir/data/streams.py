"""JSON read as a stream: a list, values one after the other, or a value per line; one value in memory at a time."""

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cir.errors import InputError

CHUNK = 1 << 20
"""Bytes read at once."""
LONGEST = 16 << 20
"""Characters a single value of a list may have."""
DECODER = json.JSONDecoder()

Found = Iterator[tuple[str, tuple[Any] | str]]
"""Where a value stands, and the value in a tuple of its own, or a message saying why it cannot be read."""


def json_values(file: Path) -> Found:
    """Yield the elements of a file that holds one JSON list, or else the values of its lines.

    A broken line is a message and the others stand; a broken list is an `InputError`, for nothing behind the break can
    be told apart.
    """
    try:
        with open(file, "rb") as stream:
            head = stream.read(4096).decode("utf-8-sig", errors="replace").lstrip()
        listed = head.startswith("[") and (file.suffix.lower() == ".json" or not _is_value(head.split("\n")[0]))
        yield from _elements(file) if listed else _lines(file)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: cannot be read ({error})") from None


def _is_value(line: str) -> bool:
    """Tell whether a line is JSON of its own, as in a file with a list per line."""
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _lines(file: Path) -> Found:
    """Read a value per line; blank lines are passed over."""
    with open(file, "rb") as stream:
        for number, raw in enumerate(stream, start=1):
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
                if line.strip():
                    yield f"line {number}", (json.loads(line),)
            except UnicodeDecodeError as error:
                yield f"line {number}", f"not UTF-8 ({error.reason})"
            except (ValueError, RecursionError) as error:
                yield f"line {number}", f"not JSON ({error})"


def _elements(file: Path) -> Found:
    """Read the elements of one list."""
    text = _Text(file)
    text.skip()
    text.at += 1  # the bracket
    number, comma = 0, False
    while True:
        text.skip()
        if text.peek() == "]" and not comma:
            text.at += 1
            text.skip()
            if text.peek():
                raise InputError(f"{file}: not JSON (something stands behind the list)")
            return
        number += 1
        yield f"row {number}", (text.value(number),)
        text.skip()
        comma = text.peek() == ","
        if comma:
            text.at += 1
        elif text.peek() != "]":
            raise InputError(f"{file}: not JSON (expected a comma or ] behind row {number})")


class _Text:
    """A file's text from a position on, read as far as needed."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.text, self.at, self.ended = "", 0, False
        self._chunks = self._read()

    def _read(self) -> Iterator[str]:
        with open(self.file, "rb") as stream:
            yield from codecs.iterdecode(iter(lambda: stream.read(CHUNK), b""), "utf-8-sig")

    def more(self) -> None:
        """Read on, and forget what lies behind."""
        chunk = next(self._chunks, "")
        self.ended = not chunk
        self.text, self.at = self.text[self.at :] + chunk, 0

    def peek(self) -> str:
        """Return the next character; empty at the end."""
        while self.at >= len(self.text) and not self.ended:
            self.more()
        return self.text[self.at : self.at + 1]

    def skip(self) -> None:
        """Pass over white space."""
        while self.peek() and self.peek() in " \t\r\n":
            self.at += 1

    def value(self, number: int) -> Any:
        """Decode the value that starts here."""
        while True:
            try:
                value, end = DECODER.raw_decode(self.text, self.at)
                if end + 2 < len(self.text) or self.ended:  # a number may go on in the next chunk: 1 | e+5
                    self.at = end
                    return value
            except (ValueError, RecursionError) as error:
                if self.ended or len(self.text) - self.at > LONGEST or isinstance(error, RecursionError):
                    raise InputError(f"{self.file}: not JSON (row {number}: {error})") from None
            self.more()
