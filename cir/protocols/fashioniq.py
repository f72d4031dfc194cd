"""FashionIQ: R@10 and R@50 per category, two galleries, reference kept or removed; the mean is unweighted."""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from jaxtyping import Float64, Int64

from cir.metrics import recall_at
from cir.protocols.base import Protocol
from cir.schema import Query


class FashionIQ(Protocol):
    """Each category searches its own gallery: every image of its split file."""

    id = "fashioniq/original"
    version = 1
    definition = (
        "R@K of the one target in the category's whole split file, reference kept, unweighted mean over categories "
        "(Wu et al., CVPR 2021, arXiv:1905.12794; gallery as in the authors' image_splits)"
    )
    differs = "the zero-shot papers': every image of the category's split file competes, the reference too"
    metrics: ClassVar[tuple[str, ...]] = ("R@10", "R@50")
    headline = "R@10"
    aspect_metric = "R@10"

    def _values(
        self, queries: Sequence[Query], ranks: Int64[np.ndarray, "q m"], within: Int64[np.ndarray, "q n"]
    ) -> dict[str, Float64[np.ndarray, " q"]]:
        return {f"R@{k}": recall_at(ranks, k) for k in (10, 50)}


class FashionIQUnion(FashionIQ):
    """The smaller gallery of several supervised tables; its numbers are 6 to 9 points higher."""

    id = "fashioniq/val-union"
    version = 1
    definition = (
        "R@K of the one target among the images that are reference or target of a val query of the category, "
        "reference kept, unweighted mean over categories (the VAL split, after Chen et al., CVPR 2020)"
    )
    differs = "only the images that are reference or target of a query compete"


class FashionIQReferenceRemoved(FashionIQ):
    """CoVR's rule: the reference leaves the ranking."""

    id = "fashioniq/reference-removed"
    version = 1
    definition = (
        "R@K of the one target in the category's whole split file without the query's reference, unweighted mean over "
        "categories (as in the released evaluation of CoVR, Ventura et al., AAAI 2024, arXiv:2308.14746)"
    )
    differs = "the reference is deleted from the ranking"

    def excluded(self, query: Query) -> tuple[str, ...]:
        """Delete the reference."""
        return (query.reference,)
