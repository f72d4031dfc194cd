"""A paper's table as a YAML file: columns `benchmark:metric`, rows that are runs, what was reported, and its source.

A value is what was printed, in percent: a number, or a pair of it and the deviation printed with it. Whether it was
seen in a citable place (`confidence: seen`) or is only recalled decides whether anything is checked against it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from cir import config as configs
from cir import data, layers
from cir.config import RunConfig
from cir.errors import InputError, nearest
from cir.protocols import PROTOCOLS

FOLDER = Path("experiments/tables")
"""Where `cir table NAME` looks for `NAME.yaml`."""
ONLY_THERE = "paper"
"""What stands for a benchmark in the column of a quantity that only the paper defines: `paper:average gain`."""
KINDS: dict[str, float] = {
    "committed": 0.0,
    "official_repo": 0.5,
    "issue_thread_by_author": 0.5,
    "paper_transcription": 0.5,
    "survey_transcription": 0.5,
    "secondary_text": 1.0,
    "repo_readme": 1.0,
    "issue_thread": 1.0,
    "abstract": 1.0,
    "memory": 0.0,
}
"""How a value came to be read, and the tolerance in points of percent where neither row nor table gives one. 0.5: two
trainings of LinCIR by its authors (navervision/lincir, issue 8) are at most 0.4 apart in means over FashionIQ's
categories, CIRR's R@K and CIRCO's mAP@K, up to 0.9 in one category or in Rs@K. 1.0: words of third parties."""
CONFIDENCES = ("seen", "recalled")


class Column(NamedTuple):
    """A benchmark or group, and one of its metrics."""

    benchmark: str
    metric: str

    def __str__(self) -> str:
        return f"{self.benchmark}:{self.metric}"


class Value(NamedTuple):
    """What was printed, in percent, and the deviation printed with it (0 for none)."""

    mean: float
    spread: float = 0.0


@dataclass(frozen=True)
class Reported:
    """Values from one source."""

    source: str
    kind: str
    confidence: str
    values: Mapping[Column, Value]
    digits: int
    """After the decimal point, as printed; where `digits:` does not say, the most that one of the values has."""

    @property
    def seen(self) -> bool:
        """Whether the values were read in a citable place, so that something may be checked against them."""
        return self.confidence == "seen"


@dataclass(frozen=True)
class Row:
    """One line: a run of ours (`config`), records by name (`named`), or the reason why there is none (`missing`)."""

    name: str
    backbone: str
    run: Path | None
    config: RunConfig | None
    named: str
    missing: str
    reported: tuple[Reported, ...]
    tolerance: float | None
    note: str

    def says(self, column: Column) -> tuple[Reported, ...]:
        """List the sources that have a value in a column, those that were seen first."""
        holding = [one for one in self.reported if column in one.values]
        return tuple(sorted(holding, key=lambda one: not one.seen))


@dataclass
class PaperInfo:
    """Whose table it is."""

    title: str = ""
    venue: str = ""
    arxiv: str = ""


@dataclass
class _File:
    """The keys of a table's YAML."""

    title: str = ""
    paper: PaperInfo = field(default_factory=PaperInfo)
    columns: list[str] = field(default_factory=list)
    rows: list[Any] = field(default_factory=list)
    records: list[str] = field(default_factory=list)
    data: dict[str, str] = field(default_factory=dict)
    stamps: list[str] = field(default_factory=list)
    tolerance: float | None = None
    note: str = ""


@dataclass
class _Row:
    """The keys of one of its rows."""

    name: str = ""
    backbone: str = ""
    run: str = ""
    set: dict[str, Any] = field(default_factory=dict)
    named: str = ""
    missing: str = ""
    reported: Any = None
    tolerance: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Table:
    """A table as read: everything known, every run's configuration valid."""

    path: Path
    title: str
    paper: PaperInfo
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    records: tuple[Path, ...]
    """Folders where our records lie, unless others are asked for."""
    data: Mapping[str, str]
    """Fingerprints of the benchmarks that the values were measured on, where they are known."""
    stamps: frozenset[str]
    """What the values were measured under, so that records with these stamps count; empty for a paper's table."""
    note: str


def find(name: str | Path) -> Path | None:
    """Find the file of a table: a YAML file, or the name of one in `experiments/tables`; None for anything else."""
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        return path
    known = FOLDER / f"{name}.yaml"
    return known if not path.exists() and known.is_file() else None


def read(path: Path) -> Table:
    """Read and check a table; raises InputError, one line with file, row and the nearest known word."""
    file = layers.build(_File, [(str(path), layers.read(path))], str(path))
    if not file.columns or not file.rows:
        raise InputError(f"{path}: expected `columns:` and `rows:`, both with at least one entry")
    columns = tuple(column(name, str(path)) for name in file.columns)
    if file.paper.title and any(one.benchmark.startswith(data.WORLD) for one in columns):
        raise InputError(
            f"{path}: a column of {file.paper.title!r} is on the world; world numbers have their own table"
        )
    if file.paper.title and file.stamps:
        raise InputError(f"{path}: a stamped number never stands beside a paper's; leave `stamps:` out")
    rows = tuple(_row(raw, number, path, columns, file) for number, raw in enumerate(file.rows, 1))
    return Table(
        path,
        file.title,
        file.paper,
        columns,
        rows,
        tuple(path.parent / folder for folder in file.records) or (path.parent.parent / "results", Path("runs")),
        file.data,
        frozenset(file.stamps),
        file.note,
    )


def column(text: str, origin: str) -> Column:
    """Read `benchmark:metric`; both must be known here, unless only the paper defines the quantity (`paper:...`)."""
    benchmark, colon, metric = text.partition(":")
    if not colon or not metric:
        raise InputError(f"{origin}: column {text!r}: expected benchmark:metric, for example circo/test:mAP@5")
    if benchmark != ONLY_THERE:
        try:
            known = {name for protocol in protocols(benchmark) for name in PROTOCOLS[protocol].metrics}
        except InputError as error:
            raise InputError(f"{origin}: column {text!r}: {error}") from None
        if metric not in known:
            raise InputError(
                f"{origin}: column {text!r}: {benchmark} has no metric {metric!r}; {nearest(metric, known)}"
            )
    return Column(benchmark, metric)


def protocols(benchmark: str) -> tuple[str, ...]:
    """List the protocols of a benchmark or group, the papers' first."""
    return data.find(data.expand(benchmark)[0]).protocols


def _row(raw: Any, number: int, path: Path, columns: Sequence[Column], file: _File) -> Row:
    """Read one row and the configuration of its run."""
    origin = f"{path}: row {number}"
    if not isinstance(raw, Mapping):
        raise InputError(f"{origin}: expected a mapping with `name:` and `run:`, got {raw!r}")
    row = layers.build(_Row, [(origin, {str(key): value for key, value in raw.items()})], origin)
    origin = f"{path}: row {number} ({row.name or 'without a name'})"
    if not row.name or sum(map(bool, (row.run, row.named, row.missing))) != 1:
        raise InputError(
            f"{origin}: expected `name:` and one of `run:` (a YAML), `named:` (records) or `missing:` (why)"
        )
    if row.set and not row.run:
        raise InputError(f"{origin}: set: changes a run; expected `run:` beside it")
    run = path.parent / row.run if row.run else None
    changes = [f"{key}={json.dumps(value)}" for key, value in row.set.items()]
    config = configs.load(run, changes) if run else None
    blocks = row.reported if isinstance(row.reported, list) else [row.reported] if row.reported else []
    return Row(
        row.name,
        row.backbone,
        run,
        config,
        row.named,
        row.missing,
        tuple(_reported(block, origin, columns) for block in blocks),
        row.tolerance if row.tolerance is not None else file.tolerance,
        row.note,
    )


def _reported(block: Any, origin: str, columns: Sequence[Column]) -> Reported:
    """Read the values of one source."""
    if not isinstance(block, Mapping):
        raise InputError(f"{origin}: reported: expected `source:`, `kind:`, `confidence:` and values, got {block!r}")
    facts = {key: str(block.get(key, "")) for key in ("source", "kind", "confidence")}
    for key, known in (("kind", tuple(KINDS)), ("confidence", CONFIDENCES)):
        if facts[key] not in known:
            raise InputError(f"{origin}: reported.{key}: got {facts[key]!r}; {nearest(facts[key], known)}")
    if not facts["source"]:
        raise InputError(f"{origin}: reported.source: empty; say where the values were read")
    names, values = {str(one): one for one in columns}, {}
    printed = {str(key): value for key, value in block.items() if key not in (*facts, "digits")}
    for key, value in printed.items():
        if key not in names:
            raise InputError(f"{origin}: reported: {key!r} is not one of the columns; {nearest(key, names)}")
        values[names[key]] = _value(value, f"{origin}: reported: {key}")
    digits = max((_digits(one) for value in values.values() for one in (value.mean, value.spread)), default=1)
    return Reported(**facts, values=values, digits=int(block.get("digits", max(1, digits))))


def _value(value: Any, where: str) -> Value:
    """Read a number, or a pair of number and deviation."""
    pair = value if isinstance(value, list) else [value]
    if len(pair) in (1, 2) and all(isinstance(one, int | float) and not isinstance(one, bool) for one in pair):
        return Value(*map(float, pair))
    raise InputError(f"{where}: expected a number as printed, or [mean, deviation], got {value!r}")


def _digits(value: float) -> int:
    """Count the digits after the decimal point; a source prints all of its values with as many.

    >>> _digits(12.25), _digits(12.0)
    (2, 0)
    """
    return len(f"{value:.6f}".rstrip("0").partition(".")[2])
