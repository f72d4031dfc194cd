"""PatternCom (Psomas et al., IGARSS 2024, arXiv:2405.15587): attributes of aerial pictures, on all of PatternNet.

`PatternCom/<attribute>.csv` has a line `file,attribute,value` per labelled picture and no header. A picture asks for
every other value that its class has, in the words of the file; right are the labelled pictures of that class and
value. The gallery is `patternnet.csv` (path, number, class, separated by blanks), or, without it, the image folder.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath

from cir.data import layout, lists
from cir.data.annotations import Row, inside
from cir.data.entry import Entry, Source
from cir.data.reduce import settle
from cir.data.separated import read_csv
from cir.errors import InputError
from cir.schema import Benchmark, Query

ATTRIBUTES = ("color", "context", "density", "existence", "quantity", "shape")
COLUMNS = ("file", "attribute", "value")
SUFFIXES = {".jpg", ".jpeg", ".png", ".tif"}
MERGED = {
    "denseresidential": "residential",
    "sparseresidential": "residential",
    "closedroad": "road",
    "intersection": "road",
    "bridge": "roadpass",
    "overpass": "roadpass",
    "ferryterminal": "pier",
    "harbor": "pier",
    "parkinglot": "parking",
    "parkingspace": "parking",
}
"""Classes of PatternNet that count as one when positives are matched, under every attribute."""
ASKED_TOGETHER = {
    "density": {"residential"},
    "shape": {"road"},
    "context": {"roadpass"},
    "existence": {"pier", "parking"},
}
"""Those of them whose values are also pooled to form the texts, by attribute; elsewhere each class asks for its own."""
COUNTS = {f"patterncom/{attribute}": {"gallery": 30400} for attribute in ATTRIBUTES}
"""38 classes of 800 pictures."""
SOURCE = Source(
    title="PatternCom",
    folders=("PatternNet", "patternnet", "PatterNet"),
    annotations="PatternCom/ and patternnet.csv, on the drive that github.com/billpsomas/rscir links (Apache-2.0)",
    images="PatternNet, sites.google.com/view/zhouwx/dataset, for research",
    page="docs/benchmarks/patterncom.md",
)


def load(root: Path, attribute: str, *, protocol: str = "patterncom", allow_missing: bool = False) -> Benchmark:
    """Load the queries of one attribute: a query per labelled picture and other value of its class.

    Image ids are file names. Several queries share a reference; it stays in the gallery and is never right.
    """
    base, file = layout.find(root, SOURCE.folders, (f"PatternCom/{attribute}.csv",))
    paths, source = _gallery(base)
    queries = _queries(read_csv(file, COLUMNS, header=False), attribute)
    name = f"patterncom/{attribute}"
    found = layout.count(queries, list(paths))
    identity = layout.identify(name, base, found, COUNTS[name], allow_missing=allow_missing)
    queries, stamps = settle(queries, paths.keys(), identity.stamps)
    return Benchmark(
        name=identity.name,
        version="1",
        split=attribute,
        protocol=protocol,
        queries=queries,
        gallery=tuple(paths),
        root=base,
        paths=paths,
        open_targets=True,
        template="a photo of $ , {text}",
        notes=(f"gallery: {source}",),
        stamps=stamps,
    )


def _queries(rows: Sequence[Row], attribute: str) -> tuple[Query, ...]:
    """Ask every labelled picture for each other value of its class, in the order the file first has them.

    Of a picture that is labelled twice, each line asks, and the last line says what it shows.
    """
    labels = {row.data["file"]: (_class(row), row.data["value"]) for row in rows}
    right: dict[tuple[str, str], list[str]] = defaultdict(list)
    for file, (kind, value) in labels.items():
        right[MERGED.get(kind, kind), value].append(file)
    positives = {label: tuple(files) for label, files in right.items()}
    texts: dict[tuple[str, str], dict[str, None]] = defaultdict(dict)
    for row in rows:
        texts[_asked(row, attribute)][row.data["value"]] = None
    asked = [(row, text) for row in rows for text in texts[_asked(row, attribute)] if text != row.data["value"]]
    return tuple(
        Query(
            id=f"{attribute}/{index:05d}",
            reference=row.data["file"],
            texts=(text,),
            targets=positives.get((MERGED.get(_class(row), _class(row)), text), ()),
        )
        for index, (row, text) in enumerate(asked)
    )


def _class(row: Row) -> str:
    """Read the class of a picture off its name: what stands before the first digit.

    >>> _class(Row({"file": "tenniscourt042.jpg"}, ""))
    'tenniscourt'
    """
    return re.split(r"\d", row.data["file"])[0]


def _asked(row: Row, attribute: str) -> tuple[str, str]:
    """Say which pictures a picture shares its texts with: those of the same attribute and class, or merged class."""
    kind = _class(row)
    merged = MERGED.get(kind, kind)
    own = row.data["attribute"]
    pooled = own.endswith(attribute) and merged in ASKED_TOGETHER.get(attribute, ())
    return own, merged if pooled else kind


def _gallery(base: Path) -> tuple[dict[str, str], str]:
    """Map file names to paths, and say where the list came from."""
    listed = base / "patternnet.csv"
    if listed.is_file():
        return _by_name([path for path, _, _ in lists.read(listed, ("path", "number", "class"))], listed), listed.name
    folder = base / "images"
    if not folder.is_dir():
        raise InputError(f"{base}: found neither {listed.name} nor images/; expected PatternNet's folder")
    found = (file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES)
    return _by_name(sorted(file.relative_to(base).as_posix() for file in found), folder), "the folder images"


def _by_name(paths: Iterable[str], where: Path) -> dict[str, str]:
    """Map file names to paths; a name that two folders have would name two pictures."""
    table: dict[str, str] = {}
    for path in paths:
        name = PurePosixPath(path).name
        if name in table:
            raise InputError(
                f"{where}: {table[name]} and {path} have the same name; expected names of one picture each"
            )
        table[name] = inside(path, str(where))
    return table


ENTRIES = {
    f"patterncom/{attribute}": Entry(
        partial(load, attribute=attribute),
        protocols=("patterncom",),
        files=((f"PatternCom/{attribute}.csv",), ("patternnet.csv",)),
        counts=COUNTS[f"patterncom/{attribute}"],
    )
    for attribute in ATTRIBUTES
}
GROUPS: Mapping[str, tuple[str, ...]] = {"patterncom": tuple(ENTRIES)}
