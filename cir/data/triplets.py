"""Text triplets to train on: a reference caption, a text that says what to change, the caption of the result.

    .json                one list of objects, or objects one after the other
    .jsonl, .ndjson      an object per line
    .parquet             where pyarrow is installed

The columns are RTD's, `reference_caption`, `conditioning_caption`, `target_caption` (arXiv:2406.09188), or
`input`, `edit`, `output` as InstructPix2Pix writes them (arXiv:2211.09800); other columns are left alone. A folder
stands for all such files in it, in order of name. Files are read as streams: what is held is the texts.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

from cir.data.bad import Bad
from cir.data.streams import json_values
from cir.data.strings import Strings
from cir.errors import InputError

KEYS = {"reference": "reference_caption", "text": "conditioning_caption", "target": "target_caption"}
COLUMNS = (tuple(KEYS.values()), ("input", "edit", "output"))
"""Names of the three columns, tried in this order row by row."""
SUFFIXES = (".json", ".jsonl", ".ndjson", ".parquet")


@dataclass(frozen=True, slots=True)
class Triplet:
    """One row: captions and text as written in the file."""

    reference: str
    text: str
    target: str


class Triplets(Sequence[Triplet]):
    """Triplets by number, held as one block of bytes: hundreds of thousands fit in memory, and threads share them.

    `bad` counts the rows that were left out on request, and names the first.
    """

    def __init__(self, rows: Iterable[Triplet], bad: Bad | None = None) -> None:
        self.bad = Bad() if bad is None else bad
        self._texts = Strings.of(self._noted(rows))

    def _noted(self, rows: Iterable[Triplet]) -> Iterator[str]:
        """Yield the rows' texts, and leave the fingerprint: sixteen hex digits over them."""
        digest = hashlib.sha256()
        for row in rows:
            texts = (row.reference, row.text, row.target)
            digest.update(json.dumps(texts).encode())
            yield from texts
        self.fingerprint = digest.hexdigest()[:16]

    def __len__(self) -> int:
        """Count the triplets."""
        return len(self._texts) // 3

    @overload
    def __getitem__(self, index: int) -> Triplet: ...
    @overload
    def __getitem__(self, index: slice) -> list[Triplet]: ...
    def __getitem__(self, index: int | slice) -> Triplet | list[Triplet]:
        """Return one triplet, or a list of them."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        place = index + len(self) if index < 0 else index
        if not 0 <= place < len(self):
            raise IndexError(f"triplet {index} of {len(self):,}")
        return Triplet(*self._texts[3 * place : 3 * place + 3])


def load(path: Path, *, allow_bad: float = 0.0) -> Triplets:
    """Read triplets from a file, or from all such files of a folder.

    Rows without three texts are left out if they are at most the share `allow_bad` of all rows; otherwise they are an
    `InputError` with the first ten and the total.
    """
    bad = Bad()
    found = Triplets(_read(_files(Path(path)), bad), bad)
    bad.check(len(found), allow_bad, str(path), "rows are no triplets")
    if not len(found):
        raise InputError(f"{path}: holds no triplets")
    return found


def _read(files: Sequence[Path], bad: Bad) -> Iterator[Triplet]:
    """Yield triplets, and note what is none."""
    for file in files:
        named = f"{file.name}, " if len(files) > 1 else ""
        for where, value in _values(file):
            row = value if isinstance(value, str) else _triplet(value[0])
            if isinstance(row, Triplet):
                yield row
            else:
                bad.add("bad rows", f"{named}{where}: {row}")


def _files(path: Path) -> list[Path]:
    """List the files a path stands for; a file without one of the suffixes is read as JSON."""
    if not path.exists():
        raise InputError(f"{path}: no such file; expected triplets ({', '.join(SUFFIXES)}), or a folder of such")
    if not path.is_dir():
        return [path]
    files = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES)
    if not files:
        raise InputError(f"{path}: a folder without triplets; expected {', '.join(SUFFIXES)}")
    return files


def _values(file: Path) -> Iterator[tuple[str, tuple[Any] | str]]:
    """Yield where and what: a row's value in a tuple of its own, or a message saying why it is unreadable."""
    return _parquet(file) if file.suffix.lower() == ".parquet" else json_values(file)


def _parquet(file: Path) -> Iterator[tuple[str, tuple[Any] | str]]:
    """Read the three columns of a Parquet file, block by block."""
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise InputError(f"{file}: Parquet needs pyarrow (pip install 'cir[parquet]'), or make it .jsonl") from None
    try:
        table = parquet.ParquetFile(file)
        present = table.schema_arrow.names
        columns = next((names for names in COLUMNS if set(names) <= set(present)), None)
        if columns is None:
            raise InputError(f"{file}: no columns {', '.join(COLUMNS[0])}; found {', '.join(present)}")
        number = 0
        for block in table.iter_batches(columns=list(columns)):
            for row in block.to_pylist():
                number += 1
                yield f"row {number}", (row,)
    except (ArrowException, OSError) as error:
        raise InputError(f"{file}: not readable as Parquet ({error})") from None


def _triplet(row: Any) -> Triplet | str:
    """Check one object; a message says what is wrong with it."""
    if not isinstance(row, dict):
        return f"expected an object, got {type(row).__name__}"
    columns = next((names for names in COLUMNS if row.keys() >= set(names)), None)
    if columns is None:
        absent = next(key for key in COLUMNS[0] if key not in row)
        return f"key {absent!r} is missing, found {', '.join(map(str, row)) or 'none'}"
    texts = [row[key] for key in columns]
    for key, text in zip(columns, texts, strict=True):
        if not isinstance(text, str) or not text.strip():
            return f"{key}: expected text, got {text!r:.40}"
        if any(0xD800 <= ord(letter) <= 0xDFFF for letter in text):  # half a character: JSON can write it, UTF-8 cannot
            return f"{key}: holds half a surrogate pair"
    return Triplet(*texts)
