"""CIRCO: average precision over several ground truths in 123,403 images, the reference competes."""

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
    metrics: ClassVar[tuple[str, ...]] = (*(f"mAP@{k}" for k in CUTS), *(f"R@{k}" for k in CUTS))
    headline = "mAP@5"
    aspect_metric = "mAP@10"

    def _values(
        self, queries: Sequence[Query], ranks: Int64[np.ndarray, "q m"], within: Int64[np.ndarray, "q n"]
    ) -> dict[str, Float64[np.ndarray, " q"]]:
        values = {f"mAP@{k}": average_precision_at(ranks, k) for k in CUTS}
        return values | {f"R@{k}": recall_at(ranks, k) for k in CUTS}
