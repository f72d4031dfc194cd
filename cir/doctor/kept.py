"""Looks at many files, with threads; what was looked at is kept, so that an interrupted check goes on from there."""

import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TextIO

from cir.data.keep import digest, locked
from cir.doctor.look import Look, look, quiet
from cir.errors import RunError
from cir.progress import bar

CHUNK = 2048
"""Files between two points from which an interrupted check can go on."""
TASK = 64
"""Files that one thread takes at a time: handing out single ones costs as much as looking at them."""
THREADS = 8
"""Most looks at once: a disk or a network wants some waiting, one processor is busy with two."""


class Looks:
    """The looks at files under one folder, kept in `cache`: a line [path, size, time, width, height, trouble, decoded]
    of JSON each.

    A line counts as long as the file was well and has the size and modification time it had. The lines only grow in
    number, the last one of a path counts, and one that a kill cut short is passed over.
    """

    def __init__(self, base: Path, cache: Path, fresh: bool = False) -> None:
        self.base = base
        self.file = cache / f"{digest(os.path.abspath(base))}.jsonl"
        self.fresh = fresh

    def over(self, files: Sequence[str], pixels: bool, progress: bool = True) -> dict[str, Look]:
        """Look at files, given relative to the folder; with `pixels` everything is decoded."""
        found: dict[str, Look] = {}
        if not files:
            return found
        with locked(self.file.with_suffix(".lock")), quiet():
            if self.fresh:
                self.file.unlink(missing_ok=True)
            kept = _read(self.file)
            try:
                with open(self.file, "a", encoding="utf-8") as lines:
                    _end_line(self.file, lines)
                    self._all(files, pixels, kept, lines, found, progress)
            except OSError as error:
                raise RunError(f"{self.file}: could not be written ({error}); is the disk full?") from None
        return found

    def _all(
        self, files: Sequence[str], pixels: bool, kept: dict[str, Look], lines: TextIO, found: dict[str, Look],
        progress: bool,
    ) -> None:  # fmt: skip
        """Look at the files chunk by chunk, and write down every chunk."""

        def task(part: Sequence[str]) -> list[tuple[Look, bool]]:
            return [self._one(path, kept.get(path), pixels) for path in part]

        with (
            ThreadPoolExecutor(min(THREADS, 4 * (os.cpu_count() or 1))) as pool,
            bar(len(files), f"checking {self.base.name or self.base}", progress) as shown,
        ):
            for chunk in _parts(files, CHUNK):
                seen = [pair for part in pool.map(task, _parts(chunk, TASK)) for pair in part]
                found.update(zip(chunk, (one for one, _ in seen), strict=True))
                new = [(path, one) for path, (one, old) in zip(chunk, seen, strict=True) if not old]
                lines.write("".join(json.dumps([path, *one]) + "\n" for path, one in new if one.size >= 0))
                lines.flush()
                shown.skip(len(chunk) - len(new))
                shown.advance(len(new))

    def _one(self, path: str, kept: Look | None, pixels: bool) -> tuple[Look, bool]:
        """Return what is kept of a file if it still holds, or look; the second value says which."""
        file = self.base / path
        if kept is not None and _unchanged(file, kept):
            if not kept.trouble and (kept.decoded or not pixels):
                return kept, True
            if kept.trouble:  # a disk may have had a bad moment: as thorough a look as the one that found it
                return look(file, pixels or kept.decoded), False
        return look(file, pixels), False


def _unchanged(file: Path, kept: Look) -> bool:
    """Say whether a file has the size and modification time that it had."""
    try:
        state = os.stat(file)
    except OSError:
        return False
    return (state.st_size, state.st_mtime_ns) == (kept.size, kept.time)


def _read(file: Path) -> dict[str, Look]:
    """Read the lines of earlier checks."""
    kept: dict[str, Look] = {}
    if file.is_file():
        with open(file, encoding="utf-8", errors="replace") as lines:
            for line in lines:
                try:
                    path, size, time, width, height, trouble, decoded = json.loads(line)
                    kept[path] = Look(int(size), int(time), int(width), int(height), str(trouble), decoded is True)
                except (ValueError, TypeError):  # cut short by a kill
                    continue
    return kept


def _end_line(file: Path, lines: TextIO) -> None:
    """Begin a new line behind one that was cut short."""
    if file.stat().st_size:
        with open(file, "rb") as stream:
            stream.seek(-1, os.SEEK_END)
            if stream.read(1) != b"\n":
                lines.write("\n")


def _parts(items: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    """Cut a list into parts."""
    return (items[first : first + size] for first in range(0, len(items), size))
