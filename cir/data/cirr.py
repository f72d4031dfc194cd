"""CIRR, release rc2 (Liu et al., ICCV 2021, arXiv:2108.04024).

`cirr/captions/cap.rc2.<split>.json` and `cirr/image_splits/split.rc2.<split>.json` (or both without the `cirr/`).
The split file is the gallery, in its order, and says where each image lies: the val images are in `dev/`. Trees
with `img_raw/` or `images/` before that path are found too.
"""

from functools import partial
from pathlib import Path, PurePosixPath

from cir.data import layout
from cir.data.annotations import Folder, Row, inside, read_json, read_rows, typed
from cir.data.entry import Entry, Source
from cir.data.reduce import settle
from cir.errors import InputError
from cir.schema import Benchmark, Query

COUNTS = {
    "cirr/val": {"queries": 4181, "gallery": 2297, "targets": 4181},
    "cirr/test1": {"queries": 4148, "gallery": 2315, "targets": 0},
}
SOURCE = Source(
    title="CIRR",
    folders=("CIRR", "cirr"),
    annotations="github.com/Cuberick-Orion/CIRR, branch cirr_dataset (MIT)",
    images="NLVR2's, on request from its authors (a form, lil.nlp.cornell.edu/nlvr)",
    page="docs/benchmarks/cirr.md",
)


def load(root: Path, split: str, *, protocol: str = "cirr", allow_missing: bool = False) -> Benchmark:
    """Load `val`, or `test1`, whose labels are on a server. The target is `target_hard`; the six are `candidates`."""
    file = f"captions/cap.rc2.{split}.json"
    base, captions = layout.find(root, SOURCE.folders, (f"cirr/{file}", file))
    queries = tuple(_query(row, hidden=split == "test1") for row in read_rows(captions))
    annotations = captions.parent.parent
    listed = _split(annotations / "image_splits" / f"split.rc2.{split}.json")
    name = f"cirr/{split}"
    found = layout.count(queries, list(listed))
    identity = layout.identify(name, base, found, COUNTS[name], allow_missing=allow_missing)
    queries, stamps = settle(queries, listed.keys(), identity.stamps)
    folder = Folder(base)
    inner = [] if annotations == base else [f"{annotations.name}/"]
    paths = {name: folder.pick(_places(path, inner)) for name, path in listed.items()}
    return Benchmark(
        name=identity.name,
        version="rc2",
        split=split,
        protocol=protocol,
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
    if len(set(members)) != len(members):
        raise InputError(f"{row.where}: img_set names an image twice; expected distinct members, got {members}")
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


ENTRIES = {
    f"cirr/{split}": Entry(
        partial(load, split=split),
        protocols=("cirr",),
        files=tuple(
            (f"cirr/{file}", file)
            for file in (f"captions/cap.rc2.{split}.json", f"image_splits/split.rc2.{split}.json")
        ),
        counts=COUNTS[f"cirr/{split}"],
    )
    for split in ("val", "test1")
}
