"""One walk over everything under a root, for files that are not where they should be."""

import os
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from cir.data.tables import SUFFIXES
from cir.progress import Bar, bar

MARKER = ".cir-layout"
"""A file of this name marks a tree of links that `--fix-layout` made; a search does not enter one."""
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2")


@dataclass
class Tree:
    """What a walk met: files by the stems it looked for, archives, and folders it could not list."""

    files: dict[str, list[Path]] = field(default_factory=dict)
    archives: list[Path] = field(default_factory=list)
    unreadable: list[Path] = field(default_factory=list)


def stem(path: str) -> str:
    """Give the base name without extension, in one case: what names an image however it was renamed.

    >>> stem("dev/A-1.img0.PNG")
    'a-1.img0'
    """
    return os.path.splitext(os.path.basename(path))[0].casefold()


def is_image(path: str) -> bool:
    """Say whether a file is called like an image.

    >>> is_image("x.JPEG"), is_image("x.json")
    (True, False)
    """
    return path.lower().endswith(SUFFIXES)


def kind(entry: os.DirEntry[str]) -> Literal["file", "folder", "nothing"]:
    """Say what an entry of a folder is, or what it links to; a link to nothing, or to itself, is nothing."""
    try:
        return "folder" if entry.is_dir() else "file" if entry.is_file() else "nothing"
    except OSError:
        return "nothing"


def search(root: Path, stems: Collection[str], progress: bool = True) -> Tree:
    """Walk over `root` once and keep the files whose stem is among `stems`, in the order of their paths.

    Links are followed; a folder reached a second time, through a loop or a second link, is not entered again. Hidden
    folders and trees made by `--fix-layout` are passed over.
    """
    wanted, found, seen, waiting = set(stems), Tree(), set[tuple[int, int]](), [root]
    with bar(None, f"searching {root}", progress) as shown:
        while waiting:
            folder = waiting.pop()
            try:
                state = os.stat(folder)
                if (state.st_dev, state.st_ino) in seen:
                    continue
                seen.add((state.st_dev, state.st_ino))
                waiting.extend(_visit(folder, wanted, found, shown))
            except OSError:
                found.unreadable.append(folder)
    for hits in (*found.files.values(), found.archives, found.unreadable):
        hits.sort()
    return found


def _visit(folder: Path, wanted: set[str], found: Tree, shown: Bar) -> list[Path]:
    """List one folder; returns its sub-folders."""
    with os.scandir(folder) as listed:
        entries = [entry for entry in listed if not entry.name.startswith(".")]
    inner = []
    for entry in entries:
        what = kind(entry)
        if what == "folder":
            if not os.path.lexists(os.path.join(entry.path, MARKER)):
                inner.append(Path(entry.path))
        elif what == "file" and entry.name.lower().endswith(ARCHIVES):
            found.archives.append(Path(entry.path))
        elif what == "file" and stem(entry.name) in wanted:
            found.files.setdefault(stem(entry.name), []).append(Path(entry.path))
    shown.advance(len(entries))
    return inner
