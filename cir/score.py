"""Scoring vectors that anybody made: two `.npz` files in, a benchmark's numbers out; no model of ours is needed."""

import io
import json
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Int64

from cir import data, search, stats
from cir.errors import InputError
from cir.files import replace_file
from cir.protocols import PROTOCOLS, Protocol
from cir.schema import Benchmark, Embeddings, Scores, TargetRanks

UNIT = "percent"


@dataclass(frozen=True, slots=True)
class Outcome:
    """Per-query scores of a benchmark, the ranks behind them, and the queries that one of its ties could have moved."""

    scores: Scores
    ranks: TargetRanks
    tied: tuple[str, ...]


def score(
    benchmark_name: str,
    data_root: Path | str,
    queries_path: Path | str,
    gallery_path: Path | str,
    *,
    protocol: str | None = None,
    allow_missing: bool = False,
    resamples: int = 2000,
    seed: int = 0,
    per_query: Path | str | None = None,
) -> dict[str, Any]:
    """Score `ids` and `vectors` of two `.npz` files on a benchmark; means and intervals are in percent, as printed.

    `protocol` is one of the benchmark's (none: the papers'). `per_query` names a `.npz` to write with `ids` and one
    array of fractions per metric. Raises InputError for a group of benchmarks, for hidden labels, and for anything
    wrong with the files.
    """
    _refuse_group(benchmark_name)
    benchmark = data.load(benchmark_name, data_root, protocol=protocol, allow_missing=allow_missing)
    if not benchmark.labelled:
        raise InputError(f"{benchmark.name}: the labels of this split are hidden, only its server can score it")
    queries = aligned(*read_vectors(queries_path), [q.id for q in benchmark.queries], f"{queries_path}: query")
    images = aligned(*read_vectors(gallery_path), benchmark.gallery, f"{gallery_path}: gallery")
    rule = PROTOCOLS[benchmark.protocol]
    outcome = rank_and_score(benchmark, rule, queries, images)
    if per_query is not None:
        write_values(Path(per_query), outcome.scores)
    return summary(benchmark, rule, outcome, resamples=resamples, seed=seed)


def rank_and_score(
    benchmark: Benchmark,
    protocol: Protocol,
    queries: Embeddings,
    gallery: Embeddings,
    places: Int64[np.ndarray, "q r"] | None = None,
) -> Outcome:
    """Rank what is relevant under a protocol and score it; both sides in the benchmark's order.

    `places` is where a second look puts the first r images of every ranking (`cir.search.reorder`): ranks, those within
    candidates too, are then those of the re-ranked gallery. Raises InputError where a protocol has no such ranking.
    """
    asked = benchmark.queries
    exclude = {query.id: protocol.excluded(query) for query in asked}
    relevant = [protocol.relevant(query) for query in asked]
    candidates = None if protocol.competes == "gallery" else [query.candidates for query in asked]
    if protocol.competes == "candidates":
        ranks, within = search.target_ranks(queries, gallery, relevant, exclude, candidates), None
    else:
        ranks, within = search.target_ranks(queries, gallery, relevant, exclude), None
    if places is not None:
        if protocol.competes == "candidates":
            raise InputError(
                f"{protocol.id}: queries rank a few images of their own, all at once; leave rerank.top out"
            )
        ranks = search.moved(ranks, places)
    tied = ranks.tied
    if protocol.competes == "both":
        own = [protocol.relevant_within(query) for query in asked]
        within = search.target_ranks(queries, gallery, own, exclude, candidates)
        if places is not None and candidates is not None:
            rivals = [[n for n in names if n not in exclude[q.id]] for q, names in zip(asked, candidates, strict=True)]
            whole = search.moved(search.target_ranks(queries, gallery, rivals, exclude), places)
            within = search.restricted(whole, rivals, own)
        tied = tied | within.tied
    scores = protocol.score(benchmark, ranks, within)
    return Outcome(scores, ranks, tuple(queries.ids[i] for i in np.flatnonzero(tied)))


def summary(
    benchmark: Benchmark, protocol: Protocol, outcome: Outcome, *, resamples: int = 2000, seed: int = 0
) -> dict[str, Any]:
    """Describe an outcome as plain values: what was measured, on what, under which rule, how sure it is."""
    tags = protocol.aspects(benchmark, outcome.scores)
    values = dict(outcome.scores.values)
    for tag, rows in tags.items():  # NaN: has no part in that mean
        column = np.full(len(outcome.scores.query_ids), np.nan)
        column[rows] = values[protocol.aspect_metric][rows]
        values[f"tag {tag}"] = column
    intervals = stats.bootstrap(values, n=resamples, seed=seed)
    return {
        "benchmark": benchmark.name,
        "protocol": {
            "name": protocol.label(benchmark).split(" ")[0],
            "version": protocol.version,
            "definition": protocol.definition,
        },
        "fingerprint": benchmark.fingerprint,
        "queries": len(benchmark.queries),
        "gallery": len(benchmark.gallery),
        "notes": list(benchmark.notes),
        "stamps": list(benchmark.stamps),
        "tied_queries": len(outcome.tied),
        "unit": UNIT,
        "interval": {"level": 0.95, "method": f"bootstrap over queries, {resamples} resamples, seed {seed}"},
        "scores": {name: _percent(intervals[name]) for name in protocol.metrics},
        "aspects": {
            "metric": protocol.aspect_metric,
            "tags": {tag: {**_percent(intervals[f"tag {tag}"]), "queries": len(rows)} for tag, rows in tags.items()},
        },
    }


def read_vectors(path: Path | str) -> tuple[list[str], Float32[np.ndarray, "n t d"]]:
    """Read `ids` (text or integers) and `vectors` (n x d or n x t x d, any float) from an `.npz`; nothing is unpickled.

    Vectors come back as float32, as they are: lengths are not changed here.
    """
    arrays = _arrays(Path(path))
    ids, vectors = arrays["ids"], arrays["vectors"]
    if ids.ndim != 1 or ids.dtype.kind not in "Uiu":
        raise InputError(f"{path}: ids are {ids.dtype} {ids.shape}; expected one axis of fixed-width text or integers")
    if vectors.ndim not in (2, 3) or vectors.dtype.kind != "f":
        raise InputError(f"{path}: vectors are {vectors.dtype} {vectors.shape}; expected floats, n x d or n x t x d")
    if len(ids) != len(vectors) or 0 in vectors.shape:
        raise InputError(f"{path}: {len(ids):,} ids for vectors {vectors.shape}; expected one or more of each, aligned")
    with np.errstate(over="ignore"):  # becomes infinite, which is reported with its id
        return [str(name) for name in ids.tolist()], vectors.reshape(len(ids), -1, vectors.shape[-1]).astype(np.float32)


def aligned(
    ids: Sequence[str],
    vectors: Float[np.ndarray, "n t d"],
    wanted: Sequence[str],
    what: str = "vectors",
    *,
    spare: bool = False,
) -> Embeddings:
    """Put vectors into the order of `wanted`, at unit length; `what` begins every message.

    Where ids are numbers, or end with one behind a slash, zeros before it do not matter: `000000012345` is `12345`,
    `dress/42` is `dress/0042`. Missing, unknown or duplicate ids, an id that may be two of the benchmark's, vectors
    that are not finite, and zero vectors are InputErrors that name the first few; with `spare`, unknown ids are left
    out, for files that serve several galleries.
    """
    rows = _rows(ids, wanted, what, spare)
    norms = np.concatenate(
        [np.linalg.norm(vectors[i : i + 4096].astype(np.float64), axis=-1) for i in range(0, len(vectors), 4096)]
    )
    for bad, trouble in ((~np.isfinite(norms), "not finite (NaN or infinite)"), (norms == 0, "zero")):
        where = [ids[i] for i in np.flatnonzero(bad.any(axis=1)).tolist()]
        if where:
            raise InputError(f"{what}: {len(where):,} vectors are {trouble}, first {where[:3]}; encode them again")
    unit = np.empty((len(rows), *vectors.shape[1:]), dtype=np.float32)
    for start in range(0, len(rows), 4096):
        part = rows[start : start + 4096]
        unit[start : start + 4096] = vectors[part] / norms[part][..., None]
    return Embeddings(tuple(wanted), unit)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


def write_values(path: Path, scores: Scores) -> None:
    """Write per-query fractions atomically: `ids` and one array per metric, readable without pickle."""
    buffer = io.BytesIO()
    arrays: dict[str, np.ndarray] = {"ids": np.array(scores.query_ids), **scores.values}
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, buffer.getvalue())


def _arrays(path: Path) -> dict[str, np.ndarray]:
    """Read the two arrays of a file."""
    try:
        with path.open("rb") as handle:
            file = np.load(handle, allow_pickle=False)
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise InputError(f"{path}: one bare array; expected an .npz with the arrays ids and vectors")
            absent = {"ids", "vectors"} - set(file.files)
            if absent:
                raise InputError(f"{path}: has {sorted(file.files)}, lacks {sorted(absent)}; expected ids and vectors")
            return {name: file[name] for name in ("ids", "vectors")}
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; expected an .npz with the arrays ids and vectors") from None
    except InputError:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(
            f"{path}: not a readable .npz of plain arrays ({error}); ids must be text or integers, not objects"
        ) from None


def _rows(ids: Sequence[str], wanted: Sequence[str], what: str, spare: bool) -> Int64[np.ndarray, " n"]:
    """Find, for each wanted id, its row; zeros before a number at the end do not matter where only one id fits."""
    alike: dict[str, list[str]] = {}
    for name in wanted:
        alike.setdefault(_bare(name), []).append(name)
    known = set(wanted)
    table: dict[str, int] = {}
    unknown, twice = [], []
    for row, given in enumerate(ids):
        meant = [given] if given in known else alike.get(_bare(given), [])
        if len(meant) > 1:
            raise InputError(f"{what}: id {given!r} may be any of {meant[:3]}; expected one of these spellings")
        if not meant:
            unknown.append(given)
        elif meant[0] in table:
            twice.append(given)
        else:
            table[meant[0]] = row
    missing = [name for name in wanted if name not in table]
    unknown = [] if spare else unknown
    for names, trouble in ((twice, "occur more than once"), (missing, "are missing"), (unknown, "are unknown")):
        if names:
            hint = f" (the file has {list(ids[:2])}, the benchmark {list(wanted[:2])})" if names is not twice else ""
            raise InputError(f"{what}: {len(names):,} ids {trouble}, first {names[:3]}{hint}; expected each id once")
    return np.array([table[name] for name in wanted], dtype=np.int64)


def _bare(name: str) -> str:
    """Drop the zeros before the number that an id is, or ends with behind its last slash.

    >>> _bare("dress/0042"), _bare("000000012345"), _bare("a/00"), _bare("dev-04")
    ('dress/42', '12345', 'a/0', 'dev-04')
    """
    prefix, slash, tail = name.rpartition("/")
    if not (tail.isascii() and tail.isdigit()):
        return name
    return f"{prefix}{slash}{tail.lstrip('0') or '0'}"


def _percent(interval: stats.Interval) -> dict[str, float]:
    """Write a mean and its interval as papers print them, unrounded."""
    return {"mean": 100 * interval.mean, "low": 100 * interval.low, "high": 100 * interval.high}


def _refuse_group(name: str) -> None:
    """Say what to do about a name that stands for several galleries."""
    parts = data.expand(name)
    if len(parts) > 1:
        raise InputError(
            f"{name} is {len(parts)} benchmarks with a gallery each; score {', '.join(parts)} one by one, "
            "the mean over them is unweighted"
        )
