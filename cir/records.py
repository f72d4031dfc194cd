"""Run records: everything needed to trust a number, as JSON, with the per-query values beside it.

Validated on write and on read; values and rankings are written as `.npz` without pickles and bound to the record by
their sha256 (`cir.record_values`). A record overtaken by a fix keeps its numbers and gains `stale`, the reason. The
file ends with a `seal` over all the rest, so that a number changed by hand is noticed (`cir records check`).
"""

import dataclasses
import hashlib
import json
import math
import re
import types
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from cir.errors import InputError, nearest
from cir.files import replace_file
from cir.record_values import (
    Attachment,
    Mean,
    PerQuery,
    attach,
    attached,
    pack_ranking,
    pack_values,
    unpack_ranking,
    unpack_values,
)
from cir.schema import Ranking

FORMAT = 1
UNIT = "percent"
SEAL = "seal"
"""Last key of a record's file; not a field, for it is about them all."""


@dataclass(frozen=True)
class ProtocolInfo:
    """What the number means: id, version, and the sentence that defines it."""

    name: str
    version: int
    definition: str


@dataclass(frozen=True)
class BenchmarkInfo:
    """What was searched: `parts` are the benchmarks a group (`fashioniq/val`) averages over."""

    name: str
    version: str
    split: str
    fingerprint: str
    queries: int
    gallery: int
    notes: list[str] = field(default_factory=list)
    stamps: list[str] = field(default_factory=list)
    """What makes the number not comparable: missing images, a subset, a smoke run."""
    parts: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class BackboneInfo:
    """Which frozen weights, fed and computed how."""

    name: str
    weights: str
    """Fingerprint of the weights."""
    preprocess: str
    dtype: str
    device: str


@dataclass(frozen=True)
class TrainingInfo:
    """How the trained parameters came about and what that cost; what a checkpoint does not say is absent."""

    steps: int
    seconds: float | None
    """In steps, interrupted parts included."""
    source: str
    """Fingerprint of the training source."""
    config: str
    """Fingerprint of the configuration trained with."""
    prepare_seconds: float | None = None
    """Before the first step: what preparing the source computed, next to nothing where it was kept."""
    peak_mb: float | None = None
    """Peak resident memory of the (first) training process, in MB (10^6 bytes)."""
    gpu_peak_mb: float | None = None
    """Peak memory allocated on its GPU, in MB."""
    processes: int | None = None
    device: str = ""
    """The GPU, or the CPU, by name."""
    threads: int | None = None


@dataclass(frozen=True)
class MethodInfo:
    """Which method, from which paper, with which trained parameters."""

    name: str
    paper: str
    trained: list[str] = field(default_factory=list)
    trained_count: int = 0
    checkpoint: str = ""
    """Fingerprint of the loaded checkpoint, empty for methods that are not trained."""
    training: TrainingInfo | None = None
    base: TrainingInfo | None = None
    """How the method a wrapper stands on was trained."""


@dataclass(frozen=True)
class CodeInfo:
    """Which code: `commit` is empty outside a git checkout, `dirty` says that tracked files were changed."""

    version: str
    commit: str
    dirty: bool


@dataclass(frozen=True)
class Record:
    """One evaluation of one method on one benchmark."""

    run: str
    fingerprint: str
    config: dict[str, Any]
    seed: int
    protocol: ProtocolInfo
    benchmark: BenchmarkInfo
    backbone: BackboneInfo
    method: MethodInfo
    code: CodeInfo
    packages: dict[str, str]
    seconds: float
    peak_mb: float
    means: dict[str, Mean]
    tied: int
    """Queries one of whose targets ties with another image."""
    created: str
    """UTC, ISO 8601."""
    aspects: dict[str, Mean] = field(default_factory=dict)
    """Means over the queries that carry a tag, by tag."""
    per_query: Attachment | None = None
    ranking: Attachment | None = None
    """The first images of every query, where they were asked for."""
    unit: str = UNIT
    stale: str = ""
    format: int = FORMAT

    @property
    def name(self) -> str:
        """Base name of the record's files: `circo-val-0123456789abcdef`."""
        return f"{self.benchmark.name.replace('/', '-')}-{self.fingerprint}"


def fingerprint(*parts: object) -> str:
    """Sixteen hex digits over anything JSON can hold."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def identity(
    config: str, benchmark: BenchmarkInfo, protocol: ProtocolInfo, backbone: BackboneInfo, method: MethodInfo
) -> str:
    """Compute a record's fingerprint: that of its configuration (`cir.config`), data, protocol and weights together."""
    searched = [benchmark.name, benchmark.fingerprint, protocol.name, protocol.version]
    return fingerprint(config, *searched, backbone.weights, backbone.preprocess, method.name, method.checkpoint)


def write(folder: Path, record: Record, values: PerQuery | None = None, ranking: Ranking | None = None) -> Path:
    """Write `folder/<name>.json`, `.npz` beside it when values are given, `-ranking.npz` when a ranking is.

    Returns the JSON's path. Each appears whole or not at all; what stands beside comes first, so a record never names
    a file that is not there.
    """
    beside: dict[str, bytes] = {}
    if values is not None:
        beside[f"{record.name}.npz"] = packed = pack_values(values)
        record = dataclasses.replace(record, per_query=attach(f"{record.name}.npz", packed))
    if ranking is not None:
        beside[f"{record.name}-ranking.npz"] = packed = pack_ranking(ranking)
        record = dataclasses.replace(record, ranking=attach(f"{record.name}-ranking.npz", packed))
    path = folder / f"{record.name}.json"
    plain = dataclasses.asdict(record)
    _build(Record, plain, str(path))
    content = text({**plain, SEAL: seal(json.loads(text(plain)))})  # of what a reader will see
    folder.mkdir(parents=True, exist_ok=True)
    for file, packed in beside.items():
        replace_file(folder / file, packed)
    replace_file(path, content)
    return path


def seal(plain: Mapping[str, Any]) -> str:
    """Compute the sha256 of a record as it stands in its file, of everything but `stale` and the seal itself."""
    kept = {key: value for key, value in plain.items() if key not in (SEAL, "stale")}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def read(path: Path) -> Record:
    """Read and validate one record; raises `InputError` naming the file and the field."""
    plain = read_plain(path)
    record: Record = _build(Record, {key: value for key, value in plain.items() if key != SEAL}, str(path))
    if record.format != FORMAT:
        raise InputError(f"{path}: format: expected {FORMAT}, got {record.format}; written by another version of cir")
    if record.unit != UNIT:
        raise InputError(f"{path}: unit: expected {UNIT!r}, got {record.unit!r}")
    return record


def read_plain(path: Path) -> dict[str, Any]:
    """Read a record's JSON as it stands, seal included."""
    try:
        plain = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"{path}: no such record") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a record, cannot be read as JSON: {error}") from None
    if not isinstance(plain, dict):
        raise InputError(f"{path}: record: expected a mapping, got {str(plain)[:60]!r}")
    return plain


def read_values(path: Path, record: Record) -> PerQuery:
    """Read the per-query values of the record at `path`, checked against its sha256."""
    if record.per_query is None:
        raise InputError(f"{path}: holds no per-query values; evaluate again to write them")
    return attached(path, record.per_query, "per_query", "per-query values", unpack_values)


def read_ranking(path: Path, record: Record) -> Ranking:
    """Read the rankings kept with the record at `path`, checked against their sha256."""
    if record.ranking is None:
        raise InputError(f"{path}: holds no rankings; `cir evaluate ... --rankings` keeps them")
    return attached(path, record.ranking, "ranking", "rankings", unpack_ranking)


def find(paths: Iterable[Path]) -> dict[Path, Record]:
    """Read the records among files and folders (searched in depth), by path, in path order."""
    return {file: read(file) for file in files(paths)}


def files(paths: Iterable[Path]) -> list[Path]:
    """List files that are named, and those in folders (searched in depth) that begin as records do, unread."""
    found: dict[Path, None] = {}
    for path in paths:
        inside = (file for file in sorted(path.rglob("*.json")) if _looks_like_record(file))
        found |= dict.fromkeys(inside if path.is_dir() else [path])
    return list(found)


def mark_stale(path: Path, why: str) -> None:
    """Say that a record was overtaken by a fix, or with an empty `why` that it was not; numbers and seal stay."""
    read(path)
    replace_file(path, text({**read_plain(path), "stale": why}))


def text(plain: Mapping[str, Any]) -> bytes:
    """Write a record's JSON as its file holds it."""
    return (json.dumps(plain, indent=1, allow_nan=False, ensure_ascii=False) + "\n").encode()


def _looks_like_record(file: Path) -> bool:
    """Tell records from other JSON in a run folder (configs of checkpoints) by the two keys they begin with."""
    with file.open("rb") as stream:
        return bool(re.match(rb'\s*\{\s*"run":\s*"[^"]*",\s*"fingerprint":', stream.read(1000)))


def _build(kind: Any, value: Any, where: str, key: str = "") -> Any:
    """Check a JSON value against a type hint and build it; errors name file and dotted field."""
    if dataclasses.is_dataclass(kind):
        return _build_dataclass(kind, value, where, key)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        inner = next(argument for argument in arguments if argument is not type(None))
        return None if value is None else _build(inner, value, where, key)
    if kind is Any:
        return value
    if origin is list and isinstance(value, list):
        return [_build(arguments[0], item, where, f"{key}.{i}") for i, item in enumerate(value)]
    if origin is dict and isinstance(value, dict):
        return {str(name): _build(arguments[1], item, where, f"{key}.{name}") for name, item in value.items()}
    if kind is float and type(value) in (int, float) and math.isfinite(value):
        return float(value)
    if kind in (int, str, bool) and type(value) is kind:
        return value
    wanted = "a finite number" if kind is float else getattr(origin or kind, "__name__", str(kind))
    raise InputError(f"{where}: {key}: expected {wanted}, got {str(value)[:60]!r}")


def _build_dataclass(kind: Any, value: Any, where: str, key: str) -> Any:
    if not isinstance(value, dict):
        raise InputError(f"{where}: {key or 'record'}: expected a mapping, got {str(value)[:60]!r}")
    hints, prefix = get_type_hints(kind), f"{key}." if key else ""
    for name in value:
        if name not in hints:
            raise InputError(f"{where}: {prefix}{name}: unknown field; {nearest(str(name), hints)}")
    needed = {f.name for f in dataclasses.fields(kind) if f.default is f.default_factory is dataclasses.MISSING}
    for name in hints:
        if name not in value and name in needed:
            raise InputError(f"{where}: {prefix}{name}: missing; not a record, or written by another version of cir")
    return kind(**{name: _build(hints[name], item, where, f"{prefix}{name}") for name, item in value.items()})
