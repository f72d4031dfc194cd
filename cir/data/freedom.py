"""FreeDom's domain conversion (Efthymiadis et al., WACV 2025, arXiv:2412.03297): four sets, each pair of domains.

`<set>/full_files.csv` holds queries and database in one, or `<set>/query_files.csv` and `<set>/database_files.csv`; a
line is path, domain and class. ImageNet-R's list is Pic2Word's target list in other words, and is made of it where
it is not there. The authors' set-up script takes the blanks out of folders and files of NICO++ and LTLL; both
spellings are found.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import permutations
from pathlib import Path

from cir.data import imagenet_r, layout, lists
from cir.data.annotations import Folder
from cir.data.entry import Counts, Entry, Source
from cir.data.reduce import settle
from cir.errors import InputError
from cir.schema import Benchmark, Query

COLUMNS = ("path", "domain", "class")
TEMPLATE = "a {text} of $"
"""Pic2Word's sentence for domains. FreeDom has none: it encodes "<word> <domain>" for words that describe the image."""
SOURCE = Source(
    title="FreeDom",
    folders=("freedom", "freedom/data"),
    annotations="github.com/NikosEfth/freedom, data/ (MIT)",
    images="ImageNet-R, LTLL, MiniDomainNet and NICO++ from their own pages, linked in the same repository; ImageNet "
    "validation photographs need an account (image-net.org)",
    page="docs/benchmarks/freedom.md",
)


@dataclass(frozen=True, slots=True)
class Collection:
    """One of the four sets: what its domains are called in a text, and how much the published lists hold."""

    texts: dict[str, str]
    """What a domain of the lists is called in a query."""
    queries: tuple[int, ...]
    """How many each domain has, in the order of `texts`."""
    gallery: int | None = None
    """None: nobody has counted."""
    targets: tuple[tuple[int, ...], ...] = ()
    """Right images summed over the queries: a row per domain that asks, a column per domain asked for."""
    full: bool = False
    """One list for queries and database; otherwise the references are not in the database."""


COLLECTIONS: dict[str, Collection] = {
    "imagenet_r": Collection(
        texts={"real": "photo", **{domain: domain for domain in imagenet_r.DOMAINS}},
        queries=(10000, 3726, 550, 1511, 1196),
        gallery=16983,
        targets=(
            (0, 186300, 27500, 75550, 59800),
            (186300, 0, 16643, 44036, 35980),
            (27500, 16643, 0, 6661, 7220),
            (75550, 44036, 6661, 0, 14325),
            (59800, 35980, 7220, 14325, 0),
        ),
        full=True,
    ),
    "minidn": Collection(
        texts={"clipart": "clipart", "painting": "painting", "real": "photo", "sketch": "sketch"},
        queries=(630, 630, 630, 630),
    ),
    "nico": Collection(
        texts={
            "autumn": "autumn", "dim": "dimlight", "grass": "grass", "outdoor": "outdoor", "rock": "rock",
            "water": "water",
        },
        queries=(883, 1221, 2006, 1637, 1079, 1897),
        gallery=80134,
        targets=(
            (0, 179198, 287856, 232771, 158302, 269637),
            (180803, 0, 395357, 323383, 218198, 377825),
            (292756, 398810, 0, 498921, 349468, 604658),
            (235354, 324457, 496185, 0, 288071, 497779),
            (159042, 217356, 345833, 285957, 0, 332293),
            (273704, 381277, 604895, 501030, 336198, 0),
        ),
    ),
    "ltll": Collection(
        texts={"New": "Today", "Old": "Archive"},
        queries=(279, 209),
        gallery=488,
        targets=((0, 2499), (2499, 0)),
        full=True,
    ),
}  # fmt: skip


def load(
    root: Path, collection: str, source: str, target: str, *, protocol: str = "freedom", allow_missing: bool = False
) -> Benchmark:
    """Load the queries of one domain that ask for another; the database is all of the set, whatever the domain.

    Domains are called as in the lists, texts as FreeDom calls them (`real` asks for "photo"). Image ids are the
    lists' paths, query ids `New-Old/00042` with the line of the query list, from 0.
    """
    known, name = COLLECTIONS[collection], f"freedom/{collection}/{source}-{target}"
    base, file = layout.find(root, SOURCE.folders, _files(collection)[0])
    asking = _listed(file, collection)
    database = asking if known.full else _listed(file.with_name("database_files.csv"), collection)
    right = _right(database, target)
    queries = tuple(
        Query(f"{source}-{target}/{line:05d}", image, (known.texts[target],), right.get(kind, ()))
        for line, (image, domain, kind) in enumerate(asking)
        if domain == source
    )
    gallery = tuple(image for image, _, _ in database)
    found = layout.count(queries, gallery)
    identity = layout.identify(name, base, found, ENTRIES[name].counts, allow_missing=allow_missing)
    images = dict.fromkeys((*gallery, *(query.reference for query in queries)))
    queries, stamps = settle(queries, images.keys(), identity.stamps)
    return Benchmark(
        name=identity.name,
        version="1",
        split=f"{source}-{target}",
        protocol=protocol,
        queries=queries,
        gallery=gallery,
        root=base,
        paths=_located(base, file.parent.name, images),
        open_references=not known.full,
        open_targets=True,
        template=TEMPLATE,
        notes=_notes(file, queries, known.full),
        stamps=stamps,
    )


def _listed(file: Path, collection: str) -> tuple[lists.Line, ...]:
    """Read path, domain and class of every line; a target list of Pic2Word's is put into FreeDom's words."""
    if file.name == imagenet_r.TARGETS:
        return _translated(file)
    rows = lists.read(file, COLUMNS)
    domains = COLLECTIONS[collection].texts
    for number, (image, domain, _) in enumerate(rows, 1):
        if domain not in domains or not image.startswith(f"{collection}/"):
            raise InputError(
                f"{file}, line {number}: expected a path under {collection}/ and one of {', '.join(domains)}, got "
                f"{image!r} and {domain!r}; the list of another set?"
            )
    return rows


def _translated(file: Path) -> tuple[lists.Line, ...]:
    """Read Pic2Word's labels as domains; the class is the folder's name, as there is one folder per class."""
    domains = {**dict(enumerate(imagenet_r.DOMAINS)), imagenet_r.PHOTOGRAPHS: "real"}
    rows = []
    for image, label in imagenet_r.labelled(file).items():
        parts, domain = image.split("/"), domains.get(label // imagenet_r.CLASSES)
        if domain is None or len(parts) < 3:
            raise InputError(f"{file}: {image!r} has label {label}; expected .../<class>/<file>, domain 0 to 3 or 6")
        rows.append(("/".join(("imagenet_r", *parts[1:])), domain, parts[-2]))
    return tuple(rows)


def _right(database: tuple[lists.Line, ...], target: str) -> dict[str, tuple[str, ...]]:
    """List the images of each class in the domain asked for."""
    found: dict[str, list[str]] = {}
    for image, domain, kind in database:
        if domain == target:
            found.setdefault(kind, []).append(image)
    return {kind: tuple(images) for kind, images in found.items()}


class _Disk:
    """Finds images whose folders or files may still have the blanks that the authors' set-up script takes out."""

    def __init__(self, base: Path) -> None:
        self._folder = Folder(base)
        self._shelves: dict[str, tuple[str, dict[str, str]]] = {"": ("", {})}

    def shelf(self, path: str) -> tuple[str, dict[str, str]]:
        """Give a folder as it is spelled on disk, and those names in it that are spelled otherwise than listed."""
        if path not in self._shelves:
            parent, _, name = path.rpartition("/")
            above, spelled = self.shelf(parent)
            place = f"{above}/{spelled.get(name, name)}".lstrip("/")
            self._shelves[path] = place, self._with_blanks(place)
        return self._shelves[path]

    def _with_blanks(self, place: str) -> dict[str, str]:
        """Map what the script makes of names, "_" for a blank or nothing, to those names; the list's own come first."""
        names = self._folder.names(place)
        blank = sorted(name for name in names if " " in name)
        changed = {name.replace(" ", put): name for put in ("_", "") for name in blank}
        return {listed: name for listed, name in changed.items() if listed not in names}


def _located(base: Path, top: str, images: Iterable[str]) -> dict[str, str]:
    """Say where images lie: under the folder that the list was found in, which may have another name."""
    disk, located = _Disk(base), {}
    shelves: dict[str, tuple[str, dict[str, str]]] = {}
    for image in images:
        parent, _, name = image.rpartition("/")
        if parent not in shelves:
            shelves[parent] = disk.shelf("/".join((top, *parent.split("/")[1:])))
        place, spelled = shelves[parent]
        located[image] = f"{place}/{spelled.get(name, name)}"
    return located


def _notes(file: Path, queries: Sequence[Query], full: bool) -> tuple[str, ...]:
    """Say where the lists came from and what the numbers hold."""
    unanswered = sum(not query.targets for query in queries)
    return (
        f"lists: {file.parent.name}/{file.name}{'' if full else ' and database_files.csv'}",
        *([f"{unanswered:,} queries have no right image and count as 0"] if unanswered else []),
    )


def _files(collection: str) -> tuple[tuple[str, ...], ...]:
    """Name the list files of a set and where they may lie."""
    if collection == "imagenet_r":  # the authors' page and their script disagree about the folder's name
        folders = ("imagenet_r", "imagenet-r")
        own = tuple(f"{folder}/{file}" for file in ("full_files.csv", imagenet_r.TARGETS) for folder in folders)
        return ((*own, f"imgnet/{imagenet_r.TARGETS}"),)
    if COLLECTIONS[collection].full:
        return ((f"{collection}/full_files.csv",),)
    return ((f"{collection}/query_files.csv",), (f"{collection}/database_files.csv",))


def _counts(known: Collection, source: str, target: str) -> Counts:
    """Say how much a pair of domains holds, as far as it is known."""
    row, column = (list(known.texts).index(domain) for domain in (source, target))
    counts = {"queries": known.queries[row]}
    if known.gallery is not None:
        counts |= {"gallery": known.gallery, "targets": known.targets[row][column]}
    return counts


ENTRIES = {
    f"freedom/{collection}/{source}-{target}": Entry(
        partial(load, collection=collection, source=source, target=target),
        protocols=("freedom",),
        files=_files(collection),
        counts=_counts(known, source, target),
    )
    for collection, known in COLLECTIONS.items()
    for source, target in permutations(known.texts, 2)
}
GROUPS = {
    **{
        f"freedom/{collection}/{source}": tuple(
            f"freedom/{collection}/{source}-{target}" for target in known.texts if target != source
        )
        for collection, known in COLLECTIONS.items()
        for source in known.texts
    },
    **{
        f"freedom/{collection}": tuple(name for name in ENTRIES if name.startswith(f"freedom/{collection}/"))
        for collection in COLLECTIONS
    },
}
"""A domain's mean over those it asks for, and a set's over all pairs, which is the mean of its domains' means."""
