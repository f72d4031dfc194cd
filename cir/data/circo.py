"""CIRCO (Baldrati et al., ICCV 2023, arXiv:2303.15247): several ground truths in the COCO 2017 unlabeled images.

`annotations/<split>.json`, and under `COCO2017_unlabeled/` either `annotations/image_info_unlabeled2017.json`, or the
plain list `annotations/unlabeled2017_image_ids.txt`, or the images themselves: in this order of preference they are
the gallery. Ids are integers in the files and decimal strings here.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from cir.data import layout
from cir.data.annotations import Folder, Row, inside, read_json, read_rows, typed
from cir.data.entry import Entry, Source
from cir.data.reduce import settle
from cir.errors import InputError
from cir.schema import Benchmark, Query

COCO = "COCO2017_unlabeled"
IMAGES = f"{COCO}/unlabeled2017"
COUNTS = {
    "circo/val": {"queries": 220, "gallery": 123403, "targets": 916},
    "circo/test": {"queries": 800, "gallery": 123403, "targets": 0},
}
SOURCE = Source(
    title="CIRCO",
    folders=("CIRCO", "circo"),
    annotations="github.com/miccunifi/CIRCO, annotations/ (CC BY-NC 4.0)",
    images="COCO 2017 unlabeled, no form: http://images.cocodataset.org/zips/unlabeled2017.zip (19 GB) and "
    "http://images.cocodataset.org/annotations/image_info_unlabeled2017.zip (terms: cocodataset.org)",
    page="docs/benchmarks/circo.md",
)


def load(root: Path, split: str, *, protocol: str = "circo", allow_missing: bool = False) -> Benchmark:
    """Load `val`, or `test`, whose labels are on a server; `notes` say which list the gallery came from."""
    base, annotations = layout.find(root, SOURCE.folders, (f"annotations/{split}.json",))
    queries = tuple(_query(row, hidden=split == "test") for row in read_rows(annotations))
    files, source = _gallery(base)
    name = f"circo/{split}"
    found = layout.count(queries, list(files))
    identity = layout.identify(name, base, found, COUNTS[name], allow_missing=allow_missing)
    queries, stamps = settle(queries, files.keys(), identity.stamps)
    return Benchmark(
        name=identity.name,
        version="1",
        split=split,
        protocol=protocol,
        queries=queries,
        gallery=tuple(files),
        root=base,
        paths=_located(base, files),
        notes=(f"gallery: {source}",),
        stamps=stamps,
    )


def _query(row: Row, hidden: bool) -> Query:
    """Read one query; the single target comes first among the ground truths."""
    targets: tuple[int, ...] = ()
    if not hidden or "gt_img_ids" in row:
        target, targets = row.get("target_img_id", int), row.many("gt_img_ids", int)
        if target not in targets:
            raise InputError(f"{row.where}: target_img_id {target} is not among gt_img_ids; expected it there")
        targets = (target, *(other for other in targets if other != target))
    return Query(
        id=str(row.get("id", int)),
        reference=str(row.get("reference_img_id", int)),
        texts=(row.get("relative_caption", str),),
        targets=tuple(map(str, targets)),
        tags=row.many("semantic_aspects", str, ()),
        concept=row.get("shared_concept", str),
    )


def _gallery(base: Path) -> tuple[dict[str, str], str]:
    """Map image ids to file names, and say where the list came from."""
    info = base / COCO / "annotations" / "image_info_unlabeled2017.json"
    if info.is_file():
        images = Row(typed(read_json(info), dict, str(info)), str(info)).many("images", dict)
        rows = [Row(image, f"{info}, image {index}") for index, image in enumerate(images)]
        return _unique([(row.get("id", int), row.get("file_name", str)) for row in rows], info), info.name
    listed = info.with_name("unlabeled2017_image_ids.txt")
    if listed.is_file():
        numbers = _numbers(listed.read_text(encoding="utf-8", errors="replace").split("\n"), str(listed))
        return _unique([(number, f"{number:012d}.jpg") for number in numbers], listed), listed.name
    if (base / IMAGES).is_dir():
        files = sorted(f.name for f in (base / IMAGES).iterdir() if f.suffix in {".jpg", ".png"})
        numbers = _numbers([file.rpartition(".")[0] for file in files], str(base / IMAGES))
        return _unique(list(zip(numbers, files, strict=True)), base / IMAGES), f"the folder {IMAGES}"
    raise InputError(f"{base}: found neither {info.relative_to(base)} nor {listed.name} beside it nor {IMAGES}/")


def _unique(pairs: list[tuple[int, str]], where: Path) -> dict[str, str]:
    """Map ids to files; an id that occurs twice would silently shrink the gallery."""
    source = str(where)
    table = {str(number): inside(file, source) for number, file in pairs}
    if len(table) != len(pairs):
        raise InputError(f"{where}: {len(pairs) - len(table):,} image ids occur more than once; expected unique ids")
    return table


def _numbers(texts: Sequence[str], where: str) -> list[int]:
    """Read image ids, one per entry; the last entry may be empty."""
    lines = [text.strip() for text in (texts[:-1] if texts and not texts[-1].strip() else texts)]
    for number, text in enumerate(lines, 1):
        if not (text.isascii() and text.isdigit() and len(text) <= 18):
            raise InputError(f"{where}, entry {number}: expected an image id, got {text!r}")
    return [int(text) for text in lines]


def _located(base: Path, files: Mapping[str, str]) -> dict[str, str]:
    """Say where each image lies: the official folder or one level up, with either extension."""
    folder = Folder(base)
    found = folder.names(IMAGES), folder.names("unlabeled2017")
    if not any(found):
        return {name: f"{IMAGES}/{file}" for name, file in files.items()}
    return {
        name: f"{IMAGES}/{file}" if file in found[0] else folder.pick(_places(file)) for name, file in files.items()
    }


def _places(file: str) -> list[str]:
    """Say where an image may lie."""
    return [f"{IMAGES}/{file}", f"{IMAGES}/{file.rpartition('.')[0]}.png", f"unlabeled2017/{file}"]


ENTRIES = {
    f"circo/{split}": Entry(
        partial(load, split=split),
        protocols=("circo", "circo/reference-removed"),
        files=(
            (f"annotations/{split}.json",),
            (
                f"{COCO}/annotations/image_info_unlabeled2017.json",
                f"{COCO}/annotations/unlabeled2017_image_ids.txt",
            ),
        ),
        counts=COUNTS[f"circo/{split}"],
    )
    for split in ("val", "test")
}
