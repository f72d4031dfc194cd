"""Benchmarks by name: annotations in, nouns out. One file per benchmark; `images` opens the pixels."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from cir.data import circo, cirr, fashioniq
from cir.data.reduce import subset
from cir.errors import InputError, nearest
from cir.schema import Benchmark

Loader = Callable[..., Benchmark]

BENCHMARKS: dict[str, Loader] = {
    **{
        f"fashioniq/{category}/{split}": partial(fashioniq.load, category=category, split=split)
        for split in ("val", "test")
        for category in fashioniq.CATEGORIES
    },
    "cirr/val": partial(cirr.load, split="val"),
    "cirr/test1": partial(cirr.load, split="test1"),
    "circo/val": partial(circo.load, split="val"),
    "circo/test": partial(circo.load, split="test"),
}

GROUPS: dict[str, tuple[str, ...]] = {
    f"fashioniq/{split}": tuple(f"fashioniq/{category}/{split}" for category in fashioniq.CATEGORIES)
    for split in ("val", "test")
}
"""Names that stand for several benchmarks whose mean is reported."""

WORLD = "world/"


def load(name: str, root: Path | str, *, gallery: str | None = None, allow_missing: bool = False) -> Benchmark:
    """Load a benchmark from its official layout; `root` is the dataset's folder or the one it lies in.

    A `name` that starts with `world/` insists on the bundled world; a world's files are called `world/...` under
    any name. `gallery` chooses FashionIQ's convention (`original`, `val-union`). Files that do not have the
    published counts are an InputError; `allow_missing` goes on and stamps. No image is opened here.
    """
    plain = name.removeprefix(WORLD)
    if plain in GROUPS:
        raise InputError(f"{name} is {len(GROUPS[plain])} benchmarks, {', '.join(expand(name))}; load them one by one")
    if plain not in BENCHMARKS:
        raise InputError(f"unknown benchmark {name!r}; {nearest(plain, [*BENCHMARKS, *GROUPS])}")
    options: dict[str, Any] = {} if gallery is None else {"gallery": gallery}
    if options and not plain.startswith("fashioniq/"):
        raise InputError(f"{name}: has one gallery, so gallery={gallery!r} means nothing here; leave it out")
    benchmark = BENCHMARKS[plain](Path(root), allow_missing=allow_missing, **options)
    if name != plain and benchmark.name != name:
        raise InputError(f"{name}: {benchmark.root} is not a world, there is no world.json; the name is {plain}")
    return benchmark


def expand(name: str) -> list[str]:
    """List the benchmarks a name stands for: `fashioniq/val` is three, any other known name is itself.

    >>> expand("fashioniq/val")
    ['fashioniq/dress/val', 'fashioniq/shirt/val', 'fashioniq/toptee/val']
    """
    plain = name.removeprefix(WORLD)
    prefix = name[: len(name) - len(plain)]
    if plain not in BENCHMARKS and plain not in GROUPS:
        raise InputError(f"unknown benchmark {name!r}; {nearest(plain, [*BENCHMARKS, *GROUPS])}")
    return [f"{prefix}{part}" for part in GROUPS.get(plain, (plain,))]


__all__ = ["BENCHMARKS", "GROUPS", "Loader", "expand", "load", "subset"]
