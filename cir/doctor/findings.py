"""What a check found, as plain values: a report of splits, each with its annotation files, counts and images."""

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

FORMAT = 1
"""Of the JSON report; raised when a key changes its meaning."""

FileState = Literal["found", "missing", "misplaced", "ambiguous", "broken", "unneeded"]
Verdict = Literal["missing", "corrupt", "misplaced", "ambiguous", "outside"]
Status = Literal["complete", "incomplete", "not here"]


@dataclass(frozen=True, slots=True)
class Annotation:
    """One annotation file: its official place in the dataset's folder, and where it is, relative to the root."""

    place: str
    state: FileState
    at: tuple[str, ...] = ()
    trouble: str = ""


@dataclass(frozen=True, slots=True)
class Count:
    """A count found in the files, beside the published one where that is known."""

    found: int
    expected: int | None

    @property
    def right(self) -> bool:
        """Whether both agree."""
        return self.expected in (None, self.found)


@dataclass(frozen=True, slots=True)
class BadImage:
    """An image that is not well: its id (the first of those in that file), its place, the verdict and why.

    `at` are files that may be it, relative to the root.
    """

    id: str
    place: str
    verdict: Verdict
    at: tuple[str, ...] = ()
    trouble: str = ""


@dataclass(frozen=True, slots=True)
class Images:
    """The image files of one split.

    `named` counts ids and `files` the files they lie in (several parts of a picture share one). A file is either
    well, then it counts as `found`, or among `bad`; a part outside its picture is there besides. `folders` and
    `suffixes` count the files that are in place, `links` those of them that are symbolic links; `extra` counts the
    images in these folders that no split of the check names.
    """

    named: int
    files: int
    found: int
    bad: tuple[BadImage, ...] = ()
    folders: dict[str, int] = field(default_factory=dict)
    suffixes: dict[str, int] = field(default_factory=dict)
    links: int = 0
    extra: int = 0
    extra_first: tuple[str, ...] = ()

    def count(self, verdict: Verdict) -> int:
        """Count the images under a verdict."""
        return sum(image.verdict == verdict for image in self.bad)


@dataclass(frozen=True, slots=True)
class Split:
    """One benchmark of the check; `problem` is the loader's own line, `advice` what to do next."""

    name: str
    status: Status
    protocol: str
    base: str
    annotations: tuple[Annotation, ...]
    problem: str = ""
    counts: dict[str, Count] = field(default_factory=dict)
    images: Images | None = None
    notes: tuple[str, ...] = ()
    stamps: tuple[str, ...] = ()
    version: str = ""
    fingerprint: str = ""
    data_fingerprint: str = ""
    advice: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Report:
    """Everything a check found; `unreadable` are folders that could not be listed, `searched` says whether ROOT was."""

    name: str
    root: str
    decoded: bool
    splits: tuple[Split, ...]
    searched: bool = False
    unreadable: tuple[str, ...] = ()

    @property
    def well(self) -> bool:
        """Whether all that is here is complete, and something is."""
        states = {split.status for split in self.splits}
        return "complete" in states and "incomplete" not in states

    def plain(self) -> dict[str, Any]:
        """Give the report as JSON values; docs/data-doctor.md describes the keys."""
        splits = []
        for split in self.splits:
            row = asdict(split)
            if split.images is not None:
                verdicts = Counter(image.verdict for image in split.images.bad)
                every: tuple[Verdict, ...] = ("missing", "corrupt", "misplaced", "ambiguous", "outside")
                row["images"]["verdicts"] = {verdict: verdicts[verdict] for verdict in every}
            splits.append(row)
        head = {"format": FORMAT, "name": self.name, "root": self.root, "well": self.well, "decoded": self.decoded}
        return {**head, "searched": self.searched, "unreadable": list(self.unreadable), "splits": splits}
