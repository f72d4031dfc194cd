"""CIRCO: average precision over several ground truths in 123,403 images, the reference competes or is removed."""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from jaxtyping import Float64, Int64

from cir.metrics import average_precision_at, recall_at
from cir.protocols.base import Protocol
from cir.schema import Query

CUTS = (5, 10, 25, 50)


class CIRCO(Protocol):
    """mAP@K uses all targets, R@K only the first; mAP@10 is also averaged per semantic aspect."""

    id = "circo"
    version = 1
    definition = (
        "AP@K over min(number of ground truths, K) among all COCO 2017 unlabeled images, reference kept; R@K of the "
        "single target; semantic mAP@10 over the queries of an aspect (Baldrati et al., ICCV 2023, arXiv:2303.15247)"
    )
    differs = "the papers' and the server's: the reference competes"
    metrics: ClassVar[tuple[str, ...]] = (*(f"mAP@{k}" for k in CUTS), *(f"R@{k}" for k in CUTS))
    headline = "mAP@5"
    aspect_metric = "mAP@10"

    def _values(
        self, queries: Sequence[Query], ranks: Int64[np.ndarray, "q m"], within: Int64[np.ndarray, "q n"]
    ) -> dict[str, Float64[np.ndarray, " q"]]:
        values = {f"mAP@{k}": average_precision_at(ranks, k) for k in CUTS}
        return values | {f"R@{k}": recall_at(ranks, k) for k in CUTS}


class CIRCOReferenceRemoved(CIRCO):
    """CoVR's rule: the reference, which is never a ground truth, leaves the ranking."""

    id = "circo/reference-removed"
    version = 1
    definition = (
        "AP@K over min(number of ground truths, K) among all COCO 2017 unlabeled images but the query's reference; R@K "
        "of the single target (as in the released evaluation of CoVR, Ventura et al., AAAI 2024, arXiv:2308.14746)"
    )
    differs = "the reference is deleted from the ranking"

    def excluded(self, query: Query) -> tuple[str, ...]:
        """Delete the reference."""
        return (query.reference,)
