"""One progress bar for everything that takes a while: count, rate and remaining time, on stderr.

On a terminal it is a bar (rich, imported when the first one is drawn); elsewhere one line at the start, one every
half minute, one at the end, so that a log stays readable.
"""

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import Any, TypeVar

from cir.errors import InputError

Item = TypeVar("Item")

LINE_EVERY = 30.0
"""Seconds between two lines where stderr is not a terminal."""


class Bar:
    """Counts what is done; `advance` may be called from one thread at a time."""

    def __init__(self, total: int | None, description: str) -> None:
        if total is not None and total < 0:
            raise InputError(f"progress {description!r}: a total of {total}; expected none or a count")
        self.total = total
        self.description = description
        self.done = 0
        self.skipped = 0
        self.started = time.monotonic()

    def advance(self, count: int = 1) -> None:
        """Say that `count` more are done."""
        self.done += count

    def skip(self, count: int) -> None:
        """Say that `count` were done before, by an interrupted run: they are not part of the rate."""
        self.done += count
        self.skipped += count

    @property
    def rate(self) -> float:
        """Count per second since the bar came up."""
        return (self.done - self.skipped) / max(time.monotonic() - self.started, 1e-9)

    def close(self, finished: bool) -> None:
        """Take the bar away."""


class _Lines(Bar):
    """Plain lines, now and then."""

    def __init__(self, total: int | None, description: str) -> None:
        super().__init__(total, description)
        self.written = self.started
        self._write("starting" if total is None else f"starting, {total:,} to do")

    def advance(self, count: int = 1) -> None:
        self.done += count
        if time.monotonic() - self.written >= LINE_EVERY:
            self.written = time.monotonic()
            self._write(self.state())

    def state(self) -> str:
        """Say how many, how fast, how long still."""
        if self.total is None:
            return f"{self.done:,} ({_rate(self.rate)})"
        left = f", {clock((self.total - self.done) / self.rate)} left" if self.rate > 0 else ""
        return f"{self.done:,} of {self.total:,} ({_rate(self.rate)}{left})"

    def close(self, finished: bool) -> None:
        seconds = time.monotonic() - self.started
        verb = "done" if finished else "stopped"
        self._write(f"{verb}, {self.done:,} in {clock(seconds)} ({_rate(self.rate)})")

    def _write(self, text: str) -> None:
        sys.stderr.write(f"{self.description}: {text}\n")
        sys.stderr.flush()


class _Drawn(Bar):
    """A bar on a terminal."""

    def __init__(self, total: int | None, description: str) -> None:
        super().__init__(total, description)
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        # The text of `rate` is written by us on every step: rich's own speed column counts bytes.
        text = TextColumn("{task.description}")
        columns = (text, BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
        self._shown: Any = Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True))
        self._shown.start()
        self._task = self._shown.add_task(description, total=total, rate="")

    def advance(self, count: int = 1) -> None:
        self.done += count
        self._shown.update(self._task, completed=self.done, rate=_rate(self.rate))

    def skip(self, count: int) -> None:
        super().skip(count)
        self._shown.update(self._task, completed=self.done)

    def close(self, finished: bool) -> None:
        self._shown.stop()


@contextmanager
def bar(total: int | None, description: str, enabled: bool = True) -> Iterator[Bar]:
    """Show progress inside a `with` block, whose body calls `advance(n)`; `enabled=False` shows nothing."""
    kind = Bar if not enabled else _Drawn if sys.stderr.isatty() else _Lines
    shown = kind(total, description)
    finished = False
    try:
        yield shown
        finished = True
    finally:
        shown.close(finished)


def track(
    iterable: Iterable[Item], total: int | None = None, description: str = "", enabled: bool = True
) -> Iterator[Item]:
    """Yield what the iterable yields and show how far it is; `total` is read off its length where it has one."""
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    with bar(total, description, enabled) as shown:
        for item in iterable:
            yield item
            shown.advance()


def _rate(rate: float) -> str:
    """Write a rate per second with a sensible number of digits.

    >>> _rate(12.34), _rate(0.5), _rate(4321.0)
    ('12.3/s', '0.50/s', '4,321/s')
    """
    return f"{rate:,.0f}/s" if rate >= 100 else f"{rate:.1f}/s" if rate >= 1 else f"{rate:.2f}/s"


def clock(seconds: float) -> str:
    """Write a duration as h:mm:ss or m:ss.

    >>> clock(65.0), clock(3700.0)
    ('1:05', '1:01:40')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
