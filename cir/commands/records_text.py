"""What `cir records` prints."""

from collections.abc import Sequence
from typing import Any

from cir.archive.check import Finding
from cir.archive.diff import Diff
from cir.archive.flat import shown
from cir.commands.table import line


def cell(value: Any) -> str:
    """Print a field."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def aligned(names: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Print columns, each as wide as its widest cell; those that no record fills are left out."""
    filled = [place for place, _ in enumerate(names) if any(row[place] for row in rows)]
    table = [[row[place] for place in filled] for row in (names, *rows)]
    widths = [max(len(row[column]) for row in table) for column in range(len(filled))]
    return ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in table]


def named(value: Any) -> Any:
    """Turn named tuples into mappings, for JSON."""
    if hasattr(value, "_asdict"):
        return named(value._asdict())
    if isinstance(value, dict):
        return {key: named(item) for key, item in value.items()}
    return [named(item) for item in value] if isinstance(value, (list, tuple)) else value


def diff_lines(found: Diff) -> list[str]:
    """Print what differs, section by section."""
    lines = []
    for heading, listed in found.sections.items():
        lines.append(f"{heading}: {'the same' if not listed else ''}".rstrip())
        lines += [f"  {one.key}: {shown(one.before)} -> {shown(one.after)}" for one in listed]
    lines.append("numbers:")
    for one in found.numbers:
        counts = f"   won {one.won}, lost {one.lost}" if one.won is not None else ""
        lines.append(f"  {one.metric:<8} {_percent(one.before)} -> {_percent(one.after)}{counts}")
    lines += [f"  note: {note}" for note in found.notes]
    if found.test is not None:
        lines.append(f"  {line(found.test)}")
    if found.changed:
        lines.append(f"queries that changed most, by {found.metric} (best rank of a target in brackets):")
    for query in found.changed:
        ranks = f"[{query.rank_before}]", f"[{query.rank_after}]"
        lines.append(f"  {query.query}: {query.before:.3f} {ranks[0]} -> {query.after:.3f} {ranks[1]}")
    return lines


def _percent(value: float | None) -> str:
    return "     -" if value is None else f"{value:6.2f}"


def check_lines(found: Sequence[Finding]) -> list[str]:
    """Print findings; those without a seal or marked stale are counted, not listed."""
    counted = {"unsealed": "written before records were sealed", "stale": "marked stale"}
    lines = [f"{one.kind}: {one.path}: {one.text}" for one in found if one.kind not in counted]
    numbers = {kind: sum(one.kind == kind for one in found) for kind in counted}
    return lines + [f"{numbers[kind]:,} {text}" for kind, text in counted.items() if numbers[kind]]
