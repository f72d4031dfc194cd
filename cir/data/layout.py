"""Where a dataset lies, whether it is the bundled world, and whether it is complete."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cir.data.annotations import Row, read_json, typed
from cir.data.entry import Counts
from cir.errors import InputError
from cir.schema import Query


def find(root: Path, folders: Sequence[str], files: Sequence[str]) -> tuple[Path, Path]:
    """Find a dataset's own folder and its annotation file; `root` may be that folder or the one it lies in.

    `folders` are names the dataset's folder goes by, `files` the places of the annotation file relative to it, both
    in order of preference.
    """
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; expected the folder of {folders[0]}, or the one it lies in")
    for base in (root, *(root / folder for folder in folders)):
        for file in files:
            if (base / file).is_file():
                return base, base / file
    places = " or ".join(files)
    raise InputError(f"{root}: found no {places}, neither here nor in {folders[0]}/; see datasets/README.md")


@dataclass(frozen=True, slots=True)
class Identity:
    """What a dataset on disk may call itself, and what a number on it must carry."""

    name: str
    stamps: tuple[str, ...] = ()


def identify(
    plain: str, base: Path, found: Counts, published: Counts, *, gallery: str = "gallery", allow_missing: bool = False
) -> Identity:
    """Compare counts with the published ones, or, where a `world.json` lies beside the files, with the world's own.

    `plain` is the benchmark's name. A folder with a `world.json` in it or in its parent is the bundled world: its
    name starts with `world/`. `gallery` says which published count the gallery is compared with (`union`: the number
    of images that are reference or target); a count that is not known is not compared. Other counts than expected are
    an InputError, with `allow_missing` a stamp.
    """
    world = world_file(base)
    expected = _world_counts(world, plain) if world else dict(published)
    expected["gallery"] = expected.get(gallery, found["gallery"])
    name = f"world/{plain}" if world else plain
    wrong = [f"{key}: expected {expected[key]:,}, found {n:,}" for key, n in found.items() if expected.get(key, n) != n]
    if not wrong:
        return Identity(name)
    if not allow_missing:
        raise InputError(
            f"{name} in {base}: {'; '.join(wrong)}; use the complete files, or data.allow_missing=true to go on "
            "with numbers that are stamped"
        )
    return Identity(name, tuple(f"not the official counts ({what})" for what in wrong))


def wrong_counts(stamps: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Read back what `identify` stamped: by count, the expected number and the one found.

    >>> wrong_counts(["not the official counts (queries: expected 4,181, found 2)", "2 queries left out"])
    {'queries': (4181, 2)}
    """
    found = (re.fullmatch(r"not the official counts \((\w+): expected ([\d,]+), found ([\d,]+)\)", s) for s in stamps)
    return {m[1]: (int(m[2].replace(",", "")), int(m[3].replace(",", ""))) for m in found if m}


def count(queries: Sequence[Query], gallery: Sequence[str]) -> dict[str, int]:
    """Count what `identify` compares."""
    return {"queries": len(queries), "gallery": len(gallery), "targets": sum(len(q.targets) for q in queries)}


def world_file(base: Path) -> Path | None:
    """Find the file that marks the bundled world, in the dataset's folder or in its parent."""
    own = Path(os.path.abspath(base))  # the folder the user sees, not where a link leads
    return next((place / "world.json" for place in (own, own.parent) if (place / "world.json").is_file()), None)


def _world_counts(world: Path, name: str) -> dict[str, int]:
    """Read a world's own counts: `counts` nests like the name, and holds per dataset what a `counts.json` holds."""
    row = Row(typed(read_json(world), dict, str(world)), str(world)).inner("counts")
    for part in name.split("/"):
        row = row.inner(part)
    return {key: row.get(key, int) for key in row.data}
