"""Archives under the root that hold what is missing: to be unpacked by the user, never by a check."""

import tarfile
import zipfile
import zlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath

from cir.doctor.loading import relative
from cir.doctor.tree import stem

MEMBERS = 200
"""How many entries of a tar file are read: it has no table of contents."""


@dataclass(frozen=True, slots=True)
class Packed:
    """An archive with missing files: how many of them it lists, and the folder, relative to the dataset's, to unpack
    it in; `counted` says whether all of it was read. With `trouble` it cannot be opened.
    """

    file: str
    count: int = 0
    folder: str = ""
    counted: bool = True
    trouble: str = ""


class Archives:
    """The archives of a root; each is listed once, when it is first asked for."""

    def __init__(self, files: Sequence[Path], root: Path) -> None:
        self.files, self.root = files, root
        self._members: dict[Path, list[str]] = {}
        self._trouble: dict[Path, str] = {}

    def holding(self, missing: Collection[str]) -> list[Packed]:
        """Say which archives hold files with the base names of missing ones, and which cannot be opened."""
        if not missing:
            return []
        by_stem = {stem(path): path for path in missing}
        found = []
        for archive in self.files:
            members = [name for name in self._list(archive) if stem(name) in by_stem]
            name = relative(archive, self.root)
            if archive in self._trouble:
                found.append(Packed(name, trouble=self._trouble[archive]))
            elif members:
                folder = _unpack_in(by_stem[stem(members[0])], members[0])
                found.append(Packed(name, len(members), folder, archive.suffix.lower() == ".zip"))
        return found

    def _list(self, archive: Path) -> list[str]:
        """List an archive's files; one that cannot be opened has none."""
        if archive not in self._members:
            try:
                self._members[archive] = list(_members(archive))
            except (OSError, EOFError, zipfile.BadZipFile, tarfile.TarError, ValueError, zlib.error) as error:
                self._members[archive] = []
                self._trouble[archive] = str(error) or type(error).__name__
        return self._members[archive]


def _members(archive: Path) -> Iterator[str]:
    """List an archive's files: a zip's all, of a tar the first."""
    if archive.suffix.lower() == ".zip":
        with zipfile.ZipFile(archive) as opened:
            yield from (name for name in opened.namelist() if not name.endswith("/"))
    else:
        with tarfile.open(archive) as opened:
            yield from (member.name for member in islice(opened, MEMBERS) if member.isfile())


def _unpack_in(path: str, member: str) -> str:
    """Give the folder in which unpacking `member` puts it at `path`; the file's own folder where no such is."""
    wanted, packed = PurePosixPath(path).parts[:-1], PurePosixPath(member).parts[:-1]
    packed = tuple(part for part in packed if part != ".")
    if packed and wanted[-len(packed) :] == packed:
        wanted = wanted[: -len(packed)]
    return "/".join(wanted)
