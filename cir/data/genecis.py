"""GeneCIS (Vaze et al., CVPR 2023, arXiv:2306.07969): four tasks, a benchmark each; every query has its own gallery.

`genecis/<task>.json` beside `VG_100K_all/<id>.jpg` (Visual Genome's own `VG_100K/` and `VG_100K_2/` will do) and
`val2017/<12 digits>.jpg` (COCO), or with these folders inside `genecis/`. The files have no query ids: a query is its
task and position, `focus_attribute/0042`. An image of the object tasks is COCO's integer. One of the attribute tasks
is a part of a picture, and its id says which: `2378121:277,94,138,51`, the box (left, top, width, height) spelled as
in the file, where some numbers are `0` and some `0.0`.
"""

import hashlib
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

from cir.data import layout
from cir.data.annotations import Folder, Row, inside, read_rows
from cir.data.entry import Entry, Source
from cir.errors import InputError
from cir.schema import Benchmark, Query, View

TASKS = ("focus_attribute", "change_attribute", "focus_object", "change_object")
RELEASED = "genecis/lincir-released"
CONSTANT = "0"
"""What the released LinCIR code writes for the condition of an object task: the slot of the target, which is zero."""
COUNTS = {
    "genecis/focus_attribute": {"queries": 2000, "gallery": 14228, "targets": 2000},
    "genecis/change_attribute": {"queries": 2112, "gallery": 16949, "targets": 2112},
    "genecis/focus_object": {"queries": 1960, "gallery": 2192, "targets": 1960},
    "genecis/change_object": {"queries": 1960, "gallery": 2734, "targets": 1960},
}
SOURCE = Source(
    title="GeneCIS",
    folders=("GeneCIS", "genecis"),
    annotations="github.com/facebookresearch/genecis, folder genecis (CC BY-NC 4.0)",
    images="Visual Genome 1.2, both image archives (visualgenome.org, CC BY 4.0), and COCO val2017 (cocodataset.org); "
    "no form",
    page="docs/benchmarks/genecis.md",
)
VISUAL_GENOME = ("VG_100K_all", "VG_100K", "VG_100K_2")
COCO = ("val2017",)

Seen = dict[str, tuple[str, View | None]]
"""Images met so far, by id: the name of the file, and the part of it that counts."""


def load(root: Path, task: str, *, protocol: str = "genecis", allow_missing: bool = False) -> Benchmark:
    """Load one task; under `genecis/lincir-released` the object tasks get a constant for their conditions.

    The gallery is the union of what the queries list, in the order of a hash of the ids: ties go by gallery order,
    and this one knows nothing of targets. `candidates` are the target and its distractors: one listed twice competes
    twice, as in the official code; one that is the target again is left out, because it would only tie with it.
    """
    name = f"genecis/{task}"
    base, file = layout.find(root, SOURCE.folders, (f"genecis/{task}.json",))
    images: Seen = {}
    constant = CONSTANT if protocol == RELEASED and task.endswith("object") else ""
    read = partial(_crop if task.endswith("attribute") else _whole, images=images)
    rows = read_rows(file)
    queries = tuple(_query(row, f"{task}/{index:04d}", read, constant) for index, row in enumerate(rows))
    gallery = tuple(sorted({image for query in queries for image in query.candidates}, key=_blind))
    found = layout.count(queries, gallery)
    identity = layout.identify(name, base, found, COUNTS[name], allow_missing=allow_missing)
    repeats = sum(1 + len(row.get("gallery", list)) for row in rows) - sum(len(q.candidates) for q in queries)
    notes = [f"condition: the constant {constant!r} in place of the annotated one"] if constant else []
    notes += [f"{repeats} distractors that are their query's target left out"] if repeats else []
    return Benchmark(
        name=identity.name,
        version="v0",
        split=task,
        protocol=protocol,
        queries=queries,
        gallery=gallery,
        root=base,
        paths=_located(base, images),
        open_references=True,
        views={image: view for image, (_, view) in images.items() if view is not None},
        notes=("gallery: of every query its target and its distractors", *notes),
        stamps=identity.stamps,
    )


def _query(row: Row, name: str, read: Callable[[Row], str], constant: str) -> Query:
    """Read one template."""
    target = read(row.inner("target"))
    listed = row.many("gallery", dict)
    others = [read(Row(other, f"{row.where}, gallery[{slot}]")) for slot, other in enumerate(listed)]
    condition = row.get("condition", str)
    return Query(
        id=name,
        reference=read(row.inner("reference")),
        texts=(constant or condition,),
        targets=(target,),
        candidates=(target, *(other for other in others if other != target)),
    )


def _whole(row: Row, images: Seen) -> str:
    """Read an image of an object task."""
    number = row.get("val_image_id", int)
    images[str(number)] = f"{number:012d}.jpg", None
    return str(number)


def _crop(row: Row, images: Seen) -> str:
    """Read an image of an attribute task; boxes reach a little outside their pictures, but are never empty."""
    picture, box = row.get("image_id", str), row.get("instance_bbox", list)
    if len(box) != 4 or not all(_is_number(edge) for edge in box) or min(box[2:]) <= 0:
        raise InputError(f"{row.where}, instance_bbox: expected [left, top, width, height] in pixels, got {box}")
    name = f"{picture}:{','.join(map(str, box))}"
    images[name] = f"{picture}.jpg", View("dilated-square", tuple(map(float, box)))
    return name


def _is_number(value: object) -> bool:
    """Say whether a JSON value is a finite number; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _blind(image: str) -> bytes:
    """Give an image its place in the gallery, without a look at what it is there for."""
    return hashlib.sha256(image.encode()).digest()


def _located(base: Path, images: Seen) -> dict[str, str]:
    """Say where the file of each image lies."""
    folder = Folder(base)
    found: dict[str, str] = {}
    for file, view in images.values():
        if file not in found:
            places = COCO if view is None else VISUAL_GENOME
            inner = [f"{outer}{place}/{file}" for outer in ("", "genecis/") for place in places]
            found[file] = folder.pick([inside(path, f"genecis, image {file!r}") for path in inner])
    return {image: found[file] for image, (file, _) in images.items()}


ENTRIES = {
    f"genecis/{task}": Entry(
        partial(load, task=task),
        protocols=("genecis", RELEASED),
        files=((f"genecis/{task}.json",),),
        counts=COUNTS[f"genecis/{task}"],
    )
    for task in TASKS
}
GROUPS = {"genecis": tuple(ENTRIES)}
