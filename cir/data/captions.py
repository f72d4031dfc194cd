"""Captions to train on, read into one compact sequence, memory-mapped where it is large.

    .txt                 one caption per line
    .jsonl, .ndjson      an object per line, or a bare string
    .tsv, .csv           a header line names the columns (`cir.data.tables` for files without one)
    .parquet             where pyarrow is installed
    hf:NAME[:SPLIT]      a Hugging Face data set, or a folder that `datasets` saved, where it is installed

A folder stands for all such files in it, in order of name.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, overload

from cir.data import hub
from cir.data.bad import Bad
from cir.data.caption_files import READERS, files_of
from cir.data.keep import digest, kept, state
from cir.data.strings import Strings, Writer
from cir.data.tables import BadLine
from cir.errors import InputError
from cir.progress import bar

LARGE = 64 << 20
"""Bytes of source files from which captions are laid out on disk once instead of held in memory."""


class Captions(Sequence[str]):
    """Captions by number.

    `bad` says which lines were left out, `blank` counts empty ones, which hold nothing to learn. Captions of large
    files are memory-mapped: three million take 24 MB of memory, and the pages that are in use.
    """

    def __init__(self, texts: Sequence[str], bad: Bad | None = None, blank: int = 0, format: str = "text") -> None:
        self._strings = texts if isinstance(texts, Strings) else Strings.of(texts)
        self.bad = bad or Bad()
        self.blank = blank
        self.format = format
        self.fingerprint = self._strings.fingerprint

    def __len__(self) -> int:
        """Count the captions."""
        return len(self._strings)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        """Return one caption, or a list of them."""
        return self._strings[index]


def load(
    path: Path | str,
    *,
    column: str = "",
    limit: int = 0,
    allow_bad: float = 0.0,
    keep: Path | None = None,
    progress: bool = True,
) -> Captions:
    """Read captions from a file, from all caption files of a folder, or from a data set.

    `column` names the key or column that holds them; without it the first known one that is present is taken. `limit`
    stops behind that many captions, 0 for none. Lines that hold no caption are an `InputError` with the first ten
    and the total, where they are more than the share `allow_bad` of the source. Blank lines are passed over and
    counted. Sources above `LARGE` bytes are laid out once in the folder `keep` and memory-mapped.
    """
    found, files = _rows(str(path), column)
    if keep is None or sum(file.stat().st_size for file in files) < LARGE:
        writer = Writer(None)
        described = _read(found, writer, limit, progress and not files)
        strings = writer.finish()
    else:
        strings, described = _laid_out(found, files, column, limit, keep, progress)
    bad = Bad(described["bad"], described["first"])
    bad.check(len(strings), allow_bad, str(path), "lines hold no caption")
    if not len(strings):
        raise InputError(f"{path}: holds no captions")
    return Captions(strings, bad, described["blank"], "Hugging Face" if not files else files[0].suffix.lstrip("."))


def _rows(path: str, column: str) -> tuple[Iterator[str | BadLine], list[Path]]:
    """Open a source: its captions in order, and the files they come from, none for a data set."""
    if path.startswith(hub.PREFIX) or hub.saved(Path(path)):
        return hub.captions(path, column), []
    files = files_of(Path(path))
    return (found for file in files for _, found in READERS[file.suffix.lower()](file, column)), files


def _laid_out(
    found: Iterator[str | BadLine], files: Sequence[Path], column: str, limit: int, keep: Path, progress: bool
) -> tuple[Strings, dict[str, Any]]:
    """Map the captions of large files, laying them out first where that was not done yet."""

    def make(folder: Path) -> dict[str, Any]:
        writer = Writer(folder)
        try:
            described = _read(found, writer, limit, progress)
            return {**described, "fingerprint": writer.finish().fingerprint}
        finally:
            writer.close()

    name = f"captions-{digest([state(file) for file in files], column, limit)}"
    folder, described = kept(keep, name, make)
    return Strings.map(folder, described["fingerprint"]), described


def _read(found: Iterator[str | BadLine], writer: Writer, limit: int, progress: bool) -> dict[str, Any]:
    """Write captions until the limit; say what was left out."""
    bad, blank = Bad(), 0
    with bar(limit or None, "reading captions", progress) as shown:
        for caption in found:
            if isinstance(caption, BadLine):
                bad.add(caption.kind, str(caption))
            elif not caption.strip():
                blank += 1
            else:
                try:
                    writer.add(caption)
                except UnicodeEncodeError:
                    bad.add("not UTF-8", f"{caption!r:.60}: half of a surrogate pair")
            shown.advance()
            if limit and len(writer) == limit:
                break
    return {"bad": dict(bad.counts), "first": bad.first, "blank": blank}
