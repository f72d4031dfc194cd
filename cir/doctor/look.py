"""A look at one image file: is it there, whole, and how large."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple
from warnings import catch_warnings, simplefilter

from PIL import Image

from cir.data.readable import UNREADABLE, decode

TAIL = 64
"""Bytes at a file's end that are searched for the end marker."""
ENDS = ((b"\xff\xd8", b"\xff\xd9"), (b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"))
"""What JPEG and PNG files begin with and end with."""


class Look(NamedTuple):
    """What one look at a file found; `trouble` is empty where it is well. `size` is -1 where there is no file."""

    size: int
    time: int
    width: int = 0
    height: int = 0
    trouble: str = ""
    decoded: bool = False

    @property
    def gone(self) -> bool:
        """Whether there was no file."""
        return self.size < 0 and not self.trouble


def look(file: Path, pixels: bool = False) -> Look:
    """Look at a file: its length, its header, and the marker at its end; with `pixels` everything is decoded.

    JPEG and PNG end with a marker, so that a file which was cut is found without decoding it. A file without the
    marker, or of another format, is decoded, and that decides: what Pillow reads is well.
    """
    try:
        with open(file, "rb") as stream:
            state = os.fstat(stream.fileno())
            found = Look(state.st_size, state.st_mtime_ns)
            if not state.st_size:
                return found._replace(trouble="empty, 0 bytes", decoded=True)
            try:
                return _seen(stream, found, pixels)
            except Image.UnidentifiedImageError:
                return found._replace(trouble="not an image, or an unknown format", decoded=True)
            except UNREADABLE as error:
                return found._replace(trouble=str(error) or type(error).__name__, decoded=True)
    except FileNotFoundError:
        return Look(-1, 0)
    except OSError as error:
        return Look(-1, 0, trouble=f"cannot be read ({error.strerror})")


def _seen(stream: BinaryIO, found: Look, pixels: bool) -> Look:
    """Read header and end, and the pixels where that is asked for or needed."""
    with Image.open(stream) as image:
        width, height = image.size
        pixels = pixels or not _ended(stream, found.size)
        if pixels:
            decode(image)
    return found._replace(width=width, height=height, decoded=pixels)


def _ended(stream: BinaryIO, size: int) -> bool:
    """Say whether the file ends as its format does."""
    place = stream.tell()
    stream.seek(0)
    head = stream.read(8)
    stream.seek(max(0, size - TAIL))
    tail = stream.read()
    stream.seek(place)
    return any(head.startswith(first) and last in tail for first, last in ENDS)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Pillow's warnings about odd metadata away; around threads, since filters belong to the process."""
    with catch_warnings():
        simplefilter("ignore")
        yield
