"""What can be wrong with a submission file, by which rule, and the report that lists it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

SHOWN = 20
"""Problems a report prints; it counts all of them."""


@dataclass(frozen=True, slots=True)
class Rule:
    """What a file must be like, and how that is known.

    A broken `error` rule is refused by the server, or silently costs score; a `warning` is accepted and only unusual.
    """

    id: str
    text: str
    source: str
    severity: Literal["error", "warning"] = "error"


@dataclass(frozen=True, slots=True)
class Problem:
    """One rule that a file breaks, in plain words; `query` is empty where the file as a whole is meant."""

    rule: Rule
    text: str
    query: str = ""


@dataclass(frozen=True, slots=True)
class Score:
    """A mean in percent, and what the test server prints for the same hits where that differs."""

    metric: str
    percent: float
    printed: float | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """What was found in a file: which benchmark and metric it is for (empty: cannot be told), problems, scores.

    Problems stand errors first, then in the order of the file. `scores` are there where the labels are public.
    """

    file: Path
    bytes: int
    sha256: str
    benchmark: str = ""
    metric: str = ""
    problems: tuple[Problem, ...] = ()
    scores: tuple[Score, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def errors(self) -> int:
        """Count what the server refuses or what costs score."""
        return sum(problem.rule.severity == "error" for problem in self.problems)

    @property
    def warnings(self) -> int:
        """Count what is only unusual."""
        return len(self.problems) - self.errors

    def plain(self) -> dict[str, Any]:
        """Return the whole report as JSON can hold it."""
        return {
            "file": str(self.file),
            "bytes": self.bytes,
            "sha256": self.sha256,
            "benchmark": self.benchmark,
            "metric": self.metric,
            "valid": not self.errors,
            "errors": self.errors,
            "warnings": self.warnings,
            "problems": [
                {
                    "severity": one.rule.severity,
                    "rule": one.rule.id,
                    "query": one.query,
                    "text": one.text,
                    "expected": one.rule.text,
                    "source": one.rule.source,
                }
                for one in self.problems
            ],
            "scores": [{"metric": s.metric, "percent": s.percent, "printed": s.printed} for s in self.scores],
            "notes": list(self.notes),
        }

    def lines(self, shown: int = SHOWN) -> Iterator[str]:
        """Write the report for the terminal: the first problems, all of them counted, the rules that they break."""
        what = " ".join(part for part in (self.benchmark, self.metric) if part) or "of no known benchmark"
        yield f"{self.file}: {what}, {self.bytes:,} bytes, sha256 {self.sha256}"
        for problem in self.problems[:shown]:
            where = f"query {problem.query}: " if problem.query else ""
            yield f"  {problem.rule.severity:<7}  {where}{problem.text}  [{problem.rule.id}]"
        if len(self.problems) > shown:
            yield f"  and {len(self.problems) - shown:,} more; --json lists all"
        for rule in dict.fromkeys(problem.rule for problem in self.problems):
            count = sum(problem.rule is rule for problem in self.problems)
            yield f"  {count:>7,} x [{rule.id}] expected: {rule.text} ({rule.source})"
        yield from (f"  note     {note}" for note in self.notes)
        yield from self.scored()
        yield self.verdict

    def scored(self) -> Iterator[str]:
        """Write the scores, in percent."""
        for score in self.scores:
            printed = "" if score.printed is None else f"   as the server would print it {score.printed:.3f}"
            yield f"  {score.metric:<34} {score.percent:7.3f}{printed}"

    @property
    def verdict(self) -> str:
        """Sum up in one line."""
        if not self.problems:
            return "no errors, no warnings"
        counted = [
            f"{count:,} {word}{'' if count == 1 else 's'}"
            for count, word in ((self.errors, "error"), (self.warnings, "warning"))
            if count
        ]
        told = "do not upload this file" if self.errors else "the server takes the file"
        return f"{', '.join(counted)}: {told}"
