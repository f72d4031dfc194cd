"""Starting runs: as processes here, or as jobs of a cluster; either way the ordinary command, which resumes by itself.

A run holds the lock of its folder for as long as it lives. The lock is the kernel's: whoever dies lets go of it.
"""

import fcntl
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol, runtime_checkable

from cir.ablation.jobs import Job, interpreter
from cir.errors import InputError, nearest

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
DAY = 24 * 60
"""Minutes a cluster's job may take, where `--slurm time=...` does not say."""
POLL = 0.2
"""Seconds between two looks at a run."""
AGAIN = 2.0
"""Seconds between two looks at a lock that another process holds."""
OPTIONS = {"partition": "slurm_partition", "gpus": "slurm_gpus_per_node", "cpus": "cpus_per_task", "mem_gb": "mem_gb",
           "account": "slurm_account", "qos": "slurm_qos", "constraint": "slurm_constraint"}  # fmt: skip
"""What `--slurm key=value` may say, beside `time`, and what submitit calls it."""


@runtime_checkable
class Handle(Protocol):
    """A run under way; `why` says what went wrong outside of the run itself."""

    why: str

    def poll(self) -> int | None:
        """Return the exit code, None while it runs."""

    def stop(self) -> None:
        """Ask it to save and stop."""

    def kill(self) -> None:
        """End it at once."""


@runtime_checkable
class Launcher(Protocol):
    """Starts runs, so many at a time."""

    lanes: int

    def start(self, job: Job) -> Handle | None:
        """Start a job's command; None where another process holds the folder."""


def claim(folder: Path) -> IO[str] | None:
    """Take the lock of a run's folder; None where another process holds it."""
    lock = open(folder / ".lock", "a")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        return None
    return lock


def threads(lanes: int) -> dict[str, str]:
    """Share the cores (or OMP_NUM_THREADS, where it is set) among runs; one run alone keeps what is set."""
    if lanes == 1:
        return {}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    allowed = os.environ.get("OMP_NUM_THREADS", "")
    each = max(1, (int(allowed) if allowed.isdigit() else cores) // lanes)
    return dict.fromkeys(THREADS, str(each))


@dataclass
class Process:
    """A run as a process of its own session; it notices by its standard input when we are gone."""

    process: "subprocess.Popen[bytes]"
    why: str = ""

    def poll(self) -> int | None:
        """Return the exit code, None while it runs."""
        return self.process.poll()

    def stop(self) -> None:
        """Ask it to save and stop."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once."""
        self.process.kill()
        self.process.wait()


def spawn(command: Sequence[str], log: Path, lock: IO[str], environment: Mapping[str, str]) -> Process:
    """Start a command with everything it says behind the log; it takes the lock over, and keeps it if we die."""
    with log.open("a") as said:
        said.write(f"$ cir {' '.join(command)}\n")
        said.flush()
        process = subprocess.Popen(
            interpreter("-m", "cir.ablation.child", *command),
            stdin=subprocess.PIPE,
            stdout=said,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            pass_fds=[lock.fileno()],
            start_new_session=True,
        )
    lock.close()  # ours; the process has its own
    return Process(process)


class Local:
    """Processes on this machine, which share its cores."""

    def __init__(self, lanes: int = 1) -> None:
        self.lanes = lanes
        self.environment = threads(lanes)

    def start(self, job: Job) -> Process | None:
        """Start a job, unless another process holds its folder."""
        lock = claim(job.folder)
        return spawn(job.command(), job.log, lock, self.environment) if lock is not None else None


@dataclass
class Remote:
    """What a cluster's job does, called there by submitit: wait for the lock, run, pass signals on."""

    command: list[str]
    folder: Path
    running: list[Process] = field(default_factory=list)

    def __call__(self) -> int:
        """Run the command and return its exit code."""
        lock = claim(self.folder)
        while lock is None:
            time.sleep(AGAIN)
            lock = claim(self.folder)
        one = spawn(self.command, self.folder / "log.txt", lock, {})
        self.running.append(one)
        while (code := one.poll()) is None:  # not `wait`: its lock is held when a signal arrives, and `checkpoint` runs
            try:
                time.sleep(POLL)
            except KeyboardInterrupt:
                one.stop()
        return code

    def checkpoint(self) -> Any:
        """Save and queue again, when the cluster says that the time is up: submitit's way to ask."""
        from submitit.helpers import DelayedSubmission

        for one in self.running:
            one.stop()
            os.waitid(os.P_PID, one.process.pid, os.WEXITED | os.WNOWAIT)
        return DelayedSubmission(Remote(self.command, self.folder))


@dataclass
class Submitted:
    """A job of a cluster."""

    job: Any
    why: str = ""

    def poll(self) -> int | None:
        """Return the exit code, None while it waits or runs; a job that left no result counts as failed."""
        if not self.job.done():
            return None
        try:
            return int(self.job.result())
        except Exception as error:  # whatever happened there is submitit's to tell: all of it means no result
            lines = [line for line in str(error).splitlines() if line.strip()]
            self.why = lines[-1] if lines else "the cluster's job left no result"
            return 1

    def stop(self) -> None:
        """Ask it to save and stop."""
        self.job.cancel()

    def kill(self) -> None:
        """End it at once."""
        self.job.cancel()


class Cluster:
    """Jobs of a Slurm cluster through submitit; `cluster="local"` runs the same jobs here."""

    def __init__(self, folder: Path, options: Sequence[str] = (), lanes: int = 0, cluster: str = "slurm") -> None:
        try:
            import submitit
        except ImportError:
            raise InputError("--launcher slurm needs submitit; install the extra: pip install 'cir[slurm]'") from None
        self.lanes = lanes or 1000
        try:
            self.executor = submitit.AutoExecutor(folder=folder / "slurm", cluster=cluster)
        except RuntimeError as error:
            raise InputError(f"--launcher slurm: {error}") from None
        self.executor.update_parameters(name="cir", **{"timeout_min": DAY, **parameters(options)})

    def start(self, job: Job) -> Submitted:
        """Submit a job; it waits there where another process holds its folder."""
        return Submitted(self.executor.submit(Remote(job.command(), job.folder.absolute())))


def parameters(options: Sequence[str]) -> dict[str, Any]:
    """Translate `--slurm key=value` for submitit; `time` is in minutes.

    >>> parameters(["partition=gpu", "gpus=1", "time=90"])
    {'slurm_partition': 'gpu', 'slurm_gpus_per_node': 1, 'timeout_min': 90}
    """
    known = {**OPTIONS, "time": "timeout_min"}
    found: dict[str, Any] = {}
    for option in options:
        key, equals, value = option.partition("=")
        if not equals or key not in known:
            hint = nearest(key, known) if equals else "expected key=value"
            raise InputError(f"--slurm {option}: {hint}")
        found[known[key]] = int(value) if value.isdigit() else value
    return found
