"""The check itself: load, list, search, look, and put what was found into a report."""

from dataclasses import dataclass, field, replace
from pathlib import Path

from cir.doctor import advice, loading, match, pictures
from cir.doctor.archives import Archives
from cir.doctor.findings import Annotation, Report, Split
from cir.doctor.kept import Looks
from cir.doctor.loading import Loaded
from cir.doctor.look import Look
from cir.doctor.shelf import Shelf
from cir.doctor.tree import Tree, search, stem
from cir.errors import InputError

CACHE = Path(".cache/doctor")


@dataclass
class Part:
    """A split on its way through the check: its image files with the ids in each, and those that are not in place."""

    one: Loaded
    shelf: Shelf | None = None
    files: dict[str, list[str]] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)


def check(
    name: str,
    root: Path,
    *,
    protocol: str | None = None,
    pixels: bool = False,
    cache: Path = CACHE,
    fresh: bool = False,
    progress: bool = True,
) -> Report:
    """Check a benchmark, a group or all splits of a dataset under `root`; nothing is changed.

    `pixels` decodes every image in full; looks are kept under `cache` and used again for files that did not change,
    unless `fresh`. InputError for an unknown name or protocol and a root that is not there; whatever is wrong with the
    files is in the report.
    """
    require(root)
    names, lenient = loading.splits(name)
    parts = _parts([loading.load(one, root, protocol) for one in names])
    stems = _stems(parts)
    tree = search(root, stems, progress) if stems else Tree()
    seen = {}
    for base in {part.shelf.base: None for part in parts if part.shelf is not None}:
        seen[base] = Looks(base, cache, fresh).over(_present(parts, base), pixels, progress)
    states = [loading.annotations(part.one, root, tree) for part in parts]
    gone = loading.absent([part.one for part in parts], states) if lenient else [False] * len(parts)
    splits, packed = [], Archives(tree.archives, root)
    for part, files, absent in zip(parts, states, gone, strict=True):
        split = _split(part.one, files, absent)
        split = split if part.shelf is None else _with_images(split, part, parts, seen[part.shelf.base], tree, root)
        if split.status == "incomplete" or (absent and all(gone)):
            said = advice.lines(split, part.one.source, name, root, packed.holding(advice.sought(split)))
            split = replace(split, advice=tuple(said))
        splits.append(split)
    unreadable = [str(folder) for folder in tree.unreadable]
    unreadable += [
        told for shelf in {id(p.shelf): p.shelf for p in parts if p.shelf}.values() for told in shelf.unreadable
    ]
    return Report(name, str(root), pixels, tuple(splits), bool(stems), tuple(dict.fromkeys(unreadable)))


def require(root: Path) -> None:
    """Refuse a root that is not there."""
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; --root is the folder that holds the datasets, or the dataset itself")


def _parts(every: list[Loaded]) -> list[Part]:
    """List the image files of what loaded; splits with one folder of images share its shelf."""
    shelves: dict[Path, Shelf] = {}
    parts = []
    for one in every:
        part = Part(one)
        if one.benchmark is not None:
            part.shelf = shelf = shelves.setdefault(one.benchmark.root, Shelf(one.benchmark.root))
            part.files = pictures.files(one.benchmark)
            part.missing = [path for path in part.files if path not in shelf]
        parts.append(part)
    return parts


def _stems(parts: list[Part]) -> set[str]:
    """Name what a search should look for: images that are not in place, annotations of splits that did not load."""
    stems = {stem(path) for part in parts for path in part.missing}
    for one in (part.one for part in parts if part.one.benchmark is None):
        lying = one.lying()
        stems |= {stem(place) for places in one.entry.files if not lying[places[0]] for place in places}
    return stems


def _present(parts: list[Part], base: Path) -> list[str]:
    """List the image files under a folder that are there, once each."""
    present: dict[str, None] = {}
    for part in parts:
        if part.shelf is not None and part.shelf.base == base:
            gone = set(part.missing)
            present |= dict.fromkeys(path for path in part.files if path not in gone)
    return list(present)


def _split(one: Loaded, states: tuple[Annotation, ...], absent: bool) -> Split:
    """Say what the annotations say."""
    if one.benchmark is None:
        base = str(one.base) if one.base is not None else ""
        return Split(one.name, "not here" if absent else "incomplete", one.protocol, base, states, one.problem)
    bench = one.benchmark
    return Split(
        one.name,
        "incomplete" if one.problem else "complete",
        one.protocol,
        str(bench.root),
        states,
        one.problem,
        loading.counts(bench, one.entry),
        notes=bench.notes,
        stamps=bench.stamps,
        version=bench.version,
        fingerprint=bench.fingerprint,
    )


def _with_images(split: Split, part: Part, parts: list[Part], seen: dict[str, Look], tree: Tree, root: Path) -> Split:
    """Add what was found of the images, and the fingerprint of the data."""
    bench, shelf = part.one.benchmark, part.shelf
    assert bench is not None and shelf is not None
    matches = match.images(part.missing, part.files, tree)
    bad = pictures.bad(bench, part.files, set(part.missing), seen, matches, shelf, root)
    known = {path for other in parts if other.shelf is shelf for path in other.files}
    images = pictures.counted(bench, part.files, set(part.missing), bad, shelf, known)
    counts = {key: count.found for key, count in split.counts.items()}
    return replace(
        split,
        status="incomplete" if bad else split.status,
        images=images,
        data_fingerprint=pictures.fingerprint(bench, counts, part.files, seen),
    )
