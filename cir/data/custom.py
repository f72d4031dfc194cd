"""Custom benchmarks: queries as JSON lines and a folder of pictures, made by `cir data new`.

`custom/<name>/benchmark.json` (format, where the pictures are, default protocol, counts), `queries.jsonl`, and
`gallery.txt` where not every picture of the folder competes. Image ids are paths relative to the folder of pictures.
"""

import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cir.data import layout
from cir.data.annotations import Row, read_json, typed
from cir.data.custom_queries import Pictures, candidates_of_all, read, read_gallery
from cir.data.entry import Counts, Entry, Source
from cir.errors import InputError, nearest
from cir.schema import Benchmark, Query

FORMAT = 1
DESCRIPTION, QUERIES, GALLERY = "benchmark.json", "queries.jsonl", "gallery.txt"
PROTOCOLS = ("custom", "custom/reference-removed", "custom/candidates")
ENTRIES: dict[str, Entry] = {}
"""None has a name beforehand; see `entry`."""
FORM = "custom/NAME"
SOURCE = Source(
    title="custom data",
    folders=("custom",),
    annotations="your own: `cir data new NAME --queries FILE.jsonl --images FOLDER` makes the benchmark",
    images="your own: the folder given to `cir data new`",
    page="docs/benchmarks/custom.md",
)


@dataclass(frozen=True, slots=True)
class Description:
    """What a `benchmark.json` says; `images` as it is written there, absolute or relative to the benchmark's folder."""

    name: str
    images: str
    protocol: str
    counts: Counts


def entry(name: str) -> Entry | None:
    """Describe `custom/<name>`, whether or not it has been made; None for a name of another form."""
    prefix, _, plain = name.partition("/")
    if prefix != "custom" or not plain or "/" in plain or plain.startswith("."):
        return None
    places = tuple((f"{plain}/{file}", file) for file in (DESCRIPTION, QUERIES))
    return Entry(partial(load, plain=plain), PROTOCOLS, places, default=partial(default, plain=plain))


def default(root: Path, plain: str) -> str:
    """Read which protocol was chosen when the benchmark was made."""
    return describe(find(root, plain)).protocol


def load(root: Path, plain: str, *, protocol: str = "custom", allow_missing: bool = False) -> Benchmark:
    """Load a benchmark of one's own; the queries are checked again, and the counts compared with those at its making.

    Raises InputError for a line of the queries that names a picture that is not there any more, and, without
    `allow_missing`, for a gallery that grew or shrank.
    """
    folder = find(root, plain)
    told = describe(folder)
    if told.name != plain:
        raise InputError(f"{folder / DESCRIPTION}: is of custom/{told.name}; expected custom/{plain}")
    pictures = Pictures(Path(os.path.normpath(folder.resolve() / told.images)))
    listed = (folder / GALLERY).is_file()
    gallery = read_gallery(_content(folder / GALLERY), folder / GALLERY, pictures) if listed else pictures.names
    file = folder / QUERIES
    queries = read(_content(file), file, pictures, frozenset(gallery), plain)
    if protocol == "custom/candidates":
        _require_candidates(queries, file)
    name, counts = f"custom/{plain}", layout.count(queries, gallery)
    try:
        identity = layout.identify(name, folder, counts, told.counts, allow_missing=allow_missing)
    except InputError as error:
        raise InputError(f"{error}; changed on purpose? make it anew: cir data new --overwrite") from None
    named = {query.reference for query in queries}.difference(gallery)
    return Benchmark(
        name=identity.name,
        version=str(FORMAT),
        split="custom",
        protocol=protocol,
        queries=queries,
        gallery=gallery,
        root=pictures.folder,
        paths={image: image for image in (*gallery, *sorted(named))},
        open_references=bool(named),
        notes=(f"gallery: {GALLERY if listed else 'every picture of the folder'}",),
        stamps=identity.stamps,
    )


def find(root: Path, plain: str) -> Path:
    """Find a benchmark's own folder: `root` may be it, or the folder of custom benchmarks, or of datasets."""
    for folder in (root / "custom" / plain, root / plain, root):
        if (folder / DESCRIPTION).is_file():
            return folder
    made = [path.parent.name for path in root.glob(f"custom/[!.]*/{DESCRIPTION}")]
    hint = nearest(plain, made) if made else "none has been made there"
    raise InputError(f"custom/{plain}: not under {root}; `cir data new {plain}` makes one; {hint}")


def describe(folder: Path) -> Description:
    """Read a `benchmark.json`."""
    path = folder / DESCRIPTION
    row = Row(typed(read_json(path), dict, str(path)), str(path))
    if row.get("format", int) != FORMAT:
        raise InputError(f"{path}: format {row.data['format']}, this version reads {FORMAT}; make it anew")
    counts = row.inner("counts")
    return Description(
        name=row.get("name", str),
        images=row.get("images", str),
        protocol=row.get("protocol", str),
        counts={key: counts.get(key, int) for key in counts.data},
    )


def _require_candidates(queries: tuple[Query, ...], file: Path) -> None:
    """Refuse the protocol of candidates where a query has none."""
    if not candidates_of_all(queries):
        bare = [query.id for query in queries if not query.candidates]
        raise InputError(
            f"{file}: {len(bare):,} of {len(queries):,} queries have no candidates, first {bare[:3]}; protocol "
            "custom/candidates needs them on every line"
        )


def _content(path: Path) -> bytes:
    """Read a file of the benchmark."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); make the benchmark anew") from None
