"""`cir data ids`: what a benchmark asks for, as JSON, for people who make their vectors elsewhere."""

import json
from pathlib import Path
from typing import Any

import typer

from cir import data
from cir.schema import Benchmark
from cir.score import write_json


def main(name: str, root: Path, protocol: str, out: Path | None, allow_missing: bool) -> None:
    """Write the ids to a file or to the terminal."""
    found = describe(data.load(name, root, protocol=protocol or None, allow_missing=allow_missing))
    if out is None:
        typer.echo(json.dumps(found, indent=1, ensure_ascii=False))
        return
    write_json(out, found)
    typer.echo(f"{out}: {len(found['queries']):,} queries, a gallery of {len(found['gallery']):,} images", err=True)


def describe(benchmark: Benchmark) -> dict[str, Any]:
    """List queries, gallery and files; labels are left out, composing does not need them.

    `gallery` and `references_outside` are ids; `images` says for each where its file lies under `root`, and, where the
    image is a part of its file, by which rule of `cir.data.views` and which box.
    """
    known = set(benchmark.gallery)
    references = dict.fromkeys(query.reference for query in benchmark.queries)
    outside = [name for name in references if name not in known]
    return {
        "benchmark": benchmark.name,
        "protocol": benchmark.protocol,
        "fingerprint": benchmark.fingerprint,
        "root": str(benchmark.root),
        "template": benchmark.template,
        "stamps": list(benchmark.stamps),
        "queries": [
            {"id": q.id, "reference": q.reference, "texts": list(q.texts)}
            | ({"concept": q.concept} if q.concept else {})
            for q in benchmark.queries
        ],
        "gallery": list(benchmark.gallery),
        "references_outside": outside,
        "images": {name: _image(benchmark, name) for name in (*benchmark.gallery, *outside)},
    }


def _image(benchmark: Benchmark, name: str) -> dict[str, Any]:
    """Say where an image lies, and which part of the file it is."""
    view = benchmark.views.get(name)
    place: dict[str, Any] = {"file": benchmark.paths[name]}
    return place if view is None else place | {"view": view.kind, "box": list(view.box)}
