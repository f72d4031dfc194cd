"""The images of one split: which are well, which are not and why, how they are laid out, and their fingerprint."""

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from cir.data.annotations import inside
from cir.data.views import outside
from cir.doctor.findings import BadImage, Images
from cir.doctor.loading import relative
from cir.doctor.look import Look
from cir.doctor.match import Match
from cir.doctor.shelf import Shelf
from cir.schema import Benchmark

FIRST = 10
"""How many extra files are named."""

Files = Mapping[str, list[str]]
"""Image files by their place under the benchmark's root, and the ids in each."""


def files(benchmark: Benchmark) -> dict[str, list[str]]:
    """List the files of a benchmark's images, and the ids in each; a path that leaves the folder is an InputError."""
    listed: dict[str, list[str]] = {}
    for name, path in benchmark.paths.items():
        listed.setdefault(inside(path, f"{benchmark.name}, image {name!r}"), []).append(name)
    return listed


def bad(
    benchmark: Benchmark,
    wanted: Files,
    missing: Collection[str],
    seen: Mapping[str, Look],
    matches: Mapping[str, Match],
    shelf: Shelf,
    root: Path,
) -> list[BadImage]:
    """Collect the images that are not well, in the order of the files."""
    found = []
    for path, ids in wanted.items():
        look = seen.get(path)
        if path in missing or look is None or look.gone:
            found.append(_lost(ids[0], path, matches.get(path), shelf, root))
        elif look.trouble:
            found.append(BadImage(ids[0], path, "corrupt", (relative(shelf.base / path, root),), look.trouble))
        elif benchmark.views:
            found += _outside(benchmark, path, ids, look)
    return found


def _outside(benchmark: Benchmark, path: str, ids: Iterable[str], look: Look) -> list[BadImage]:
    """Name the parts of a picture whose box does not touch it."""
    views = [(name, benchmark.views[name]) for name in ids if name in benchmark.views]
    size = f"a picture of {look.width} x {look.height}"
    return [
        BadImage(name, path, "outside", trouble=f"{view} of {size}")
        for name, view in views
        if outside(view, look.width, look.height)
    ]


def _lost(name: str, path: str, hit: Match | None, shelf: Shelf, root: Path) -> BadImage:
    """Say of an image that is not in its place where it may be."""
    if hit is None:
        return BadImage(name, path, "missing", trouble="a link that leads nowhere" if path in shelf.astray else "")
    at = tuple(relative(file, root) for file in hit.files)
    if hit.sure:
        return BadImage(name, path, "misplaced", at)
    return BadImage(name, path, "ambiguous", at, f"{len(at)} files of different content")


def counted(
    benchmark: Benchmark, wanted: Files, missing: Collection[str], found: list[BadImage], shelf: Shelf, known: set[str]
) -> Images:
    """Count the images, and say which folders and extensions they are in; `known` are the files that are no extra."""
    here = [path for path in wanted if path not in missing]
    extra = shelf.extra(here, known)
    return Images(
        named=len(benchmark.paths),
        files=len(wanted),
        found=len(wanted) - sum(image.verdict != "outside" for image in found),
        bad=tuple(found),
        folders=_most(path.rpartition("/")[0] or "." for path in here),
        suffixes=_most(Path(path).suffix for path in here),
        links=sum(shelf.linked(path) for path in here),
        extra=len(extra),
        extra_first=tuple(extra[:FIRST]),
    )


def fingerprint(benchmark: Benchmark, counts: Mapping[str, int], wanted: Files, seen: Mapping[str, Look]) -> str:
    """Sixteen hex digits over what was found, wherever it lies.

    The benchmark's own fingerprint, its counts, and by id each image file: the ids in it, its length in bytes, its
    width and height; [-1, 0, 0] stands for a file that is not in its place.
    """
    digest = hashlib.sha256(json.dumps([benchmark.fingerprint, sorted(counts.items())]).encode())
    for ids, path in sorted((ids, path) for path, ids in wanted.items()):
        look = seen.get(path, Look(-1, 0))
        digest.update(json.dumps([ids, look.size, look.width, look.height]).encode())
    return digest.hexdigest()[:16]


def _most(words: Iterable[str]) -> dict[str, int]:
    """Count words, the most frequent first."""
    return dict(Counter(words).most_common())
