"""COCO object composition: one whole picture to find among as many as there are queries."""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from jaxtyping import Float64, Int64

from cir.metrics import recall_at
from cir.protocols.base import Protocol
from cir.schema import Query


class COCO(Protocol):
    """The i-th object asks for the i-th picture; the object itself is no image of the gallery."""

    id = "coco"
    version = 1
    definition = (
        "R@K of the picture that the object was cut from, among the whole pictures of all queries, nothing removed, "
        "from query to image (Saito et al., CVPR 2023, arXiv:2302.03084, section 4.1; ref_to_image in its code)"
    )
    metrics: ClassVar[tuple[str, ...]] = ("R@1", "R@5", "R@10")
    headline = "R@1"
    aspect_metric = "R@1"

    def _values(
        self, queries: Sequence[Query], ranks: Int64[np.ndarray, "q m"], within: Int64[np.ndarray, "q n"]
    ) -> dict[str, Float64[np.ndarray, " q"]]:
        return {f"R@{k}": recall_at(ranks, k) for k in (1, 5, 10)}
