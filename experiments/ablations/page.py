"""Puts the answers of ablations into a page: tables between two comments, plots beside the page.

    python experiments/ablations/page.py docs/ablations/rtd_world.md

What stands between `<!-- answer: NAME -->` and `<!-- end -->` is written anew from the records there are, committed or
under runs/, of experiments/ablations/NAME.yaml; everything else on the page stays. Nothing is trained.
"""

import argparse
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from cir import stats
from cir.ablation import findings, plan, plot, rows
from cir.ablation.answer import Answer, answer, contrast
from cir.ablation.kept import Kept
from cir.ablation.plan import Ablation, Cell
from cir.ablation.rows import MARKDOWN
from cir.ablation.samples import Source
from cir.errors import InputError
from cir.records import Record, replace_file
from cir.report.markup import p_text

FOLDER = Path(__file__).parent
BLOCK = re.compile(r"(<!-- answer: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
UNDER = " + RTD"
"""How a cell is called that is another one with RTD on it: the two are compared, whatever the baseline is."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("--ablations", type=Path, default=FOLDER, help="where NAME.yaml lie")
    given = parser.parse_args()
    for name, count, total in fill(given.page, given.ablations):
        print(f"{name}: {count} of {total} runs have their records")


def fill(page: Path, ablations: Path = FOLDER) -> list[tuple[str, int, int]]:
    """Write every block of a page and its plot; returns per ablation its name, the runs with records, and all runs."""
    text = page.read_text(encoding="utf-8")
    found = []
    for name in [match[2] for match in BLOCK.finditer(text)]:
        ablation = plan.read(ablations / f"{name}.yaml")
        cells, kept = plan.expand(ablation), Kept(ablation.benchmarks)
        records = kept.current(cells)
        block, pictures = written(ablation, cells, records)
        for suffix, content in pictures.items():
            replace_file(page.with_name(f"{name}{suffix}"), content)
        text = BLOCK.sub(lambda m, name=name, block=block: f"{m[1]}\n{block}\n{m[3]}" if m[2] == name else m[0], text)
        found.append((name, sum(not kept.missing(cell) for cell in cells), len(cells)))
    replace_file(page, text.encode())
    return found


def written(ablation: Ablation, cells: Sequence[Cell], records: Mapping[Path, Record]) -> tuple[str, dict[str, bytes]]:
    """Write one block and draw its plot, as far as there are numbers; without the baseline's they would say nothing."""
    found = answer(ablation, cells, records)
    if all(found.summaries[found.baseline, column].mean is None for column in found.columns):
        return f"Not run yet: `cir ablate experiments/ablations/{ablation.path.name}`.\n", {}
    said = [f"**Answer.** {ablation.answer.strip()}"] if ablation.answer.strip() else []
    said += [rows.numbers(found, MARKDOWN).rstrip(), gains(found, cells, records).rstrip()]
    said += [f"![{ablation.question}]({ablation.path.stem}.png)", details(found)]
    return "\n\n".join(part for part in said if part) + "\n", {".png": plot.draw(found, cells)["plot.png"]}


def details(found: Answer) -> str:
    """Write what every cell is worth against the baseline, folded away, with how to read it."""
    tables = [rows.differences(found, MARKDOWN), *(rows.effects(f, found.columns, MARKDOWN) for f in found.factors)]
    notes = [*rows.explained(found), *rows.gaps(found), *found.notes]
    parts = [findings.opening(found), bullets(findings.by_column(found)), *map(str.rstrip, tables), bullets(notes)]
    body = "\n\n".join(part for part in parts if part)
    return f"<details><summary>Differences, tests, protocols</summary>\n\n{body}\n\n</details>"


def gains(found: Answer, cells: Sequence[Cell], records: Mapping[Path, Record]) -> str:
    """Tabulate what RTD adds to each cell that stands there with and without it; empty where none does.

    Paired over queries, values averaged over the seeds; Holm's correction over the pairs of a column.
    """
    pairs = [(f"{name}{UNDER}", name) for name in found.cells if f"{name}{UNDER}" in found.cells]
    if not pairs:
        return ""
    table = [["RTD adds to", *found.columns], *([alone] for _, alone in pairs)]
    source = Source(records)
    for column in found.columns:
        sampled = {n: source.sample(n, [c for c in cells if c.name == n], column) for pair in pairs for n in pair}
        contrasts = []
        for wrapped, alone in pairs:
            try:
                contrasts.append(contrast(sampled[wrapped], sampled[alone]).queries)
            except InputError:
                contrasts.append(None)  # one of the two has no number yet
        adjusted = iter(stats.holm([one.p_value for one in contrasts if one is not None]))
        for row, one in zip(table[1:], contrasts, strict=True):
            row.append("" if one is None else told(one, next(adjusted)))
    return MARKDOWN.table(table[0], table[1:], "l" + "r" * len(found.columns))


def told(one: stats.Comparison, p_value: float) -> str:
    """Write a difference in points with its interval and p-value."""
    text = p_text(p_value)
    p = text if text.startswith("<") else f"= {text}"
    return f"{one.difference:+.2f} [{one.low:+.1f}, {one.high:+.1f}], p {p}"


def bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


if __name__ == "__main__":
    main()
