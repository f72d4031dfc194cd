"""CIRCO's test server (Baldrati et al., ICCV 2023): one upload, 50 image ids for each of the 800 test queries."""

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, ClassVar

from cir.protocols import PROTOCOLS
from cir.schema import Benchmark, Embeddings
from cir.search import search
from cir.submissions.keys import KeyRules
from cir.submissions.problems import Problem, Rule, Score
from cir.submissions.scoring import ranks_of
from cir.submissions.server import TOP, Checked, Expected, Server, shown

INSTRUCTIONS = "CIRCO's instructions (README)"
SCRIPT = "CIRCO's evaluation script (src/evaluation.py), which the server runs"


class CIRCOServer(Server):
    """Reference kept, integers, the whole of COCO unlabeled."""

    id = "circo"
    address = "https://circo.micc.unifi.it/evaluation"
    splits: ClassVar[Mapping[str, str]] = {"val": "val", "test": "test"}
    metrics = ("",)
    keys = KeyRules(
        missing=Rule("missing", "every query of the split", f"{INSTRUCTIONS}; {SCRIPT}"),
        extra=Rule("extra", "no key but the split's query ids, without gaps from 0", SCRIPT),
        same=Rule("same-query", "one list per query", SCRIPT),
        spelling=Rule("key", 'query ids as decimal text: "0"', f"{SCRIPT}: int() must read them"),
        odd=Rule("odd-key", 'query ids as decimal text: "0"', f"{SCRIPT}: int() reads it all the same", "warning"),
    )
    written = int
    image = Rule("id", "image ids as integers", f"{SCRIPT}: anything int() cannot read stops it")
    odd_image = Rule("id-type", "image ids as integers", f"{SCRIPT}: it casts them, so they are accepted", "warning")
    unknown = Rule("unknown-image", "ids of COCO 2017 unlabeled images", "no other image is ever right: a lost rank")
    repeat = Rule("repeat", "no id twice in a list", f"{SCRIPT}: the upload is refused, naming the query")
    short = Rule("count", "50 ids per query", f"{INSTRUCTIONS}; ranks that are missing count as misses")
    long = Rule("too-many", "50 ids per query", f"{INSTRUCTIONS}; ranks beyond 50 are not looked at", "warning")

    def build(self, benchmark: Benchmark, queries: Embeddings, gallery: Embeddings) -> dict[str, dict[str, Any]]:
        """Rank the gallery; the reference competes."""
        exclude = {query.id: PROTOCOLS[benchmark.protocol].excluded(query) for query in benchmark.queries}
        ranking = search(queries, gallery, min(TOP, len(gallery.ids)), exclude)
        return {"": {name: [int(image) for image in ranking.row(i)] for i, name in enumerate(ranking.query_ids)}}

    def metric(self, content: Mapping[str, Any], benchmark: Benchmark) -> tuple[str, list[Problem]]:
        """There is one kind of file."""
        return "", []

    def length(self, benchmark: Benchmark, metric: str) -> int:
        """50; less where the gallery is smaller."""
        return min(TOP, len(benchmark.gallery))

    def read(self, value: Any, expected: Expected) -> tuple[str, Rule | None, str]:
        """Read an id: an integer, or text or a whole number that the script casts to one."""
        rule: Rule | None = None
        if isinstance(value, str) and _number(value.strip()):
            value, rule = int(value.strip()), self.odd_image
        elif isinstance(value, float) and value.is_integer():
            value, rule = int(value), self.odd_image
        if not isinstance(value, int) or isinstance(value, bool):
            return _digits(value), self.image, f"{shown(value)} is not an integer"
        if str(value) not in expected.images:
            return "", self.unknown, f"no image has the id {value}"
        return str(value), rule, ""

    def scores(self, benchmark: Benchmark, checked: Checked) -> tuple[Score, ...]:
        """Score by the protocol: mAP@K, R@K, and the semantic mAP@10 of each aspect."""
        protocol = PROTOCOLS[benchmark.protocol]
        ranks = ranks_of(benchmark, checked.lists, protocol.relevant)
        scores = protocol.score(benchmark, ranks)
        found = [Score(name, 100 * float(values.mean())) for name, values in scores.values.items()]
        metric = scores.values[protocol.aspect_metric]
        for tag, rows in protocol.aspects(benchmark, scores).items():
            found.append(Score(f"{protocol.aspect_metric} {tag}", 100 * float(metric[rows].mean())))
        return tuple(found)

    def advice(self, benchmark: Benchmark) -> tuple[str, ...]:
        """Name the address and the mail."""
        return (
            f"upload the file: {self.address}",
            "the result comes by mail: mAP@5, 10, 25, 50, Recall@5, 10, 25, 50 and the semantic mAP@10 of nine aspects",
        )

    def noted(self, lists: Mapping[str, Sequence[str]], benchmark: Benchmark) -> tuple[str, ...]:
        """Count references among the answers: they are allowed here, and people ask."""
        count = sum(query.reference in lists.get(query.id, ()) for query in benchmark.queries)
        return (f"lists that hold their query's reference: {count:,} (allowed, it competes)",) if count else ()


def _digits(value: Any) -> str:
    """Guess which image a file name means, so that repeats and scores are found all the same; empty if none."""
    if not isinstance(value, str):
        return ""
    stem = PurePosixPath(value.strip().replace("\\", "/")).stem
    return str(int(stem)) if _number(stem) else ""


def _number(text: str) -> bool:
    """Say whether a text is a number that an image could have."""
    return text.isascii() and text.isdigit() and len(text) < 40
