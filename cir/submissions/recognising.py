"""Which benchmark a submission file is for, told by its content alone."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cir.schema import Benchmark
from cir.submissions.keys import meant

_CIRR = re.compile(r"(train|dev|test1)-\d+-\d+-img\d+")
_EXTRA = 30
"""How much more a key that a split does not have speaks against it than a query that the file lacks: files are cut
more often than they grow, and CIRCO's val ids are the first of its test ids."""


def queries(content: Mapping[str, Any]) -> list[str]:
    """List the keys that may be query ids, as their numbers.

    >>> queries({"version": "rc2", "tensor(12063)": []})
    ['12063']
    """
    return [key for key in (meant(key)[0] for key in content) if key.isascii() and key.isdigit()]


def dataset(content: Mapping[str, Any]) -> str:
    """Name the dataset by how its images are called, else by its keys: `cirr`, `circo`.

    >>> dataset({"12063": ["test1-83-1-img1"]}), dataset({"0": [57413]})
    ('cirr', 'circo')
    """
    named = numbers = 0
    for entry in _entries(content.values()):
        named += isinstance(entry, str) and bool(_CIRR.search(entry))
        numbers += isinstance(entry, int | float) or (isinstance(entry, str) and not _CIRR.search(entry))
    if named or numbers:
        return "cirr" if named > numbers else "circo"
    return (
        "cirr" if {"version", "metric"} & content.keys() or max(map(len, queries(content)), default=0) > 4 else "circo"
    )


def split(content: Mapping[str, Any], benchmarks: Sequence[Benchmark]) -> Benchmark:
    """Choose the split whose queries the keys fit best; where no key fits any, the one that has most of the images."""
    keys = {meant(key)[0] for key in content}
    images = {str(entry) for entry in _entries(content.values())}

    def fit(bench: Benchmark) -> tuple[float, int]:
        known = {query.id for query in bench.queries}
        common = len(keys & known)
        return common / max(1, len(known) + _EXTRA * (len(keys) - common)), len(images & set(bench.gallery))

    return max(benchmarks, key=fit)


def _entries(values: Iterable[Any], most: int = 2000) -> list[Any]:
    """Take the first entries of the lists."""
    found: list[Any] = []
    for value in values:
        if isinstance(value, list):
            inner = value[0] if value and isinstance(value[0], list) else value
            found += inner[: most - len(found)]
        if len(found) >= most:
            break
    return found
