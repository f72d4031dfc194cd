"""M-BEIR's CIRR and FashionIQ (UniIR, Wei et al., ECCV 2024, arXiv:2311.17136).

`query/test/mbeir_<task>_test.jsonl`, `cand_pool/local/mbeir_<task>_cand_pool.jsonl` and the pictures under
`mbeir_images/`, as the dataset TIGER-Lab/M-BEIR has them. The queries are those of the papers' val splits with equal
ones merged, the pools hold the pictures of all splits. Ids are M-BEIR's (`8:17`): `qid` of queries, `did` of
candidates; a reference is the candidate with the same file.
"""

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from cir.data import layout
from cir.data.annotations import Row, inside
from cir.data.entry import Entry, Source
from cir.data.lines import read_lines
from cir.data.reduce import settle
from cir.errors import InputError
from cir.progress import bar
from cir.schema import Benchmark, Query

COUNTS = {
    "mbeir/cirr/test": {"queries": 4170, "gallery": 21551, "targets": 4216},
    "mbeir/fashioniq/test": {"queries": 6003, "gallery": 74381, "targets": 6014},
}
PROTOCOLS = ("mbeir/local", "mbeir/local-instructed", "mbeir/global", "mbeir/global-images")
UNION = "cand_pool/global/mbeir_union_test_cand_pool.jsonl"
INSTRUCTIONS = "instructions/query_instructions.tsv"
IMAGE, BOTH = "image", "image,text"
"""Modalities of candidates and queries as M-BEIR writes them."""
STEP = 100_000
"""Candidates between two movements of the progress bar."""
SOURCE = Source(
    title="M-BEIR",
    folders=("M-BEIR", "mbeir"),
    annotations="huggingface.co/datasets/TIGER-Lab/M-BEIR: query/, cand_pool/, instructions/ (MIT)",
    images="the same dataset, mbeir_images.tar.gz in four parts, 170 GB for all tasks (licences of the original sets)",
    page="docs/benchmarks/mbeir.md",
)


def load(root: Path, task: str, *, protocol: str = "mbeir/local", allow_missing: bool = False) -> Benchmark:
    """Load the test queries of a task, `cirr` or `fashioniq`; the protocol chooses the pool, and the texts.

    Under `mbeir/global` `paths` lacks the candidates that are texts, or pictures with text: they have no picture that
    stands for them, and only vectors made elsewhere can be scored.
    """
    base, file = layout.find(root, SOURCE.folders, (f"query/test/mbeir_{task}_task7_test.jsonl",))
    asked = list(_asked(file, _instruction(base, file) if protocol == "mbeir/local-instructed" else ""))
    union = protocol in ("mbeir/global", "mbeir/global-images")
    pool = base / (UNION if union else f"cand_pool/local/mbeir_{task}_task7_cand_pool.jsonl")
    found = _pool(pool, {one.picture for one in asked}, images_only=protocol == "mbeir/global-images", shown=union)
    queries = tuple(one.query(found.ids) for one in asked)
    outside = {one.picture for one in asked} - found.ids.keys()
    name, published = f"mbeir/{task}/test", dict(COUNTS[f"mbeir/{task}/test"])
    if union:
        del published["gallery"]  # no count of it is published but "5.6 M"
    counts = layout.count(queries, found.gallery)
    identity = layout.identify(name, base, counts, published, allow_missing=allow_missing)
    queries, stamps = settle(queries, {*found.gallery, *outside} if identity.stamps else (), identity.stamps)
    return Benchmark(
        name=identity.name,
        version="1",
        split="test",
        protocol=protocol,
        queries=queries,
        gallery=tuple(found.gallery),
        root=base,
        paths={**found.paths, **{picture: picture for picture in outside}},
        open_references=bool(outside),
        notes=(f"gallery: {pool.name}, {found.told}",),
        stamps=stamps,
    )


@dataclass(frozen=True, slots=True)
class _Asked:
    """A query whose reference is still the picture's path."""

    id: str
    picture: str
    text: str
    targets: tuple[str, ...]

    def query(self, ids: dict[str, str]) -> Query:
        """Name the reference by its id in the pool; a picture outside the pool is named by its path."""
        return Query(self.id, ids.get(self.picture, self.picture), (self.text,), self.targets)


def _asked(file: Path, instruction: str) -> Iterator[_Asked]:
    """Read the queries; an instruction stands before the text, both tidied as UniIR does it."""
    for row in read_lines(file):
        if row.get("query_modality", str) != BOTH:
            raise InputError(f"{row.where}: query_modality {row.data['query_modality']!r}; expected {BOTH!r}")
        text = row.get("query_txt", str)
        yield _Asked(
            id=row.get("qid", str),
            picture=inside(row.get("query_img_path", str), f"{row.where}, query_img_path"),
            text=sentence(f"{instruction} {text}") if instruction else text,
            targets=_positives(row),
        )


def _positives(row: Row) -> tuple[str, ...]:
    """Read the positives: ids, or objects that hold one, as the dataset's page describes them."""
    listed = row.get("pos_cand_list", list)
    if not listed:
        raise InputError(f"{row.where}: pos_cand_list is empty; expected one candidate or more")
    if isinstance(listed[0], dict):
        return tuple(Row(one, f"{row.where}, pos_cand_list").get("did", str) for one in row.many("pos_cand_list", dict))
    return row.many("pos_cand_list", str)


def sentence(text: str) -> str:
    """Make a text a sentence as UniIR does: stripped, first letter upper, a full stop where nothing ends it.

    >>> sentence(" find a dress. is red")
    'Find a dress. is red.'
    """
    text = text.replace("\r", "").strip().strip('"')
    text = text[:1].upper() + text[1:]
    return text if text.endswith((".", "?", "!")) or not text else f"{text}."


def _instruction(base: Path, queries: Path) -> str:
    """Read the first instruction of a task: the row of its data set whose query is both and whose answer is a picture.

    Columns: query modality, candidate modality, name, number of the data set, instructions.
    """
    number = next(read_lines(queries)).get("qid", str).split(":")[0]
    file = base / INSTRUCTIONS
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: cannot be read ({error}); the protocol needs M-BEIR's instructions") from None
    for line in lines[1:]:
        cells = [cell.strip() for cell in line.split("\t")]
        if len(cells) > 4 and (cells[0], cells[1], cells[3]) == (BOTH, IMAGE, number) and any(cells[4:]):
            return sentence(next(cell for cell in cells[4:] if cell))
    raise InputError(f"{file}: no line for data set {number}, {BOTH} to {IMAGE}; download the file again")


@dataclass(slots=True)
class _Pool:
    """Candidates in the order of their file; `ids` maps the pictures asked for to their ids."""

    gallery: list[str] = field(default_factory=list)
    paths: dict[str, str] = field(default_factory=dict)
    ids: dict[str, str] = field(default_factory=dict)
    kinds: Counter[str] = field(default_factory=Counter)

    @property
    def told(self) -> str:
        """Say how many of each kind there are."""
        return ", ".join(f"{count:,} {kind}" for kind, count in sorted(self.kinds.items()))


def _pool(file: Path, asked: Collection[str], *, images_only: bool, shown: bool) -> _Pool:
    """Read a pool line by line: of 5.6 million candidates only ids, and the pictures' paths, stay in memory."""
    pool, waiting = _Pool(), 0
    with bar(None, f"reading {file.name}", enabled=shown) as moving:
        for row in read_lines(file):
            kind, name = row.get("modality", str), row.get("did", str)
            waiting += 1
            if waiting == STEP:
                moving.advance(waiting)
                waiting = 0
            if images_only and kind != IMAGE:
                continue
            pool.gallery.append(name)
            pool.kinds[kind] += 1
            if kind == IMAGE:
                path = inside(row.get("img_path", str), row.where)
                pool.paths[name] = path
                if path in asked:
                    pool.ids.setdefault(path, name)
    return pool


ENTRIES = {
    name: Entry(
        partial(load, task=name.split("/")[1]),
        protocols=PROTOCOLS,
        files=(
            (f"query/test/mbeir_{name.split('/')[1]}_task7_test.jsonl",),
            (f"cand_pool/local/mbeir_{name.split('/')[1]}_task7_cand_pool.jsonl",),
        ),
        counts=COUNTS[name],
    )
    for name in COUNTS
}
