"""An ablation's tables, written once for Markdown and LaTeX: cells, differences from the baseline, main effects."""

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from cir.ablation.answer import ALPHA, Answer, Contrast, Factor, Summary
from cir.report.markup import escape_pipes, p_text, pipes, tex

DIFFERENCES = ("Cell", "Column", "Points", "Interval", "p (Holm)", "d_z", "In seed sd", "Seeds: points", "p (Holm)")
"""Columns of a table of differences."""
Group = TypeVar("Group", bound=Hashable)


@dataclass(frozen=True)
class Markup:
    """How one language writes a table and what stands in it."""

    text: Callable[[str], str]
    bold: Callable[[str], str]
    spread: Callable[[str], str]
    small: Callable[[str], str]
    signed: Callable[[str], str]
    up: str
    down: str
    empty: str
    table: Callable[[Sequence[str], Sequence[Sequence[str]], str], str]
    """Header, rows, and the alignment of the columns (`l` or `r` each)."""


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], align: str) -> str:
    """Render a pipe table."""
    rule = pipes("---:" if side == "r" else "---" for side in align)
    return "\n".join([pipes(header), rule, *(pipes(row) for row in rows)]) + "\n"


def latex_table(header: Sequence[str], rows: Sequence[Sequence[str]], align: str) -> str:
    r"""Render a `tabular` for booktabs."""
    lines = [" & ".join(row) + r" \\" for row in (header, *rows)]
    body = [rf"\begin{{tabular}}{{{align}}}", r"\toprule", lines[0], r"\midrule", *lines[1:]]
    return "\n".join([*body, r"\bottomrule", r"\end{tabular}"]) + "\n"


MARKDOWN = Markup(
    escape_pipes, lambda s: f"**{s}**", lambda s: f" ± {s}", lambda s: f" {s}", str, " ↑", " ↓", "", markdown_table
)
LATEX = Markup(
    tex,
    lambda s: rf"\textbf{{{s}}}",
    lambda s: rf" {{\scriptsize $\pm$ {s}}}",
    lambda s: rf" {{\scriptsize {s}}}",
    lambda s: f"${s}$",
    r" $\uparrow$",
    r" $\downarrow$",
    "--",
    latex_table,
)


def numbers(answer: Answer, markup: Markup) -> str:
    """Tabulate mean, deviation over seeds and interval over queries; the best is bold, arrows mark differences."""
    rows = [
        [_named(answer, name, markup), *(_number(answer, name, column, markup) for column in answer.columns)]
        for name in answer.cells
    ]
    header = ["Cell", *(markup.text(column) for column in answer.columns)]
    return markup.table(header, rows, "l" + "r" * len(answer.columns))


def differences(answer: Answer, markup: Markup) -> str:
    """Tabulate every cell against the baseline, column by column; empty where no two are compared."""
    found = [
        answer.contrasts[name, column]
        for column in answer.columns
        for name in answer.cells
        if (name, column) in answer.contrasts
    ]
    return _differences(found, markup) if found else ""


def effects(factor: Factor, columns: Sequence[str], markup: Markup) -> str:
    """Tabulate the levels of one factor, averaged over the others."""
    rows = [
        [markup.text(level), *(_level(factor, level, column, markup) for column in columns)] for level in factor.levels
    ]
    return markup.table([markup.text(factor.key), *(markup.text(c) for c in columns)], rows, "l" + "r" * len(columns))


def explained(answer: Answer) -> list[str]:
    """Say how the tables are read, and what stands behind their numbers."""
    summaries = answer.summaries.values()
    counts = sorted({len(summary.seeds) for summary in summaries if summary.deviation is not None})
    notes = [
        "Percent. "
        + (f"±: standard deviation over seeds ({', '.join(map(str, counts))} seeds). " if counts else "")
        + "In brackets: 95 % bootstrap interval over queries of the values averaged over seeds. Bold: the highest mean."
    ]
    if answer.contrasts:
        tests = ", ".join(dict.fromkeys(found.queries.test for found in answer.contrasts.values()))
        notes.append(
            f"↑ ↓: above, below {answer.baseline} on these queries, p ≤ {ALPHA} ({tests}, two-sided, per-query values "
            "averaged over the seeds that both have; Holm's correction over all comparisons of the column)."
        )
        notes.append(
            "d_z: mean change over queries in standard deviations of the change. In seed sd: the difference in pooled "
            "standard deviations over seeds. Seeds: mean difference over seeds with its 95 % t interval, paired t-test."
        )
    return notes


def gaps(answer: Answer) -> list[str]:
    """Say what is missing and why, each reason once: seeds without a number, cells that are not compared."""
    found = [
        (column, (name, what, why))
        for (name, column), summary in answer.summaries.items()
        for what, why in summary.missing.items()
    ]
    found += [
        (column, (name, "not compared", why))
        for (name, column), why in answer.untested.items()
        if answer.summaries[name, column].seeds
    ]
    whats = _together((what, (name, why, where)) for (name, what, why), where in _together(found).items())
    names = _together((name, (what, why, where)) for (name, why, where), what in whats.items())
    return [
        f"{'; '.join(same) if len(same) < len(answer.cells) else 'every cell'}: {', '.join(what)}: {why}"
        + (f" ({', '.join(where)})." if where != answer.columns else ".")
        for (what, why, where), same in names.items()
    ]


def _together(pairs: Iterable[tuple[str, Group]]) -> dict[Group, tuple[str, ...]]:
    """Collect what belongs to one key, in order."""
    found: dict[Group, list[str]] = {}
    for one, key in pairs:
        found.setdefault(key, []).append(one)
    return {key: tuple(ones) for key, ones in found.items()}


def _named(answer: Answer, name: str, markup: Markup) -> str:
    return markup.text(name) + (markup.small("(baseline)") if name == answer.baseline else "")


def _number(answer: Answer, name: str, column: str, markup: Markup) -> str:
    """Write one cell of the table of numbers."""
    means = [answer.summaries[other, column].mean for other in answer.cells]
    best = max((round(mean, 2) for mean in means if mean is not None), default=None)
    found = answer.contrasts.get((name, column))
    return _shown(answer.summaries[name, column], best, found, markup)


def _level(factor: Factor, level: str, column: str, markup: Markup) -> str:
    """Write one level of a factor in one column."""
    return _shown(factor.summaries[level, column], None, factor.contrasts.get((level, column)), markup)


def _shown(summary: Summary, best: float | None, found: Contrast | None, markup: Markup) -> str:
    if summary.mean is None:
        return markup.empty
    number = f"{summary.mean:.2f}"
    number = markup.bold(number) if best is not None and round(summary.mean, 2) == best else number
    spread = markup.spread(f"{summary.deviation:.2f}") if summary.deviation is not None else ""
    arrow = (markup.up if found.queries.difference > 0 else markup.down) if found is not None and found.differs else ""
    return number + spread + markup.small(f"[{summary.low:.1f}, {summary.high:.1f}]") + arrow


def _differences(found: Sequence[Contrast], markup: Markup) -> str:
    rows = []
    for one in found:
        queries, training = one.queries, one.training
        p_value = markup.text(p_text(one.adjusted))
        row = [
            markup.text(one.name),
            markup.text(one.column),
            markup.signed(f"{queries.difference:+.2f}"),
            markup.signed(f"[{queries.low:+.2f}, {queries.high:+.2f}]"),
            markup.bold(p_value) if one.differs else p_value,
            markup.signed(f"{one.d_z:+.2f}"),
            markup.empty if one.seed_units is None else markup.signed(f"{one.seed_units:+.1f}"),
        ]
        if training is None or one.training_adjusted is None:
            row += [markup.empty, markup.empty]
        else:
            interval = f"{training.difference:+.2f} [{training.low:+.2f}, {training.high:+.2f}]"
            row += [markup.signed(interval), markup.text(f"{p_text(one.training_adjusted)} (n = {training.seeds})")]
        rows.append(row)
    return markup.table([markup.text(name) for name in DIFFERENCES], rows, "ll" + "r" * (len(DIFFERENCES) - 2))
