"""A table that names pictures and their captions, such as Pic2Word's (columns `filepath` and `title`).

Paths are relative to a folder and may not leave it. A table of URLs names nothing on this machine.
"""

import hashlib
import os
from array import array
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cir.data import tables
from cir.data.annotations import inside
from cir.data.bad import Bad
from cir.data.keep import digest, kept, state
from cir.data.pictures import Part
from cir.data.strings import Strings, Writer
from cir.data.tables import BadLine, Columns
from cir.errors import InputError
from cir.progress import bar

PARTS = ("paths", "texts")
BLOCK = 10_000
"""Files looked for between two looks at the progress."""


class Table:
    """Pictures by path relative to a folder."""

    format = "table"
    blocks: tuple[int, ...] = ()

    def __init__(self, root: Path, paths: Strings, texts: Strings, bad: Bad) -> None:
        self.root, self._paths, self._texts, self.bad = root, paths, texts, bad
        self.fingerprint = self.stamp = digest(paths.fingerprint, texts.fingerprint, str(bad))[:16]

    def __len__(self) -> int:
        """Count the pictures."""
        return len(self._paths)

    def name(self, row: int) -> str:
        """Return a picture's path."""
        return self._paths[row]

    def text(self, row: int) -> str:
        """Return a picture's caption."""
        return self._texts[row]

    def open(self, row: int) -> Image.Image:
        """Open a picture."""
        return Image.open(self.root / self._paths[row])


def load(file: Path, images: str, column: str, keep: Path | None, progress: bool) -> Table | Part:
    """Read a table and look for its files; a path that leaves the folder is an `InputError`, a missing file is bad.

    With a folder `keep`, paths and captions are laid out there once and memory-mapped. The files are looked for every
    time: they may change while the table does not.
    """
    if not file.is_file():
        raise InputError(f"{file}: no such file; expected a table of pictures")
    root = Path(images) if images else file.parent
    if not root.is_dir():
        raise InputError(f"train.images: {root}: no such folder; expected the one that the paths in {file} start from")
    found = tables.columns(file, column)
    if found.place < 0:
        known = ", ".join(tables.PLACES)
        raise InputError(f"{file}: no column of picture files; expected one of {known} in the header")
    if keep is None:
        paths, texts = Writer(None), Writer(None)
        bad = _read(file, root, found, paths, texts, progress)
        return _present(Table(root, paths.finish(), texts.finish(), bad), progress)

    def make(folder: Path) -> dict[str, Any]:
        for part in PARTS:
            (folder / part).mkdir()
        paths, texts = Writer(folder / "paths"), Writer(folder / "texts")
        try:
            bad = _read(file, root, found, paths, texts, progress)
            columns = [paths.finish().fingerprint, texts.finish().fingerprint]
            return {"bad": dict(bad.counts), "first": bad.first, "columns": columns}
        finally:
            paths.close()
            texts.close()

    folder, described = kept(keep, f"table-{digest(state(file), os.path.abspath(root), column)}", make)
    first, second = (Strings.map(folder / part, mark) for part, mark in zip(PARTS, described["columns"], strict=True))
    return _present(Table(root, first, second, Bad(described["bad"], described["first"])), progress)


def _read(file: Path, root: Path, found: Columns, paths: Writer, texts: Writer, progress: bool) -> Bad:
    """Write paths and captions; say which rows have none."""
    bad = Bad()
    with bar(None, f"reading {file.name}", progress) as shown:
        for number, cells in tables.rows(file, found):
            shown.advance()
            if isinstance(cells, BadLine):
                bad.add(cells.kind, str(cells))
            elif cells:
                paths.add(_relative(file, number, cells[found.place].strip(), root))
                texts.add(cells[found.caption].strip() if found.caption >= 0 else "")
    return bad


def _present(table: Table, progress: bool) -> Table | Part:
    """Keep the rows whose files are there; their sizes enter the fingerprint, their times the stamp."""
    content, times = hashlib.sha256(table.fingerprint.encode()), hashlib.sha256()
    good, bad = array("q"), Bad(table.bad.counts, table.bad.first)
    with ThreadPoolExecutor(8) as pool, bar(len(table), "looking for images", progress) as shown:
        for start in range(0, len(table), BLOCK):
            rows = range(start, min(start + BLOCK, len(table)))
            for row, there in zip(rows, pool.map(lambda row: _stat(table.root / table.name(row)), rows), strict=True):
                if there is None:
                    bad.add("missing", table.name(row))
                    continue
                good.append(row)
                content.update(f"{there.st_size} ".encode())
                times.update(f"{there.st_mtime_ns} ".encode())
            shown.advance(len(rows))
    table.fingerprint = content.hexdigest()[:16]
    table.stamp = digest(table.fingerprint, times.hexdigest())[:16]
    return table if len(good) == len(table) else Part(table, np.frombuffer(good, dtype=np.int64), bad)


def _stat(path: Path) -> os.stat_result | None:
    try:
        return os.stat(path)
    except OSError:
        return None


def _relative(file: Path, number: int, path: str, root: Path) -> str:
    """Check a row's path; one that starts with the folder itself is taken relative to it."""
    where = f"{file}:{number}"
    if path.lower().startswith(("http://", "https://")):
        raise InputError(f"{where}: a URL, {path!r:.80}; download the pictures and name their files (column filepath)")
    if path.startswith(f"{root}/"):
        path = path[len(str(root)) + 1 :]
    return inside(path, where)
