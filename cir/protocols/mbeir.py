"""M-BEIR's CIRR and FashionIQ: other queries, other labels and other galleries than the papers of those names have."""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from jaxtyping import Float64, Int64

from cir.metrics import any_at, ndcg_at
from cir.protocols.base import Protocol
from cir.schema import Query

CUTS = (1, 5, 10, 20, 50)


class MBEIRLocal(Protocol):
    """The pool of one task. UniIR prints R@5 of CIRR and R@10 of FashionIQ, MTEB nDCG@10 of both."""

    id = "mbeir/local"
    version = 1
    definition = (
        "M-BEIR's, not the CIRR or FashionIQ papers': R@K (UniIR's: any positive among the first K) and nDCG@10 "
        "(MTEB's) in the task's pool of the images of all splits and categories, reference kept, text without "
        "instruction (Wei et al., ECCV 2024, arXiv:2311.17136)"
    )
    differs = "the task's own pool of pictures; texts without instruction"
    metrics: ClassVar[tuple[str, ...]] = (*(f"R@{k}" for k in CUTS), "nDCG@10")
    headline = "nDCG@10"
    aspect_metric = "R@10"

    def _values(
        self, queries: Sequence[Query], ranks: Int64[np.ndarray, "q m"], within: Int64[np.ndarray, "q n"]
    ) -> dict[str, Float64[np.ndarray, " q"]]:
        return {f"R@{k}": any_at(ranks, k) for k in CUTS} | {"nDCG@10": ndcg_at(ranks, 10)}


class MBEIRLocalInstructed(MBEIRLocal):
    """The pool of one task, with M-BEIR's own instruction before each text, as UniIR is trained and measured."""

    id = "mbeir/local-instructed"
    version = 1
    definition = (
        "M-BEIR's, not the CIRR or FashionIQ papers': R@K (UniIR's: any positive among the first K) and nDCG@10 "
        "(MTEB's) in the task's pool of the images of all splits and categories, reference kept, the first of "
        "M-BEIR's instructions before each text (Wei et al., ECCV 2024, arXiv:2311.17136)"
    )
    differs = "the first of M-BEIR's instructions stands before each text"


class MBEIRGlobal(MBEIRLocal):
    """The union pool: texts and pictures with texts compete, too."""

    id = "mbeir/global"
    version = 1
    definition = (
        "M-BEIR's, not the CIRR or FashionIQ papers': R@K (any positive among the first K) and nDCG@10 in M-BEIR's "
        "union pool of 5.6 million candidates of all tasks: images, texts, and images with text; reference kept (Wei "
        "et al., ECCV 2024, arXiv:2311.17136)"
    )
    differs = "the candidates of all of M-BEIR's tasks compete, texts and pictures with texts among them"


class MBEIRGlobalImages(MBEIRLocal):
    """The pictures of the union pool: what an image tower alone can search. Nobody's published number."""

    id = "mbeir/global-images"
    version = 1
    definition = (
        "Not M-BEIR's global number, nor the CIRR or FashionIQ papers': R@K (any positive among the first K) and "
        "nDCG@10 among those candidates of M-BEIR's union pool that are images and nothing else, reference kept, text "
        "without instruction (candidates of Wei et al., ECCV 2024, arXiv:2311.17136)"
    )
    differs = "only the pictures of M-BEIR's union pool compete, no texts and no pictures with texts"
