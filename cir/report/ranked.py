"""Ranked images of a few queries as one picture: reference, text, the first ranks with hits framed."""

import textwrap
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from cir.errors import InputError
from cir.report.pictures import Part, opened
from cir.schema import Benchmark, Query, Ranking, TargetRanks

HIT, MISS, INK = (22, 140, 60), (205, 205, 205), (30, 30, 30)
GAP, FRAME, LETTERS = 6, 4, 13
"""Pixels: between pictures, of a frame, of a letter's height."""
LINES = 5
"""Of a text that are shown at most."""


def spread(count: int, most: int) -> list[int]:
    """Choose at most `most` of `count` rows, evenly, the first and the last among them; always the same ones.

    >>> spread(100, 4), spread(2, 4)
    ([0, 33, 66, 99], [0, 1])
    """
    return [int(row) for row in np.unique(np.linspace(0, count - 1, min(most, count)).astype(int))]


def draw(
    benchmark: Benchmark,
    ranking: Ranking,
    rows: Sequence[int] = (),
    ranks: TargetRanks | None = None,
    *,
    top: int = 5,
    side: int = 96,
    part: Part | None = None,
) -> Image.Image:
    """Draw a line per query: reference, text, and its first `top` images, targets in a green frame.

    `rows` are positions among the queries (none: six, evenly spaced); with `ranks`, the line says the best rank of a
    target. `side` is that of a picture in pixels; `part` cuts views out of their pictures (none: whole pictures).
    Image files that are absent leave an empty frame.

    Raises `InputError` for a row that is not there and for a ranking of other queries.
    """
    _check(benchmark, ranking, rows, ranks)
    rows = list(rows) or spread(len(benchmark.queries), 6)
    step = side + 2 * FRAME + GAP
    page = Image.new("RGB", (GAP + step * (top + 3), GAP + step * len(rows)), "white")
    pen = ImageDraw.Draw(page)
    for line, row in enumerate(rows):
        query, y = benchmark.queries[row], GAP + line * step
        shown = ranking.row(row)[:top]
        for column, name in zip((0, *range(3, 3 + len(shown))), (query.reference, *shown), strict=True):
            colour = MISS if not column or name not in query.targets else HIT
            x = GAP + column * step
            pen.rectangle((x, y, x + side + 2 * FRAME - 1, y + side + 2 * FRAME - 1), outline=colour, width=FRAME)
            _paste(page, opened(benchmark, name, side, part), x + FRAME, y + FRAME, side)
        words = _words(query, best_rank(ranks, row), 2 * step - GAP)
        pen.multiline_text((GAP + step, y), words, fill=INK, font_size=LETTERS, spacing=2)
    return page


def best_rank(ranks: TargetRanks | None, row: int) -> int:
    """Return the best rank among a query's targets, 0 where labels are hidden."""
    if ranks is None:
        return 0
    filled = ranks.ranks[row][ranks.ranks[row] > 0]
    return int(filled.min()) if filled.size else 0


def _words(query: Query, rank: int, width: int) -> str:
    """Write a query's texts in a column of `width` pixels, and where its target ended up."""
    letters = max(8, int(width / (0.55 * LETTERS)))
    text = textwrap.wrap("; ".join(query.texts), letters, max_lines=LINES, placeholder=" …")
    return "\n".join([*text, *([f"target at rank {rank:,}"] if rank else [])])


def _paste(page: Image.Image, picture: Image.Image | None, x: int, y: int, side: int) -> None:
    """Put a picture in the middle of its square, pictures smaller than the square enlarged."""
    if picture is None:
        return
    scale = side / max(picture.size)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    picture = picture if picture.size == size else picture.resize(size)
    page.paste(picture, (x + (side - size[0]) // 2, y + (side - size[1]) // 2))


def _check(benchmark: Benchmark, ranking: Ranking, rows: Sequence[int], ranks: TargetRanks | None) -> None:
    ids = tuple(query.id for query in benchmark.queries)
    if tuple(ranking.query_ids) != ids or (ranks is not None and tuple(ranks.query_ids) != ids):
        raise InputError(f"ranked images: expected the queries of {benchmark.name}, got a ranking or ranks of others")
    wrong = [row for row in rows if not 0 <= row < len(ids)]
    if wrong:
        raise InputError(f"ranked images: row {wrong[0]} of {len(ids)} queries; rows count from 0")
