"""Records as rows: any field by its dotted name, conditions on them, order."""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cir.archive.flat import ABSENT, flatten
from cir.archive.match import outdated
from cir.errors import InputError, nearest
from cir.protocols import PROTOCOLS
from cir.records import Record

Row = dict[str, Any]
"""The fields of one record by dotted name."""
COLUMNS = ("run", "seed", "benchmark.name", "headline", "state", "path")
"""What is printed unless asked otherwise."""
_CONDITION = re.compile(r"([^=<>!~]+)(!=|>=|<=|=|>|<|~)(.*)", re.DOTALL)
_ORDER = {
    ">": lambda a, b: a > b,
    "<": lambda a, b: a < b,
    ">=": lambda a, b: a >= b,
    "<=": lambda a, b: a <= b,
}


class Condition(NamedTuple):
    """What a field must be: `=`, `!=`, `<`, `>`, `<=`, `>=`, or `~` for "contains"."""

    key: str
    operator: str
    text: str


def fields(path: Path, record: Record) -> Row:
    """List a record's fields by dotted name.

    Beside those of `Record` there are the configuration's without `config.` (where `Record` has none of that name), the
    means by metric (`R@10`, in percent), `headline` (the protocol's metric to compare by), `state` (stale, outdated or
    nothing) and `path`.
    """
    own = flatten(dataclasses.asdict(record))
    means = {name: mean.mean for name, mean in record.means.items()}
    state = "stale" if record.stale else "outdated" if outdated(record) else ""
    computed = {"headline": headline(record), "state": state, "path": str(path)}
    return {**flatten(record.config), **own, **means, **computed}


def headline(record: Record) -> str:
    """Print the metric to compare by, e.g. `mAP@10 15.21 [13.79, 16.67]`; empty where labels are hidden."""
    known = PROTOCOLS.get(record.protocol.name)
    name = known.headline if known is not None and known.headline in record.means else next(iter(record.means), "")
    if not name:
        return ""
    mean = record.means[name]
    return f"{name} {mean.mean:.2f} [{mean.low:.2f}, {mean.high:.2f}]"


def condition(text: str) -> Condition:
    """Parse a condition.

    >>> condition("train.batch>=128")
    Condition(key='train.batch', operator='>=', text='128')
    """
    found = _CONDITION.fullmatch(text)
    if found is None:
        raise InputError(f"--where {text!r}: expected key=value, or one of != < > <= >= ~ in place of =")
    return Condition(found[1].strip(), found[2], found[3].strip())


def select(rows: Iterable[Row], conditions: Sequence[Condition]) -> list[Row]:
    """Keep the rows that meet all conditions; raises `InputError` for a field that no row has."""
    rows = list(rows)
    require(rows, [one.key for one in conditions])
    return [row for row in rows if all(_meets(row.get(one.key, ABSENT), one) for one in conditions)]


def ordered(rows: Sequence[Row], keys: Sequence[str]) -> list[Row]:
    """Sort by fields, the first the strongest, `-key` downwards; absent values come last."""
    require(rows, [key.removeprefix("-") for key in keys])
    done = list(rows)
    for key in reversed(keys):
        name, down = key.removeprefix("-"), key.startswith("-")
        there = [row for row in done if row.get(name) is not ABSENT]
        there.sort(key=lambda row: _sortable(row[name]), reverse=down)
        done = there + [row for row in done if row.get(name) is ABSENT]
    return done


def require(rows: Sequence[Row], keys: Iterable[str]) -> None:
    """Refuse names that no row has, with the nearest that one has."""
    known = {key for row in rows for key in row}
    for key in keys:
        if known and key not in known:
            short = [name for name in known if not name.startswith("config.")]
            raise InputError(f"no record has a field {key!r}; {nearest(key, short)}")


def rows_of(records: Mapping[Path, Record]) -> list[Row]:
    """List the fields of all records."""
    return [fields(path, record) for path, record in records.items()]


def _meets(value: Any, wanted: Condition) -> bool:
    """Compare a field with the text of a condition, by the field's type; a list by any of its entries."""
    key, operator, text = wanted
    if operator == "!=":
        return not _meets(value, Condition(key, "=", text))
    if isinstance(value, list):
        return not value and not text if operator == "=" and not text else any(
            _meets(item, wanted) for item in value
        )  # fmt: skip
    if operator == "=":
        return _equals(value, text)
    if value is ABSENT:
        return False
    if operator == "~":
        return text in str(value)
    if isinstance(value, (int, float)):
        return bool(_ORDER[operator](value, _number(text, wanted)))
    return bool(_ORDER[operator](str(value), text))


def _equals(value: Any, text: str) -> bool:
    if value is ABSENT:
        return text == ""
    if isinstance(value, bool):
        return text.lower() == str(value).lower()
    if isinstance(value, (int, float)):
        try:
            return float(text) == value
        except ValueError:
            return False
    return str(value) == text


def _number(text: str, wanted: Condition) -> float:
    try:
        return float(text)
    except ValueError:
        raise InputError(f"--where {''.join(wanted)!r}: {wanted.key} is a number, got {text!r}") from None


def _sortable(value: Any) -> tuple[int, Any]:
    """Order numbers before texts, so that mixed fields can be sorted."""
    return (0, value) if isinstance(value, (int, float)) else (1, str(value))
