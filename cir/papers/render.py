"""Ours beside theirs as Markdown, LaTeX and CSV: verdicts as marks, sources and reasons as footnotes."""

import csv
import io
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from cir.papers.table import ONLY_THERE, Reported, Value, protocols
from cir.papers.verdict import CHECKED, Cell, Comparison, Verdict
from cir.report.markup import escape_pipes, pipes, tex

MARKS = {Verdict.EQUAL: "=", Verdict.WITHIN: "≈", Verdict.DIFFERS: "≠"}
TEX_MARKS = {Verdict.EQUAL: "$=$", Verdict.WITHIN: r"$\approx$", Verdict.DIFFERS: r"$\neq$"}
LEGEND = "Percent, ours / as reported; = equal as printed, ≈ within tolerance, ≠ differs, - no number of ours."


class Notes:
    """Footnotes in the order of first use; equal ones share a number."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}

    def refer(self, texts: Iterable[str]) -> list[int]:
        """Return the numbers of footnotes."""
        return [self.numbers.setdefault(text, len(self.numbers) + 1) for text in texts]


def markdown(comparison: Comparison) -> str:
    """Render a pipe table with footnotes in GitHub's form."""

    def raised(numbers: Sequence[int]) -> str:
        return "".join(f"[^{number}]" for number in numbers)

    def cell_text(cell: Cell) -> str:
        text = " ".join(part for part in (_body(cell), MARKS.get(cell.verdict, "")) if part)
        return f"**{text}**" if cell.verdict is Verdict.DIFFERS else escape_pipes(text)

    notes, columns = Notes(), comparison.table.columns
    lines = [f"**{heading(comparison)}**", "", pipes(["Row", "Backbone", *map(str, columns)])]
    lines.append(pipes(["---", "---", *("---:" for _ in columns)]))
    for row in comparison.cells:
        about, cells = _numbered(row, notes)
        first = [escape_pipes(row[0].row.name) + raised(about), escape_pipes(row[0].row.backbone)]
        lines.append(pipes([*first, *(cell_text(cell) + raised(numbers) for cell, numbers in cells)]))
    lines += ["", *below(comparison), "", *(f"[^{number}]: {text}" for text, number in notes.numbers.items())]
    return "\n".join(lines) + "\n"


def latex(comparison: Comparison) -> str:
    r"""Render a `tabular` for booktabs; needs `\usepackage{booktabs}` and nothing else."""

    def raised(numbers: Sequence[int]) -> str:
        return rf"\textsuperscript{{{','.join(map(str, numbers))}}}" if numbers else ""

    def cell_text(cell: Cell) -> str:
        return " ".join(part for part in (tex(_body(cell)), TEX_MARKS.get(cell.verdict, "")) if part) or "--"

    notes, columns = Notes(), comparison.table.columns
    lines = [rf"% {heading(comparison)}", r"\begin{tabular}{ll" + "r" * len(columns) + "}", r"\toprule"]
    lines += [" & ".join(["Row", "Backbone", *(tex(str(column)) for column in columns)]) + r" \\", r"\midrule"]
    for row in comparison.cells:
        about, cells = _numbered(row, notes)
        first = [tex(row[0].row.name) + raised(about), tex(row[0].row.backbone)]
        lines.append(" & ".join([*first, *(cell_text(cell) + raised(numbers) for cell, numbers in cells)]) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}", *(rf"\par\footnotesize {_tex(text)}" for text in below(comparison))]
    lines += [rf"\par\footnotesize {raised([number])} {_tex(text)}" for text, number in notes.numbers.items()]
    return "\n".join(lines) + "\n"


def csv_text(comparison: Comparison) -> str:
    """Render one line per cell and source, for other programs."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    names = "row backbone benchmark metric ours sd seeds reported reported_sd verdict reason tolerance"
    writer.writerow([*names.split(), "source", "kind", "confidence"])
    for cell in comparison.flat:
        ours = [repr(cell.ours.mean), _blank(cell.ours.deviation), cell.ours.seeds] if cell.ours else ["", "", ""]
        for one in cell.theirs or (None,):
            value = one.values[cell.column] if one else None
            theirs = [repr(value.mean), value.spread or ""] if value else ["", ""]
            told = [cell.verdict.value, cell.reason, cell.tolerance if cell.verdict in CHECKED else ""]
            origin = [one.source, one.kind, one.confidence] if one else ["", "", ""]
            writer.writerow([cell.row.name, cell.row.backbone, *cell.column, *ours, *theirs, *told, *origin])
    return out.getvalue()


FORMATS: dict[str, Callable[[Comparison], str]] = {"md": markdown, "latex": latex, "csv": csv_text}


def heading(comparison: Comparison) -> str:
    """Name the table and the paper it is from."""
    paper = comparison.table.paper
    venue = ", ".join(part for part in (paper.venue, f"arXiv:{paper.arxiv}" if paper.arxiv else "") if part)
    return ". ".join(part for part in (comparison.table.title, paper.title, venue) if part)


def summary(comparison: Comparison) -> str:
    """Count the verdicts of all cells that were reported."""
    counts = Counter(cell.verdict.value for cell in comparison.flat if cell.verdict is not Verdict.NOT_REPORTED)
    told = [f"{counts[verdict.value]} {verdict.value}" for verdict in Verdict if counts[verdict.value]]
    return f"{sum(counts.values())} cells: {', '.join(told)}."


def below(comparison: Comparison) -> list[str]:
    """Say what stands below a table: how to read it, how many verdicts of each kind, notes, protocols."""
    note = comparison.table.note
    return [f"{LEGEND} {summary(comparison)}", *([note] if note else []), *_other_rules(comparison)]


def differences(comparison: Comparison) -> list[str]:
    """Say, for each checked cell that differs, what was expected and what came."""
    return [
        f"{cell} is {_ours(cell)}, reported {_theirs(cell)} with {cell.tolerance:g} points of tolerance"
        for cell in comparison.differing
    ]


def _numbered(row: Sequence[Cell], notes: Notes) -> tuple[list[int], list[tuple[Cell, list[int]]]]:
    """Give numbers to the footnotes of a row's name and of its cells; a reason shared by all cells goes to the name."""
    reasons = [f"{why}." if (why := _unchecked(cell)) else "" for cell in row]
    asked = {reason for cell, reason in zip(row, reasons, strict=True) if cell.theirs}
    shared = asked if len(asked) == 1 else set()
    about = notes.refer([*_about(row), *(reason for reason in shared if reason)])
    return about, [
        (cell, notes.refer([reason] if reason and reason not in shared else []))
        for cell, reason in zip(row, reasons, strict=True)
    ]


def _about(row: Sequence[Cell]) -> list[str]:
    """Say what a row's numbers rest on: sources, how many seeds, what conflicts, the row's own note."""
    said = [_source(one) for one in row[0].row.reported]
    seeds = sorted({cell.ours.seeds for cell in row if cell.ours})
    said += [f"Ours over {' or '.join(map(str, seeds))} seeds: mean ± standard deviation."] if seeds[-1:] > [1] else []
    conflicts = [str(cell.column) for cell in row if len({value.mean for value, one in cell.values if one.seen}) > 1]
    said += [f"The sources differ on {', '.join(conflicts)}; the nearer one decides."] if conflicts else []
    return [*said, *([row[0].row.note] if row[0].row.note else [])]


def _source(reported: Reported) -> str:
    kind = reported.kind.replace("_", " ")
    return f"Reported: {reported.source} ({kind}, {reported.confidence})."


def _other_rules(comparison: Comparison) -> list[str]:
    """Say where a run asks for another protocol than the papers'."""
    said: dict[str, None] = {}
    for cell in comparison.flat:
        benchmark, config = cell.column.benchmark, cell.row.config
        asked = config.data.protocols.get(benchmark.split("/")[0]) if config is not None else None
        if asked and benchmark != ONLY_THERE and asked != protocols(benchmark)[0]:
            said[f"{cell.row.name}: {benchmark} under {asked}, as its run says."] = None
    return list(said)


def _ours(cell: Cell) -> str:
    if cell.ours is None:
        return "-"
    spread = "" if cell.ours.deviation is None else f" ± {cell.ours.deviation:.2f}"
    return f"{cell.ours.mean:.2f}{spread}"


def _theirs(cell: Cell) -> str:
    return " or ".join(_printed(value, one) for value, one in cell.values)


def _printed(value: Value, reported: Reported) -> str:
    """Print a value as its source did; one that is only recalled in brackets."""
    text = f"{value.mean:.{reported.digits}f}"
    text += f" ± {value.spread:.{reported.digits}f}" if value.spread else ""
    return text if reported.seen else f"[{text}, recalled]"


def _body(cell: Cell) -> str:
    if not cell.theirs:
        return _ours(cell) if cell.ours else ""
    return f"{_ours(cell)} / {_theirs(cell)}"


def _unchecked(cell: Cell) -> str:
    """Say why a cell was not checked though a source was seen; empty for others."""
    said = {
        Verdict.NO_RECORD: cell.reason[:1].upper() + cell.reason[1:],
        Verdict.NOT_HERE: f"Not runnable here: {cell.reason}",
    }
    return said.get(cell.verdict, "")


def _tex(text: str) -> str:
    """Escape a sentence, and write the marks of the legend as TeX does."""
    escaped = tex(text)
    for verdict, mark in MARKS.items():
        escaped = escaped.replace(mark, TEX_MARKS[verdict])
    return escaped


def _blank(number: float | None) -> str:
    return "" if number is None else repr(number)
