"""Running what is missing: each cell in a process of its own, some at a time, none lost because another crashed."""

import time
from collections.abc import Sequence

from cir.ablation import display
from cir.ablation.jobs import Job, tail
from cir.ablation.kept import Kept
from cir.ablation.launch import POLL, Handle, Launcher
from cir.ablation.plan import Ablation, Cell
from cir.errors import InputError
from cir.train.stopping import Stopped, noted_signals


def run(jobs: Sequence[Job], kept: Kept, launcher: Launcher) -> None:
    """Run jobs until each is done, kept or failed; their `state` and `why` say which.

    What other processes train is waited for. Killed in any way, the same call goes on: training resumes from its
    snapshots. Raises `Stopped` after Ctrl-C or SIGTERM, once every run has saved itself; a second one ends them.
    """
    if not jobs:
        return
    pool = _Pool(jobs, kept, launcher)
    with noted_signals() as asked, display.shown(jobs) as board:
        try:
            while any(job.state in ("waiting", "elsewhere", "running") for job in jobs):
                pool.collect()
                if asked:
                    pool.stop()
                else:
                    pool.start()
                board.update()
                time.sleep(POLL)
        finally:
            pool.kill()
    left = [job for job in jobs if job.state == "stopped"]
    if left:
        raise Stopped(f"stopped with {len(left)} of {len(jobs)} runs to do; the same command goes on from there")


class _Pool:
    """The jobs, and the handles of those that run."""

    def __init__(self, jobs: Sequence[Job], kept: Kept, launcher: Launcher) -> None:
        self.jobs, self.kept, self.launcher = jobs, kept, launcher
        self.running: dict[int, tuple[Job, Handle]] = {}
        self.stopping = False

    def start(self) -> None:
        """Start what can start, in order, as far as there is room."""
        for job in self.jobs:
            if len(self.running) >= self.launcher.lanes:
                return
            if job.state in ("waiting", "elsewhere") and self._ready(job):
                self._start(job)

    def collect(self) -> None:
        """See which runs ended, and what they left."""
        for key, (job, handle) in list(self.running.items()):
            code = handle.poll()
            if code is None:
                continue
            del self.running[key]
            if self._finished(job):
                job.state = "done"
            elif job.why:
                job.state = "failed"
            elif self.stopping:
                job.state = "stopped"
            else:
                job.state, job.why = "failed", handle.why or self._why(job, code)

    def stop(self) -> None:
        """Ask all runs, once, to save and stop; nothing more is started."""
        for job in self.jobs:
            if job.state in ("waiting", "elsewhere"):
                job.state = "stopped"
        if not self.stopping:
            self.stopping = True
            for _, handle in self.running.values():
                handle.stop()

    def kill(self) -> None:
        """End what still runs."""
        for job, handle in self.running.values():
            handle.kill()
            job.state = "stopped"

    def _ready(self, job: Job) -> bool:
        """Tell whether what a job stands on is there, and no other run makes the same numbers just now."""
        if job.needs is not None and job.needs.state == "failed":
            job.state, job.why = "failed", f"{job.needs} failed"
            return False
        if job.needs is not None and job.needs.state not in ("done", "kept"):
            return False
        return all(other.fingerprint != job.fingerprint for other, _ in self.running.values())

    def _start(self, job: Job) -> None:
        """Start one job, unless its records are there by now or another process has its folder."""
        if self._finished(job):
            job.state = "kept"
            return
        try:
            job.open()
            handle = self.launcher.start(job)
        except (InputError, OSError) as error:
            job.state, job.why = "failed", str(error)
            return
        job.state = "running" if handle is not None else "elsewhere"
        if handle is not None:
            self.running[id(job)] = job, handle

    def _finished(self, job: Job) -> bool:
        """Look again at what a job left; a record that cannot be read is a reason to fail."""
        try:
            self.kept.refresh(job.folder)
            return job.finished(self.kept)
        except InputError as error:
            job.why = str(error)
            return False

    def _why(self, job: Job, code: int) -> str:
        """Say why a run failed: the last line of its log, or what it did not leave."""
        if code == 0:
            missing = ", ".join(self.kept.missing(job.cell)) if job.cell is not None else "its checkpoint"
            return f"ended without {'a record of ' if job.cell is not None else ''}{missing}"
        lines = [line.strip() for line in tail(job.log) if line.strip()]
        ended = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
        return f"{lines[-1] if lines else 'said nothing'} ({ended})"


def keep_settings(ablation: Ablation, cells: Sequence[Cell], kept: Kept) -> None:
    """Leave each cell's varied settings and its shown numbers where TensorBoard compares runs.

    Also of cells whose records lie elsewhere: the HPARAMS tab then has all rows that the answer has.
    """
    from cir.train import board

    for cell in cells:
        found = {
            f"{name}:{metric}": mean.mean for name, (_, r) in kept.of(cell).items() for metric, mean in r.means.items()
        }
        numbers = {column: found[column] for column in ablation.show if column in found}
        if numbers:
            board.hparams(cell.folder, cell.varied, numbers)
