"""A folder of pictures, unlabelled or with a caption file beside each."""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from cir.data.bad import Bad
from cir.data.strings import Strings, Writer
from cir.data.tables import SUFFIXES
from cir.errors import InputError

CAPTIONS = (".txt", ".json")
"""A picture's caption file has the picture's name and one of these endings, the first that is there."""


class Folder:
    """Pictures by path relative to the folder."""

    format = "folder"
    blocks: tuple[int, ...] = ()

    def __init__(self, root: Path, names: Strings, captions: bytes, fingerprint: str, stamp: str) -> None:
        self.root, self._names, self._captions = root, names, captions
        self.fingerprint, self.stamp = fingerprint, stamp
        self.bad = Bad()

    def __len__(self) -> int:
        """Count the pictures."""
        return len(self._names)

    def name(self, row: int) -> str:
        """Return a picture's path relative to the folder."""
        return self._names[row]

    def text(self, row: int) -> str:
        """Read the caption from the file beside a picture."""
        kind = self._captions[row]
        if not kind:
            return ""
        return read_caption((self.root / self.name(row)).with_suffix(CAPTIONS[kind - 1]))

    def open(self, row: int) -> Image.Image:
        """Open a picture."""
        return Image.open(self.root / self.name(row))


def load(root: Path) -> Folder:
    """List a folder: its own pictures by name, then its sub-folders' by name; what starts with a dot is skipped."""
    writer, captions = Writer(None), bytearray()
    content, times = hashlib.sha256(), hashlib.sha256()
    for found, caption in _walk(root, ""):
        kind = 0 if caption is None else 1 + CAPTIONS.index(os.path.splitext(caption.path)[1].lower())
        writer.add(found.path)
        captions.append(kind)
        told = [found.path, found.size, kind, caption.size if caption else 0]
        content.update(json.dumps(told).encode())
        times.update(f"{found.time} {caption.time if caption else 0} ".encode())
    fingerprint = content.hexdigest()[:16]
    times.update(fingerprint.encode())
    return Folder(root, writer.finish(), bytes(captions), fingerprint, times.hexdigest()[:16])


class _File:
    """A file by its path relative to the root."""

    def __init__(self, entry: os.DirEntry[str], path: str) -> None:
        found = entry.stat()
        self.path, self.size, self.time = path, found.st_size, found.st_mtime_ns


def _walk(root: Path, inside: str, above: frozenset[str] = frozenset()) -> Iterator[tuple[_File, _File | None]]:
    """Yield pictures and their caption files, holding one folder's list at a time; `above` are the folders around."""
    here = os.path.realpath(root / inside)
    if here in above:
        raise InputError(f"{root / inside}: a link to a folder around it; expected a tree that ends")
    try:
        with os.scandir(root / inside) as listed:
            entries = {entry.name: entry for entry in listed if not entry.name.startswith(".")}
    except OSError as error:
        raise InputError(f"{root / inside}: cannot be listed ({error.strerror})") from None
    folders: list[str] = []
    for name in sorted(entries):
        entry, path = entries[name], f"{inside}{name}"
        if entry.is_dir():
            folders.append(f"{path}/")
        elif name.lower().endswith(SUFFIXES) and entry.is_file():
            stem = os.path.splitext(name)[0]
            beside = next((entries[stem + end] for end in CAPTIONS if stem + end in entries), None)
            caption = None if beside is None else _File(beside, f"{inside}{beside.name}")
            yield _File(entry, path), caption
    for folder in folders:
        yield from _walk(root, folder, above | {here})


def read_caption(path: Path) -> str:
    """Read a caption file: text, or JSON with a caption's key; InputError where it cannot be read."""
    try:
        return caption_of(path.read_bytes(), path.suffix.lower())
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: no caption ({error})") from None


def caption_of(content: bytes, suffix: str) -> str:
    """Find the caption in a caption file's content; ValueError where there is none."""
    from cir.data.caption_files import caption_in

    if suffix != ".json":
        return content.decode("utf-8-sig").strip()
    found = caption_in(json.loads(content), "")
    return found.strip()
