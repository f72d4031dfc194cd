"""Which file that was found elsewhere is the one that is missing."""

import filecmp
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePath

from cir.doctor.tree import Tree, is_image, stem


@dataclass(frozen=True, slots=True)
class Match:
    """The files that may be the missing one: one is it, several are a question for the user."""

    files: tuple[Path, ...]

    @property
    def sure(self) -> bool:
        """Whether it is known which."""
        return len(self.files) == 1


def images(missing: Collection[str], named: Iterable[str], tree: Tree) -> dict[str, Match]:
    """Find missing images in a tree: the same base name, any image extension, any case.

    Of several files the ones share most that agree in most folders above them with the missing path, then in the
    extension, then in case; files that still tie must be copies of one another, or the match is not sure. Where
    images of the benchmark share a base name (`named` are all their paths), so many folders must agree as tell them
    apart: `n01443537/cartoon_1.jpg` is not `n01484850/cartoon_1.jpg`.
    """
    met = [path for path in missing if stem(path) in tree.files]
    needed = _needed(met, named)
    found = {path: _best(path, needed[path], tree, lambda file: is_image(file.name)) for path in met}
    return {path: match for path, match in found.items() if match is not None}


def annotation(places: Iterable[str], tree: Tree) -> Match | None:
    """Find an annotation file by its exact base name, any case; the first place that is met counts."""
    for place in places:
        name = PurePath(place).name.casefold()
        match = _best(place, 0, tree, lambda file, name=name: file.name.casefold() == name)  # type: ignore[misc]
        if match is not None:
            return match
    return None


def _best(path: str, needed: int, tree: Tree, fits: Callable[[Path], bool]) -> Match | None:
    """Choose among the files of the same stem."""
    ranked = [(_likeness(path, file), file) for file in tree.files.get(stem(path), ()) if fits(file)]
    ranked = [pair for pair in ranked if pair[0][0] >= needed]
    if not ranked:
        return None
    best = max(likeness for likeness, _ in ranked)
    files = [file for likeness, file in ranked if likeness == best]
    return Match((files[0],) if all(_same(files[0], other) for other in files[1:]) else tuple(files))


def _likeness(path: str, file: Path) -> tuple[int, bool, bool]:
    """Say how much a file's place is like the missing path: folders above it, extension, case."""
    wanted = PurePath(path)
    shared = 0
    for one, other in zip(_above(path), _above(str(file)), strict=False):
        if one != other:
            break
        shared += 1
    return shared, wanted.suffix.casefold() == file.suffix.casefold(), wanted.name == file.name


def _same(one: Path, other: Path) -> bool:
    """Say whether two files have the same content; what cannot be read is not the same."""
    try:
        return filecmp.cmp(one, other, shallow=False)
    except OSError:
        return False


def _above(path: str) -> list[str]:
    """List the folders above a file, the nearest first, in one case."""
    return path.casefold().split("/")[-2::-1]


def _needed(missing: Collection[str], named: Iterable[str]) -> dict[str, int]:
    """Count the folders that must agree so that a path cannot be taken for another of the same stem."""
    stems = {stem(path) for path in missing}
    if not stems:
        return {}
    rivals = {path: (stem(path), *_above(path)) for path in {*named, *missing} if stem(path) in stems}
    needed: dict[str, int] = {}
    depth = 0
    while rivals:
        shared = Counter(key[: depth + 1] for key in rivals.values())
        needed |= {path: depth for path, key in rivals.items() if shared[key[: depth + 1]] == 1 or depth > len(key)}
        rivals = {path: key for path, key in rivals.items() if path not in needed}
        depth += 1
    return needed
