"""Benchmarks by name: annotations in, nouns out. One file per benchmark; `images` opens the pixels."""

from pathlib import Path
from types import ModuleType

from cir.data import circo, cirr, coco, custom, fashioniq, freedom, genecis, imagenet_r, mbeir, patterncom
from cir.data.entry import Entry, Source
from cir.data.reduce import subset
from cir.errors import InputError, nearest
from cir.schema import Benchmark

DATASETS: dict[str, ModuleType] = {
    "fashioniq": fashioniq,
    "cirr": cirr,
    "circo": circo,
    "genecis": genecis,
    "coco": coco,
    "patterncom": patterncom,
    "imagenet_r": imagenet_r,
    "freedom": freedom,
    "custom": custom,
    "mbeir": mbeir,
}
"""By the first part of their benchmarks' names; each file has ENTRIES, a SOURCE, GROUPS where it has some, and
`entry(name)` where names are not known beforehand."""

BENCHMARKS: dict[str, Entry] = {name: entry for file in DATASETS.values() for name, entry in file.ENTRIES.items()}

GROUPS: dict[str, tuple[str, ...]] = {
    name: parts for file in DATASETS.values() for name, parts in getattr(file, "GROUPS", {}).items()
}
"""Names that stand for several benchmarks whose mean is reported."""

WORLD = "world/"


def load(name: str, root: Path | str, *, protocol: str | None = None, allow_missing: bool = False) -> Benchmark:
    """Load a benchmark from its official layout; `root` is the dataset's folder or the one it lies in.

    A `name` that starts with `world/` insists on the bundled world; a world's files are called `world/...` under
    any name. `protocol` is one of the entry's (none: its first); it decides which gallery and which labels are read.
    Files that do not have the published counts are an InputError; `allow_missing` goes on and stamps. No image is
    opened here.
    """
    plain = name.removeprefix(WORLD)
    if plain in GROUPS:
        raise InputError(f"{name} is {len(GROUPS[plain])} benchmarks, {', '.join(expand(name))}; load them one by one")
    entry = find(name)
    usual = entry.default(Path(root)) if entry.default and protocol is None else entry.protocols[0]
    chosen = usual if protocol is None else protocol
    if chosen not in entry.protocols:
        why = entry.refused.get(chosen) or nearest(chosen, entry.protocols)
        raise InputError(f"{name}: has no protocol {chosen!r}; {why}")
    benchmark = entry.load(Path(root), protocol=chosen, allow_missing=allow_missing)
    if name != plain and benchmark.name != name:
        raise InputError(f"{name}: {benchmark.root} is not a world, there is no world.json; the name is {plain}")
    return benchmark


def find(name: str) -> Entry:
    """Look up one benchmark, with or without `world/`; InputError names the nearest."""
    plain = name.removeprefix(WORLD)
    offered = getattr(DATASETS.get(dataset(plain)), "entry", None)
    found = BENCHMARKS.get(plain) or (offered(plain) if offered else None)
    if found is None:
        raise InputError(f"unknown benchmark {name!r}; {nearest(plain, [*BENCHMARKS, *GROUPS])}")
    return found


def dataset(name: str) -> str:
    """Name the dataset a benchmark belongs to.

    >>> dataset("world/fashioniq/dress/val")
    'fashioniq'
    """
    return name.removeprefix(WORLD).split("/")[0]


def origin(name: str) -> Source:
    """Say where the dataset of a benchmark or group comes from."""
    found: Source = DATASETS[dataset(expand(name)[0])].SOURCE
    return found


def expand(name: str) -> list[str]:
    """List the benchmarks a name stands for: `fashioniq/val` is three, any other known name is itself.

    >>> expand("fashioniq/val")
    ['fashioniq/dress/val', 'fashioniq/shirt/val', 'fashioniq/toptee/val']
    """
    plain = name.removeprefix(WORLD)
    prefix = name[: len(name) - len(plain)]
    if plain in GROUPS:
        return [f"{prefix}{part}" for part in GROUPS[plain]]
    find(name)
    return [name]


__all__ = [
    "BENCHMARKS",
    "DATASETS",
    "GROUPS",
    "Entry",
    "Source",
    "dataset",
    "expand",
    "find",
    "load",
    "origin",
    "subset",
]
