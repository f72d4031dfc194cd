"""Object masks as COCO's annotation files store them: polygons, or runs of a crowd; masks equal to COCO's own tools.

Both forms mark pixels column by column, as a list of places where the mask begins and ends. Polygons are traced on a
grid of a fifth of a pixel and a pixel belongs to one if its centre does (the masks of Lin et al., ECCV 2014,
arXiv:1405.0312, as released), so cut-outs are those of pycocotools, which is not needed.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int64

from cir.data.annotations import Row
from cir.errors import InputError

FINE = 5
"""Steps of the tracing grid in a pixel."""
CENTRE = FINE // 2
"""The step before a pixel's centre."""


def mask(annotation: Row, height: int, width: int) -> Bool[np.ndarray, "height width"]:
    """Draw the `segmentation` of one annotation: the union of its polygons, or its runs."""
    if isinstance(annotation.data.get("segmentation"), dict):
        runs = annotation.inner("segmentation")
        counts = runs.data.get("counts")
        lengths = unpacked(counts) if isinstance(counts, str) else list(runs.many("counts", int))
        return of_runs(lengths, height, width, runs.where)
    polygons = annotation.get("segmentation", list)
    if not polygons:
        raise InputError(f"{annotation.where}: segmentation is empty; expected polygons or runs")
    drawn = [of_polygon(_corners(polygon, annotation.where), height, width) for polygon in polygons]
    return np.any(drawn, axis=0)


def of_runs(lengths: Sequence[int], height: int, width: int, where: str = "runs") -> Bool[np.ndarray, "height width"]:
    """Fill alternating runs, the first one outside the mask, down the columns from the left.

    >>> of_runs([1, 2, 3], 2, 3).astype(int)
    array([[0, 1, 0],
           [1, 0, 0]])
    """
    if min(lengths, default=0) < 0 or sum(lengths) != height * width:
        raise InputError(f"{where}: runs add up to {sum(lengths):,}; expected {height} x {width} pixels")
    inside = np.arange(len(lengths)) % 2 == 1
    return np.repeat(inside, lengths).reshape(width, height).T


def unpacked(text: str) -> list[int]:
    """Read runs out of COCO's compressed text: five bits a letter, from the fourth run on the change over two runs.

    >>> unpacked("52203")
    [5, 2, 2, 2, 5]
    """
    runs: list[int] = []
    value = shift = 0
    for letter in text:
        bits = ord(letter) - 48
        value |= (bits & 0x1F) << shift
        shift += 5
        if bits & 0x20:  # more letters follow
            continue
        if bits & 0x10:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    return runs


def of_polygon(corners: Float64[np.ndarray, "n 2"], height: int, width: int) -> Bool[np.ndarray, "height width"]:
    """Fill a polygon of corners (x, y) in pixels: the pixels whose centres an odd number of edges lie above."""
    x, y = _outline(corners)
    before = np.minimum(x[1:], x[:-1])
    rows = np.clip((np.minimum(y[1:], y[:-1]) + 0.5) / FINE - 0.5, 0, height)
    columns, rest = np.divmod(before - CENTRE, FINE)
    # The outline turns a column on or off where it steps over the line of that column's centres.
    crossed = (x[1:] != x[:-1]) & (rest == 0) & (columns >= 0) & (columns < width)
    places = columns[crossed] * height + np.ceil(rows[crossed]).astype(np.int64)
    turned = np.bincount(places, minlength=height * width + 1)[: height * width]
    return (np.cumsum(turned) % 2 == 1).reshape(width, height).T


def _outline(corners: Float64[np.ndarray, "n 2"]) -> tuple[Int64[np.ndarray, " p"], Int64[np.ndarray, " p"]]:
    """Walk around a polygon in steps of the fine grid: one step at a time along the longer axis of every edge."""
    grid = (FINE * corners + 0.5).astype(np.int64)
    walked = [_edge(start, end) for start, end in zip(grid, np.roll(grid, -1, axis=0), strict=True)]
    x, y = np.concatenate(walked, axis=1)
    return x, y


def _edge(start: Int64[np.ndarray, "2"], end: Int64[np.ndarray, "2"]) -> Int64[np.ndarray, "2 p"]:
    """Walk from one corner to the next, ends included; both directions visit the same places."""
    long = 0 if abs(end[0] - start[0]) >= abs(end[1] - start[1]) else 1
    low, high = (start, end) if start[long] <= end[long] else (end, start)
    length = int(high[long] - low[long])
    steps = np.arange(length + 1)
    walk = np.empty((2, length + 1), dtype=np.int64)
    walk[long] = low[long] + steps
    slope = float(high[1 - long] - low[1 - long]) / length if length else 0.0
    walk[1 - long] = np.trunc(low[1 - long] + slope * steps + 0.5)
    return walk if low is start else walk[:, ::-1]


def _corners(polygon: Any, where: str) -> Float64[np.ndarray, "n 2"]:
    """Read x1, y1, x2, y2, ... of three corners or more."""
    try:
        numbers = np.array(polygon, dtype=np.float64)
    except (TypeError, ValueError):
        numbers = np.empty(0)
    if numbers.ndim != 1 or len(numbers) < 6 or len(numbers) % 2 or not np.isfinite(numbers).all():
        raise InputError(f"{where}: a polygon is {str(polygon)[:60]}; expected x, y of three corners or more")
    return numbers.reshape(-1, 2)
