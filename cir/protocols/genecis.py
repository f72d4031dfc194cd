"""GeneCIS: recall in each query's own gallery of ten or fifteen images; the mean over tasks is unweighted."""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from jaxtyping import Float64, Int64

from cir.metrics import recall_at
from cir.protocols.base import Protocol
from cir.schema import Query


class GeneCIS(Protocol):
    """Only the target and its distractors compete; the reference is deleted from nothing, and rarely among them."""

    id = "genecis"
    version = 1
    definition = (
        "R@K of the target among itself and the query's 9 or 14 distractors, per task; over the tasks the unweighted "
        "mean, of which R@1 is the paper's figure (Vaze et al., CVPR 2023, arXiv:2306.07969)"
    )
    metrics: ClassVar[tuple[str, ...]] = ("R@1", "R@2", "R@3")
    headline = "R@1"
    aspect_metric = "R@1"
    differs = "object tasks with their annotated conditions"
    competes = "candidates"

    def _values(
        self, queries: Sequence[Query], ranks: Int64[np.ndarray, "q m"], within: Int64[np.ndarray, "q n"]
    ) -> dict[str, Float64[np.ndarray, " q"]]:
        return {f"R@{k}": recall_at(ranks, k) for k in (1, 2, 3)}


class GeneCISReleased(GeneCIS):
    """The same ranking of queries whose text is wrong: for comparison with numbers made that way, and nothing else."""

    id = "genecis/lincir-released"
    version = 1
    definition = (
        "as genecis, with a WRONG condition in the two object tasks: the text is the constant '0' in place of the "
        "object's name, as the released LinCIR code feeds it (github.com/navervision/lincir, branch eval_genecis, "
        "e6727d9: the last element of a COCO batch is the target's slot); only to compare with numbers of that code"
    )
    differs = "object tasks with the constant text '0' for a condition: WRONG, kept to compare with released numbers"
