"""The first rows of a training source."""

import hashlib
from collections.abc import Sequence
from typing import Any


class First(Sequence[Any]):
    """The first `rows` rows of a source; the fingerprint says so."""

    def __init__(self, whole: Any, rows: int) -> None:
        self.whole = whole
        self.rows = min(rows, len(whole))
        self.bad = whole.bad
        self.fingerprint: str = whole.fingerprint
        if self.rows < len(whole):
            self.fingerprint = hashlib.sha256(f"{whole.fingerprint} first {rows}".encode()).hexdigest()[:16]

    def __len__(self) -> int:
        """Count the rows."""
        return self.rows

    def __getitem__(self, index: Any) -> Any:
        """Return one row, or a list of them."""
        if isinstance(index, slice):
            return [self.whole[i] for i in range(*index.indices(self.rows))]
        place = index + self.rows if index < 0 else index
        if not 0 <= place < self.rows:
            raise IndexError(f"row {index} of {self.rows:,}")
        return self.whole[place]
