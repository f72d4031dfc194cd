"""One evaluation as a self-contained HTML page: every query, its ranking, and what the baselines made of it.

Images are embedded once as small thumbnails; a script inside the page draws twenty queries at a time, so
hundreds stay light. No network, no other files.
"""

import base64
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cir.errors import InputError
from cir.records import Record, TrainingInfo, replace_file
from cir.report.pictures import Part, opened
from cir.report.ranked import best_rank, spread
from cir.schema import Benchmark, Query, Ranking, TargetRanks

CUTS = (1, 5, 10, 25, 50)
"""Top-k sizes that the page's hit filter offers."""
MANY = 2000
"""Images above which thumbnails shrink: 5,000 photos then take 10 MB."""


def write(
    path: Path,
    record: Record,
    benchmark: Benchmark,
    ranking: Ranking,
    ranks: TargetRanks | None = None,
    beside: Mapping[str, TargetRanks] | None = None,
    *,
    top: int = 10,
    limit: int = 400,
    side: int | None = None,
    index: str = "",
    aspect_metric: str = "",
    part: Part | None = None,
) -> Path:
    """Write the page of one evaluation to `path` and return it.

    `ranks` are the targets' ranks (none: labels are hidden); `beside` the same queries under other methods, by
    the name to print (`image only`). The page shows the first `top` images of at most `limit` queries, evenly
    spaced when there are more, as thumbnails of at most `side` pixels (none: 144, or 112 where there are thousands);
    `index` links back to an overview; `part` cuts views out of their pictures (none: whole pictures).
    Image files that are absent leave an empty frame: rankings from cached features need no files.
    """
    _check_aligned(benchmark, ranking, {"": ranks, **(beside or {})})
    rows = spread(len(benchmark.queries), limit)
    queries, images = _rows(benchmark, ranking, ranks, beside or {}, rows, top)
    side = side or (144 if len(images) <= MANY else 112)
    data = {
        "labelled": ranks is not None,
        "images": [{"id": name, "src": thumbnail(benchmark, name, side, part)} for name in images],
        "queries": queries,
    }
    page = template("gallery.html").render(
        record=record,
        data=data,
        provenance=provenance(record),
        labelled=ranks is not None,
        beside=sorted(beside or {}),
        cuts=[cut for cut in CUTS if cut <= max(len(benchmark.gallery), 1)],
        cut_chosen=10,
        tags=sorted({tag for query in benchmark.queries for tag in query.tags}),
        left_out=len(benchmark.queries) - len(rows),
        index=index,
        aspect_metric=aspect_metric,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, page.encode())
    return path


def thumbnail(benchmark: Benchmark, name: str, side: int, part: Part | None = None) -> str:
    """Encode one image as a data URI of at most `side` pixels; empty where there is no readable file."""
    shown = opened(benchmark, name, side, part)
    if shown is None:
        return ""
    buffer = io.BytesIO()
    shown.save(buffer, "WEBP", quality=72, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def template(name: str) -> Any:
    """Load one of the page templates; everything inserted is escaped."""
    import jinja2

    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.get_template(name)


def provenance(record: Record) -> list[tuple[str, str]]:
    """List what a number rests on, as label and text, for people."""
    method, backbone, bench, code = record.method, record.backbone, record.benchmark, record.code
    trained = f"{method.trained_count:,} parameters ({', '.join(method.trained)})" if method.trained else "nothing"
    rows = [
        ("protocol", f"{record.protocol.name} v{record.protocol.version}"),
        ("benchmark", f"{bench.name}, {bench.version}, {bench.split}; data {bench.fingerprint}"),
        ("variant", "; ".join(bench.notes)),
        ("method", f"{method.name}, trains {trained}"),
        ("checkpoint", method.checkpoint),
        ("training", _training(method.training)),
        ("backbone", f"{backbone.name}; weights {backbone.weights}"),
        ("preprocessing", backbone.preprocess),
        ("computed in", f"{backbone.dtype} on {backbone.device}"),
        ("seed", str(record.seed)),
        ("code", f"cir {code.version} {code.commit[:12]}{' with local changes' if code.dirty else ''}"),
        ("packages", ", ".join(f"{name} {number}" for name, number in record.packages.items())),
        ("took", f"{record.seconds:.1f} s, {record.peak_mb:,.0f} MB at most"),
        ("record", record.fingerprint),
        ("configuration", json.dumps(record.config, ensure_ascii=False)),
    ]
    return [(label, text) for label, text in rows if text]


def _training(training: TrainingInfo | None) -> str:
    if training is None:
        return ""
    took = f" in {training.seconds:.0f} s" if training.seconds is not None else ""
    held = f", {training.peak_mb:,.0f} MB at most," if training.peak_mb is not None else ""
    return f"{training.steps:,} steps{took}{held} on data {training.source}"


def _check_aligned(benchmark: Benchmark, ranking: Ranking, ranks: Mapping[str, TargetRanks | None]) -> None:
    """Refuse rankings of other queries: a page that mixes them would look right and be wrong."""
    ids = tuple(query.id for query in benchmark.queries)
    named = [("ranking", ranking.query_ids)]
    named += [(f"ranks {name}".strip(), given.query_ids) for name, given in ranks.items() if given is not None]
    for what, given in named:
        if tuple(given) != ids:
            raise InputError(f"report: {what} holds other queries than {benchmark.name}, or in another order")


def _rows(
    benchmark: Benchmark,
    ranking: Ranking,
    ranks: TargetRanks | None,
    beside: Mapping[str, TargetRanks],
    rows: Sequence[int],
    top: int,
) -> tuple[list[dict[str, Any]], list[str]]:
    """Describe the queries for the page's script, images by their number in the second list."""
    numbers: dict[str, int] = {}

    def number(names: Iterable[str]) -> list[int]:
        return [numbers.setdefault(name, len(numbers)) for name in names]

    described = []
    for row in rows:
        query: Query = benchmark.queries[row]
        described.append(
            {
                "id": query.id,
                "texts": list(query.texts),
                "tags": list(query.tags),
                "reference": number([query.reference])[0],
                "targets": number(query.targets),
                "top": number(ranking.row(row)[:top]),
                "rank": best_rank(ranks, row),
                "tied": bool(ranks is not None and ranks.tied[row]),
                "beside": {name: best_rank(other, row) for name, other in beside.items()},
            }
        )
    return described, list(numbers)
