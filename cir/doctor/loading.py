"""What the loaders say: each split of a name loaded, its annotation files and counts compared with the published."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cir import data
from cir.data.entry import Entry, Source
from cir.data.layout import count, wrong_counts
from cir.doctor import match
from cir.doctor.findings import Annotation, Count
from cir.doctor.tree import Tree
from cir.errors import InputError
from cir.schema import Benchmark


@dataclass(frozen=True)
class Loaded:
    """A split as its loader found it: `base` is where its annotation files lie; `problem` is the loader's line, also
    where it went on with `allow_missing`.
    """

    name: str
    protocol: str
    entry: Entry
    source: Source
    base: Path | None
    benchmark: Benchmark | None
    problem: str = ""

    def lying(self) -> dict[str, str]:
        """Say for each annotation file, by its official place, where in the dataset's folder it lies, or nowhere."""
        return {places[0]: _lying(self.base, places) for places in self.entry.files}


def splits(name: str) -> tuple[list[str], bool]:
    """List the benchmarks a word stands for, and whether some of them may be absent altogether.

    A benchmark or a group is wanted in full. The name of a dataset is a question: all its splits, and those whose
    annotations are not here are none of the user's concern.
    """
    plain = name.removeprefix(data.WORLD)
    prefix = name[: len(name) - len(plain)]
    if plain in data.DATASETS and plain not in data.GROUPS:
        every: list[str] = [f"{prefix}{split}" for split in data.DATASETS[plain].ENTRIES]
        if every:
            return every, True
    return data.expand(name), False


def load(name: str, root: Path, protocol: str | None = None) -> Loaded:
    """Load a split strictly, and where that fails with what is there; `InputError` only for an unknown protocol."""
    entry, source = data.find(name), data.origin(name)
    if protocol is not None and protocol not in entry.protocols:
        data.load(name, root, protocol=protocol)  # says so
    benchmark, problem = None, ""
    try:
        benchmark = data.load(name, root, protocol=protocol)
    except InputError as strict:
        problem = str(strict)
        try:
            benchmark = data.load(name, root, protocol=protocol, allow_missing=True)
        except InputError:
            pass
    base = base_of(root, source.folders, entry.files)
    if benchmark is not None:
        base = benchmark.root if any(_lying(benchmark.root, places) for places in entry.files) else base
        return Loaded(benchmark.name, benchmark.protocol, entry, source, base, benchmark, problem)
    return Loaded(name, protocol or entry.protocols[0], entry, source, base, None, problem)


def base_of(root: Path, folders: Sequence[str], files: Sequence[Sequence[str]]) -> Path | None:
    """Find the dataset's folder: of the root and the names it goes by, the one with most annotation files."""
    counted = {base: sum(bool(_lying(base, places)) for places in files) for base in _bases(root, folders)}
    best = max(counted, key=lambda base: counted[base])
    return best if counted[best] else None


def absent(loaded: Sequence[Loaded], files: Sequence[Sequence[Annotation]]) -> list[bool]:
    """Say which splits have no annotation file of their own; one that several splits read does not count."""
    shared = Counter(places[0] for one in loaded for places in one.entry.files)
    result = []
    for states in files:
        own = [state for state in states if shared[state.place] == 1] or list(states)
        result.append(bool(own) and all(state.state == "missing" for state in own))
    return result


def annotations(one: Loaded, root: Path, tree: Tree) -> tuple[Annotation, ...]:
    """Give the state of every annotation file; a broken one is told by the loader's line, which names it."""
    states = []
    for places in one.entry.files:
        lying = _lying(one.base, places)
        if lying and one.base is not None:
            here = relative(one.base / lying, root)
            if one.benchmark is None and str(one.base / lying) in one.problem:
                states.append(Annotation(places[0], "broken", (here,), one.problem))
            else:
                states.append(Annotation(places[0], "found", (here,)))
        elif one.benchmark is not None:
            states.append(Annotation(places[0], "unneeded"))
        else:
            states.append(_elsewhere(places, root, tree))
    return tuple(states)


def counts(benchmark: Benchmark, entry: Entry) -> dict[str, Count]:
    """Compare counts with the published ones, a world's with its own; what the loader stamped is what it compared."""
    found, wrong = count(benchmark.queries, benchmark.gallery), wrong_counts(benchmark.stamps)
    world = benchmark.name.startswith(data.WORLD)
    compared = {key: Count(number, number if world or key in entry.counts else None) for key, number in found.items()}
    return compared | {key: Count(number, expected) for key, (expected, number) in wrong.items()}


def relative(file: Path, root: Path) -> str:
    """Write a file relative to the root where it lies under it."""
    return str(file.relative_to(root)) if file.is_relative_to(root) else str(file)


def _elsewhere(places: Sequence[str], root: Path, tree: Tree) -> Annotation:
    """Look for a file under the whole root."""
    hit = match.annotation(places, tree)
    if hit is None:
        return Annotation(places[0], "missing")
    return Annotation(
        places[0], "misplaced" if hit.sure else "ambiguous", tuple(relative(file, root) for file in hit.files)
    )


def _bases(root: Path, folders: Sequence[str]) -> list[Path]:
    return [root, *(root / folder for folder in folders)]


def _lying(base: Path | None, places: Sequence[str]) -> str:
    """Return the first of a file's places where it lies, empty for none."""
    return "" if base is None else next((place for place in places if (base / place).is_file()), "")
