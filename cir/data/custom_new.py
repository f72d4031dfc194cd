"""Making a custom benchmark: everything is checked first, and the folder appears at once or not at all."""

import json
import os
import re
import shutil
import tempfile
from pathlib import Path

from cir.data import custom, layout
from cir.data.custom import DESCRIPTION, FORMAT, GALLERY, QUERIES
from cir.data.custom_queries import Pictures, candidates_of_all, read, read_gallery
from cir.errors import InputError
from cir.schema import Benchmark

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def new(
    name: str,
    queries: Path,
    images: Path,
    *,
    root: Path,
    gallery: Path | None = None,
    remove_reference: bool = False,
    overwrite: bool = False,
) -> Benchmark:
    """Make `root/custom/<name>/` of a file of queries and a folder of pictures, and load what was made.

    Pictures stay where they are: an absolute path to them is kept as it is, a relative one is kept relative to the
    benchmark, so that both can move together. The default protocol is `custom/reference-removed` where
    `remove_reference` asks for it, else `custom/candidates` where every query has candidates, else `custom`. Raises
    InputError for a bad name, for a benchmark that is there (without `overwrite`), and for every problem of the files.
    """
    plain = _plain(name)
    place = root / "custom" / plain
    _refuse_taken(place, overwrite)
    content = {QUERIES: _read(queries, "queries, a JSONL file")}
    if gallery is not None:
        content[GALLERY] = _read(gallery, "a list of pictures")
    if not images.is_dir():
        raise InputError(f"{images}: no such folder; expected the folder of the pictures")
    content[DESCRIPTION] = _describe(plain, place, content, (queries, images, gallery), remove_reference)
    _put(place, content)
    return custom.load(root, plain, protocol=custom.describe(place).protocol)


def _describe(
    plain: str,
    place: Path,
    content: dict[str, bytes],
    sources: tuple[Path, Path, Path | None],
    remove_reference: bool,
) -> bytes:
    """Check everything, and write down what was found."""
    queries, images, gallery = sources
    pictures = Pictures(images)
    listed = pictures.names if gallery is None else read_gallery(content[GALLERY], gallery, pictures)
    asked = read(content[QUERIES], queries, pictures, frozenset(listed), plain)
    chosen = "custom/candidates" if candidates_of_all(asked) else "custom"
    told = {
        "format": FORMAT,
        "name": plain,
        "images": str(images) if images.is_absolute() else os.path.relpath(images, place.resolve()),
        "protocol": "custom/reference-removed" if remove_reference else chosen,
        "counts": layout.count(asked, listed),
    }
    return (json.dumps(told, indent=2, ensure_ascii=False) + "\n").encode()


def _plain(name: str) -> str:
    """Read the name, with or without `custom/`."""
    plain = name.removeprefix("custom/")
    if not NAME.fullmatch(plain):
        raise InputError(f"name {name!r}: expected letters, digits, '.', '_' and '-', beginning with a letter or digit")
    return plain


def _refuse_taken(place: Path, overwrite: bool) -> None:
    """Refuse a place that holds something, unless it is a custom benchmark that may be replaced."""
    held = sorted(path.name for path in place.iterdir()) if place.is_dir() else []
    if place.exists() and not place.is_dir():
        raise InputError(f"{place}: is a file; expected a new folder there")
    if not held:
        return
    other = [name for name in held if name not in (DESCRIPTION, QUERIES, GALLERY)]
    if other or DESCRIPTION not in held:
        raise InputError(f"{place}: holds {(other or held)[:3]}, not made by `cir data new`; choose another name")
    if not overwrite:
        raise InputError(f"{place}: is there already; --overwrite replaces it, or choose another name")


def _read(path: Path, what: str) -> bytes:
    """Read a file the user named."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); expected {what}") from None


def _put(place: Path, content: dict[str, bytes]) -> None:
    """Write the files beside their place, under a name that nothing reads, then move the whole folder there."""
    place.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(dir=place.parent, prefix=f".{place.name}."))
    old = made.with_name(f"{made.name}.old")
    try:
        made.chmod(0o755)  # what mkdtemp makes is for its owner alone
        for name, data in content.items():
            (made / name).write_bytes(data)
        if place.is_dir():
            os.replace(place, old)
        os.replace(made, place)
    except BaseException:
        if old.is_dir() and not place.exists():
            os.replace(old, place)
        raise
    finally:
        shutil.rmtree(made, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
