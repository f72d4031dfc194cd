"""Run records: everything needed to trust a number, as JSON, with the per-query values beside it.

Validated on write and on read; values are written as `.npz` without pickles and bound to the record by their
sha256. A record overtaken by a fix keeps its numbers and gains `stale`, the reason.
"""

import dataclasses
import hashlib
import io
import json
import math
import os
import re
import tempfile
import types
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import numpy as np
from jaxtyping import Float64, Int64

from cir.errors import InputError, nearest

FORMAT = 1
UNIT = "percent"


@dataclass(frozen=True)
class Mean:
    """A mean over queries in percent with its 95 % bootstrap interval, and how many queries it is over."""

    mean: float
    low: float
    high: float
    queries: int


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
class Attachment:
    """A file beside the record, by name and content."""

    file: str
    sha256: str


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
    unit: str = UNIT
    stale: str = ""
    format: int = FORMAT

    @property
    def name(self) -> str:
        """Base name of the record's files: `circo-val-0123456789abcdef`."""
        return f"{self.benchmark.name.replace('/', '-')}-{self.fingerprint}"


@dataclass(frozen=True)
class PerQuery:
    """Per-query values behind the means: fractions by metric, the targets' ranks (1 is best, 0 fills)."""

    ids: tuple[str, ...]
    values: Mapping[str, Float64[np.ndarray, " q"]]
    ranks: Int64[np.ndarray, "q m"]
    strata: tuple[str, ...] = ()
    """The part of the group each query belongs to; empty for a single benchmark."""


def fingerprint(*parts: object) -> str:
    """Sixteen hex digits over anything JSON can hold."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def write(folder: Path, record: Record, values: PerQuery | None = None) -> Path:
    """Write `folder/<name>.json`, and `.npz` beside it when values are given; returns the JSON's path.

    Both appear whole or not at all; the values come first, so a record never names a file that is not there.
    """
    if values is not None:
        content = _npz(values)
        file = f"{record.name}.npz"
        record = dataclasses.replace(record, per_query=Attachment(file, hashlib.sha256(content).hexdigest()))
    path = folder / f"{record.name}.json"
    plain = dataclasses.asdict(record)
    _build(Record, plain, str(path))
    text = json.dumps(plain, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    if values is not None:
        replace_file(folder / file, content)
    replace_file(path, text.encode())
    return path


def read(path: Path) -> Record:
    """Read and validate one record; raises `InputError` naming the file and the field."""
    try:
        plain = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"{path}: no such record") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a record, cannot be read as JSON: {error}") from None
    record: Record = _build(Record, plain, str(path))
    if record.format != FORMAT:
        raise InputError(f"{path}: format: expected {FORMAT}, got {record.format}; written by another version of cir")
    if record.unit != UNIT:
        raise InputError(f"{path}: unit: expected {UNIT!r}, got {record.unit!r}")
    return record


def read_values(path: Path, record: Record) -> PerQuery:
    """Read the per-query values of the record at `path`, checked against its sha256."""
    if record.per_query is None:
        raise InputError(f"{path}: holds no per-query values; evaluate again to write them")
    if Path(record.per_query.file).name != record.per_query.file:
        raise InputError(f"{path}: per_query.file: expected a name without folders, got {record.per_query.file!r}")
    beside = path.parent / record.per_query.file
    try:
        content = beside.read_bytes()
    except OSError as error:
        raise InputError(f"{beside}: per-query values of {path.name} cannot be read: {error.strerror}") from None
    if hashlib.sha256(content).hexdigest() != record.per_query.sha256:
        raise InputError(f"{beside}: content differs from the sha256 in {path.name}; evaluate again")
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            names = [str(name) for name in arrays["metrics"]]
            return PerQuery(
                ids=tuple(str(name) for name in arrays["ids"]),
                values=dict(zip(names, arrays["values"], strict=True)),
                ranks=arrays["ranks"],
                strata=tuple(str(name) for name in arrays["strata"]),
            )
    except (KeyError, ValueError, zipfile.BadZipFile) as error:
        raise InputError(f"{beside}: not per-query values: {error}") from None


def find(paths: Iterable[Path]) -> dict[Path, Record]:
    """Read the records among files and folders (searched in depth), by path, in path order."""
    found: dict[Path, Record] = {}
    for path in paths:
        files = sorted(path.rglob("*.json")) if path.is_dir() else [path]
        for file in files:
            if not path.is_dir() or _looks_like_record(file):
                found[file] = read(file)
    return found


def mark_stale(path: Path, why: str) -> None:
    """Say that a record was overtaken by a fix; its numbers stay."""
    record = dataclasses.replace(read(path), stale=why)
    text = json.dumps(dataclasses.asdict(record), indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    replace_file(path, text.encode())


def replace_file(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, through a temporary file in the same folder."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


@cache
def _umask() -> int:
    """Read the process's file mode mask, which can only be read by setting it."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def _looks_like_record(file: Path) -> bool:
    """Tell records from other JSON in a run folder (configs of checkpoints) by the two keys they begin with."""
    with file.open("rb") as stream:
        return bool(re.match(rb'\s*\{\s*"run":\s*"[^"]*",\s*"fingerprint":', stream.read(1000)))


def _npz(values: PerQuery) -> bytes:
    """Pack per-query values; equal values give equal bytes."""
    for name, array in values.values.items():
        if len(array) != len(values.ids):
            raise InputError(f"per-query values: {name} has {len(array)} values for {len(values.ids)} queries")
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        ids=np.array(values.ids, dtype=str),
        metrics=np.array(list(values.values), dtype=str),
        values=np.array(list(values.values.values()), dtype=np.float64).reshape(len(values.values), len(values.ids)),
        ranks=values.ranks,
        strata=np.array(values.strata, dtype=str),
    )
    return buffer.getvalue()


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
