"""Reading annotation files that other people wrote: every surprise is one line that names file and row."""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, TypeVar, overload

from cir.errors import InputError

Value = TypeVar("Value")
_REQUIRED: Any = object()
_PLAIN = re.compile(r"\w[\w-]*(\.\w+)?(/\w[\w-]*(\.\w+)?)*")
_NAMES = {str: "text", int: "an integer", list: "a list", dict: "an object", float: "a number"}


def read_json(path: Path) -> Any:
    """Parse a JSON file; not there, not UTF-8 or not JSON is an InputError."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; expected an annotation file of the official layout") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error}); download the file again") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None


def typed(value: Any, kind: type[Value], where: str) -> Value:
    """Return the value if it is of that JSON type; a boolean is not an integer."""
    if not isinstance(value, kind) or isinstance(value, bool):
        raise InputError(f"{where}: expected {_NAMES.get(kind, kind.__name__)}, got {_shown(value)}")
    return value


@dataclass(frozen=True, slots=True)
class Row:
    """One object of an annotation list, and where it stands, for messages."""

    data: dict[str, Any]
    where: str

    def __contains__(self, key: str) -> bool:
        """Say whether the row has that key."""
        return key in self.data

    @overload
    def get(self, key: str, kind: type[Value]) -> Value: ...
    @overload
    def get(self, key: str, kind: type[Value], default: Value) -> Value: ...
    def get(self, key: str, kind: type[Value], default: Any = _REQUIRED) -> Value:
        """Read a value of a known type; without a default the key must be there."""
        if key not in self.data:
            if default is not _REQUIRED:
                return default
            raise InputError(f"{self.where}: key {key!r} is missing; the row has {', '.join(sorted(self.data))}")
        return typed(self.data[key], kind, f"{self.where}, {key}")

    def many(self, key: str, kind: type[Value], default: Sequence[Value] = _REQUIRED) -> tuple[Value, ...]:
        """Read a list of values of one type."""
        listed = self.get(key, list) if default is _REQUIRED else self.get(key, list, list(default))
        return tuple(typed(value, kind, f"{self.where}, {key}[{i}]") for i, value in enumerate(listed))

    def inner(self, key: str) -> "Row":
        """Read a nested object."""
        return Row(self.get(key, dict), f"{self.where}, {key}")


def read_rows(path: Path) -> list[Row]:
    """Read a list of objects."""
    listed = typed(read_json(path), list, str(path))
    return [Row(typed(row, dict, f"{path}, row {index}"), f"{path}, row {index}") for index, row in enumerate(listed)]


def inside(path: str, where: str) -> str:
    """Return a relative path in its shortest spelling; refuse one that would leave the folder it is relative to.

    >>> inside("./dev/dev-1-img0.png", "split file")
    'dev/dev-1-img0.png'
    """
    if _PLAIN.fullmatch(path):  # what galleries of a hundred thousand files look like
        return path
    windows = PureWindowsPath(path)  # understands both separators and drives
    if not path or windows.anchor or ".." in windows.parts or "\0" in path or PurePosixPath(path).is_absolute():
        raise InputError(f"{where}: the path {path!r} leaves the dataset folder; expected one relative to it")
    return PurePosixPath(path).as_posix()


class Folder:
    """Knows which files lie in a dataset folder, listing every sub-folder once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._listed: dict[str, frozenset[str]] = {}

    def names(self, folder: str) -> frozenset[str]:
        """List a sub-folder; empty where there is none."""
        if folder not in self._listed:
            place = self.root / folder
            self._listed[folder] = frozenset(f.name for f in place.iterdir()) if place.is_dir() else frozenset()
        return self._listed[folder]

    def pick(self, paths: Iterable[str]) -> str:
        """Return the first path that exists, or the first one: whether images are there is checked elsewhere."""
        listed = list(paths)
        for path in listed:
            folder, _, name = path.rpartition("/")
            if name in self.names(folder):
                return path
        return listed[0]


def _shown(value: Any) -> str:
    """Shorten a value for a message."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
