"""Every cell is drawn, under its name, and no two texts lie on one another."""

import itertools

import pytest

pytest.importorskip("matplotlib")

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from cir.ablation import plot
from cir.ablation.answer import answer

COLUMNS = ["world/circo/val:mAP@5", "world/cirr/val:R@1", "world/circo/val:mAP@10", "world/fashioniq/val:R@10"]


def drawn(made, columns, **changes):
    ablation = made.ablation(columns, **changes)
    found = answer(ablation, made.cells, made.records)
    return found, plot.figure(found, made.cells)


def texts(figure):
    """All texts that can be seen, with where they lie."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    beyond = set()
    for axis in [one for panel in figure.axes for one in (panel.xaxis, panel.yaxis)]:
        low, high = sorted(axis.get_view_interval())
        pairs = zip(axis.get_ticklabels(), axis.get_ticklocs(), strict=False)  # a shared axis has no labels of its own
        beyond |= {label for label, place in pairs if not low <= place <= high}
    seen = [one for one in figure.findobj(Text) if one.get_visible() and one.get_text().strip() and one not in beyond]
    return [(one.get_text(), one.get_window_extent(renderer)) for one in seen]


def assert_apart(figure):
    whole = figure.bbox
    for one, box in texts(figure):
        assert box.x0 >= -1 and box.y0 >= -1 and box.x1 <= whole.x1 + 1 and box.y1 <= whole.y1 + 1, f"{one!r} is cut"
    for (one, a), (two, b) in itertools.combinations(texts(figure), 2):
        width, height = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
        assert min(width, height) <= 1, f"{one!r} lies on {two!r}"


def fill(made, names, columns, seeds=3, settings=None):
    for number, name in enumerate(names):
        values = [
            {c: [min(1.0, 0.1 * k + 0.03 * number + 0.01 * seed) for k in range(6)] for c in columns}
            for seed in range(seeds)
        ]
        made.add(name, dict(enumerate(values)), settings[number] if settings else None)
    return made


LONG = "method.noise=uniform_gaussian, train.batch=256, train.schedule=cosine, method.tau=0.07"


@pytest.mark.parametrize("columns", [COLUMNS[:1], COLUMNS[:2], COLUMNS])
def test_every_cell_has_a_row_under_its_name(made, columns):
    names = ["full", "no special prompt", LONG, "lincir"]
    found, figure = drawn(fill(made, names, columns), columns)
    assert len(figure.axes) == len(columns)
    for axis, column in zip(figure.axes, columns, strict=True):
        assert axis.get_title() == column
        if axis.get_subplotspec().is_first_col():
            assert [label.get_text().replace("\n", " ") for label in axis.get_yticklabels()] == names
        assert axis.get_ylim() == figure.axes[0].get_ylim()
        seeds = [collection.get_offsets() for collection in axis.collections if len(collection.get_offsets()) == 3]
        assert len(seeds) == len(names)
        for dots, name in zip(seeds, names, strict=True):
            assert dots[:, 0].tolist() == pytest.approx(list(found.summaries[name, column].seeds.values()))
    assert_apart(figure)


def test_a_cell_without_records_keeps_its_row(made):
    fill(made, ["full", "other"], COLUMNS[:1]).add("gone", {0: {}, 1: {}, 2: {}})
    _, figure = drawn(made, COLUMNS[:1])
    (axis,) = figure.axes
    assert [label.get_text() for label in axis.get_yticklabels()] == ["full", "other", "gone"]
    (told,) = [text for text in axis.texts if text.get_text() == "no number"]
    assert told.get_position()[1] == 2


def test_markers_are_filled_where_a_cell_differs(made):
    values = [0.1, 0.2, 0.3, 0.1, 0.2, 0.3, 0.4]
    for name, shift in (("full", 0), ("alike", 0), ("better", 0.4)):
        made.add(name, {0: {COLUMNS[0]: [value + shift for value in values]}})
    found, figure = drawn(made, COLUMNS[:1])
    means = [c for c in figure.axes[0].collections if c.get_sizes()[0] == 34]
    white = [tuple(c.get_facecolor()[0][:3]) == (1, 1, 1) for c in means]
    assert white == [False, True, False] and found.contrasts["better", COLUMNS[0]].differs


def numbered(made, values, batches=(64,)):
    settings = [{"method.tau": value, "train.batch": batch} for batch in batches for value in values]
    names = [f"{s['method.tau']}-{s['train.batch']}" for s in settings]
    return fill(made, names, COLUMNS[:2], settings=settings)


@pytest.mark.parametrize(
    ("values", "label"),
    [
        ([0.25, 0.5, 0.75, 1.0], "method.tau"),
        ([0.01, 0.1, 0.3, 1.0], "method.tau (log scale)"),
        ([0, 0.0001, 0.001, 0.01], "method.tau (evenly spaced)"),
    ],
)
def test_a_number_that_varies_becomes_an_axis(made, values, label):
    found, figure = drawn(numbered(made, values, (32, 64)), COLUMNS[:2])
    for axis, column in zip(figure.axes, COLUMNS, strict=False):
        assert [text.get_text() for text in axis.get_xticklabels()] == [f"{value:g}" for value in values]
        assert axis.get_xlabel() == label
        lines = [line for line in axis.lines if len(line.get_ydata()) == len(values)]
        expected = [[found.summaries[f"{v}-{batch}", column].mean for v in values] for batch in (32, 64)]
        assert [list(line.get_ydata()) for line in lines] == [pytest.approx(one) for one in expected]
        seeds = [c for c in axis.collections if len(c.get_offsets()) == 3]
        assert len(seeds) == len(made.points)
    told = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "train.batch=32" in told and "train.batch=64" in told
    assert_apart(figure)


def test_a_gap_in_a_line_is_marked(made):
    numbered(made, [0.25, 0.5, 0.75]).add("gone", {0: {}, 1: {}, 2: {}}, {"method.tau": 1.0, "train.batch": 64})
    _, figure = drawn(made, COLUMNS[:2])
    for axis in figure.axes:
        assert [text.get_text() for text in axis.get_xticklabels()] == ["0.25", "0.5", "0.75", "1"]
        assert [line.get_marker() for line in axis.lines].count("x") == 1
    assert "no number" in [text.get_text() for text in figure.legends[0].get_texts()]


def test_words_and_few_values_stay_rows(made):
    fill(made, ["a", "b"], COLUMNS[:1], settings=[{"method.tau": 1.0}, {"method.tau": 2.0}])
    _, figure = drawn(made, COLUMNS[:1])
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["a", "b"]


def test_a_cell_that_does_not_set_the_number_has_its_default(made):
    settings = [{}, {"train.batch": 32}, {"train.batch": 64}]
    fill(made, ["full", "32", "64"], COLUMNS[:1], settings=settings)
    _, figure = drawn(made, COLUMNS[:1])
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == ["32", "64", "128"]


def test_the_files_are_what_they_say(made):
    fill(made, ["full", "other"], COLUMNS[:1])
    found = answer(made.ablation(COLUMNS[:1]), made.cells, made.records)
    files = plot.draw(found, made.cells)
    assert files["plot.png"].startswith(b"\x89PNG") and b"other" in files["plot.svg"] and b"<svg" in files["plot.svg"]
