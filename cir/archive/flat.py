"""Nested mappings as dotted keys: what filters name, and what differences are told by."""

from collections.abc import Mapping
from typing import Any, NamedTuple

ABSENT = None
"""What stands for a key that one side does not have."""
LISTED = 4
"""Entries of a list that are shown."""


class Difference(NamedTuple):
    """One dotted key and its two values; `ABSENT` where a side does not have it."""

    key: str
    before: Any
    after: Any


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """List the leaves of a nested mapping by dotted key; lists are leaves, empty mappings say nothing.

    >>> flatten({"seed": 1, "train": {"betas": [0.9], "source": ""}, "roots": {}})
    {'seed': 1, 'train.betas': [0.9], 'train.source': ''}
    """
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Difference]:
    """List the dotted keys whose values differ, the first side's in order, then those that only the second has.

    >>> differences({"a": 1, "b": {"c": 2}}, {"a": 1, "b": {"d": 3}})
    [Difference(key='b.c', before=2, after=None), Difference(key='b.d', before=None, after=3)]
    """
    left, right = flatten(before), flatten(after)
    pairs = ((key, left.get(key, ABSENT), right.get(key, ABSENT)) for key in {**left, **right})
    return [Difference(*pair) for pair in pairs if pair[1] != pair[2]]


def shown(value: Any) -> str:
    """Write a value in a line of text.

    >>> shown(None), shown(""), shown([1, "a"]), shown(0.1)
    ('(absent)', '(empty)', '[1, a]', '0.1')
    """
    if value is ABSENT:
        return "(absent)"
    if isinstance(value, list):
        listed = [str(item) for item in value[:LISTED]] + ([f"... {len(value)} in all"] if len(value) > LISTED else [])
        return f"[{', '.join(listed)}]"
    return str(value) if value != "" else "(empty)"
