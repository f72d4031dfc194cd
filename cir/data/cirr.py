"""CIRR, release rc2 (Liu et al., ICCV 2021, arXiv:2108.04024).

`cirr/captions/cap.rc2.<split>.json` and `cirr/image_splits/split.rc2.<split>.json` (or both without the `cirr/`).
The split file is the gallery, in its order, and says where each image lies: the val images are in `dev/`. Trees
with `img_raw/` or `images/` before that path are found too.
"""

from pathlib import Path, PurePosixPath

from cir.data import layout
from cir.data.annotations import Folder, Row, inside, read_json, read_rows, typed
from cir.data.reduce import settle
from cir.errors import InputError
from cir.schema import Benchmark, Query


def load(root: Path, split: str, *, allow_missing: bool = False) -> Benchmark:
    """Load `val`, or `test1`, whose labels are on a server. The target is `target_hard`; the six are `candidates`."""
    file = f"captions/cap.rc2.{split}.json"
    base, captions = layout.find(root, ("CIRR", "cirr"), (f"cirr/{file}", file))
    queries = tuple(_query(row, hidden=split == "test1") for row in read_rows(captions))
    annotations = captions.parent.parent
    listed = _split(annotations / "image_splits" / f"split.rc2.{split}.json")
    identity = layout.identify("cirr", split, base, layout.count(queries, list(listed)), allow_missing=allow_missing)
    queries, stamps = settle(queries, listed.keys(), identity.stamps)
    folder = Folder(base)
    inner = [] if annotations == base else [f"{annotations.name}/"]
    paths = {name: folder.pick(_places(path, inner)) for name, path in listed.items()}
    return Benchmark(
        name=identity.name,
        version="rc2",
        split=split,
        protocol="cirr",
        queries=queries,
        gallery=tuple(listed),
        root=base,
        paths=paths,
        notes=("gallery: every image of the split file",),
        stamps=stamps,
    )


def _query(row: Row, hidden: bool) -> Query:
    """Read one pair; reference and target must be members of its group, or subset recall means nothing."""
    members = row.inner("img_set").many("members", str)
    reference = row.get("reference", str)
    target = row.get("target_hard", str, "") if hidden else row.get("target_hard", str)
    for what, name in (("reference", reference), ("target_hard", target)):
        if name and name not in members:
            raise InputError(f"{row.where}: {what} {name!r} is not in img_set; expected it among {members}")
    return Query(
        id=str(row.get("pairid", int)),
        reference=reference,
        texts=(row.get("caption", str),),
        targets=(target,) if target else (),
        candidates=members,
        tags=row.many("tags", str, ()),
    )


def _split(path: Path) -> dict[str, str]:
    """Read image names and their paths, in the order of the file."""
    listed = typed(read_json(path), dict, str(path))
    return {name: inside(typed(place, str, f"{path}, {name}"), f"{path}, {name}") for name, place in listed.items()}


def _places(path: str, inner: list[str]) -> list[str]:
    """Say where an image may lie: as the split file has it, under the known folders, with either extension."""
    stem = str(PurePosixPath(path).with_suffix(""))
    names = dict.fromkeys((path, f"{stem}.png", f"{stem}.jpg"))
    prefixes = [f"{first}{second}" for first in ("", *inner) for second in ("", "img_raw/", "images/")]
    return [f"{prefix}{name}" for name in names for prefix in prefixes]
