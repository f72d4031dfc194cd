"""Blocks of bounded size, and the scores of one."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Float32, Int64

from cir.schema import Embeddings
from cir.search.scores import exact_pairs, on_grid, products, tolerance

QUERY_BLOCK, GALLERY_BLOCK = 512, 1024
"""Rows and columns of one block of scores: 2 MiB in float32."""
DENSE = 1 / 24
"""Share of undecided pairs from which the float64 product of a whole block costs less than pair by pair."""


class Block:
    """Scores of a few queries and a few images: fast ones within `slack` of the truth, exact ones on demand."""

    def __init__(
        self,
        queries: Float[np.ndarray, "q tq d"],
        gallery: Float[np.ndarray, "g tg d"],
        banned: tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]],
        fusion: str,
    ) -> None:
        self.fusion = fusion
        self.queries, self.banned = queries.astype(np.float32, copy=False), banned
        self.gallery = gallery.astype(np.float32, copy=False)
        factors = queries.shape[1] if fusion == "product" else 1  # |ab - a'b'| <= |a - a'||b| + |b - b'||a'|
        self.slack = np.float32(1.01 * factors * tolerance(queries.shape[-1]))
        self.fast = products(self.queries, self.gallery, fusion)
        self.fast[banned] = -np.inf
        self._exact: Float32[np.ndarray, "q g"] | None = None

    def exact(self, rows: Int64[np.ndarray, " n"], columns: Int64[np.ndarray, " n"]) -> Float32[np.ndarray, " n"]:
        """Score pairs exactly; many at once by the product of the whole block."""
        if self._exact is None and len(rows) <= DENSE * self.fast.size:
            return exact_pairs(self.queries, rows, self.gallery, columns, self.fusion)
        if self._exact is None:
            self._exact = products(on_grid(self.queries), on_grid(self.gallery), self.fusion).astype(np.float32)
        return self._exact[rows, columns]


def blocks(queries: Embeddings, gallery: Embeddings, least: int = 1) -> Iterator[tuple[slice, slice]]:
    """Cut queries and gallery into blocks of bounded size, `least` columns or more, gallery outermost and in order."""
    left, right = (side.vectors.shape[1] or 1 for side in (queries, gallery))
    width = max(1, min(max(least, GALLERY_BLOCK // right), len(gallery.ids)))
    height = max(1, min(QUERY_BLOCK, QUERY_BLOCK * GALLERY_BLOCK // (width * left * right)))
    for columns in _steps(len(gallery.ids), width):
        for rows in _steps(len(queries.ids), height):
            yield rows, columns


def strips(queries: Embeddings, gallery: Embeddings, scores: int) -> Iterator[tuple[slice, list[slice]]]:
    """Cut queries into strips that have `scores` scores with the whole gallery, or one query; with the blocks of each.

    A strip is not so high that several vectors per item make one of its blocks larger than others.
    """
    left, right = (side.vectors.shape[1] or 1 for side in (queries, gallery))
    width = max(1, GALLERY_BLOCK // right)
    height = max(1, min(QUERY_BLOCK // left, scores // max(1, len(gallery.ids))))
    for rows in _steps(len(queries.ids), height):
        yield rows, list(_steps(len(gallery.ids), width))


def _steps(length: int, step: int) -> Iterator[slice]:
    """Cut a length into pieces."""
    for start in range(0, length, step):
        yield slice(start, min(start + step, length))
