"""CIRR, release rc2 (Liu et al., ICCV 2021, arXiv:2108.04024).

`cirr/captions/cap.rc2.<split>.json` and `cirr/image_splits/split.rc2.<split>.json` (or both without the `cirr/`).
The split file is the gallery, in its order, and says where each image lies: the val images are in `dev/`, those of
train in a hundred folders `train/<n>/`. Trees with `img_raw/` or `images/` before that path are found too. Two
protocols take everything in the folder for the gallery, two read the graded labels, `target_soft`; `train` is there to
learn from, and can be searched by the default protocol.
"""

from functools import partial
from pathlib import Path, PurePosixPath

from cir.data import layout
from cir.data.annotations import Folder, Row, inside, read_json, read_rows, typed
from cir.data.entry import Entry, Source
from cir.data.reduce import settle
from cir.errors import InputError
from cir.schema import Benchmark, Query

PROTOCOLS = ("cirr", "cirr/soft", "cirr/folder", "cirr/covr")
FOLDER = {"cirr/folder", "cirr/covr"}
"""Protocols whose gallery is the image folder."""
GRADED = {"cirr/soft", "cirr/covr"}
"""Protocols that read graded labels."""
PICTURES = (".png", ".jpg", ".jpeg")
COUNTS = {
    "cirr/val": {"queries": 4181, "gallery": 2297, "targets": 4181, "folder": 8102},
    "cirr/test1": {"queries": 4148, "gallery": 2315, "targets": 0},
    "cirr/train": {"queries": 28225, "gallery": 16939, "targets": 28225},
}
REFUSED = {
    "test1": "the server of test1 scores hard labels in the split's gallery; use cirr/val",
    "train": "numbers on train tell how well a method fits, under the papers' protocol; use cirr/val",
}
"""Splits that one protocol is enough for, and why."""
SOURCE = Source(
    title="CIRR",
    folders=("CIRR", "cirr"),
    annotations="`git clone -b cirr_dataset https://github.com/Cuberick-Orion/CIRR cirr` (MIT)",
    images="NLVR2's, for research on request: fill in the form https://goo.gl/forms/yS29stWnFWzrDBFH3, linked in "
    "github.com/lil-lab/nlvr, nlvr2/README.md, and wait up to a week (NLVR2's terms of service)",
    page="docs/benchmarks/cirr.md",
)


def load(root: Path, split: str, *, protocol: str = "cirr", allow_missing: bool = False) -> Benchmark:
    """Load `val`, `train`, or `test1`, whose labels are on a server.

    The target is `target_hard`; the six are `candidates`.

    The protocol chooses the gallery, and whether `target_soft` is read.
    """
    file = f"captions/cap.rc2.{split}.json"
    base, captions = layout.find(root, SOURCE.folders, (f"cirr/{file}", file))
    queries = tuple(_query(row, split == "test1", protocol in GRADED) for row in read_rows(captions))
    annotations = captions.parent.parent
    listed = _split(annotations / "image_splits" / f"split.rc2.{split}.json")
    folder = Folder(base)
    inner = [] if annotations == base else [f"{annotations.name}/"]
    paths = {name: folder.pick(_places(path, inner)) for name, path in listed.items()}
    note = "every image of the split file"
    if protocol in FOLDER:
        paths, note = _with_neighbours(paths, folder, f"cirr/{split}, {protocol}")
    name, compared = f"cirr/{split}", "folder" if protocol in FOLDER else "gallery"
    found = layout.count(queries, list(paths))
    identity = layout.identify(name, base, found, COUNTS[name], gallery=compared, allow_missing=allow_missing)
    queries, stamps = settle(queries, paths.keys(), identity.stamps)
    return Benchmark(
        name=identity.name,
        version="rc2",
        split=split,
        protocol=protocol,
        queries=queries,
        gallery=tuple(paths),
        root=base,
        paths=paths,
        notes=(f"gallery: {note}",),
        stamps=stamps,
    )


def _query(row: Row, hidden: bool, graded: bool) -> Query:
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
        soft=_graded(row.inner("target_soft")) if graded else (),
    )


def _graded(row: Row) -> tuple[tuple[str, float], ...]:
    """Read the graded labels; JSON may write 1 for 1.0."""
    weights = {}
    for name, value in row.data.items():
        weights[name] = float(typed(value, int if isinstance(value, int) else float, f"{row.where}, {name}"))
        if not -1 <= weights[name] <= 1:
            raise InputError(f"{row.where}, {name}: expected a weight between -1 and 1, got {value}")
    return tuple(weights.items())


def _with_neighbours(paths: dict[str, str], folder: Folder, what: str) -> tuple[dict[str, str], str]:
    """Add whatever else lies in the folders of the split's images, behind them and by name: CoVR's gallery.

    An id is a file's name without its extension; only files directly in a folder count.
    """
    split = {place.rpartition("/") for place in paths.values()}
    places = sorted({parent for parent, _, name in split if name in folder.names(parent)})
    if not places:
        parents = ", ".join(sorted({f"{parent}/" for parent, _, _ in split}))
        raise InputError(
            f"{what}: the gallery is the image folder itself, and none of the split's images is in {parents} of "
            f"{folder.root}; put the images there, or use another protocol"
        )
    every = dict(paths)
    for parent in places:
        for file in sorted(folder.names(parent)):
            path = PurePosixPath(file)
            if path.suffix.lower() in PICTURES and not file.startswith("."):
                every.setdefault(path.stem, f"{parent}/{file}")
    return every, f"every image of {', '.join(f'{parent}/' for parent in places)}"


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
        protocols=PROTOCOLS[:1] if split in REFUSED else PROTOCOLS,
        files=tuple(
            (f"cirr/{file}", file)
            for file in (f"captions/cap.rc2.{split}.json", f"image_splits/split.rc2.{split}.json")
        ),
        counts=COUNTS[f"cirr/{split}"],
        refused=dict.fromkeys(PROTOCOLS[1:], REFUSED[split]) if split in REFUSED else {},
    )
    for split in ("val", "test1", "train")
}
