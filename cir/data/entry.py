"""What a benchmark's file declares about itself: how it is loaded, under which protocols, from where, and how much."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cir.schema import Benchmark

Loader = Callable[..., Benchmark]
"""`load(root, *, protocol, allow_missing) -> Benchmark`."""

Counts = Mapping[str, int]
"""`queries`, `gallery`, and where known `targets` (0: hidden labels) and others; of the published files."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One benchmark under its name in BENCHMARKS."""

    load: Loader
    protocols: tuple[str, ...]
    """Ids in PROTOCOLS that its numbers can be read under; the first is the default, the papers'."""
    files: tuple[tuple[str, ...], ...]
    """Its annotation files: for each, the places relative to the dataset's folder where it may lie, official first."""
    counts: Counts = field(default_factory=dict)
    """How much the published files hold; a load is compared with what is known here."""
    default: Callable[[Path], str] | None = None
    """Reads the default protocol from the files, given the root, where it is chosen there and not the first."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """Protocols of its siblings that it cannot be read under, and why."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where a dataset comes from, for people who do not have it yet, or not all of it."""

    title: str
    folders: tuple[str, ...]
    """Names its folder goes by, the official first."""
    annotations: str
    """Where the annotation files are published, and their licence."""
    images: str
    """Where the images are, what form or account they need, their licence."""
    page: str
    """The manual's page: `docs/benchmarks/x.md`."""
