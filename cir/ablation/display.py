"""How far an ablation is: a live table on a terminal, elsewhere a line whenever a run changes its state."""

import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from cir.ablation.jobs import Job
from cir.progress import LINE_EVERY, clock

EVERY = 1.0
"""Seconds between two looks at histories; reading them on every poll would cost more than they change."""
ROWS = 40
"""Rows of the live table at most: what runs, what failed and what comes next go first."""
STYLES = {"running": "cyan", "done": "green", "kept": "green", "failed": "red", "stopped": "yellow"}


class Lines:
    """Plain lines on stderr: one per change of state, and now and then one per run under way."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.jobs = jobs
        self.said = {id(job): "waiting" for job in jobs}
        self.since: dict[int, float] = {}
        self.told = time.monotonic()

    def update(self) -> None:
        """Say what changed."""
        if time.monotonic() - self.told >= LINE_EVERY:
            self.told = time.monotonic()
            self._how_far()
        for job in self.jobs:
            if self.said[id(job)] != job.state:
                self._say(job)
                self.said[id(job)] = job.state

    def close(self) -> None:
        """Say what changed last."""
        self.update()

    def _say(self, job: Job) -> None:
        ended = sum(one.state in ("kept", "done", "failed") for one in self.jobs)
        told = f"[{ended}/{len(self.jobs)}] {job}: {'trained by another process; waiting' * (job.state == 'elsewhere')}"
        if job.state == "running":
            self.since[id(job)] = time.monotonic()
        took = f" in {clock(time.monotonic() - self.since[id(job)])}" if job.state == "done" else ""
        told += "" if job.state == "elsewhere" else f"{job.state}{took}"
        sys.stderr.write(f"{told}{f': {job.why}; see {job.log}' if job.why else ''}\n")
        sys.stderr.flush()

    def _how_far(self) -> None:
        for job in self.jobs:
            steps, left = progress(job)
            if job.state == "running" and steps:
                sys.stderr.write(f"{job}: {steps} steps{f', {left} left' if left else ''}\n")
        sys.stderr.flush()


class Table:
    """A table on the terminal, drawn over itself."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        from rich.console import Console
        from rich.live import Live

        self.jobs = jobs
        self.looked = 0.0
        self.live: Any = Live(self.draw(), console=Console(stderr=True), auto_refresh=False)
        self.live.start()

    def update(self) -> None:
        """Draw again, once a second."""
        if time.monotonic() - self.looked >= EVERY:
            self.looked = time.monotonic()
            self.live.update(self.draw(), refresh=True)

    def close(self) -> None:
        """Leave the last state standing."""
        self.live.update(self.draw(), refresh=True)
        self.live.stop()

    def draw(self) -> Any:
        """Make the table: cell, seed, state, steps, time left."""
        from rich.table import Table as Drawn
        from rich.text import Text

        counted = Counter(job.state for job in self.jobs)
        drawn = Drawn(caption=", ".join(f"{count} {state}" for state, count in counted.items()))
        for name in ("cell", "seed", "state", "steps", "left"):
            drawn.add_column(name, justify="left" if name in ("cell", "state") else "right")
        for job in foremost(self.jobs):
            steps, left = progress(job)
            state = Text(job.state + (f": {job.why}" if job.why else ""), STYLES.get(job.state, "dim"))
            drawn.add_row(Text(job.name), str(job.config.seed), state, steps, left)
        return drawn


def foremost(jobs: Sequence[Job]) -> list[Job]:
    """Choose the rows that are shown, in the jobs' order: running and failed ones, then what comes, then the rest."""
    order = {"running": 0, "failed": 0, "elsewhere": 1, "waiting": 1}
    chosen = sorted(range(len(jobs)), key=lambda number: (order.get(jobs[number].state, 2), number))[:ROWS]
    return [jobs[number] for number in sorted(chosen)]


def progress(job: Job) -> tuple[str, str]:
    """Say how many of its steps a job took, and how long the others will take at the rate so far."""
    if not job.learns or job.state in ("kept", "waiting"):
        return "", ""
    done, seconds = job.steps_done()
    total = job.config.train.steps
    left = clock((total - done) * seconds / done) if job.state == "running" and 0 < done < total else ""
    return f"{done:,}/{total:,}", left


@contextmanager
def shown(jobs: Sequence[Job]) -> Iterator[Lines | Table]:
    """Show the jobs inside a `with` block, whose body calls `update()` whenever it has looked at them."""
    board = Table(jobs) if sys.stderr.isatty() else Lines(jobs)
    try:
        yield board
    finally:
        board.close()
