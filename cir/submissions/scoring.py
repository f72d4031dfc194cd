"""Ranks of the right images as a submission file has them, for splits whose labels are public."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from cir.schema import Benchmark, Query, TargetRanks

MISS = 10**9
"""Rank of an image that is not in its query's list: beyond every cut."""


def ranks_of(
    benchmark: Benchmark,
    lists: Mapping[str, Sequence[str]],
    relevant: Callable[[Query], Sequence[str]] = lambda query: query.targets,
) -> TargetRanks:
    """Find where each query's relevant images stand in its list; an image, or a list, that is absent is a miss.

    An image that a list repeats has its first rank.
    """
    wanted = [relevant(query) for query in benchmark.queries]
    ranks = np.zeros((len(wanted), max(map(len, wanted), default=0)), dtype=np.int64)
    for row, (query, images) in enumerate(zip(benchmark.queries, wanted, strict=True)):
        listed = list(lists.get(query.id, ()))
        places = {name: rank for rank, name in reversed(list(enumerate(listed, 1)))}
        ranks[row, : len(images)] = [places.get(name, MISS) for name in images]
    return TargetRanks(tuple(query.id for query in benchmark.queries), ranks, np.zeros(len(wanted), dtype=bool))
