"""Millions of short texts as one block of bytes: in memory, or memory-mapped from a file."""

import hashlib
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, overload

import numpy as np
from jaxtyping import Int64

DATA, ENDS = "texts.bin", "ends.npy"


class Strings(Sequence[str]):
    """Texts by number, `data` holding their UTF-8 one behind the other; threads share them."""

    def __init__(self, data: Any, ends: Int64[np.ndarray, " m"], fingerprint: str) -> None:
        self._data = memoryview(data)
        self._ends = ends
        self.fingerprint = fingerprint
        """Sixteen hex digits over the texts."""

    @classmethod
    def of(cls, texts: Iterable[str]) -> "Strings":
        """Hold texts in memory."""
        writer = Writer(None)
        for text in texts:
            writer.add(text)
        return writer.finish()

    @classmethod
    def map(cls, folder: Path, fingerprint: str) -> "Strings":
        """Map what a `Writer` left in a folder."""
        ends = np.load(folder / ENDS, mmap_mode="r", allow_pickle=False)
        data = np.memmap(folder / DATA, dtype=np.uint8, mode="r") if ends[-1] else b""  # nothing cannot be mapped
        return cls(data, ends, fingerprint)

    def __len__(self) -> int:
        """Count the texts."""
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        """Return one text, or a list of them."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        place = index + len(self) if index < 0 else index
        if not 0 <= place < len(self):
            raise IndexError(f"text {index} of {len(self):,}")
        return bytes(self._data[self._ends[place] : self._ends[place + 1]]).decode()


class Writer:
    """Collects texts: in memory, or in files of a folder, with eight bytes of memory per text."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._file: BinaryIO | None = None if folder is None else open(folder / DATA, "wb")
        self._buffer = bytearray()
        self._ends = array("q", [0])
        self._digest = hashlib.sha256()

    def __len__(self) -> int:
        """Count what was added."""
        return len(self._ends) - 1

    def add(self, text: str) -> None:
        """Add one text; UnicodeEncodeError where it cannot be written as UTF-8 (half of a surrogate pair)."""
        encoded = text.encode()
        self._digest.update(encoded)
        self._ends.append(self._ends[-1] + len(encoded))
        if self._file is None:
            self._buffer += encoded
        else:
            self._file.write(encoded)

    def finish(self) -> Strings:
        """Close the files, or the block of memory."""
        ends = np.frombuffer(self._ends, dtype=np.int64)
        self._digest.update(ends.data)
        fingerprint = self._digest.hexdigest()[:16]
        if self._file is None or self.folder is None:
            return Strings(bytes(self._buffer), ends, fingerprint)
        self.close()
        np.save(self.folder / ENDS, ends, allow_pickle=False)
        return Strings.map(self.folder, fingerprint)

    def close(self) -> None:
        """Close the file; what was not finished is worth nothing."""
        if self._file is not None:
            self._file.close()
