"""Records as one table in long form, a row per record and metric, for other tools: CSV, JSON, Parquet."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from cir.archive.query import Row, fields, require
from cir.errors import InputError
from cir.records import Record

IDENTITY = (
    "run", "seed", "benchmark.name", "benchmark.fingerprint", "protocol.name", "protocol.version", "method.name",
    "backbone.name", "fingerprint", "created", "state", "path",
)  # fmt: skip
"""Fields that every row has; `fields` names them."""
NUMBERS = ("metric", "mean", "low", "high", "queries", "unit")
"""A metric and its mean in `unit` with its 95 % interval."""


def long(records: Mapping[Path, Record], extra: Sequence[str] = ()) -> list[Row]:
    """List a row per record and metric: `IDENTITY`, the `extra` fields (`train.batch`), and `NUMBERS`.

    A field that a record does not have is None. Raises `InputError` for one that none has.
    """
    found = {path: fields(path, record) for path, record in records.items()}
    require(list(found.values()), extra)
    keys = list(dict.fromkeys([*IDENTITY, *extra]))
    rows = []
    for path, record in records.items():
        identity = {key: found[path].get(key) for key in keys}
        for metric, mean in record.means.items():
            numbers = (metric, mean.mean, mean.low, mean.high, mean.queries, record.unit)
            rows.append({**identity, **dict(zip(NUMBERS, numbers, strict=True))})
    return rows


def encoded(rows: Sequence[Row], suffix: str) -> bytes:
    """Write rows as `.csv`, `.json` or `.parquet`; a list in a field becomes its JSON where the form has no lists."""
    if suffix == ".json":
        return (json.dumps(rows, indent=1, ensure_ascii=False) + "\n").encode()
    flat = [{key: _plain(value) for key, value in row.items()} for row in rows]
    if suffix == ".csv":
        return _csv(flat)
    if suffix == ".parquet":
        return _parquet(flat)
    raise InputError(f"--out: expected a name that ends in .csv, .json or .parquet, got {suffix!r}")


def _csv(rows: Sequence[Row]) -> bytes:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]) if rows else [*IDENTITY, *NUMBERS], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue().encode()


def _parquet(rows: Sequence[Row]) -> bytes:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise InputError("--out: Parquet needs pyarrow (pip install 'cir[parquet]'), or choose .csv") from None
    columns = {key: [row[key] for row in rows] for key in rows[0]} if rows else {}
    stream = io.BytesIO()
    parquet.write_table(pyarrow.table({key: _column(values) for key, values in columns.items()}), stream)
    return stream.getvalue()


def _column(values: Sequence[object]) -> list[object]:
    """Give a Parquet column one type: what is mixed (`none` here, 0.5 there) is written as text."""
    kinds = {type(value) for value in values if value is not None}
    if len(kinds) < 2:
        return list(values)
    if kinds == {int, float}:
        return [None if value is None else float(value) for value in values]  # type: ignore[arg-type]
    return [None if value is None else str(value) for value in values]


def _plain(value: object) -> object:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (list, dict)) else value
