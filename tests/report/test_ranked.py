"""Ranked images as one picture: what lies where, and what is framed."""

import numpy as np
import pytest
from PIL import Image

from cir.errors import InputError
from cir.report import ranked
from cir.report.ranked import FRAME, GAP, HIT, MISS
from cir.schema import Benchmark, Query, Ranking, TargetRanks

COLOURS = {"a": (200, 0, 0), "b": (0, 200, 0), "c": (0, 0, 200), "d": (200, 200, 0)}
SIDE = 20
STEP = SIDE + 2 * FRAME + GAP


@pytest.fixture
def benchmark(tmp_path):
    """Two queries on four pictures of one colour each; the file of `d` is absent."""
    for name, colour in COLOURS.items():
        if name != "d":
            Image.new("RGB", (40, 40), colour).save(tmp_path / f"{name}.png")
    queries = (Query("0", "a", ("make it blue",), ("c", "d")), Query("1", "b", ("make it red",), ("a",)))
    paths = {name: f"{name}.png" for name in COLOURS}
    return Benchmark("toy/val", "1", "val", "circo", queries, tuple(COLOURS), tmp_path, paths)


@pytest.fixture
def ranking():
    order = np.array([[2, 1, 3], [1, 2, 0]], dtype=np.int64)
    scores = np.array([[0.9, 0.5, 0.1], [0.9, 0.5, 0.1]], dtype=np.float32)
    return Ranking(("0", "1"), tuple(COLOURS), order, scores)


def inside(page, line, column):
    """The colour in the middle of a picture, and that of its frame."""
    x, y = GAP + column * STEP, GAP + line * STEP
    return page.getpixel((x + FRAME + SIDE // 2, y + FRAME + SIDE // 2)), page.getpixel((x + 1, y + 1))


def test_a_line_is_reference_text_and_ranks_with_hits_framed(benchmark, ranking):
    page = ranked.draw(benchmark, ranking, [0, 1], top=3, side=SIDE)
    assert page.size == (GAP + 6 * STEP, GAP + 2 * STEP)
    cells = [[inside(page, line, column) for column in (0, 3, 4, 5)] for line in (0, 1)]
    white = (255, 255, 255)
    assert cells[0] == [(COLOURS["a"], MISS), (COLOURS["c"], HIT), (COLOURS["b"], MISS), (white, HIT)]
    assert cells[1] == [(COLOURS["b"], MISS), (COLOURS["b"], MISS), (COLOURS["c"], MISS), (COLOURS["a"], HIT)]


def test_the_text_is_written_and_says_the_rank(benchmark, ranking):
    def ink(ranks=None, rows=(0,)):
        page = np.asarray(ranked.draw(benchmark, ranking, rows, ranks, top=3, side=SIDE * 4))
        step = SIDE * 4 + 2 * FRAME + GAP
        return int((page[GAP : GAP + step, GAP + step : GAP + 3 * step] < 128).sum())

    ranks = TargetRanks(("0", "1"), np.array([[1, 3], [3, 0]]), np.array([False, False]))
    assert 0 < ink() < ink(ranks)


def test_rows_are_chosen_by_position_and_spread_evenly_without(benchmark, ranking):
    assert inside(ranked.draw(benchmark, ranking, [1], top=3, side=SIDE), 0, 0)[0] == COLOURS["b"]
    assert ranked.draw(benchmark, ranking, top=3, side=SIDE).size[1] == GAP + 2 * STEP
    assert ranked.spread(10, 3) == [0, 4, 9] and ranked.spread(2, 6) == [0, 1]


def test_small_pictures_are_enlarged(benchmark, ranking):
    page = ranked.draw(benchmark, ranking, [0], top=3, side=100)
    step = 100 + 2 * FRAME + GAP
    for corner in (2, 97):
        assert page.getpixel((GAP + FRAME + corner, GAP + FRAME + corner)) == COLOURS["a"]
    assert page.size[0] == GAP + 6 * step


def test_rankings_of_other_queries_and_absent_rows_are_refused(benchmark, ranking):
    other = Ranking(("0", "2"), ranking.gallery_ids, ranking.order, ranking.scores)
    with pytest.raises(InputError, match="expected the queries of toy/val"):
        ranked.draw(benchmark, other)
    with pytest.raises(InputError, match="row 2 of 2 queries"):
        ranked.draw(benchmark, ranking, [2])
