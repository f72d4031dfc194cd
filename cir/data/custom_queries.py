"""Queries of custom benchmarks: JSON lines with pictures named by hand, every problem told with its line number."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path, PurePosixPath

from cir.data import picture_folder
from cir.data.annotations import Row, inside
from cir.data.lines import parsed
from cir.errors import InputError, nearest
from cir.schema import Query

KEYS = ("reference", "text", "targets", "candidates", "id", "tags")
LISTED = 10
"""How many problems of a file one message names."""
COMPARED = 20_000
"""Names from which a nearest one is no longer looked for by spelling."""


class Pictures:
    """What a folder of pictures holds, sorted by path, and which of them a name means."""

    def __init__(self, folder: Path) -> None:
        listed = picture_folder.load(folder)
        self.folder = folder
        self.names = tuple(sorted(listed.name(row) for row in range(len(listed))))
        if not self.names:
            raise InputError(f"{folder}: holds no picture; expected .jpg, .png and the like, sub-folders included")
        self._known = frozenset(self.names)
        self._stems: dict[str, list[str]] = {}
        for name in self.names:
            self._stems.setdefault(str(PurePosixPath(name).with_suffix("")), []).append(name)

    def find(self, given: str, what: str) -> str:
        """Return the path of a picture named with or without its ending; InputError names what is near."""
        plain = inside(given, what)
        meant = [plain] if plain in self._known else self._stems.get(plain, [])
        if len(meant) == 1:
            return meant[0]
        if meant:
            raise InputError(f"{what}: {given!r} may be {' or '.join(meant)}; give it with its ending")
        raise InputError(f"{what}: {given!r} is not in {self.folder}{self._near(plain)}")

    def _near(self, plain: str) -> str:
        """Suggest a picture: other case, another folder, a likely misspelling."""
        alike = [name for name in self.names if name.lower() == plain.lower()]
        moved = [name for name in self.names if PurePosixPath(name).name == PurePosixPath(plain).name]
        close = get_close_matches(plain, self.names, n=1) if len(self.names) <= COMPARED else []
        found = [*alike, *moved, *close]
        return f"; did you mean {found[0]!r}?" if found else ""


@dataclass(slots=True)
class Problems:
    """What is wrong with a file, collected so that it can be put right in one go."""

    path: Path
    found: list[str] = field(default_factory=list)

    @contextmanager
    def collect(self) -> Iterator[None]:
        """Take down an InputError and go on."""
        try:
            yield
        except InputError as error:
            self.found.append(str(error))

    def tell(self) -> None:
        """Raise what was collected as one message, a problem a line, the first ten."""
        if not self.found:
            return
        if len(self.found) == 1:
            raise InputError(f"{self.path}, {self.found[0]}")
        rest = len(self.found) - LISTED
        more = [f"and {rest:,} more"] if rest > 0 else []
        listed = "\n  ".join([*self.found[:LISTED], *more])
        raise InputError(f"{self.path}: {len(self.found):,} lines are wrong\n  {listed}")


def read(content: bytes, path: Path, pictures: Pictures, gallery: Collection[str], prefix: str) -> tuple[Query, ...]:
    """Read queries; `path` is for messages, `gallery` what may be a target, `prefix` what ids made here begin with.

    A query without an `id` is called by its place among the queries, `prefix/0042`. All queries have targets, or none
    (hidden labels). Problems of all lines are one InputError.
    """
    problems = Problems(path)
    queries: list[Query] = []
    lines: dict[str, int] = {}
    bare: list[int] = []
    for number, line in enumerate(content.splitlines(), 1):
        if not line.strip():
            continue
        with problems.collect():
            row = parsed(line, f"line {number}")
            query = _query(row, pictures, gallery, f"{prefix}/{len(queries):04d}")
            if lines.setdefault(query.id, number) != number:
                raise InputError(f"line {number}: id {query.id!r} is that of line {lines[query.id]}; ids are unique")
            queries.append(query)
            bare += [] if query.targets else [number]
    if bare and len(bare) < len(queries):
        problems.found += [f"line {n}: no targets, but other lines have some; label all or none" for n in bare]
    problems.tell()
    if not queries:
        raise InputError(f"{path}: no query; expected lines such as {EXAMPLE}")
    return tuple(queries)


EXAMPLE = '{"reference": "a.jpg", "text": "is red", "targets": ["b.jpg"]}'


def read_gallery(content: bytes, path: Path, pictures: Pictures) -> tuple[str, ...]:
    """Read the gallery, a picture a line, in the order of the file; problems of all lines are one InputError."""
    problems = Problems(path)
    found: dict[str, int] = {}
    for number, line in enumerate(content.splitlines(), 1):
        given = line.decode("utf-8-sig", errors="replace").strip()
        if not given:
            continue
        with problems.collect():
            name = pictures.find(given, f"line {number}")
            if found.setdefault(name, number) != number:
                raise InputError(f"line {number}: {given!r} is on line {found[name]} already")
    problems.tell()
    if not found:
        raise InputError(f"{path}: names no picture; expected one a line")
    return tuple(found)


def _query(row: Row, pictures: Pictures, gallery: Collection[str], unnamed: str) -> Query:
    """Read one line."""
    for key in row.data:
        if key not in KEYS:
            raise InputError(f"{row.where}: unknown key {key!r}; {nearest(key, KEYS)}")
    reference = pictures.find(row.get("reference", str), f"{row.where}, reference")
    texts = _texts(row)
    targets, candidates = (_named(row, key, pictures, gallery) for key in ("targets", "candidates"))
    if reference in targets:
        raise InputError(f"{row.where}: the target {reference!r} is the reference; a query asks for another picture")
    lost = [name for name in targets if candidates and name not in candidates]
    if lost:
        raise InputError(f"{row.where}: target {lost[0]!r} is not among the candidates; expected it there")
    name = row.get("id", str, unnamed)
    if not name.strip():
        raise InputError(f"{row.where}: id is empty; leave it out, or give one")
    return Query(name, reference, texts, targets, candidates, tags=row.many("tags", str, ()))


def _texts(row: Row) -> tuple[str, ...]:
    """Read a text, or a list of them."""
    listed = isinstance(row.data.get("text"), list)
    texts = row.many("text", str) if listed else (row.get("text", str),)
    if not texts or not all(text.strip() for text in texts):
        raise InputError(f"{row.where}: text is empty; expected what to change")
    return texts


def _named(row: Row, key: str, pictures: Pictures, gallery: Collection[str]) -> tuple[str, ...]:
    """Read a list of pictures of the gallery, each once."""
    given = row.many(key, str, ())
    names: list[str] = []
    for one in given:
        where = f"{row.where}, {key}"
        name = pictures.find(one, where)
        if name in names:
            raise InputError(f"{where}: {one!r} is named twice; expected each picture once")
        if name not in gallery:
            raise InputError(f"{where}: {one!r} is not in the gallery; add it to the list, or leave the list out")
        names.append(name)
    return tuple(names)


def candidates_of_all(queries: Sequence[Query]) -> bool:
    """Say whether every query brings its own candidates."""
    return all(query.candidates for query in queries)
