"""Samples that cannot be used: counted by kind, the first ten named, refused above a stated share."""

from collections import Counter
from collections.abc import Mapping

from cir.errors import InputError

SHOWN = 10


class Bad:
    """What a source leaves out: `counts` by kind, `first` the first ten with file and reason."""

    def __init__(self, counts: Mapping[str, int] | None = None, first: list[str] | None = None) -> None:
        self.counts = Counter(counts or {})
        self.first = list(first or [])

    def add(self, kind: str, told: str, count: int = 1) -> None:
        """Count one more (or `count`) of a kind; `told` names it and says what is wrong."""
        self.counts[kind] += count
        if len(self.first) < SHOWN:
            self.first.append(told)

    def merge(self, other: "Bad") -> None:
        """Take over what another one counted."""
        self.counts.update(other.counts)
        self.first = (self.first + other.first)[:SHOWN]

    @property
    def total(self) -> int:
        """Count them all."""
        return sum(self.counts.values())

    def __bool__(self) -> bool:
        return self.total > 0

    @property
    def kinds(self) -> str:
        """Say how many of each kind."""
        return ", ".join(f"{count:,} {kind}" for kind, count in sorted(self.counts.items()))

    def __str__(self) -> str:
        return f"{self.kinds}: {'; '.join(self.first)}"

    def check(self, usable: int, allow_bad: float, what: str, noun: str) -> None:
        """Refuse a source of which more than the share `allow_bad` is unusable."""
        if not self:
            return
        share = self.total / (self.total + usable)
        if share > allow_bad:
            raise InputError(
                f"{what}: {self.total:,} {noun} ({self.kinds}), first {'; '.join(self.first)}. That is {share:.2%} of "
                f"the source, {allow_bad:.2%} are allowed; mend them, or raise train.allow_bad"
            )
