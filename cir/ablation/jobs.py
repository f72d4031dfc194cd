"""What has to run: one job per cell without records, and one per run that such cells stand on, those first."""

import dataclasses
import json
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml

from cir import config as configs
from cir import records, runs
from cir.ablation.kept import Kept
from cir.ablation.plan import Ablation, Base, Cell
from cir.config import RunConfig
from cir.errors import InputError, nearest
from cir.methods import METHODS, checkpoint

State = Literal["kept", "waiting", "elsewhere", "running", "done", "failed", "stopped"]
"""`kept`: there before; `elsewhere`: another process trains it now; the others are what they say."""
TAIL = 8192
"""Bytes read off the end of a log or history."""


@dataclass
class Job:
    """One run of the ablation, or one that its cells stand on (`cell` is None then)."""

    name: str
    config: RunConfig
    folder: Path
    cell: Cell | None
    needs: "Job | None"
    state: State = "waiting"
    why: str = ""

    @property
    def learns(self) -> bool:
        """Whether there is anything to train."""
        return bool(METHODS[self.config.method["name"]].learns_from)

    @property
    def log(self) -> Path:
        """Where everything the run says is kept."""
        return self.folder / "log.txt"

    @property
    def fingerprint(self) -> str:
        """What its numbers are made with; two jobs that share it are one."""
        return configs.fingerprint(self.config)

    def __str__(self) -> str:
        return f"{self.name}, seed {self.config.seed}"

    def finished(self, kept: Kept) -> bool:
        """Tell whether what the job is for is there."""
        if self.cell is not None:
            return not kept.missing(self.cell)
        return _left(self.folder) == self.fingerprint and (self.folder / "last" / checkpoint.CONFIG).is_file()

    def open(self) -> None:
        """Make the folder and put the configuration into it; what another configuration left is cleared away."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if _left(self.folder) not in (None, self.fingerprint):
            from cir.train.folder import Folder

            Folder(self.folder).clear()
        text = yaml.safe_dump(configs.resolved(self.config), sort_keys=False)
        records.replace_file(self.folder / runs.CONFIG, text.encode())

    def command(self) -> list[str]:
        """Say what to run: the ordinary command, which resumes by itself; without its interpreter."""
        config = str(self.folder / runs.CONFIG)
        if self.learns:
            return ["train", config, "--out", str(self.folder)]
        return ["evaluate", config, "--out", str(self.folder / "records")]

    def steps_done(self) -> tuple[int, float]:
        """Read how many steps are behind it and how many seconds they took, off the last whole line of its history."""
        for line in reversed(tail(self.folder / "history.jsonl")):
            try:
                row = json.loads(line)
                return int(row["step"]), float(row["seconds"])
            except (ValueError, KeyError, TypeError):
                continue  # a line that is being written, or one of a validation
        return 0, 0.0


def needed(cells: Iterable[Cell], kept: Kept) -> list[Job]:
    """List what must run, in the order in which it can: the runs that cells stand on before them, each once."""
    jobs: dict[Path, Job] = {}
    for cell in cells:
        if kept.missing(cell):
            above = _base(cell.needs, jobs, kept)
            jobs[cell.folder] = Job(cell.name, cell.config, cell.folder, cell, above)
    bases = [job for job in jobs.values() if job.cell is None]
    return bases + [job for job in jobs.values() if job.cell is not None]


def check(ablation: Ablation, cells: Iterable[Cell]) -> None:
    """Check what only the methods know, before anything runs: their names, their options, what is wrapped."""
    for cell in cells:
        said, method = f"{ablation.path}: cell {cell.name!r}", cell.config.method
        if method["name"] not in METHODS:
            raise InputError(f"{said}: method.name: {method['name']!r} is unknown; {nearest(method['name'], METHODS)}")
        kind = METHODS[method["name"]]
        known = {"name", *(field.name for field in dataclasses.fields(kind.Options))}
        for key in method:
            if key not in known:
                raise InputError(f"{said}: method.{key}: unknown option of {method['name']}; {nearest(key, known)}")
        if kind.wraps and not cell.config.base:
            raise InputError(f"{said}: {method['name']} wraps another method; name its run as base")


def tail(path: Path) -> list[str]:
    """Read the last lines of a file, none where there is no file."""
    try:
        with path.open("rb") as stream:
            stream.seek(max(0, stream.seek(0, os.SEEK_END) - TAIL))
            return stream.read().decode(errors="replace").splitlines()
    except OSError:
        return []


def interpreter(*arguments: str) -> list[str]:
    """Say how this Python is started on something."""
    return [sys.executable, "-u", *arguments]


def _base(base: Base | None, jobs: dict[Path, Job], kept: Kept) -> Job | None:
    """Find or add the job of a run that something stands on; None where it is trained already."""
    if base is None or base.folder in jobs:
        return None if base is None else jobs[base.folder]
    job = Job(f"base {base.config.name}", base.config, base.folder, None, None)
    if job.finished(kept):
        return None
    job.needs = _base(base.needs, jobs, kept)
    jobs[base.folder] = job
    return job


def _left(folder: Path) -> str | None:
    """Read the fingerprint of the configuration that a run's folder was made with, None where there is none."""
    if not (folder / runs.CONFIG).is_file():
        return None
    try:
        return configs.fingerprint(configs.load(folder / runs.CONFIG))
    except InputError:
        return ""  # of another version of the configuration
