"""What an ablation found, in sentences made from its numbers."""

from collections.abc import Sequence

from cir.ablation.answer import Answer, Contrast
from cir.report.markup import p_text


def opening(answer: Answer) -> str:
    """Say in one paragraph how many cells differ from the baseline, and in how many columns."""
    others = [name for name in answer.cells if name != answer.baseline]
    if not others:
        return "There is one cell, and nothing to compare it with."
    if not answer.contrasts:
        return f"No cell can be compared with `{answer.baseline}` yet; what is missing stands below the table."
    tested = [name for name in others if any((name, column) in answer.contrasts for column in answer.columns)]
    differing = {
        name: sum(answer.contrasts[name, c].differs for c in answer.columns if (name, c) in answer.contrasts)
        for name in tested
    }
    some = sum(count > 0 for count in differing.values())
    every = sum(count == len(answer.columns) for count in differing.values())
    told = f"{_share(some, len(tested))} from `{answer.baseline}` on these queries after Holm's correction"
    if len(answer.columns) > 1 and some:
        told += f", {every or 'none'} of them in every column" if len(tested) > 1 else ", in every column" * bool(every)
    waiting = len(others) - len(tested)
    if waiting:
        told += f". {_counted(waiting, 'cell')} cannot be compared yet"
    return f"{told}. Where no difference is shown there may still be one, as large as the interval allows."


def by_column(answer: Answer) -> list[str]:
    """Say per column which cells differ from the baseline and by how much, and which are not shown to."""
    return [_column(answer, column) for column in answer.columns]


def main_effects(answer: Answer) -> list[str]:
    """Say per factor and column which levels differ from the reference level, averaged over the other factors."""
    told = []
    for factor in answer.factors:
        for column in answer.columns:
            found = [factor.contrasts[level, column] for level in factor.levels if (level, column) in factor.contrasts]
            if found:
                told.append(
                    f"**{factor.key}** in {column}, against `{factor.reference}`, averaged over {factor.over} "
                    f"settings of the others: {_split(found)}"
                )
    return told


def _column(answer: Answer, column: str) -> str:
    base = answer.summaries[answer.baseline, column]
    if base.mean is None:
        return f"**{column}**: `{answer.baseline}` has no number yet."
    found = [answer.contrasts[name, column] for name in answer.cells if (name, column) in answer.contrasts]
    absent = [name for name in answer.cells if name != answer.baseline and answer.summaries[name, column].mean is None]
    told = f"**{column}**, against `{answer.baseline}` ({base.mean:.2f}): {_split(found)}"
    return told + (f" No number yet: {_listed([f'`{name}`' for name in absent])}." if absent else "")


def _split(found: Sequence[Contrast]) -> str:
    """Tell the cells that differ, the largest difference first, from those that are not shown to."""
    ordered = sorted(found, key=lambda one: -abs(one.queries.difference))
    differing = [_difference(one) for one in ordered if one.differs]
    alike = [_alike(one) for one in ordered if not one.differs]
    parts = [f"{'; '.join(differing)}." if differing else ""]
    parts += [f"Not shown to differ: {'; '.join(alike)}." if alike else ""]
    return " ".join(part for part in parts if part) or "nothing is compared yet."


def _difference(one: Contrast) -> str:
    """Tell one significant difference with its size, and what the seeds say to it."""
    queries = one.queries
    side = "higher" if queries.difference > 0 else "lower"
    told = f"`{one.name}` is {abs(queries.difference):.2f} points {side} "
    return f"{told}[{queries.low:+.2f}, {queries.high:+.2f}] (p {_p(one.adjusted)}{_seeds(one)})"


def _alike(one: Contrast) -> str:
    queries = one.queries
    interval = f"[{queries.low:+.2f}, {queries.high:+.2f}]"
    return f"`{one.name}` ({queries.difference:+.2f} {interval}, p {_p(one.adjusted)}{_seeds(one)})"


def _seeds(one: Contrast) -> str:
    """Say what training again says: the test over seeds, or that there is none."""
    if one.training is None or one.training_adjusted is None:
        return "; one seed" if len(one.seeds) == 1 else ""
    return f"; over {one.training.seeds} seeds p {_p(one.training_adjusted)}"


def _p(p_value: float) -> str:
    text = p_text(p_value)
    return text if text.startswith("<") else f"= {text}"


def _share(some: int, count: int) -> str:
    """Say how many of the cells differ.

    >>> _share(0, 3), _share(1, 3), _share(1, 1)
    ('None of the 3 other cells is shown to differ', '1 of the 3 other cells differs', 'The other cell differs')
    """
    if count == 1:
        return "The other cell differs" if some else "The other cell is not shown to differ"
    if not some:
        return f"None of the {count} other cells is shown to differ"
    if some == count:
        return f"All {count} other cells differ"
    return f"{some} of the {count} other cells {'differs' if some == 1 else 'differ'}"


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("" if count == 1 else "s")


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
