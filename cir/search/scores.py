"""The score of a pair: exact, or fast within a certified error."""

import numpy as np
from jaxtyping import Float, Float32, Float64, Int64

_TO_GRID = 1.5 * 2.0**26  # adding and subtracting it rounds float64 to multiples of 2^-26
_PAIR_ELEMENTS = 2**17  # float64 numbers gathered at a time when pairs are scored one by one


def tolerance(width: int) -> float:
    """Bound how far a float32 product of unit vectors may lie from the score, whatever order it was summed in.

    Rounding of `width` products and sums (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1),
    of both vectors to the grid, of the score and of a threshold to float32; norms may be off by 1e-3.
    """
    return 1.01 * ((width + 8) * 2.0**-24 + width**0.5 * 2.0**-26)


def on_grid(vectors: Float[np.ndarray, "..."]) -> Float64[np.ndarray, "..."]:
    """Round components to multiples of 2^-26, in float64."""
    exact = vectors.astype(np.float64)
    exact += _TO_GRID
    exact -= _TO_GRID
    return exact


def products(
    queries: Float[np.ndarray, "q tq d"], gallery: Float[np.ndarray, "g tg d"], fusion: str
) -> Float[np.ndarray, "q g"]:
    """Multiply all with all, and make one score of the vectors of both sides."""
    (q, tq, d), (g, tg, _) = queries.shape, gallery.shape
    scores = queries.reshape(q * tq, d) @ gallery.reshape(g * tg, d).T
    return scores if tq == tg == 1 else _fuse(scores.reshape(q, tq, g, tg).max(axis=3), fusion)


def _fuse(scores: Float[np.ndarray, "n t ..."], fusion: str) -> Float[np.ndarray, "n ..."]:
    """Make one score of those of a query's vectors; factors are multiplied in their order."""
    return scores.max(axis=1) if fusion == "max" else np.multiply.reduce(scores, axis=1)


def exact_pairs(
    queries: Float[np.ndarray, "q tq d"],
    rows: Int64[np.ndarray, " n"],
    gallery: Float[np.ndarray, "g tg d"],
    columns: Int64[np.ndarray, " n"],
    fusion: str,
) -> Float32[np.ndarray, " n"]:
    """Score listed pairs exactly, a few at a time."""
    scores = np.empty(len(rows), dtype=np.float32)
    step = max(1, _PAIR_ELEMENTS // (queries[:1].size + gallery[:1].size or 1))
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        left, right = on_grid(queries[rows[part]]), on_grid(gallery[columns[part]])
        scores[part] = _fuse(np.einsum("ntd,nud->ntu", left, right).max(axis=2), fusion)
    return scores


def exact_table(
    queries: Float[np.ndarray, "q tq d"],
    gallery: Float[np.ndarray, "g tg d"],
    columns: Int64[np.ndarray, "q c"],
    fusion: str,
) -> Float32[np.ndarray, "q c"]:
    """Score a few listed images per query exactly; what is unused (-1) gets -inf."""
    scores = np.full(columns.shape, -np.inf, dtype=np.float32)
    rows, slots = np.nonzero(columns >= 0)
    scores[rows, slots] = exact_pairs(queries, rows, gallery, columns[rows, slots], fusion)
    return scores
