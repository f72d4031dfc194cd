"""Custom benchmarks: hits of any target in the gallery, or among each query's own candidates."""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from jaxtyping import Float64, Int64

from cir.metrics import any_at, average_precision_at
from cir.protocols.base import Protocol
from cir.schema import Query

CUTS, CANDIDATE_CUTS = (1, 5, 10, 50), (1, 2, 3)


class Custom(Protocol):
    """R@K asks for any of a query's targets; mAP@10 for all of them."""

    id = "custom"
    version = 1
    definition = (
        "R@K: whether any of the query's targets is among the first K of the whole gallery, reference kept; AP@10 over "
        "min(number of targets, 10) (own data, by the rules of CIRCO: Baldrati et al., ICCV 2023, arXiv:2303.15247)"
    )
    differs = "the whole gallery competes, the reference too"
    metrics: ClassVar[tuple[str, ...]] = (*(f"R@{k}" for k in CUTS), "mAP@10")
    headline = "R@10"
    aspect_metric = "R@10"

    def _values(
        self, queries: Sequence[Query], ranks: Int64[np.ndarray, "q m"], within: Int64[np.ndarray, "q n"]
    ) -> dict[str, Float64[np.ndarray, " q"]]:
        return {f"R@{k}": any_at(ranks, k) for k in CUTS} | {"mAP@10": average_precision_at(ranks, 10)}


class CustomReferenceRemoved(Custom):
    """For data whose references are never right, as CIRR's."""

    id = "custom/reference-removed"
    version = 1
    definition = (
        "R@K: whether any of the query's targets is among the first K of the whole gallery without the query's "
        "reference; AP@10 over min(number of targets, 10) (own data; the reference deleted as in CIRR)"
    )
    differs = "the reference is deleted from the ranking"

    def excluded(self, query: Query) -> tuple[str, ...]:
        """Delete the reference."""
        return (query.reference,)


class CustomCandidates(Protocol):
    """For data whose queries bring their own small galleries, as GeneCIS's."""

    id = "custom/candidates"
    version = 1
    definition = (
        "R@K: whether any of the query's targets is among the first K of the query's own candidates; nothing is "
        "deleted from them (own data, in the style of GeneCIS: Vaze et al., CVPR 2023, arXiv:2306.07969)"
    )
    differs = "only the query's own candidates compete"
    metrics: ClassVar[tuple[str, ...]] = tuple(f"R@{k}" for k in CANDIDATE_CUTS)
    headline = "R@1"
    aspect_metric = "R@1"
    competes = "candidates"

    def _values(
        self, queries: Sequence[Query], ranks: Int64[np.ndarray, "q m"], within: Int64[np.ndarray, "q n"]
    ) -> dict[str, Float64[np.ndarray, " q"]]:
        return {f"R@{k}": any_at(ranks, k) for k in CANDIDATE_CUTS}
