"""CIRR: recall in the split without the reference, recall in the subset of six, and the mean of two of them.

Four protocols go by one name in papers' tables: hard or graded labels, the split file or the image folder as gallery.
"""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from jaxtyping import Float64, Int64

from cir.metrics import graded_at, recall_at
from cir.protocols.base import Protocol
from cir.schema import Query

CUTS, SUBSET_CUTS = (1, 5, 10, 50), (1, 2, 3)


class CIRR(Protocol):
    """Hard labels: `target_hard` is the target; graded labels are another protocol."""

    id = "cirr"
    version = 1
    definition = (
        "R@K of the hard target among all images of the split file, and Rs@K among the query's group, the reference "
        "deleted from both; Avg = (R@5 + Rs@1) / 2 (Liu et al., ICCV 2021, arXiv:2108.04024, section 5)"
    )
    differs = "the papers' and the server's: one hard target, the images of the split file, the reference deleted"
    metrics: ClassVar[tuple[str, ...]] = (*(f"R@{k}" for k in CUTS), *(f"Rs@{k}" for k in SUBSET_CUTS), "Avg")
    headline = "Avg"
    aspect_metric = "R@1"
    competes = "both"

    def excluded(self, query: Query) -> tuple[str, ...]:
        """Delete the reference."""
        return (query.reference,)

    def _values(
        self, queries: Sequence[Query], ranks: Int64[np.ndarray, "q m"], within: Int64[np.ndarray, "q n"]
    ) -> dict[str, Float64[np.ndarray, " q"]]:
        values = {f"R@{k}": self._recall(queries, ranks, k) for k in CUTS}
        values |= {f"Rs@{k}": self._subset_recall(queries, within, k) for k in SUBSET_CUTS}
        values["Avg"] = (values["R@5"] + values["Rs@1"]) / 2  # per query, so that it has an interval of its own
        return values

    def _recall(self, queries: Sequence[Query], ranks: Int64[np.ndarray, "q m"], k: int) -> Float64[np.ndarray, " q"]:
        """Compute R@K from the ranks of what is `relevant`."""
        return recall_at(ranks, k)

    def _subset_recall(
        self, queries: Sequence[Query], within: Int64[np.ndarray, "q n"], k: int
    ) -> Float64[np.ndarray, " q"]:
        """Compute Rs@K from the ranks of what is `relevant_within`."""
        return recall_at(within, k)


class CIRRFolder(CIRR):
    """The gallery of the image folder: 8,102 images instead of 2,297 for val, the labels as ever."""

    id = "cirr/folder"
    version = 1
    definition = (
        "R@K of the hard target among all images of the folder that the split's images lie in (val: NLVR2's dev, "
        "8,102), and Rs@K among the query's group, the reference deleted from both (gallery as in the released "
        "evaluation of CoVR, Ventura et al., AAAI 2024, arXiv:2308.14746)"
    )
    differs = "every image of the folder competes, not only those of the split file"


class _Graded(CIRR):
    """Graded labels for Rs@K: what is found earns the highest weight among the labels, -1 never counts."""

    def relevant_within(self, query: Query) -> tuple[str, ...]:
        """Name the hard target, and the group's members that a graded label makes worth something."""
        members = set(query.candidates)
        return tuple(name for name in _labels(query) if name in members)

    def _subset_recall(
        self, queries: Sequence[Query], within: Int64[np.ndarray, "q n"], k: int
    ) -> Float64[np.ndarray, " q"]:
        """Give the highest weight among the first K of the group."""
        return graded_at(within, _weights(queries, [self.relevant_within(query) for query in queries], within), k)


class CIRRSoft(_Graded):
    """Graded labels throughout, as the dataset's authors score val."""

    id = "cirr/soft"
    version = 1
    definition = (
        "R@K and Rs@K by graded labels (target_soft: 1, 0.5, 0.2): the highest weight among the labels found, -1 never "
        "counts, a hard target that the graded labels leave out earns nothing; split gallery, reference deleted (Liu "
        "et al., ICCV 2021, arXiv:2108.04024, as in the released evaluation of CIRPLANT)"
    )
    differs = "graded labels (target_soft) for R@K and Rs@K: other images may earn part, the hard target may earn none"

    def relevant(self, query: Query) -> tuple[str, ...]:
        """Name the hard target, and the images that a graded label makes worth something."""
        return _labels(query)

    def _recall(self, queries: Sequence[Query], ranks: Int64[np.ndarray, "q m"], k: int) -> Float64[np.ndarray, " q"]:
        """Give the highest weight among the first K of the gallery."""
        return graded_at(ranks, _weights(queries, [self.relevant(query) for query in queries], ranks), k)


class CIRRCoVR(_Graded):
    """CoVR's validation: the folder's gallery, hard labels for R@K, graded ones for Rs@K."""

    id = "cirr/covr"
    version = 1
    definition = (
        "R@K of the hard target among all images of the folder (val: 8,102), Rs@K by graded labels among the query's "
        "group, the reference deleted from both (the released evaluation of CoVR, Ventura et al., AAAI 2024, "
        "arXiv:2308.14746)"
    )
    differs = "every image of the folder competes, and Rs@K goes by graded labels, R@K by the hard one"


def _labels(query: Query) -> tuple[str, ...]:
    """List what may earn something, the target first (it has a rank of its own even where it earns nothing).

    The reference is deleted from the ranking, so a label that names it (37 of val's queries have one) is never found.
    """
    worth = (name for name, weight in query.soft if weight > 0 and name != query.reference)
    return tuple(dict.fromkeys((*query.targets, *worth)))


def _weights(
    queries: Sequence[Query], columns: Sequence[Sequence[str]], ranks: Int64[np.ndarray, "q m"]
) -> Float64[np.ndarray, "q m"]:
    """Lay the graded labels out like the ranks; what the labels do not name is worth nothing."""
    table = np.zeros(ranks.shape)
    for row, (query, names) in enumerate(zip(queries, columns, strict=True)):
        weights = dict(query.soft)
        table[row, : len(names)] = [weights.get(name, 0.0) for name in names]
    return table
