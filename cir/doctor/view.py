"""`--fix-layout`: a tree of symbolic links in the official layout; the files themselves stay where and as they are."""

import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from cir import data
from cir.data.layout import world_file
from cir.doctor import loading, match
from cir.doctor.checking import CACHE, check, require
from cir.doctor.findings import Report
from cir.doctor.loading import Loaded
from cir.doctor.pictures import files
from cir.doctor.shelf import Shelf
from cir.doctor.tree import MARKER, search, stem
from cir.errors import InputError
from cir.progress import track


@dataclass(frozen=True, slots=True)
class Fixed:
    """What was made: the folder, how many links belong to it and how many of them are new, and its check."""

    out: Path
    links: int
    new: int
    report: Report


def fix(
    name: str,
    root: Path,
    out: Path,
    *,
    protocol: str | None = None,
    pixels: bool = False,
    cache: Path = CACHE,
    fresh: bool = False,
    progress: bool = True,
) -> Fixed:
    """Link annotations and images of `name`, found in place or elsewhere under `root`, into `out`, and check `out`.

    Links are absolute and lie at `out/<dataset's folder>/<official place>`. An image that has another extension than
    the official one keeps it where the loader knows it. The same call again adds what has been found since, and goes
    on where a killed one stopped. InputError where `out` holds anything but links that this made.
    """
    require(root)
    names, _ = loading.splits(name)
    every = [loading.load(one, root, protocol) for one in names]
    own = [one for one in names if one.removeprefix(data.WORLD) not in data.BENCHMARKS]
    if own:
        raise InputError(f"--fix-layout: {own[0]} has no official layout; `cir data new` says where its images are")
    _prepare(out, root)
    wanted: dict[Path, Path] = {}
    for one, found in zip(every, _annotations(every, root, progress), strict=True):
        wanted |= {out / one.source.folders[0] / place: file for place, file in found.items()}
    new = sum(_link(place, file) for place, file in wanted.items())
    images = _images(every, root, out, protocol, progress)
    new += sum(_link(place, file) for place, file in track(images.items(), len(images), f"linking {out}", progress))
    report = check(name, out, protocol=protocol, pixels=pixels, cache=cache, fresh=fresh, progress=progress)
    return Fixed(out, len(wanted | images), new, report)


def _prepare(out: Path, root: Path) -> None:
    """Make the folder, or make sure that it holds nothing but links."""
    here, there = Path(os.path.realpath(out)), Path(os.path.realpath(root))
    if there.is_relative_to(here):
        raise InputError(f"--fix-layout {out}: holds {root} itself; choose a new folder")
    if out.exists() and not out.is_dir():
        raise InputError(f"--fix-layout {out}: not a folder; choose a new one")
    out.mkdir(parents=True, exist_ok=True)
    marker = out / MARKER
    if not marker.exists() and any(out.iterdir()):
        raise InputError(f"--fix-layout {out}: not empty, and not made by this command; choose a new folder")
    if not marker.exists():
        marker.touch()
    for folder, _, inner in os.walk(out):
        for file in inner:
            path = Path(folder, file)
            if path != marker and not path.is_symlink():
                raise InputError(f"--fix-layout {out}: {path} is no link; move it away, or choose a new folder")


def _annotations(every: Sequence[Loaded], root: Path, progress: bool) -> list[dict[str, Path]]:
    """Find for each split its annotation files, by official place; a world's file of counts belongs to them."""
    places = [places for one in every for places in one.entry.files if not one.lying()[places[0]]]
    tree = search(root, {stem(place) for group in places for place in group}, progress) if places else None
    found = []
    for one in every:
        sources: dict[str, Path] = {}
        for group in one.entry.files:
            lying = one.lying()[group[0]]
            hit = match.annotation(group, tree) if tree is not None and not lying else None
            if lying and one.base is not None:
                sources[_official(group, lying)] = one.base / lying
            elif hit is not None and hit.sure:
                sources[_official(group, str(hit.files[0]))] = hit.files[0]
        world = world_file(one.base) if one.base is not None else None
        found.append(sources | ({world.name: world} if world is not None else {}))
    return found


def _official(places: Sequence[str], file: str) -> str:
    """Return the first place that has the file's name: the others may be files of another kind."""
    name = PurePath(file).name.casefold()
    return next((place for place in places if PurePath(place).name.casefold() == name), places[0])


def _images(every: Sequence[Loaded], root: Path, out: Path, protocol: str | None, progress: bool) -> dict[Path, Path]:
    """Find the images of all splits: link by link, the file it leads to."""
    made = [loading.load(one.name, out, protocol) for one in every]
    wanted = [files(new.benchmark or old.benchmark) if new.benchmark or old.benchmark else {}  # type: ignore[arg-type]
              for old, new in zip(every, made, strict=True)]  # fmt: skip
    here = [_in_place(old, paths) for old, paths in zip(every, wanted, strict=True)]
    lost = {stem(path) for paths, found in zip(wanted, here, strict=True) for path in paths if path not in found}
    tree = search(root, lost, progress) if lost else None
    links: dict[Path, Path] = {}
    for old, new, paths, found in zip(every, made, wanted, here, strict=True):
        if tree is not None:
            hits = match.images([path for path in paths if path not in found], paths, tree)
            found |= {path: hit.files[0] for path, hit in hits.items() if hit.sure}
        base = out / old.source.folders[0]
        names = _names(new, base, found, protocol)
        links |= {base / names[path]: file for path, file in found.items()}
    return links


def _in_place(old: Loaded, paths: Mapping[str, Iterable[str]]) -> dict[str, Path]:
    """Find the images that the loader found under the root, by their official places."""
    if old.benchmark is None:
        return {}
    shelf, known = Shelf(old.benchmark.root), old.benchmark.paths
    lies = {path: next((known[name] for name in names if name in known), "") for path, names in paths.items()}
    return {path: shelf.base / place for path, place in lies.items() if place and place in shelf}


def _names(new: Loaded, base: Path, found: Mapping[str, Path], protocol: str | None) -> dict[str, str]:
    """Name the links: with the extension of the file where the loader looks for it, else as the official file.

    Whether it does is tried with one image of each extension.
    """
    own = {path: str(PurePath(path).with_suffix(file.suffix)) for path, file in found.items()}
    kinds = {(PurePath(path).suffix, found[path].suffix): path for path, name in own.items() if name != path}
    if not kinds:
        return own
    tried = {path: base / own[path] for path in kinds.values()}
    fresh = [place for path, place in tried.items() if _link(place, found[path])]
    again = loading.load(new.name, base.parent, protocol).benchmark
    taken = set(again.paths.values()) if again is not None else set()
    for place in fresh:
        place.unlink()
    kept = {kind for kind, path in kinds.items() if own[path] in taken}
    return {
        path: name if name == path or (PurePath(path).suffix, found[path].suffix) in kept else path
        for path, name in own.items()
    }


def _link(place: Path, file: Path) -> bool:
    """Make a link, or lead the one that is there to this file; says whether anything changed."""
    target = os.path.abspath(file)
    try:
        os.symlink(target, place)
    except FileNotFoundError:
        place.parent.mkdir(parents=True, exist_ok=True)
        os.symlink(target, place)
    except FileExistsError:
        if not place.is_symlink():
            raise InputError(f"{place}: is no link; move it away, or choose a new folder") from None
        if os.readlink(place) == target:
            return False
        with tempfile.TemporaryDirectory(dir=place.parent, prefix=".") as staged:
            os.symlink(target, f"{staged}/link")
            os.replace(f"{staged}/link", place)
    return True
