"""The folders that images of a benchmark should be in, each listed once."""

import os
from collections.abc import Iterable
from pathlib import Path

from cir.doctor.tree import is_image, kind


class Shelf:
    """Files of a dataset's folder by sub-folder: name, and whether it is a symbolic link; broken links are no files."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.unreadable: list[str] = []
        self.astray: set[str] = set()
        """Links that lead nowhere."""
        self._listed: dict[str, dict[str, bool]] = {}

    def names(self, folder: str) -> dict[str, bool]:
        """List a sub-folder, empty where there is none."""
        if folder not in self._listed:
            self._listed[folder] = self._list(folder)
        return self._listed[folder]

    def __contains__(self, path: str) -> bool:
        """Say whether a file is there."""
        folder, _, name = path.rpartition("/")
        return name in self.names(folder)

    def linked(self, path: str) -> bool:
        """Say whether a file that is there is a link."""
        folder, _, name = path.rpartition("/")
        return self.names(folder)[name]

    def extra(self, named: Iterable[str], known: set[str]) -> list[str]:
        """Name the images in the folders of `named` that are not among `known`."""
        folders = sorted({path.rpartition("/")[0] for path in named})
        found = ((folder, name) for folder in folders for name in sorted(self.names(folder)) if is_image(name))
        paths = (f"{folder}/{name}" if folder else name for folder, name in found)
        return [path for path in paths if path not in known]

    def _list(self, folder: str) -> dict[str, bool]:
        listed: dict[str, bool] = {}
        try:
            with os.scandir(self.base / folder) as entries:
                for entry in entries:
                    what = kind(entry)
                    if what == "file":
                        listed[entry.name] = entry.is_symlink()
                    elif what == "nothing":
                        self.astray.add(f"{folder}/{entry.name}" if folder else entry.name)
        except (FileNotFoundError, NotADirectoryError):
            pass
        except OSError as error:
            self.unreadable.append(f"{self.base / folder} ({error.strerror})")
        return listed
