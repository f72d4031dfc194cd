"""CIRR's test server (Liu et al., ICCV 2021): two uploads for test1, `recall` and `recall_subset`."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from cir.errors import nearest
from cir.metrics import recall_at
from cir.protocols import PROTOCOLS
from cir.schema import Benchmark, Embeddings, Query
from cir.search import search
from cir.submissions.keys import KeyRules
from cir.submissions.problems import Problem, Rule, Score
from cir.submissions.reading import Upload
from cir.submissions.scoring import ranks_of
from cir.submissions.server import TOP, Checked, Expected, Server, common, shown

INSTRUCTIONS = "CIRR's instructions (Test-split_server.md)"
UPLOADS = "holds in every published upload; whether the server checks is not documented"
SUBSET = 3
"""Names per query of a `recall_subset` file."""
LARGEST = 5_000_000
"""Bytes; the instructions say 5MB, and do not say which."""
CUTS = {"recall": (1, 2, 5, 10, 50), "recall_subset": (1, 2, 3)}
"""K of the numbers that the server prints."""
SPECIAL = ("version", "metric")

VERSION = Rule("version", 'the key "version" with the value "rc2"', INSTRUCTIONS)
METRIC = Rule("metric", 'the key "metric" with the value "recall" or "recall_subset"', INSTRUCTIONS)
SPELLING = Rule("key", 'pair ids as decimal text: "12063"', INSTRUCTIONS)
SIZE = Rule("size", "at most 5 MB; a compact file has 4.19 MB", INSTRUCTIONS)
REFERENCE = Rule("reference", "the query's reference image in no list", UPLOADS)
GROUP = Rule("subset", "in a recall_subset file, only images of the query's own group (img_set)", UPLOADS)

_PLAIN = re.compile(r"(?:.*[/\\])?([^/\\]+?)(?:\.(?:png|jpe?g))?", re.IGNORECASE | re.DOTALL)


def server_percent(hits: int, queries: int) -> float:
    """Return the percentage that CIRR's server prints for a number of hits: it counts its two special keys as queries.

    83 published three-decimal scores are whole numbers of hits out of 4,150, for the 4,148 queries of test1.

    >>> f"{server_percent(4148, 4148):.3f}"
    '99.952'
    """
    return 100 * hits / (queries + len(SPECIAL))


class CIRRServer(Server):
    """Reference deleted, 50 names of the whole split, 3 of the group."""

    id = "cirr"
    address = "https://cirr.cecs.anu.edu.au (backup: https://cirr.junjie.au)"
    splits: ClassVar[Mapping[str, str]] = {"val": "val", "test": "test1"}
    metrics = ("recall", "recall_subset")
    keys = KeyRules(
        missing=Rule("missing", "every query of the split", INSTRUCTIONS),
        extra=Rule("extra", "no key but the split's pair ids, version and metric", INSTRUCTIONS),
        same=Rule("same-query", "one list per query", INSTRUCTIONS),
        spelling=SPELLING,
        odd=SPELLING,
        special=frozenset(SPECIAL),
    )
    written = str
    image = Rule("name", "image names as text, without .png and without a path", INSTRUCTIONS)
    odd_image = image
    unknown = Rule("unknown-image", "images of the split", UPLOADS)
    repeat = Rule("repeat", "no image twice in a list", UPLOADS)
    short = Rule("count", "50 names per query for recall, 3 for recall_subset", INSTRUCTIONS)
    long = short

    def build(self, benchmark: Benchmark, queries: Embeddings, gallery: Embeddings) -> dict[str, dict[str, Any]]:
        """Rank the split without the reference, and the group without the reference."""
        exclude = {query.id: PROTOCOLS[benchmark.protocol].excluded(query) for query in benchmark.queries}
        groups = [query.candidates for query in benchmark.queries]
        whole = search(queries, gallery, min(TOP, len(gallery.ids)), exclude)
        rankings = {"recall": whole, "recall_subset": search(queries, gallery, SUBSET, exclude, groups)}
        return {
            metric: {"version": benchmark.version, "metric": metric}
            | {str(int(name)): ranking.row(i) for i, name in enumerate(ranking.query_ids)}
            for metric, ranking in rankings.items()
        }

    def metric(self, content: Mapping[str, Any], benchmark: Benchmark) -> tuple[str, list[Problem]]:
        """Read the two special keys; where they contradict the lists, the lists say what the file is."""
        problems = []
        version = content.get("version")
        if version != benchmark.version:
            told = (
                f"{shown(version)} in place of {benchmark.version!r}" if "version" in content else "the key is missing"
            )
            problems.append(Problem(VERSION, f"version: {told}"))
        lengths = [len(value) for key, value in content.items() if key not in SPECIAL and isinstance(value, list)]
        usual, declared = common(lengths), content.get("metric")
        wanted = {metric: self.length(benchmark, metric) for metric in self.metrics}
        apparent = min(self.metrics, key=lambda metric: abs(wanted[metric] - usual))
        if declared not in self.metrics:
            near = f"; {nearest(declared, self.metrics)}" if isinstance(declared, str) else ""
            told = f"{shown(declared)}{near}" if "metric" in content else "the key is missing"
            problems.append(Problem(METRIC, f"metric: {told}; by its lists this is a {apparent} file"))
        elif declared != apparent and usual == wanted[apparent]:
            told = f"the file says {declared!r}, but its lists have {usual} names: they are of a {apparent} file"
            problems.append(Problem(METRIC, told))
        else:
            apparent = str(declared)
        return apparent, problems

    def length(self, benchmark: Benchmark, metric: str) -> int:
        """50, or 3; less where the gallery or the group is smaller."""
        if metric == "recall":
            return min(TOP, len(benchmark.gallery) - 1)
        return min(SUBSET, max((len(query.candidates) for query in benchmark.queries), default=1) - 1)

    def read(self, value: Any, expected: Expected) -> tuple[str, Rule | None, str]:
        """Read a name; a path or an extension is taken off to see which image is meant."""
        if not isinstance(value, str):
            return "", self.image, f"{shown(value)} in place of a name"
        if value in expected.images:
            return value, None, ""
        matched = _PLAIN.fullmatch(value.strip())
        name = matched[1] if matched else value
        if name in expected.images:
            return name, self.image, f"{value!r}; write {name!r}"
        other = expected.elsewhere(name)
        return (
            "",
            self.unknown,
            f"{shown(value)} is an image of {other}" if other else f"no image is called {shown(value)}",
        )

    def whole(self, upload: Upload) -> Iterator[Problem]:
        """Compare the size; a pretty-printed file is told how small it would be without the blanks."""
        if upload.size > LARGEST:
            compact = len(json.dumps(upload.content, separators=(",", ":")))
            hint = f"; without indentation it has {compact:,}" if compact < 0.95 * upload.size else ""
            yield Problem(SIZE, f"the file has {upload.size:,} bytes{hint}")

    def own(self, query: Query, names: Sequence[str], metric: str) -> Iterator[Problem]:
        """Find the reference, and names outside the group."""
        if query.reference in names:
            rank = names.index(query.reference) + 1
            yield Problem(REFERENCE, f"its reference {query.reference} stands at rank {rank}", query.id)
        outside = [name for name in names if name and name not in query.candidates]
        if metric == "recall_subset" and outside:
            more = f" (and {len(outside) - 1:,} more)" if len(outside) > 1 else ""
            yield Problem(GROUP, f"{outside[0]} is not in its group{more}", query.id)

    def scores(self, benchmark: Benchmark, checked: Checked) -> tuple[Score, ...]:
        """Hard labels at the server's cuts: over the true number of queries, and over the server's."""
        ranks, total = ranks_of(benchmark, checked.lists).ranks, len(benchmark.queries)
        found = []
        for k in CUTS[checked.metric]:
            hits = int(recall_at(ranks, k).sum())
            name = f"{'Rs' if checked.metric == 'recall_subset' else 'R'}@{k}"
            found.append(Score(name, 100 * hits / total, server_percent(hits, total)))
        return tuple(found)

    def advice(self, benchmark: Benchmark) -> tuple[str, ...]:
        """Name the denominator: the one thing a reader of the server's numbers would not expect."""
        total = len(benchmark.queries)
        printed = total + len(SPECIAL)
        return (
            f"upload both files, one after the other: {self.address}",
            "the server prints R@1, 2, 5, 10, 50 for one and Rs@1, 2, 3 for the other, with three decimals",
            f"it divides by {printed:,}, the number of keys, not by the {total:,} queries: a perfect file scores "
            f"{server_percent(total, total):.3f}, and the true value is what it prints x {printed} / {total}",
        )
