"""FreeDom: average precision by the trapezoid rule, recall as a share, precision over what could be found."""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from jaxtyping import Float64, Int64

from cir.metrics import average_precision_trapezoid, precision_at, share_at
from cir.protocols.base import Protocol
from cir.schema import Query

CUTS = (5, 10, 50, 100)
"""Of all four sets: the authors print 10 and 50 on ImageNet-R, 50 and 100 on MiniDomainNet and NICO++, 5 and 10 on
LTLL."""


class FreeDom(Protocol):
    """The reference stays in the ranking where it is in the database; a query without a right image counts as 0."""

    id = "freedom"
    version = 1
    definition = (
        "mAP: area under the precision-recall curve by the trapezoid rule over the whole database, recall steps of "
        "1 / (n + 1e-5) for n right images (the query's class in the domain asked for); R@K over n + 1e-5, P@K over "
        "min(n, K) + 1e-5; unweighted mean over pairs of domains (Efthymiadis et al., WACV 2025, arXiv:2412.03297)"
    )
    metrics: ClassVar[tuple[str, ...]] = ("mAP", *(f"R@{k}" for k in CUTS), *(f"P@{k}" for k in CUTS))
    headline = "mAP"
    aspect_metric = "mAP"

    def _values(
        self, queries: Sequence[Query], ranks: Int64[np.ndarray, "q m"], within: Int64[np.ndarray, "q n"]
    ) -> dict[str, Float64[np.ndarray, " q"]]:
        values = {"mAP": average_precision_trapezoid(ranks)}
        values |= {f"R@{k}": share_at(ranks, k) for k in CUTS}
        return values | {f"P@{k}": precision_at(ranks, k, of="least") for k in CUTS}
