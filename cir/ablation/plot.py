"""An ablation's plot: every cell's mean, its seeds and its interval, one panel per column.

Colours are those of Okabe and Ito (2008), made to be told apart with colour vision deficiencies;
markers differ too.
"""

import io
import textwrap
from collections.abc import Sequence
from typing import Any

from cir.ablation import scale
from cir.ablation.answer import Answer
from cir.ablation.plan import Cell
from cir.errors import InputError

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
MARKERS = ("o", "s", "^", "D", "v", "P")
BASELINE = "#000000"
PER_ROW = 3
LABEL = 34
"""Characters of a cell's name on one line."""
BELOW = 0.27
"""How far below the mean a row's seeds lie."""
LEVEL = {"ha": "center", "va": "center", "color": "#777777"}
STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "axes.axisbelow": True,
    "svg.hashsalt": "cir",  # equal numbers give equal files
    "svg.fonttype": "none",
}


def draw(answer: Answer, cells: Sequence[Cell]) -> dict[str, bytes]:
    """Draw the plot as files `plot.svg` and `plot.png`; raises `InputError` where matplotlib is not installed."""
    try:
        from matplotlib import rc_context
    except ImportError:
        raise InputError("plot: matplotlib is not installed; run `pip install 'cir[plots]'`") from None
    with rc_context(STYLE):
        picture = figure(answer, cells)
        return {"plot.svg": _saved(picture, "svg", {"Date": None}), "plot.png": _saved(picture, "png", {})}


def figure(answer: Answer, cells: Sequence[Cell]) -> Any:
    """Build the figure (`matplotlib.figure.Figure`): lines over a number that varies, otherwise one row per cell."""
    line = scale.line(cells)
    drawn, axes = _panels(answer, _height(answer, line), share=line is None)
    for axis, column in zip(axes, answer.columns, strict=True):
        axis.set_title(column, fontsize=9, fontweight="bold")
        if line is None:
            _dots(axis, answer, column)
        else:
            _lines(axis, answer, column, line)
    handles, labels = _legend(answer, line)
    drawn.legend(handles, labels, loc="outside lower center", ncols=min(3, len(labels)), frameon=False, fontsize=8)
    width = int(drawn.get_figwidth() * 13)
    drawn.suptitle(textwrap.fill(answer.ablation.question, width), fontsize=11)
    return drawn


def _panels(answer: Answer, height: float, share: bool) -> tuple[Any, list[Any]]:
    """Make one panel per column, at most three in a row; only the first of a row names the cells."""
    from matplotlib.figure import Figure

    count = len(answer.columns)
    down = -(-count // PER_ROW)
    across = -(-count // down)
    label = 0.075 * min(LABEL, max(map(len, answer.cells))) if share else 0.6
    drawn = Figure(figsize=(max(4.5, label + 2.9 * across), 1.1 + height * down), layout="constrained", dpi=150)
    grid = drawn.subplots(down, across, squeeze=False, sharey="all" if share else False)
    for axis in grid.flat[count:]:
        axis.remove()
    return drawn, list(grid.flat[:count])


def _height(answer: Answer, line: scale.Line | None) -> float:
    """Choose a panel's height in inches."""
    if line is not None:
        return 2.9
    return 0.75 + sum(0.2 + 0.15 * len(_label(name).split("\n")) for name in answer.cells)


def _label(name: str) -> str:
    """Break a cell's name into lines, between settings where it has several."""
    return textwrap.fill(name, LABEL, break_long_words=True)


def _dots(axis: Any, answer: Answer, column: str) -> None:
    """Draw one row per cell: seeds as small dots, the mean with the interval as whiskers."""
    rows = {name: row for row, name in enumerate(answer.cells)}
    axis.set_yticks(list(rows.values()), [_label(name) for name in rows])
    axis.set_ylim(len(rows) - 0.4, -0.6)
    base = answer.summaries[answer.baseline, column]
    if base.mean is not None:
        axis.axvline(base.mean, color=BASELINE, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
    for name, row in rows.items():
        summary = answer.summaries[name, column]
        if summary.mean is None:
            axis.text(0.5, row, "no number", transform=axis.get_yaxis_transform(), **LEVEL)
            continue
        colour = BASELINE if name == answer.baseline else COLOURS[0]
        axis.plot([summary.low, summary.high], [row, row], color=colour, linewidth=1.6, zorder=2)
        below = [row + BELOW] * len(summary.seeds)
        axis.scatter(list(summary.seeds.values()), below, s=10, color=COLOURS[1], linewidth=0, alpha=0.8, zorder=4)
        marker = "D" if name == answer.baseline else "o"
        _mean(axis, summary.mean, float(row), colour, _filled(answer, name, column), marker)
    axis.grid(False, axis="y")
    axis.set_xlabel("percent")


def _lines(axis: Any, answer: Answer, column: str, line: scale.Line) -> None:
    """Draw the means over the number that varies, one line per setting of the others, side by side."""
    kind, place = scale.places(line.values)
    apart = 0.025 * (max(place.values()) - min(place.values()))
    for index, points in enumerate(line.series.values()):
        colour, shift = COLOURS[index], apart * (index - (len(line.series) - 1) / 2)
        at = {name: place[value] + shift for value, name in points}
        shown = {name: found for name in at if (found := answer.summaries[name, column]).mean is not None}
        axis.plot([at[name] for name in shown], [found.mean for found in shown.values()], color=colour, linewidth=1.2)
        for name in at:
            mine = BASELINE if name == answer.baseline else colour
            if name not in shown:
                axis.plot([at[name]], [0.03], "x", color=mine, markersize=5, transform=axis.get_xaxis_transform())
                continue
            found, x = shown[name], at[name]
            beside = [x + apart / 2] * len(found.seeds)
            axis.plot([x, x], [found.low, found.high], color=mine, linewidth=1.6)
            axis.scatter(beside, list(found.seeds.values()), s=8, color=mine, linewidth=0, alpha=0.8, zorder=4)
            _mean(axis, x, found.mean, mine, _filled(answer, name, column), MARKERS[index])
    axis.set_xticks(list(place.values()), [f"{value:g}" for value in place], rotation=45 if len(place) > 6 else 0)
    axis.set_xlim(min(place.values()) - 3 * apart, max(place.values()) + 3 * apart)
    axis.set_xlabel(line.key + {"linear": "", "log": " (log scale)", "even": " (evenly spaced)"}[kind])
    axis.set_ylabel("percent")
    if all(answer.summaries[name, column].mean is None for name in answer.cells):
        axis.set_yticks([])


def _filled(answer: Answer, name: str, column: str) -> bool:
    """Whether a mean's marker is filled: the baseline's, and those that differ from it."""
    return name == answer.baseline or ((name, column) in answer.contrasts and answer.contrasts[name, column].differs)


def _mean(axis: Any, x: float | None, y: float | None, colour: str, filled: bool, marker: str) -> None:
    axis.scatter([x], [y], s=34, marker=marker, facecolor=colour if filled else "white", edgecolor=colour, zorder=3)


def _legend(answer: Answer, line: scale.Line | None) -> tuple[list[Any], list[str]]:
    """Explain the marks, and the lines where there are several."""
    from matplotlib.lines import Line2D

    def mark(colour: str, marker: str, size: int, fill: bool, rule: Any = "none") -> Any:
        face = colour if fill else "white"
        return Line2D([], [], color=colour, marker=marker, markersize=size, markerfacecolor=face, linestyle=rule)

    shown = {
        f"baseline: {answer.baseline}": mark(BASELINE, "o" if line else "D", 6, True),
        "differs from it (Holm, p ≤ 0.05)": mark(COLOURS[0], "o", 6, True),
        "not shown to differ": mark(COLOURS[0], "o", 6, False),
        "95 % interval over queries": mark(COLOURS[0], "", 0, True, "-"),
        "one seed": mark(COLOURS[0] if line else COLOURS[1], ".", 5, True),
    }
    if line is not None and any(summary.mean is None for summary in answer.summaries.values()):
        shown["no number"] = mark(COLOURS[0], "x", 5, True)
    if line is not None and len(line.series) > 1:
        for index, rest in enumerate(line.series):
            shown[rest] = mark(COLOURS[index], MARKERS[index], 6, True, "-")
    return list(shown.values()), list(shown)


def _saved(picture: Any, kind: str, metadata: dict[str, Any]) -> bytes:
    out = io.BytesIO()
    picture.savefig(out, format=kind, metadata=metadata)
    return out.getvalue()
