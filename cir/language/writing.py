"""A file of triplets written row by row: an interrupted run goes on, a finished one appears at once.

Beside the file: `NAME.partial` (rows so far) and `NAME.state` (where to go on) while it is written, `NAME.report` then.
"""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cir.errors import InputError
from cir.files import replace_file
from cir.language.rules import Row
from cir.progress import bar

Outcome = tuple[int, list[Row], str]
"""A caption's number, its triplets, and the reason where there are none."""


@dataclass
class Report:
    """What became of the captions; `none` counts those that gave no triplet, by reason."""

    captions: int = 0
    triplets: int = 0
    forms: Counter[str] = field(default_factory=Counter)
    none: Counter[str] = field(default_factory=Counter)

    def plain(self) -> dict[str, Any]:
        """Say it in JSON."""
        return {**vars(self), "forms": dict(sorted(self.forms.items())), "none": dict(sorted(self.none.items()))}

    def add(self, rows: list[Row], why: str) -> None:
        """Count one caption."""
        self.captions += 1
        self.triplets += len(rows)
        self.forms.update(row.form for row in rows)
        if not rows:
            self.none[why] += 1


@dataclass(frozen=True)
class Target:
    """The file to write, and what its contents depend on: a run of another `identity` is not gone on with.

    `count` is the number of triplets wanted, 0 for all that the captions give; the state is kept `every` captions.
    """

    path: Path
    identity: Mapping[str, Any]
    count: int = 0
    every: int = 1000

    def beside(self, suffix: str) -> Path:
        """Name a file beside the target."""
        return self.path.with_name(f"{self.path.name}.{suffix}")


def write(
    target: Target, captions: int, made: Callable[[Report], Iterator[Outcome]], overwrite: bool = False
) -> Report:
    """Write what `made(report)` yields, one outcome per caption behind those reported, until there are enough triplets.

    Raises `InputError` where the file is there already (unless it shall be overwritten), or where an interrupted run
    with other settings lies beside it.
    """
    if target.path.exists() and not overwrite:
        raise InputError(f"{target.path}: is there already; choose another name, or --overwrite")
    target.path.parent.mkdir(parents=True, exist_ok=True)
    report, size = _resume(target)
    partial = target.beside("partial")
    with open(partial, "r+b" if size else "wb") as file, bar(target.count or captions, "writing triplets") as shown:
        file.truncate(size)
        file.seek(size)
        shown.skip(report.triplets if target.count else report.captions)
        _note(target, report, file)
        for number, rows, why in made(report) if not _enough(target, report) else ():
            kept = rows[: target.count - report.triplets] if target.count else rows
            file.write(b"".join(_line(number, row) for row in kept))
            report.add(kept, why)
            shown.advance(len(kept) if target.count else 1)
            if report.captions % target.every == 0:
                _note(target, report, file)
            if _enough(target, report):
                break
        _note(target, report, file)
    return report


def finish(target: Target, report: Report, **more: Any) -> None:
    """Put the finished file in its place and write its report, with `more` that is worth knowing."""
    if not report.triplets:
        reasons = ", ".join(f"{count:,} {why}" for why, count in report.none.most_common())
        _clear(target)
        raise InputError(f"{target.path}: no caption of {report.captions:,} gave a triplet ({reasons or 'none read'})")
    _replace(target.beside("report"), {**report.plain(), **more, "made_from": dict(target.identity)})
    os.replace(target.beside("partial"), target.path)
    _clear(target)


def _enough(target: Target, report: Report) -> bool:
    return bool(target.count) and report.triplets >= target.count


def _clear(target: Target) -> None:
    for suffix in ("partial", "state"):
        target.beside(suffix).unlink(missing_ok=True)


def _line(number: int, row: Row) -> bytes:
    """Write one row as RTD's reader expects it; the caption's number and the edit's form are kept beside."""
    value = {
        "reference_caption": row.reference,
        "conditioning_caption": row.text,
        "target_caption": row.target,
        "form": row.form,
        "caption": number,
    }
    return json.dumps(value).encode() + b"\n"


def _note(target: Target, report: Report, file: Any) -> None:
    """Keep what the next run needs to go on from here."""
    file.flush()
    os.fsync(file.fileno())
    state = {"identity": dict(target.identity), "count": target.count, "bytes": file.tell(), "report": report.plain()}
    _replace(target.beside("state"), state)


def _resume(target: Target) -> tuple[Report, int]:
    """Read where an interrupted run stopped, and how many bytes of its rows count."""
    path = target.beside("state")
    if not path.exists() or not target.beside("partial").exists():
        return Report(), 0
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        same = state["identity"] == json.loads(json.dumps(dict(target.identity))) and state["count"] == target.count
        kept = state["report"]
        report = Report(kept["captions"], kept["triplets"], Counter(kept["forms"]), Counter(kept["none"]))
        size = int(state["bytes"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not readable ({error}); delete it to start over") from None
    if not same:
        raise InputError(f"{path}: an interrupted run with other settings or captions; delete it to start over")
    return report, size


def _replace(path: Path, value: Mapping[str, Any]) -> None:
    """Write JSON whole or not at all."""
    replace_file(path, (json.dumps(value, indent=1) + "\n").encode())
