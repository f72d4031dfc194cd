"""FashionIQ (Wu et al., CVPR 2021, arXiv:1905.12794): three categories, a benchmark each.

`captions/` (or `json/`) `cap.<category>.<split>.json`, `image_splits/split.<category>.<split>.json`, and
`images/<ASIN>.jpg` or `.png`. The files have no query ids and repeat (reference, captions) pairs, so a query is its
category and position: `dress/0042`.
"""

from functools import partial
from pathlib import Path

from cir.data import layout
from cir.data.annotations import Folder, inside, read_json, read_rows, typed
from cir.data.entry import Entry, Source
from cir.data.reduce import settle
from cir.schema import Benchmark, Query

CATEGORIES = ("dress", "shirt", "toptee")
GALLERIES = {
    "fashioniq/original": "every image of the split file",
    "fashioniq/val-union": "every reference or target of a query",
    "fashioniq/reference-removed": "every image of the split file",
}
REFUSED = {
    "test": "the test labels were never published; use val",
    "train": "numbers on train tell how well a method fits, in the whole gallery; use val",
}
"""Splits that one protocol is enough for, and why."""
COUNTS = {
    "fashioniq/dress/val": {"queries": 2017, "gallery": 3817, "targets": 2017, "union": 2628},
    "fashioniq/shirt/val": {"queries": 2038, "gallery": 6346, "targets": 2038, "union": 3089},
    "fashioniq/toptee/val": {"queries": 1961, "gallery": 5373, "targets": 1961, "union": 2902},
    "fashioniq/dress/test": {"queries": 2024, "gallery": 3818, "targets": 0},
    "fashioniq/shirt/test": {"queries": 2038, "gallery": 6346, "targets": 0},
    "fashioniq/toptee/test": {"queries": 2056, "gallery": 5374, "targets": 0},
    "fashioniq/dress/train": {"queries": 5985, "gallery": 11452, "targets": 5985},
    "fashioniq/shirt/train": {"queries": 5988, "gallery": 19036, "targets": 5988},
    "fashioniq/toptee/train": {"queries": 6027, "gallery": 16121, "targets": 6027},
}
SOURCE = Source(
    title="FashionIQ",
    folders=("FashionIQ", "fashioniq", "fashion-iq"),
    annotations="github.com/XiaoxiaoGuo/fashion-iq, captions/ and image_splits/ (Community Data License Agreement)",
    images="no form: lists of links in github.com/hongwang600/fashion-iq-metadata, many dead by now; complete repacks "
    "circulate, without a licence of their own",
    page="docs/benchmarks/fashioniq.md",
)


def load(
    root: Path, category: str, split: str, *, protocol: str = "fashioniq/original", allow_missing: bool = False
) -> Benchmark:
    """Load one category of `val`, `test` or `train`; the protocol chooses one of the field's two galleries.

    That of `fashioniq/val-union` is the smaller one of several supervised papers; it needs labels.
    """
    name = f"fashioniq/{category}/{split}"
    file = f"cap.{category}.{split}.json"
    base, captions = layout.find(root, SOURCE.folders, (f"captions/{file}", f"json/{file}"))
    queries = _queries(captions, category, hidden=split == "test")
    images = _split(base / "image_splits" / f"split.{category}.{split}.json")
    union = protocol == "fashioniq/val-union"
    if union:
        named = {image for query in queries for image in (query.reference, *query.targets)}
        images = tuple(image for image in images if image in named)
    found, compared = layout.count(queries, images), "union" if union else "gallery"
    identity = layout.identify(name, base, found, COUNTS[name], gallery=compared, allow_missing=allow_missing)
    queries, stamps = settle(queries, set(images), identity.stamps)
    folder = Folder(base)
    return Benchmark(
        name=identity.name,
        version="1",
        split=split,
        protocol=protocol,
        queries=queries,
        gallery=images,
        root=base,
        paths={name: folder.pick(_paths(name)) for name in images},
        notes=(
            f"gallery: {GALLERIES[protocol]}",
            f"captions from {captions.parent.name}/",
        ),
        stamps=stamps,
    )


def _queries(captions: Path, category: str, hidden: bool) -> tuple[Query, ...]:
    """Read the caption file; captions stay as annotated, empty ones included."""
    queries = []
    for index, row in enumerate(read_rows(captions)):
        target = row.get("target", str, "") if hidden else row.get("target", str)
        queries.append(
            Query(
                id=f"{category}/{index:04d}",
                reference=row.get("candidate", str),
                texts=row.many("captions", str),
                targets=(target,) if target else (),
                tags=row.many("tags", str, ()),
            )
        )
    return tuple(queries)


def _split(path: Path) -> tuple[str, ...]:
    """Read the gallery, in the order of the file."""
    listed = typed(read_json(path), list, str(path))
    return tuple(typed(name, str, f"{path}, entry {index}") for index, name in enumerate(listed))


def _paths(name: str) -> list[str]:
    """Say where an image may lie; both extensions are in circulation."""
    return [inside(f"images/{name}{suffix}", "fashioniq, image id") for suffix in (".jpg", ".png", ".jpeg")]


ENTRIES = {
    f"fashioniq/{category}/{split}": Entry(
        partial(load, category=category, split=split),
        protocols=tuple(GALLERIES)[:1] if split in REFUSED else tuple(GALLERIES),
        files=(
            (f"captions/cap.{category}.{split}.json", f"json/cap.{category}.{split}.json"),
            (f"image_splits/split.{category}.{split}.json",),
        ),
        counts=COUNTS[f"fashioniq/{category}/{split}"],
        refused=dict.fromkeys(tuple(GALLERIES)[1:], REFUSED[split]) if split in REFUSED else {},
    )
    for split in ("val", "test", "train")
    for category in CATEGORIES
}
GROUPS = {
    f"fashioniq/{split}": tuple(f"fashioniq/{category}/{split}" for category in CATEGORIES)
    for split in ("val", "test", "train")
}
