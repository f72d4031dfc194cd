"""What the two test servers have in common: a list of images per query, and how such lists go wrong."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from cir.schema import Benchmark, Embeddings, Query
from cir.submissions.keys import KeyRules, by_query
from cir.submissions.problems import Problem, Rule, Score
from cir.submissions.reading import Upload

TOP = 50
"""Images per query that both servers ask for."""

LIST = Rule("list", "a plain list of images for each query", "both servers' instructions and examples")


@dataclass(frozen=True, slots=True)
class Expected:
    """What a file is compared with: the benchmark it is for, the dataset's other splits as far as they are here."""

    benchmark: Benchmark
    others: tuple[Benchmark, ...] = ()
    images: frozenset[str] = frozenset()
    """The gallery, filled in from the benchmark."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "images", frozenset(self.benchmark.gallery))

    def elsewhere(self, image: str) -> str:
        """Name another split that has this image; empty if none has."""
        return next((bench.name for bench in self.others if image in bench.paths), "")


@dataclass(frozen=True, slots=True)
class Checked:
    """What a check found: problems, the lists as far as they can be read ("" for an unreadable entry), notes."""

    metric: str
    problems: tuple[Problem, ...]
    lists: Mapping[str, Sequence[str]]
    notes: tuple[str, ...] = ()


class Server(ABC):
    """A test server: which files it takes, by which rules, and what it prints."""

    id: ClassVar[str]
    """The dataset's name."""
    address: ClassVar[str]
    splits: ClassVar[Mapping[str, str]]
    """From `val` and `test` to the dataset's names of them."""
    metrics: ClassVar[tuple[str, ...]]
    """One file each; a single empty name where there is one file."""
    keys: ClassVar[KeyRules]
    written: ClassVar[type]
    """How an image is written: as text or as an integer."""
    image: ClassVar[Rule]
    odd_image: ClassVar[Rule]
    unknown: ClassVar[Rule]
    repeat: ClassVar[Rule]
    short: ClassVar[Rule]
    long: ClassVar[Rule]

    @abstractmethod
    def build(self, benchmark: Benchmark, queries: Embeddings, gallery: Embeddings) -> dict[str, dict[str, Any]]:
        """Search, and make the content of each file, by metric."""

    @abstractmethod
    def metric(self, content: Mapping[str, Any], benchmark: Benchmark) -> tuple[str, list[Problem]]:
        """Say which of the metrics a file is for, and what is wrong with how it says so."""

    @abstractmethod
    def length(self, benchmark: Benchmark, metric: str) -> int:
        """Say how many images each list holds: 50 of the published galleries."""

    @abstractmethod
    def read(self, value: Any, expected: Expected) -> tuple[str, Rule | None, str]:
        """Read one entry of a list: the image it means ("" if none), the rule it breaks, what is wrong."""

    @abstractmethod
    def scores(self, benchmark: Benchmark, checked: Checked) -> tuple[Score, ...]:
        """Score the lists where labels are here; what is not in a list is a miss."""

    @abstractmethod
    def advice(self, benchmark: Benchmark) -> tuple[str, ...]:
        """Say where to upload, and what the server will print."""

    def whole(self, upload: Upload) -> Iterator[Problem]:
        """Find what is wrong with the file as a whole."""
        return iter(())

    def own(self, query: Query, names: Sequence[str], metric: str) -> Iterator[Problem]:
        """Find what only this server's lists can have wrong."""
        return iter(())

    def check(self, upload: Upload, expected: Expected) -> Checked:
        """Compare a file that was read with the annotations of its split: every query, every entry."""
        content: Mapping[str, Any] = upload.content or {}
        metric, found = self.metric(content, expected.benchmark)
        problems = [*self.whole(upload), *found]
        raw = by_query(content, expected.benchmark, expected.others, self.keys, problems)
        wanted, lists = self.length(expected.benchmark, metric), {}
        odd: Counter[Rule] = Counter()
        asked = {query.id: query for query in expected.benchmark.queries}
        for query, value in raw.items():
            names = self._list(query, value, expected, problems, odd)
            if names is not None:
                lists[query] = names
                problems += self._told(asked[query], names, metric, wanted)
        problems += [Problem(rule, f"{count:,} entries over the whole file") for rule, count in odd.items()]
        return Checked(metric, tuple(problems), lists, self.noted(lists, expected.benchmark))

    def noted(self, lists: Mapping[str, Sequence[str]], benchmark: Benchmark) -> tuple[str, ...]:
        """Say what is right but worth knowing."""
        return ()

    def _list(
        self, query: str, value: Any, expected: Expected, problems: list[Problem], odd: Counter[Rule]
    ) -> list[str] | None:
        """Read one list (None: there is none); what breaks the same rule is one problem, warnings are only counted."""
        if isinstance(value, list) and len(value) == 1 and isinstance(value[0], list):
            problems.append(Problem(LIST, "a list inside a list; write the inner one", query))
            value = value[0]
        if not isinstance(value, list):
            problems.append(Problem(LIST, f"{shown(value)} in place of a list", query))
            return None
        if all(type(entry) is self.written for entry in value):  # nearly every list of nearly every file
            names = [str(entry) for entry in value]
            if expected.images.issuperset(names):
                return names
        read = [self.read(entry, expected) for entry in value]
        for rule in dict.fromkeys(rule for _, rule, _ in read if rule):
            told = [f"rank {rank}: {text}" for rank, (_, broken, text) in enumerate(read, 1) if broken is rule]
            if rule.severity == "warning":
                odd[rule] += len(told)
            else:
                more = f" (and {len(told) - 1:,} more in this list)" if len(told) > 1 else ""
                problems.append(Problem(rule, f"{told[0]}{more}", query))
        return [name for name, _, _ in read]

    def _told(self, query: Query, names: Sequence[str], metric: str, wanted: int) -> Iterator[Problem]:
        """Find what is wrong with a list as a list: repeats, length, and the server's own."""
        yield from self._repeats(query.id, names)
        if len(names) != wanted:
            rule = self.short if len(names) < wanted else self.long
            yield Problem(rule, f"{len(names):,} images, expected {wanted}", query.id)
        yield from self.own(query, names, metric)

    def _repeats(self, query: str, names: Sequence[str]) -> Iterator[Problem]:
        """Name the first image that stands in a list twice, and where."""
        repeated = [name for name, count in Counter(names).items() if count > 1 and name]
        if repeated:
            ranks = [str(rank) for rank, name in enumerate(names, 1) if name == repeated[0]]
            more = f"; {len(repeated) - 1:,} more images repeat" if len(repeated) > 1 else ""
            yield Problem(self.repeat, f"{repeated[0]} stands at ranks {', '.join(ranks)}{more}", query)


def shown(value: Any) -> str:
    """Name a JSON value in a message, in JSON's words.

    >>> shown(True), shown(float("nan")), shown(None), shown({"a": 1})
    ('true (a boolean)', 'NaN', 'null', 'an object')
    """
    if isinstance(value, bool):
        return f"{str(value).lower()} (a boolean)"
    if value is None:
        return "null"
    if isinstance(value, float) and value != value:
        return "NaN"
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "a list"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def common(lengths: Collection[int]) -> int:
    """Name the most frequent length; 0 if there is none."""
    return Counter(lengths).most_common(1)[0][0] if lengths else 0
