"""TREC run and qrels files of a record's rankings, for tools of text retrieval (trec_eval, ir_measures, ranx).

A run line is `query Q0 image rank score tag`, a qrels line `query 0 image 1` (https://trec.nist.gov/, and the README of
trec_eval). Those tools order by the score alone, held in single precision; where two images tie, ours keep the
gallery's order, so an equal score is written one float32 step below the one before it. Whitespace in an id is
percent-encoded. Nothing is listed beyond the ranks kept, and no image that the protocol leaves out of a ranking.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import numpy as np
from jaxtyping import Float32

from cir import data
from cir.errors import InputError, RunError
from cir.protocols import PROTOCOLS
from cir.protocols.base import Protocol
from cir.records import Record, read_ranking, read_values, replace_file
from cir.schema import Benchmark, Ranking

SAFE = "!\"#$&'()*+,/:;<=>?@[\\]^`{|}~"
"""Characters of ids that stay as they are; `%` and whitespace do not."""
Run = dict[str, list[tuple[str, float]]]
"""By query: images and scores, in file order."""


class Written(NamedTuple):
    """The two files of a record, and the metrics that were computed again from them and found right."""

    run: Path
    qrels: Path
    confirmed: tuple[str, ...]


def write(path: Path, record: Record, benchmark: Benchmark, folder: Path) -> Written:
    """Write `<record>.run` and `<record>.qrels`, and compute from them again what they determine (`confirm`).

    Raises `InputError` for a record without rankings or a benchmark that is not the record's, `RunError` where the
    files do not give the record's values.
    """
    ranking, protocol = read_ranking(path, record), PROTOCOLS[record.protocol.name]
    if benchmark.fingerprint != record.benchmark.fingerprint:
        raise InputError(
            f"{path}: its data are {record.benchmark.fingerprint}, but {benchmark.root} holds {benchmark.fingerprint}; "
            "name the folder with --data"
        )
    run, qrels = folder / f"{record.name}.run", folder / f"{record.name}.qrels"
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(run, "".join(_run_lines(ranking, _tag(record))).encode())
    replace_file(qrels, "".join(_qrels_lines(benchmark, protocol)).encode())
    return Written(run, qrels, confirm(path, record, benchmark, run, qrels))


def benchmark_of(record: Record, root: Path | None = None) -> Benchmark:
    """Load the benchmark of a record, from `root` or from where its configuration says, as it was searched."""
    if record.benchmark.parts:
        raise InputError(f"{record.benchmark.name} is a mean over {', '.join(record.benchmark.parts)}; export those")
    kept = record.config.get("data", {})
    name = record.benchmark.name
    place = root if root is not None else Path(kept.get("roots", {}).get(data.dataset(name), kept.get("root", "")))
    found = data.load(name, place, protocol=record.protocol.name, allow_missing=bool(kept.get("allow_missing")))
    return data.subset(found, kept["subset"]) if kept.get("subset") else found


def read_run(path: Path) -> Run:
    """Read a run file, checking that every line has six fields and that ranks count from 1."""
    found: Run = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        parts = line.split()
        if len(parts) != 6:
            raise InputError(f"{path}, line {number}: expected `query Q0 image rank score tag`, got {line!r}")
        listed = found.setdefault(parts[0], [])
        listed.append((parts[2], float(parts[4])))
        if int(parts[3]) != len(listed):
            raise InputError(f"{path}, line {number}: expected rank {len(listed)}, got {parts[3]}")
    return found


def read_qrels(path: Path) -> dict[str, set[str]]:
    """Read the relevant images of every query."""
    found: dict[str, set[str]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        parts = line.split()
        if len(parts) != 4:
            raise InputError(f"{path}, line {number}: expected `query 0 image relevance`, got {line!r}")
        if int(parts[3]) > 0:
            found.setdefault(parts[0], set()).add(parts[2])
    return found


def confirm(path: Path, record: Record, benchmark: Benchmark, run: Path, qrels: Path) -> tuple[str, ...]:
    """Compute `R@K` and `mAP@K` from the files, one query after the other, and compare with the record's values.

    Images are taken by score, as the tools do. `R@K` is that of the field: whether *the* target, a query's first, is
    found; `mAP@K` divides by min(K, number of targets). Only metrics within the ranks kept are compared. Returns them.
    """
    if record.per_query is None or type(PROTOCOLS[record.protocol.name]).relevant is not Protocol.relevant:
        return ()
    ranked, relevant = read_run(run), read_qrels(qrels)
    values = read_values(path, record)
    first = {query.id: encode(query.targets[0]) for query in benchmark.queries if query.targets}
    depth = max(map(len, ranked.values()), default=0)
    done = []
    for metric, ours in values.values.items():
        name, _, cut = metric.partition("@")
        if name not in ("R", "mAP") or not cut.isdigit() or int(cut) > depth:
            continue
        for query, value in zip(values.ids, ours, strict=True):
            listed = sorted(ranked.get(encode(query), []), key=lambda pair: -pair[1])
            images = [image for image, _ in listed][: int(cut)]
            again = (
                float(first.get(query) in images)
                if name == "R"
                else _average_precision(images, relevant.get(encode(query), set()), int(cut))
            )
            if abs(again - value) > 1e-9:
                raise RunError(f"{run}: {metric} of query {query!r} is {again}, but {path.name} says {value}")
        done.append(metric)
    return tuple(done)


def encode(name: str) -> str:
    """Write an id without whitespace.

    >>> encode("dress/0042"), encode("a photo.png")
    ('dress/0042', 'a%20photo.png')
    """
    return quote(name, safe=SAFE)


def falling(scores: Float32[np.ndarray, " k"]) -> Float32[np.ndarray, " k"]:
    """Make scores fall strictly: what does not is set one float32 step below the one before it."""
    done = scores.copy()
    for place in range(1, len(done)):
        done[place] = min(done[place], np.nextafter(done[place - 1], np.float32(-np.inf)))
    return done


def _run_lines(ranking: Ranking, tag: str) -> Iterable[str]:
    """Write the rows of a ranking; nine digits hold a float32 exactly."""
    names = [encode(name) for name in ranking.gallery_ids]
    for query, order, scores in zip(ranking.query_ids, ranking.order, ranking.scores, strict=True):
        kept = order[order >= 0]
        for rank, (image, score) in enumerate(zip(kept, falling(scores[: len(kept)]), strict=True), 1):
            yield f"{encode(query)} Q0 {names[image]} {rank} {score:.9g} {tag}\n"


def _qrels_lines(benchmark: Benchmark, protocol: Protocol) -> Iterable[str]:
    """Write the targets of every query, but for those that the protocol leaves out of its ranking."""
    for query in benchmark.queries:
        out = set(protocol.excluded(query))
        for target in query.targets:
            if target not in out:
                yield f"{encode(query.id)} 0 {encode(target)} 1\n"


def _tag(record: Record) -> str:
    return encode(f"{record.run}-seed-{record.seed}".replace("/", "-"))


def _average_precision(images: list[str], relevant: set[str], cut: int) -> float:
    """Add the precision at each relevant image, by going down the list."""
    found, total = 0, 0.0
    for rank, image in enumerate(images, 1):
        if image in relevant:
            found += 1
            total += found / rank
    return total / min(cut, len(relevant)) if relevant else 0.0
