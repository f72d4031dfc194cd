"""CIRR: recall in the split without the reference, recall in the subset of six, and the mean of two of them."""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from jaxtyping import Float64, Int64

from cir.metrics import recall_at
from cir.protocols.base import Protocol
from cir.schema import Query


class CIRR(Protocol):
    """Hard labels: `target_hard` is the target; graded labels are another protocol."""

    id = "cirr"
    version = 1
    definition = (
        "R@K of the hard target among all images of the split file, and Rs@K among the query's group, the reference "
        "deleted from both; Avg = (R@5 + Rs@1) / 2 (Liu et al., ICCV 2021, arXiv:2108.04024, section 5)"
    )
    metrics: ClassVar[tuple[str, ...]] = ("R@1", "R@5", "R@10", "R@50", "Rs@1", "Rs@2", "Rs@3", "Avg")
    headline = "Avg"
    aspect_metric = "R@1"
    competes = "both"

    def excluded(self, query: Query) -> tuple[str, ...]:
        """Delete the reference."""
        return (query.reference,)

    def _values(
        self, queries: Sequence[Query], ranks: Int64[np.ndarray, "q m"], within: Int64[np.ndarray, "q n"]
    ) -> dict[str, Float64[np.ndarray, " q"]]:
        values = {f"R@{k}": recall_at(ranks, k) for k in (1, 5, 10, 50)}
        values |= {f"Rs@{k}": recall_at(within, k) for k in (1, 2, 3)}
        values["Avg"] = (values["R@5"] + values["Rs@1"]) / 2  # per query, so that it has an interval of its own
        return values
