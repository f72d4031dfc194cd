"""Text triplets to train on: a reference caption, a text that says what to change, the caption of the result.

JSON (one list) or JSON Lines of objects with RTD's keys `reference_caption`, `conditioning_caption`, `target_caption`
(arXiv:2406.09188); other keys are left alone.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

from cir.errors import InputError

KEYS = {"reference": "reference_caption", "text": "conditioning_caption", "target": "target_caption"}
SHOWN = 10


@dataclass(frozen=True, slots=True)
class Triplet:
    """One row: captions and text as written in the file."""

    reference: str
    text: str
    target: str


class Triplets(Sequence[Triplet]):
    """Triplets by number; `bad` lists what was left out on request."""

    def __init__(self, rows: Sequence[Triplet], bad: Sequence[str] = ()) -> None:
        self._rows = tuple(rows)
        self.bad = tuple(bad)
        digest = hashlib.sha256()
        for row in self._rows:
            digest.update(json.dumps([row.reference, row.text, row.target]).encode())
        self.fingerprint = digest.hexdigest()[:16]

    def __len__(self) -> int:
        """Count the triplets."""
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Triplet: ...
    @overload
    def __getitem__(self, index: slice) -> list[Triplet]: ...
    def __getitem__(self, index: int | slice) -> Triplet | list[Triplet]:
        """Return one triplet, or a list of them."""
        return list(self._rows[index]) if isinstance(index, slice) else self._rows[index]


def load(path: Path, *, allow_bad: bool = False) -> Triplets:
    """Read triplets; rows without three texts are an `InputError` naming the first ten, unless `allow_bad`."""
    rows: list[Triplet] = []
    bad: list[str] = []
    for where, row in _objects(Path(path)):
        found = row if isinstance(row, str) else _triplet(row)
        if isinstance(found, Triplet):
            rows.append(found)
        else:
            bad.append(f"{where}: {found}")
    if bad and not allow_bad:
        raise InputError(f"{path}: {len(bad):,} rows are no triplets: {'; '.join(bad[:SHOWN])}")
    if not rows:
        raise InputError(f"{path}: holds no triplets")
    return Triplets(rows, bad)


def _objects(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield where and what: the elements of a JSON list, or a file's lines; what is unreadable comes as a message."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; expected triplets as .json or .jsonl") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from None
    if text.lstrip().startswith("["):
        try:
            yield from ((f"row {number}", (row,)) for number, row in enumerate(json.loads(text), start=1))
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}: not JSON ({error})") from None
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield f"line {number}", (json.loads(line),)
            except (ValueError, RecursionError) as error:
                yield f"line {number}", f"not JSON ({error})"


def _triplet(value: tuple[Any]) -> Triplet | str:
    """Check one object; a message says what is wrong with it."""
    (row,) = value
    if not isinstance(row, dict):
        return f"expected an object, got {type(row).__name__}"
    texts = {}
    for name, key in KEYS.items():
        if key not in row:
            return f"key {key!r} is missing, found {', '.join(map(str, row)) or 'none'}"
        if not isinstance(row[key], str) or not row[key].strip():
            return f"{key}: expected text, got {row[key]!r:.40}"
        texts[name] = row[key]
    return Triplet(**texts)
