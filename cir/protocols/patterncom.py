"""PatternCom: average precision over the whole ranking of PatternNet, the reference competes."""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from jaxtyping import Float64, Int64

from cir.metrics import average_precision, hits_at, precision_at
from cir.protocols.base import Protocol
from cir.schema import Query

CUTS = (5, 10, 15, 20)


class PatternCom(Protocol):
    """The mean over an attribute's queries; the mean over attributes is unweighted.

    The authors' code rounds each query's value, in percent, to two decimals before it averages. Here values are
    exact, so a mean may differ from theirs by at most 0.005.
    """

    id = "patterncom"
    version = 1
    definition = (
        "AP: mean of the precisions at all positives (same class, the value asked for) in the ranking of all of "
        "PatternNet, reference kept; P@K over K, R@K the share of the positives; means over an attribute's queries "
        "(Psomas et al., IGARSS 2024, arXiv:2405.15587, and its released evaluation)"
    )
    metrics: ClassVar[tuple[str, ...]] = ("mAP", *(f"P@{k}" for k in CUTS), *(f"R@{k}" for k in CUTS))
    headline = "mAP"
    aspect_metric = "mAP"

    def _values(
        self, queries: Sequence[Query], ranks: Int64[np.ndarray, "q m"], within: Int64[np.ndarray, "q n"]
    ) -> dict[str, Float64[np.ndarray, " q"]]:
        count = (ranks >= 1).sum(axis=1)
        precision = np.zeros(len(ranks))
        precision[count > 0] = average_precision(ranks[count > 0])  # no positive counts as 0
        values = {"mAP": precision} | {f"P@{k}": precision_at(ranks, k) for k in CUTS}
        # Without the 1e-5 that Pic2Word adds to the denominator of the same share.
        return values | {f"R@{k}": hits_at(ranks, k).sum(axis=1) / np.maximum(count, 1) for k in CUTS}
