"""COCO object composition (Saito et al., CVPR 2023, arXiv:2302.03084, section 4.1, and its released code).

`coco_eval.csv` names, per image of COCO val2017, one object's box, its class, and the other classes in the picture.
The object alone, cut out of `val2017_masked/`, and the names of the classes ask for the whole picture in `val2017/`.
Which object stands for an image was drawn without a seed, so there is no one test set; `notes` say which draw this is.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cir.data import layout
from cir.data.annotations import Row, inside
from cir.data.entry import Entry, Source
from cir.data.reduce import settle
from cir.data.separated import read_csv
from cir.errors import InputError
from cir.schema import Benchmark, Query, View

FILE = "coco_eval.csv"
COLUMNS = ("id", "query_regions", "query_class", "classes")
IMAGES, MASKED = "val2017", "val2017_masked"
COUNTS = {"coco/val2017": {"queries": 4765, "gallery": 4765, "targets": 4765}}
PUBLIC = {"def90204df288174": "SunTongtongtong/Benchmark-Robustness-Text-Image-Compose-Retrieval"}
"""Draws that somebody published, by `digest`."""
TEMPLATE = "a photo of $ and {text}"
"""Pic2Word's sentence for this task."""
SOURCE = Source(
    title="COCO object composition",
    folders=("coco", "COCO"),
    annotations="coco_eval.csv, which data/coco/prepare_data.py of github.com/google-research/"
    "composed_image_retrieval draws anew (Apache-2.0); a public draw lies in github.com/SunTongtongtong/"
    "Benchmark-Robustness-Text-Image-Compose-Retrieval, data/coco/",
    images="COCO val2017 (1 GB) and annotations/instances_val2017.json, cocodataset.org; then "
    "`cir data mask coco` writes val2017_masked/",
    page="docs/benchmarks/coco.md",
)


@dataclass(frozen=True, slots=True)
class Region:
    """One row: the object that asks, the box around it in pixels (left, top, right, bottom), the classes beside it."""

    image: str
    box: tuple[float, ...]
    kind: str
    others: tuple[str, ...]
    where: str

    @property
    def text(self) -> str:
        """Say the sentence's end; an object without other classes beside it leaves its "and" behind, as published."""
        return f"{self.kind} and {' and '.join(self.others)}".rstrip()


def load(root: Path, *, protocol: str = "coco", allow_missing: bool = False) -> Benchmark:
    """Load the objects of a draw and the pictures they are from, in the order of the file; one text per query.

    Image ids are file names; the object of `000000000139.jpg` is `000000000139.jpg#region`, outside the gallery.
    """
    name = "coco/val2017"
    base, file = layout.find(root, SOURCE.folders, (FILE,))
    regions = read(file)
    images = tuple(region.image for region in regions)
    queries = tuple(_query(index, region) for index, region in enumerate(regions))
    found = layout.count(queries, images)
    identity = layout.identify(name, base, found, COUNTS[name], allow_missing=allow_missing)
    objects = {_reference(region.image): region for region in regions}
    queries, stamps = settle(queries, {*images, *objects}, identity.stamps)
    whole = {image: f"{IMAGES}/{image}" for image in images}
    return Benchmark(
        name=identity.name,
        version="1",
        split=IMAGES,
        protocol=protocol,
        queries=queries,
        gallery=images,
        root=base,
        paths=whole | {name: f"{MASKED}/{region.image}" for name, region in objects.items()},
        open_references=True,
        template=TEMPLATE,
        views={name: View("squashed-region", region.box) for name, region in objects.items()},
        notes=_notes(regions),
        stamps=stamps,
    )


def read(file: Path) -> list[Region]:
    """Read `coco_eval.csv`."""
    return [_region(row) for row in read_csv(file, COLUMNS, header=True)]


def digest(regions: Sequence[Region]) -> str:
    """Sixteen hex digits over a draw: images, boxes, classes, in their order."""
    rows = [[region.image, region.box, region.kind, region.others] for region in regions]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]


def _region(row: Row) -> Region:
    """Read a row; a box that holds no whole pixel cannot be shown to a tower."""
    numbers = row.get("query_regions", str).split(";")
    try:
        box = tuple(float(number) for number in numbers)
    except ValueError:
        box = ()
    if len(box) != 4 or not all(map(math.isfinite, box)):
        raise InputError(f"{row.where}: query_regions is {';'.join(numbers)!r}; expected x1;y1;x2;y2 in pixels")
    left, top, right, bottom = map(int, box)
    if left >= right or top >= bottom:
        raise InputError(f"{row.where}: the region {';'.join(numbers).strip()} holds no pixel; draw another object")
    others = tuple(kind for kind in row.get("classes", str).split(";") if kind)
    return Region(inside(row.get("id", str), row.where), box, row.get("query_class", str), others, row.where)


def _query(index: int, region: Region) -> Query:
    return Query(
        id=f"val2017/{index:04d}", reference=_reference(region.image), texts=(region.text,), targets=(region.image,)
    )


def _reference(image: str) -> str:
    """Name the object of an image."""
    return f"{image}#region"


def _notes(regions: Sequence[Region]) -> tuple[str, ...]:
    """Say which draw of objects this is."""
    mark = digest(regions)
    which = f"the public draw of {PUBLIC[mark]}" if mark in PUBLIC else "a draw of its own"
    alone = sum(not region.others for region in regions)
    return (
        f"objects: {which} ({mark}); numbers on another draw are not comparable",
        f"{alone:,} of {len(regions):,} objects have no other class beside them, their text ends in 'and'",
    )


ENTRIES = {
    "coco/val2017": Entry(load, protocols=("coco",), files=((FILE,),), counts=COUNTS["coco/val2017"]),
}
