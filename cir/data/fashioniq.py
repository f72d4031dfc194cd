"""FashionIQ (Wu et al., CVPR 2021, arXiv:1905.12794): three categories, a benchmark each.

`captions/` (or `json/`) `cap.<category>.<split>.json`, `image_splits/split.<category>.<split>.json`, and
`images/<ASIN>.jpg` or `.png`. The files have no query ids and repeat (reference, captions) pairs, so a query is its
category and position: `dress/0042`.
"""

from pathlib import Path

from cir.data import layout
from cir.data.annotations import Folder, inside, read_json, read_rows, typed
from cir.data.reduce import settle
from cir.errors import InputError, nearest
from cir.schema import Benchmark, Query

CATEGORIES = ("dress", "shirt", "toptee")
GALLERIES = {"original": "every image of the split file", "val-union": "every reference or target of a query"}


def load(root: Path, category: str, split: str, *, gallery: str = "original", allow_missing: bool = False) -> Benchmark:
    """Load one category of `val` or `test`; `gallery` names one of the field's two conventions.

    `val-union` is the smaller gallery of several supervised papers; it needs labels and has its own protocol.
    """
    if gallery not in GALLERIES:
        raise InputError(f"fashioniq: unknown gallery {gallery!r}; {nearest(gallery, GALLERIES)}")
    file = f"cap.{category}.{split}.json"
    base, captions = layout.find(root, ("FashionIQ", "fashioniq", "fashion-iq"), (f"captions/{file}", f"json/{file}"))
    queries = _queries(captions, category, hidden=split == "test")
    images = _split(base / "image_splits" / f"split.{category}.{split}.json")
    if gallery == "val-union":
        if not all(query.targets for query in queries):
            raise InputError(f"fashioniq/{category}/{split}: the val-union gallery needs labels, which are hidden here")
        named = {name for query in queries for name in (query.reference, *query.targets)}
        images = tuple(name for name in images if name in named)
    found = layout.count(queries, images)
    union = gallery == "val-union"
    identity = layout.identify(
        "fashioniq", f"{category}/{split}", base, found, union=union, allow_missing=allow_missing
    )
    queries, stamps = settle(queries, set(images), identity.stamps)
    folder = Folder(base)
    return Benchmark(
        name=identity.name,
        version="1",
        split=split,
        protocol=f"fashioniq/{gallery}",
        queries=queries,
        gallery=images,
        root=base,
        paths={name: folder.pick(_paths(name)) for name in images},
        notes=(f"gallery: {GALLERIES[gallery]}", f"captions from {captions.parent.name}/"),
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
