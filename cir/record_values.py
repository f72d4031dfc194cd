"""What stands beside a record, as arrays: the values per query behind its means, and the rankings behind those.

Both are `.npz` without pickles; equal content gives equal bytes, so that a record can name them by their sha256.
"""

import hashlib
import io
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float, Float64, Int64

from cir import stats
from cir.errors import InputError
from cir.schema import Ranking

Kind = TypeVar("Kind")


@dataclass(frozen=True)
class Mean:
    """A mean over queries in percent with its 95 % bootstrap interval, and how many queries it is over."""

    mean: float
    low: float
    high: float
    queries: int


@dataclass(frozen=True)
class Attachment:
    """A file beside the record, by name and content."""

    file: str
    sha256: str


@dataclass(frozen=True)
class PerQuery:
    """Per-query values behind the means: fractions by metric, the targets' ranks (1 is best, 0 fills)."""

    ids: tuple[str, ...]
    values: Mapping[str, Float64[np.ndarray, " q"]]
    ranks: Int64[np.ndarray, "q m"]
    strata: tuple[str, ...] = ()
    """The part of the group each query belongs to; empty for a single benchmark."""


def means(values: Mapping[str, Float[np.ndarray, " q"]], strata: Sequence[str] = ()) -> dict[str, Mean]:
    """Average per-query fractions to percent with 95 % intervals; strata weigh the same, whatever their size."""
    if not values:
        return {}
    intervals = stats.bootstrap(values, strata=strata or None)
    count = len(next(iter(values.values())))
    return {name: Mean(100 * one.mean, 100 * one.low, 100 * one.high, count) for name, one in intervals.items()}


def attach(file: str, content: bytes) -> Attachment:
    """Name a file by what is in it."""
    return Attachment(file, hashlib.sha256(content).hexdigest())


def attached(path: Path, attachment: Attachment, key: str, what: str, unpack: Callable[[Any], Kind]) -> Kind:
    """Read what stands beside the record at `path` under `key` ("per_query"), checked against its sha256.

    `what` names it in messages ("per-query values"), `unpack` takes the arrays. Raises `InputError`.
    """
    if Path(attachment.file).name != attachment.file:
        raise InputError(f"{path}: {key}.file: expected a name without folders, got {attachment.file!r}")
    beside = path.parent / attachment.file
    try:
        content = beside.read_bytes()
    except OSError as error:
        raise InputError(f"{beside}: {what} of {path.name} cannot be read: {error.strerror}") from None
    if hashlib.sha256(content).hexdigest() != attachment.sha256:
        raise InputError(f"{beside}: content differs from the sha256 in {path.name}; evaluate again")
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            return unpack(arrays)
    except (KeyError, ValueError, zipfile.BadZipFile) as error:
        raise InputError(f"{beside}: not {what}: {error}") from None


def pack_values(values: PerQuery) -> bytes:
    """Pack per-query values."""
    for name, array in values.values.items():
        if len(array) != len(values.ids):
            raise InputError(f"per-query values: {name} has {len(array)} values for {len(values.ids)} queries")
    return _packed(
        ids=np.array(values.ids, dtype=str),
        metrics=np.array(list(values.values), dtype=str),
        values=np.array(list(values.values.values()), dtype=np.float64).reshape(len(values.values), len(values.ids)),
        ranks=values.ranks,
        strata=np.array(values.strata, dtype=str),
    )


def unpack_values(arrays: Mapping[str, Any]) -> PerQuery:
    """Undo `pack_values`."""
    return PerQuery(
        ids=_names(arrays["ids"]),
        values=dict(zip(_names(arrays["metrics"]), arrays["values"], strict=True)),
        ranks=arrays["ranks"],
        strata=_names(arrays["strata"]),
    )


def pack_ranking(ranking: Ranking) -> bytes:
    """Pack rankings: which gallery image stands where (int32, -1 fills), its score (float32, -inf fills), and ids."""
    return _packed(
        query_ids=np.array(ranking.query_ids, dtype=str),
        order=ranking.order.astype(np.int32),
        gallery_ids=np.array(ranking.gallery_ids, dtype=str),
        scores=ranking.scores,
    )


def unpack_ranking(arrays: Mapping[str, Any]) -> Ranking:
    """Undo `pack_ranking`; raises `InputError` for rows that are no ranking."""
    order = arrays["order"].astype(np.int64)
    return Ranking(_names(arrays["query_ids"]), _names(arrays["gallery_ids"]), order, arrays["scores"])


def _packed(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def _names(array: np.ndarray) -> tuple[str, ...]:
    return tuple(str(name) for name in array)
