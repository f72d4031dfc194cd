"""Masks of COCO's annotation files: by hand, and against COCO's rule written out as a plain loop."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cir.data.annotations import Row
from cir.data.segmentation import mask, of_polygon, of_runs, unpacked
from cir.errors import InputError


def drawn(corners, height, width):
    return of_polygon(np.array(corners, dtype=np.float64), height, width).astype(int).tolist()


def packed(runs):
    """Write runs as COCO's compressed text: the inverse, from its description."""
    text = ""
    for index, run in enumerate(runs):
        value = run - runs[index - 2] if index > 2 else run
        while True:
            bits, value = value & 31, value >> 5
            last = value == (-1 if bits & 16 else 0)
            text += chr(48 + bits + (0 if last else 32))
            if last:
                break
    return text


def by_loop(corners, height, width):
    """Walk along the outline on the fine grid point by point; count, per pixel, the crossings at or above it."""
    grid = [(int(5 * x + 0.5), int(5 * y + 0.5)) for x, y in corners]
    points = []
    for (x1, y1), (x2, y2) in zip(grid, [*grid[1:], grid[0]], strict=True):
        wide = abs(x2 - x1) >= abs(y2 - y1)
        length = max(abs(x2 - x1), abs(y2 - y1))
        # COCO measures from the end with the smaller coordinate, which decides where a half is rounded.
        (ax, ay), (bx, by) = sorted([(x1, y1), (x2, y2)], key=lambda p: p[0] if wide else p[1])
        for step in range(length + 1):
            if wide:
                x = x1 + step if x2 >= x1 else x1 - step
                points.append((x, int(ay + (by - ay) / (bx - ax) * (x - ax) + 0.5) if length else y1))
            else:
                y = y1 + step if y2 >= y1 else y1 - step
                points.append((int(ax + (bx - ax) / (by - ay) * (y - ay) + 0.5), y))
    table = np.zeros((height, width), dtype=bool)
    for (x1, y1), (x2, y2) in pairwise(points):
        if x1 != x2 and min(x1, x2) % 5 == 2 and 0 <= min(x1, x2) // 5 < width:
            for row in range(height):
                if 5 * row + 2 >= min(y1, y2):  # the pixel's centre lies at or below the crossing
                    table[row, min(x1, x2) // 5] ^= True
    return table


def test_a_square_covers_the_pixels_between_its_corners():
    expected = np.zeros((6, 7), dtype=int)
    expected[1:4, 2:5] = 1
    assert drawn([(2, 1), (5, 1), (5, 4), (2, 4)], 6, 7) == expected.tolist()
    assert drawn([(2, 4), (5, 4), (5, 1), (2, 1)], 6, 7) == expected.tolist()  # the other way round


def test_centres_decide():
    """A pixel belongs to the polygon from the edge at its centre on; half pixels more or less decide."""
    assert drawn([(0.6, 0), (2, 0), (2, 1), (0.6, 1)], 1, 3) == [[0, 1, 0]]
    assert drawn([(0.4, 0), (2, 0), (2, 1), (0.4, 1)], 1, 3) == [[1, 1, 0]]
    assert drawn([(0, 0.4), (1, 0.4), (1, 2.4), (0, 2.4)], 3, 1) == [[1], [1], [0]]


def test_a_hole_and_a_triangle():
    ring = [(0, 0), (5, 0), (5, 5), (0, 5), (0, 0), (1, 1), (1, 4), (4, 4), (4, 1), (1, 1)]
    expected = np.ones((5, 5), dtype=int)
    expected[1:4, 1:4] = 0
    assert drawn(ring, 5, 5) == expected.tolist()
    stairs = [[1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]  # a centre on the lower edge is outside
    assert drawn([(0, 0), (4, 0), (0, 4)], 4, 4) == stairs


def test_what_leaves_the_picture_is_cut():
    assert drawn([(-3, -3), (9, -3), (9, 9), (-3, 9)], 4, 5) == np.ones((4, 5), dtype=int).tolist()
    assert not np.any(drawn([(20, 1), (30, 1), (30, 3)], 4, 5))
    assert not np.any(drawn([(1, 1), (1, 1), (1, 1)], 4, 5))  # no area, no step


coordinate = st.floats(-3, 15, width=32).map(lambda x: round(x, 2))


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(coordinate, coordinate), min_size=3, max_size=8))
@example([(3.0, 5.75), (0.0, 1.38), (0.0, 0.0)])
def test_polygons_equal_the_rule_written_out(corners):
    inside = [(abs(x), abs(y)) for x, y in corners]  # annotations start at 0; below, truncation is another rule
    assert np.array_equal(of_polygon(np.array(inside), 10, 12), by_loop(inside, 10, 12))


@pytest.mark.parametrize("seed", range(5))
def test_polygons_are_what_geometry_says_away_from_their_edges(seed):
    """Even-odd on pixel centres, exactly; only pixels whose centre is within 0.3 of an edge may differ."""
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, 40, (7, 2))
    found = of_polygon(corners, 40, 40)
    ends = np.roll(corners, -1, axis=0)
    checked = 0
    for row in range(40):
        for column in range(40):
            point = np.array([column + 0.5, row + 0.5])
            along = ends - corners
            t = np.clip(((point - corners) * along).sum(1) / (along**2).sum(1), 0, 1)
            if np.linalg.norm(corners + t[:, None] * along - point, axis=1).min() <= 0.3:
                continue
            crossed = (corners[:, 1] > point[1]) != (ends[:, 1] > point[1])
            where = corners[:, 0] + (point[1] - corners[:, 1]) / np.where(crossed, along[:, 1], 1) * along[:, 0]
            assert found[row, column] == bool((crossed & (where > point[0])).sum() % 2)
            checked += 1
    assert checked > 1000


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=20))
def test_compressed_runs_come_back(runs):
    assert unpacked(packed(runs)) == runs


def test_runs_go_down_the_columns_and_begin_outside():
    table = np.array([[0, 1, 1], [1, 0, 1]])
    assert of_runs([1, 2, 1, 2], 2, 3).astype(int).tolist() == table.tolist()
    assert of_runs([0, 6], 2, 3).all() and not of_runs([6], 2, 3).any()
    crowd = Row({"segmentation": {"size": [2, 3], "counts": [1, 2, 1, 2]}}, "row")
    short = Row({"segmentation": {"size": [2, 3], "counts": packed([1, 2, 1, 2])}}, "row")
    assert mask(crowd, 2, 3).astype(int).tolist() == mask(short, 2, 3).astype(int).tolist() == table.tolist()


def test_several_polygons_are_a_union():
    both = Row({"segmentation": [[0, 0, 2, 0, 2, 2, 0, 2], [1, 1, 3, 1, 3, 3, 1, 3]]}, "row")
    assert mask(both, 3, 3).astype(int).tolist() == [[1, 1, 0], [1, 1, 1], [0, 1, 1]]


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([], "row: segmentation is empty"),
        ([[0, 0, 1, 1]], "row: a polygon is .*three corners or more"),
        ([[0, 0, 1, 1, 2, 2, 3]], "row: a polygon is"),
        ([[0, 0, 1, 1, 2, "x"]], "row: a polygon is"),
        ([5], "row: a polygon is 5"),
        ("abc", "row, segmentation: expected a list"),
        ({"counts": [1, 2]}, "row, segmentation: runs add up to 3; expected 2 x 3 pixels"),
        ({"counts": [-1, 7]}, "runs add up to 6"),
        ({"counts": "0"}, "runs add up to 0"),
        ({}, "key 'counts' is missing"),
    ],
)
def test_what_is_no_segmentation(segmentation, message):
    with pytest.raises(InputError, match=message):
        mask(Row({"segmentation": segmentation}, "row"), 2, 3)


def test_no_segmentation_at_all():
    with pytest.raises(InputError, match="key 'segmentation' is missing"):
        mask(Row({}, "row"), 2, 3)
