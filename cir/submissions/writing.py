"""Writing submission files: a file has its name only after it was read back from disk and found right."""

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from cir import data
from cir.errors import InputError, RunError
from cir.protocols import PROTOCOLS
from cir.records import replace_file
from cir.schema import Benchmark, Embeddings
from cir.submissions.checking import compare
from cir.submissions.problems import Report
from cir.submissions.reading import read
from cir.submissions.servers import find


@dataclass(frozen=True, slots=True)
class Written:
    """A file that can be uploaded, what its check found, and the file beside it that says where it came from."""

    path: Path
    report: Report
    provenance: Path


def write(
    benchmark: Benchmark,
    queries: Embeddings,
    gallery: Embeddings,
    folder: Path,
    stem: str,
    origin: Mapping[str, Any] | None = None,
) -> list[Written]:
    """Rank, write the files of the benchmark's server as `folder/<stem>[-<metric>].json`, check each, then name it.

    `queries` and `gallery` follow the benchmark, which must be the whole split; its annotations are read again for the
    check. Beside each file lies `<name>.provenance.json` with its sha256, the benchmark, and `origin`: what the vectors
    were made with. A kill at any point leaves no file under the final name that was not checked. Raises InputError for
    a partial split or other vectors, and RunError if a file does not pass.
    """
    whole = official(benchmark)
    if queries.ids != tuple(query.id for query in whole.queries) or gallery.ids != whole.gallery:
        raise InputError(f"{benchmark.name}: the vectors are not of its queries and its gallery in their order")
    contents = find(benchmark.name).build(benchmark, queries, gallery)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for metric, content in contents.items():
        path = folder / f"{stem}{'-' if metric else ''}{metric}.json"
        report = _checked(path, content, whole)
        beside = path.with_name(f"{path.stem}.provenance.json")
        replace_file(beside, _provenance(report, benchmark, origin or {}))
        written.append(Written(path, report, beside))
    return written


def _checked(path: Path, content: Mapping[str, Any], benchmark: Benchmark) -> Report:
    """Write under a hidden name, read it back, compare it with the annotations, give it its name."""
    hidden = path.with_name(f".{path.name}.unchecked")
    try:
        replace_file(hidden, json.dumps(content, separators=(",", ":"), allow_nan=False).encode("ascii"))
        report = dataclasses.replace(compare(read(hidden), benchmark), file=path)
        if report.problems:
            raise RunError("\n".join(["the finished file does not pass its own check", *report.lines(5)]))
        os.replace(hidden, path)
    finally:
        hidden.unlink(missing_ok=True)
    return report


def official(benchmark: Benchmark) -> Benchmark:
    """Load the split anew from its annotation files; InputError if the given one is only a part of it."""
    find(benchmark.name)
    whole = data.load(benchmark.name, benchmark.root)
    if whole.fingerprint != benchmark.fingerprint:
        stamps = "; ".join(benchmark.stamps) or f"it was loaded for the protocol {benchmark.protocol}"
        raise InputError(
            f"{benchmark.name}: a submission needs the whole split as published, but {stamps}; leave out data.subset, "
            "data.allow_missing and --smoke, and complete the images"
        )
    return whole


def _provenance(report: Report, benchmark: Benchmark, origin: Mapping[str, Any]) -> bytes:
    """Say what a file is and where it came from."""
    protocol = PROTOCOLS[benchmark.protocol]
    plain = {
        "submission": report.file.name,
        "sha256": report.sha256,
        "bytes": report.bytes,
        "metric": report.metric,
        "benchmark": {
            "name": benchmark.name,
            "version": benchmark.version,
            "fingerprint": benchmark.fingerprint,
            "queries": len(benchmark.queries),
            "gallery": len(benchmark.gallery),
            "notes": list(benchmark.notes),
            "stamps": list(benchmark.stamps),
        },
        "protocol": {"name": protocol.id, "version": protocol.version, "definition": protocol.definition},
        "scores": report.plain()["scores"],
        "origin": dict(origin),
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    return (json.dumps(plain, indent=1, allow_nan=False, ensure_ascii=False) + "\n").encode()
