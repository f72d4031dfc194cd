"""Domain conversion on ImageNet-R: two quantities that are both called recall, under a name each."""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from jaxtyping import Float64, Int64

from cir.metrics import any_at, precision_at, share_at
from cir.protocols.base import Protocol
from cir.schema import Query

CUTS = (1, 5, 10, 50, 100, 200)


class ImageNetRShare(Protocol):
    """The share of all right images that stand among the first K; a class with many of them cannot reach 1."""

    id = "imagenet_r/share"
    version = 1
    definition = (
        "R@K: right images (the query's class in the domain asked for) among the first K over all right images + 1e-5, "
        "0 where there is none; P@K: the same over K; 16,983 images, query photographs included, unweighted mean over "
        "domains (Saito et al., CVPR 2023, arXiv:2302.03084; the authors' get_metrics_imgnet)"
    )
    differs = "counts the share of all right images found"
    metrics: ClassVar[tuple[str, ...]] = (*(f"R@{k}" for k in CUTS), *(f"P@{k}" for k in CUTS))
    headline = "R@10"
    aspect_metric = "R@10"

    def _values(
        self, queries: Sequence[Query], ranks: Int64[np.ndarray, "q m"], within: Int64[np.ndarray, "q n"]
    ) -> dict[str, Float64[np.ndarray, " q"]]:
        values = {f"R@{k}": share_at(ranks, k) for k in CUTS}
        return values | {f"P@{k}": precision_at(ranks, k, of="k") for k in CUTS}


class ImageNetRHit(Protocol):
    """Whether any right image stands among the first K; not comparable with the share."""

    id = "imagenet_r/hit"
    version = 1
    definition = (
        "Hit@K: 1 if any right image (the query's class in the domain asked for) is among the first K, 0 also where "
        "there is none; printed as R@K of DTIN (Zhang et al., ICML 2024, arXiv:2403.19651; the authors' "
        "evaluate_recall)"
    )
    differs = "asks whether any right image is found, not how many; several times as high"
    metrics: ClassVar[tuple[str, ...]] = ("Hit@10", "Hit@50")
    headline = "Hit@10"
    aspect_metric = "Hit@10"

    def _values(
        self, queries: Sequence[Query], ranks: Int64[np.ndarray, "q m"], within: Int64[np.ndarray, "q n"]
    ) -> dict[str, Float64[np.ndarray, " q"]]:
        return {f"Hit@{k}": any_at(ranks, k) for k in (10, 50)}
