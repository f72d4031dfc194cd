"""An ablation's answer as files: `answer.md`, `table.md`, `table.tex`, `table.csv` and the plots."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cir.ablation import findings, plot, rows
from cir.ablation.answer import Answer, Contrast, Summary
from cir.ablation.answer import answer as answered
from cir.ablation.plan import Ablation, Cell
from cir.ablation.rows import LATEX, MARKDOWN, Markup
from cir.records import Record, replace_file
from cir.report.markup import tex

NEEDS = "No plot: it needs matplotlib (`pip install 'cir[plots]'`, then the same command)."
FIELDS = [
    *("kind", "factor", "name", "column", "seed", "mean", "sd", "low", "high", "seeds", "queries"),
    *("against", "difference", "difference_low", "difference_high", "p", "p_holm", "test", "won", "tied", "lost"),
    *("d_z", "seed_sd_units", "seeds_p", "seeds_p_holm", "missing"),
]
"""Columns of `table.csv`: `kind` is `seed` (one run), `cell` (over its seeds) or `level` (a main effect)."""


def write(ablation: Ablation, cells: Sequence[Cell], records: Mapping[Path, Record], out: Path) -> list[Path]:
    """Answer an ablation from records and write the answer into the folder `out`; returns the files.

    Works on any part of the records: what is missing is empty, with its reason below. Every file appears whole or not
    at all. Plots are left out where matplotlib is not installed, and the answer says so.
    """
    found = answered(ablation, cells, records)
    out.mkdir(parents=True, exist_ok=True)
    drawn = find_spec("matplotlib") is not None
    texts = {
        "table.md": _table(found, MARKDOWN),
        "table.tex": _table(found, LATEX),
        "table.csv": csv_text(found),
        "answer.md": markdown(found, drawn),
    }
    contents = {name: text.encode() for name, text in texts.items()}
    contents |= plot.draw(found, cells) if drawn else {}
    for name, content in contents.items():
        replace_file(out / name, content)
    return [out / name for name in contents]


def markdown(answer: Answer, drawn: bool = True) -> str:
    """Render the whole answer: the question, what was found, the tables, the plot (`plot.png` beside it), the notes."""
    ablation = answer.ablation
    parts = [f"# {ablation.question}", f"**Answer.** {ablation.answer.strip()}" if ablation.answer.strip() else ""]
    parts += [findings.opening(answer), _bullets(findings.by_column(answer)), "## Numbers"]
    parts += [rows.numbers(answer, MARKDOWN).rstrip()]
    parts += [f"![Means, seeds and intervals of every cell: {ablation.question}](plot.png)" if drawn else NEEDS]
    against = rows.differences(answer, MARKDOWN)
    parts += [f"## Against {answer.baseline}", against.rstrip()] if against else []
    for factor in answer.factors:
        parts += [f"## Main effect of {factor.key}", rows.effects(factor, answer.columns, MARKDOWN).rstrip()]
    parts += [_bullets(findings.main_effects(answer)), "## Notes", _bullets(_notes(answer))]
    return "\n\n".join(part for part in parts if part) + "\n"


def csv_text(answer: Answer) -> str:
    """Render one line per cell, seed and column, then one per cell and column, then main effects; full precision."""
    out = io.StringIO()
    writer = csv.DictWriter(out, FIELDS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(_lines(answer))
    return out.getvalue()


def _table(answer: Answer, markup: Markup) -> str:
    """Put the table of numbers, that of differences and the notes below one another."""
    tables = [rows.numbers(answer, markup), rows.differences(answer, markup)]
    tables += [rows.effects(factor, answer.columns, markup) for factor in answer.factors]
    if markup is LATEX:
        notes = "\n".join(rf"\par\footnotesize {tex(note)}" for note in _notes(answer))
        return "\n\\par\\bigskip\n".join(table for table in tables if table) + notes + "\n"
    return "\n".join(table for table in tables if table) + f"\n{_bullets(_notes(answer))}\n"


def _notes(answer: Answer) -> list[str]:
    """Say how to read the tables, what main effects are, what is missing, and what the numbers rest on."""
    told = [
        f"{factor.key}: each level averaged over {factor.over} settings of the other factors, query by query; "
        f"arrows against {factor.reference}, Holm's correction over its levels."
        for factor in answer.factors
    ]
    return [*rows.explained(answer), *told, *rows.gaps(answer), *answer.notes]


def _bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _lines(answer: Answer) -> Iterator[dict[str, Any]]:
    keys = [(name, column) for column in answer.columns for name in answer.cells]
    for name, column in keys:
        for seed, mean in answer.summaries[name, column].seeds.items():
            yield {"kind": "seed", "name": name, "column": column, "seed": seed, "mean": mean}
    for key in keys:
        yield _line("cell", "", answer.summaries[key], answer.contrasts.get(key))
    for factor in answer.factors:
        for key, summary in factor.summaries.items():
            yield _line("level", factor.key, summary, factor.contrasts.get(key))


def _line(kind: str, factor: str, summary: Summary, found: Contrast | None) -> dict[str, Any]:
    line = {
        "kind": kind,
        "factor": factor,
        "name": summary.name,
        "column": summary.column,
        "mean": summary.mean,
        "sd": summary.deviation,
        "low": summary.low,
        "high": summary.high,
        "seeds": len(summary.seeds),
        "queries": summary.queries,
        "missing": "; ".join(f"{what}: {why}" for what, why in summary.missing.items()),
    }
    return line if found is None else line | _compared(found)


def _compared(found: Contrast) -> dict[str, Any]:
    queries, training = found.queries, found.training
    return {
        "against": found.against,
        "difference": queries.difference,
        "difference_low": queries.low,
        "difference_high": queries.high,
        "p": queries.p_value,
        "p_holm": found.adjusted,
        "test": queries.test,
        "won": queries.won,
        "tied": queries.tied,
        "lost": queries.lost,
        "d_z": found.d_z,
        "seed_sd_units": found.seed_units,
        "seeds_p": None if training is None else training.p_value,
        "seeds_p_holm": found.training_adjusted,
    }
