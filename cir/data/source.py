"""Training sources of every kind behind one door."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cir.data.bad import Bad
from cir.errors import InputError, nearest

KINDS = ("captions", "triplets", "images", "image_triplets")
"""What a method may learn from."""


def load(
    kind: str,
    path: str,
    *,
    images: str = "",
    column: str = "",
    limit: int = 0,
    allow_bad: float = 0.0,
    keep: Path | None = None,
    progress: bool = True,
    root: Path | str = "datasets",
    roots: Mapping[str, str] | None = None,
    allow_missing: bool = False,
) -> Any:
    """Open captions, text triplets, pictures or human triplets.

    `cir.data.captions`, `.triplets`, `.pictures` and `.image_triplets` say what they take; the last is a benchmark's
    train split by its name, found under `root` or `roots` as benchmarks are.

    All have a length, a `fingerprint` over what is learnt from, and `bad`, what was left out: above the share
    `allow_bad` of the source, `InputError`. `limit` takes the first rows, 0 for all. `keep` is the folder for indexes
    of large sources.
    """
    if kind == "images":
        from cir.data import pictures

        return pictures.load(
            path, images=images, column=column, limit=limit, allow_bad=allow_bad, keep=keep, progress=progress
        )
    if kind == "image_triplets":
        from cir.data import image_triplets

        return image_triplets.load(
            path, root, roots=roots, limit=limit, allow_bad=allow_bad, allow_missing=allow_missing, keep=keep,
            progress=progress,
        )  # fmt: skip
    if kind == "captions":
        from cir.data import captions

        return captions.load(path, column=column, limit=limit, allow_bad=allow_bad, keep=keep, progress=progress)
    if kind != "triplets":
        raise InputError(f"no training source is called {kind!r}; {nearest(kind, KINDS)}")
    from cir.data import triplets
    from cir.data.limited import First

    found = triplets.load(Path(path), allow_bad=allow_bad)
    return First(found, limit) if limit else found


def left_out(path: str, found: Any) -> str:
    """Say in a line what a source leaves out; empty where nothing is."""
    return f"{path}: {len(found):,} rows are used, left out are {told(found.bad)}" if found.bad else ""


def told(bad: Any) -> str:
    """Say what is bad: counts by kind and the first ten, or `none`."""
    return (str(bad) if isinstance(bad, Bad) else "; ".join(map(str, bad))) if bad else "none"


def sample(kind: str, found: Any) -> str:
    """Show a source's first row."""
    if kind == "image_triplets":
        query = found.query(0)
        return f"{query.reference} and {list(query.texts)!r} ask for {query.targets[0]}"
    if kind != "images":
        return repr(found[0])
    with found.open(0) as image:
        size = "{} x {}".format(*image.size)
    return f"{found.name(0)} ({image.format}, {size}), {found.text(0)!r}"
