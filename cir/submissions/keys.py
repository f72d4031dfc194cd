"""Matching the keys of a submission file with the queries of a split, however they were written."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cir.schema import Benchmark
from cir.submissions.problems import Problem, Rule

_TENSOR = re.compile(r"\s*tensor\(\s*\[?\s*(\d+)\s*\]?\s*(,.*)?\)\s*", re.DOTALL)
_NUMBER = re.compile(r"\s*\+?0*(\d+)\s*")
_FLOAT = re.compile(r"\s*0*(\d+)\.0*\s*")


@dataclass(frozen=True, slots=True)
class KeyRules:
    """What a server asks of its keys."""

    missing: Rule
    extra: Rule
    same: Rule
    """Two keys that mean one query."""
    spelling: Rule
    """Not the plain decimal number, and `int` cannot read it."""
    odd: Rule
    """Not the plain decimal number, but `int` reads it."""
    special: frozenset[str] = frozenset()
    """Keys that are no queries."""


def meant(key: str) -> tuple[str, bool]:
    """Return the query id that a key means, and whether `int(key)` gives it; a key without a number is itself.

    >>> meant("12063"), meant("tensor(12063)"), meant("0007"), meant("q7")
    (('12063', True), ('12063', False), ('7', True), ('q7', False))
    """
    number = _NUMBER.fullmatch(key)
    if number:
        return number[1], True
    wrapped = _TENSOR.fullmatch(key) or _FLOAT.fullmatch(key)
    return (wrapped[1].lstrip("0") or "0", False) if wrapped else (key, False)


def printable(key: str) -> str:
    r"""Shorten a key that anybody wrote, and escape what a terminal would not print.

    >>> printable("a\n")
    'a\\n'
    """
    return repr(key[:60])[1:-1]


def by_query(
    content: Mapping[str, Any],
    benchmark: Benchmark,
    others: Sequence[Benchmark],
    rules: KeyRules,
    problems: list[Problem],
) -> dict[str, Any]:
    """Map query ids to what the file holds for them, and append what is wrong with the keys to `problems`."""
    known = {query.id for query in benchmark.queries}
    elsewhere = {query.id: other.name for other in others for query in other.queries}
    found: dict[str, Any] = {}
    for key, value in content.items():
        if key in rules.special:
            continue
        query, number = meant(key)
        if query not in known:
            also = f"; it is one of {elsewhere[query]}" if query in elsewhere else ""
            text = f"key {key[:60]!r} is no query of {benchmark.name}{also}"
            problems.append(Problem(rules.extra, text, printable(key)))
            continue
        if key != query:
            rule = rules.odd if number else rules.spelling
            problems.append(Problem(rule, f"the key is written {key[:60]!r}; write str(int(id)): {query!r}", query))
        if query in found:
            problems.append(Problem(rules.same, f"a second list stands under {key[:60]!r}", query))
            continue
        found[query] = value
    absent = [query.id for query in benchmark.queries if query.id not in found]
    problems += [Problem(rules.missing, "is missing from the file", query) for query in absent]
    return found
