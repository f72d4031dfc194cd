"""Less than the whole benchmark, always said: without images that are missing, and subsets for a quick look."""

from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np

from cir.errors import InputError
from cir.schema import Benchmark, Query


def without(benchmark: Benchmark, missing: Collection[str], why: str) -> Benchmark:
    """Drop images, and every query that needs one of them as reference or target; stamped.

    A candidate that is dropped leaves its query's subset.
    """
    gone = set(missing)
    if not gone:
        return benchmark
    gallery = tuple(name for name in benchmark.gallery if name not in gone)
    queries = answerable(benchmark.queries, set(benchmark.paths) - gone)
    dropped = len(benchmark.queries) - len(queries)
    stamp = f"{len(gone):,} images and {dropped:,} queries left out ({why})"
    paths = {name: path for name, path in benchmark.paths.items() if name not in gone}
    return replace(benchmark, queries=queries, gallery=gallery, paths=paths, stamps=(*benchmark.stamps, stamp))


def answerable(queries: Sequence[Query], images: Collection[str]) -> tuple[Query, ...]:
    """Keep the queries whose reference and targets are all among the images, with those candidates and labels."""
    return tuple(
        replace(
            query,
            candidates=tuple(name for name in query.candidates if name in images),
            soft=tuple((name, weight) for name, weight in query.soft if name in images),
        )
        for query in queries
        if query.reference in images and all(target in images for target in query.targets)
    )


def settle(
    queries: tuple[Query, ...], images: Collection[str], stamps: tuple[str, ...]
) -> tuple[tuple[Query, ...], tuple[str, ...]]:
    """Where stamps already say that files are incomplete, drop what they cannot answer and stamp how much that is.

    Without a stamp everything stays: a name that is absent then is an error of its own.
    """
    kept = answerable(queries, images) if stamps else queries
    dropped = len(queries) - len(kept)
    return kept, (*stamps, f"{dropped:,} queries left out (images not in the gallery)") if dropped else stamps


def subset(benchmark: Benchmark, n: int, seed: int = 0, filler: int | None = None) -> Benchmark:
    """Take the first `n` queries and a gallery of what they name plus `filler` other images; stamped.

    The filler is drawn by `seed`, by default as many images as are named; gallery order stays. A benchmark that has
    no more than `n` queries is returned as it is. Numbers on a subset are for trying things out: a smaller gallery
    is easier.
    """
    if n < 1:
        raise InputError(f"subset: expected at least one query, got {n}")
    if n >= len(benchmark.queries):
        return benchmark
    queries = benchmark.queries[:n]
    named = {name for q in queries for name in (q.reference, *q.targets, *q.candidates, *(n for n, _ in q.soft))}
    rest = [name for name in benchmark.gallery if name not in named]
    wanted = len(named) if filler is None else filler
    drawn = np.random.default_rng(seed).permutation(len(rest))[:wanted]
    named.update(rest[i] for i in drawn)
    gallery = tuple(name for name in benchmark.gallery if name in named)
    paths = {name: path for name, path in benchmark.paths.items() if name in named}
    stamp = f"subset of {n:,} queries, gallery of {len(gallery):,}"
    return replace(benchmark, queries=queries, gallery=gallery, paths=paths, stamps=(*benchmark.stamps, stamp))
