"""The nouns of composed image retrieval, frozen and validated at construction.

One letter per axis everywhere: `q` queries, `g` gallery, `b` batch, `d` joint embedding width, `t` vectors
per image, `l` token positions, `w` word-embedding width, `s` pseudo-words per image, `k` ranks kept,
`m` targets of the query that has most.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64

from cir.errors import InputError


def _unique(ids: Iterable[str], what: str) -> None:
    """Refuse a list that names something twice."""
    twice = [name for name, count in Counter(ids).items() if count > 1]
    if twice:
        raise InputError(f"{what}: {len(twice)} ids occur more than once, first {twice[:3]}; expected unique ids")


@dataclass(frozen=True, slots=True)
class View:
    """A part of a picture that counts as an image of its own: which rule of `cir.data.views`, and the box it gets."""

    kind: str
    box: tuple[float, ...]

    def __str__(self) -> str:
        """Write rule and box, for messages and cache keys."""
        return f"{self.kind} {','.join(map(str, self.box))}"


@dataclass(frozen=True, slots=True)
class Query:
    """One question: a reference image and the texts that say what to change.

    `texts` are as annotated, joining belongs to the prompt; `targets` is empty where labels are hidden, or where no
    image is right, and its first entry is *the* target where a benchmark singles one out; `candidates` is CIRR's
    subset of six or a per-query gallery, which may list an image twice (GeneCIS does: both compete); `tags` are
    semantic aspects or kinds of edit; `concept` is CIRCO's shared concept; `soft` are graded labels, as image and
    weight, read only for protocols that use them.
    """

    id: str
    reference: str
    texts: tuple[str, ...]
    targets: tuple[str, ...] = ()
    candidates: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    concept: str = ""
    soft: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        _unique(self.targets, f"query {self.id!r}, targets")
        _unique((name for name, _ in self.soft), f"query {self.id!r}, graded labels")


@dataclass(frozen=True, slots=True)
class Benchmark:
    """Queries and the one gallery they search.

    `name` is what the user types (`cirr/val`, `fashioniq/dress/val`), `protocol` the entry of PROTOCOLS it was loaded
    for, `paths` maps image ids to files relative to `root` (it covers the gallery, and the references), `views`
    the ids that are parts of their files. `open_references` allows references outside the gallery, `open_targets`
    queries that no image answers (they count as 0; without it, no targets means hidden labels). `template` is the
    sentence the published numbers are made with, where it is not the usual one. `notes` say which variant was found
    on disk; `stamps` say what makes a number on it not comparable (a missing image, a subset); both go into the record.
    """

    name: str
    version: str
    split: str
    protocol: str
    queries: tuple[Query, ...]
    gallery: tuple[str, ...]
    root: Path
    paths: Mapping[str, str] = field(repr=False)
    open_references: bool = False
    open_targets: bool = False
    template: str = ""
    views: Mapping[str, View] = field(default_factory=dict, repr=False)
    notes: tuple[str, ...] = ()
    stamps: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _unique((query.id for query in self.queries), f"{self.name}, queries")
        _unique(self.gallery, f"{self.name}, gallery")
        known = set(self.gallery)
        checked: set[int] = set()  # all queries of a class may share one long tuple of targets
        for query in self.queries:
            named = [] if id(query.targets) in checked else list(query.targets)
            checked.add(id(query.targets))
            named += query.candidates
            if not self.open_references:
                named.append(query.reference)
            absent = [name for name in named if name not in known]
            if absent:
                raise InputError(
                    f"{self.name}: query {query.id!r} names {absent[:3]}, absent from the gallery of "
                    f"{len(known):,} images; wrong split, or annotations of another version?"
                )

    @property
    def labelled(self) -> bool:
        """Whether the labels are here, so that scores can be computed."""
        return self.open_targets or all(query.targets for query in self.queries)

    @property
    def fingerprint(self) -> str:
        """Sixteen hex digits over queries, labels and gallery order: what the numbers depend on, not where it lies."""
        digest = hashlib.sha256(json.dumps([self.name, self.version, self.gallery]).encode())
        for q in self.queries:
            row = [q.id, q.reference, q.texts, q.targets, q.candidates, q.tags, q.concept]
            digest.update(json.dumps([*row, q.soft] if q.soft else row).encode())
        if self.views:
            digest.update(json.dumps({name: str(view) for name, view in self.views.items()}).encode())
        return digest.hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Prompt:
    """A batch of token rows and, per row, the positions that pseudo-words take; -1 fills unused slot columns.

    `ends` is the position of the end-of-text token, where a causal tower is pooled. Slots are positions the
    renderer created, never found by searching for a token id.
    """

    ids: Int64[np.ndarray, "b l"]
    slots: Int64[np.ndarray, "b s"]
    ends: Int64[np.ndarray, " b"]

    def __post_init__(self) -> None:
        rows, length = self.ids.shape
        if len(self.slots) != rows or len(self.ends) != rows:
            raise InputError(f"prompt: {rows} rows of ids, {len(self.slots)} of slots, {len(self.ends)} ends")
        if rows and (self.ends.min() < 0 or self.ends.max() >= length):
            raise InputError(f"prompt: an end-of-text position lies outside 0..{length - 1}")
        if (self.slots < -1).any() or (self.slots >= self.ends[:, None]).any():
            raise InputError("prompt: a slot lies at or behind end-of-text, or before the first token")

    def __len__(self) -> int:
        """Count the rows."""
        return len(self.ids)

    def __getitem__(self, rows: slice | np.ndarray) -> "Prompt":
        """Select rows; the length stays."""
        return Prompt(self.ids[rows], self.slots[rows], self.ends[rows])


@dataclass(frozen=True, slots=True)
class Embeddings:
    """Unit vectors by id: float32, finite, ids unique and aligned with the rows.

    `fusion` says how several vectors of a query make one score with an image: their best (`max`), or the `product` of
    their inner products.
    """

    ids: tuple[str, ...]
    vectors: Float32[np.ndarray, "n t d"]
    fusion: Literal["max", "product"] = "max"

    def __post_init__(self) -> None:
        if len(self.ids) != len(self.vectors):
            raise InputError(f"embeddings: {len(self.ids):,} ids but {len(self.vectors):,} vectors")
        _unique(self.ids, "embeddings")
        for start in range(0, len(self.ids), 8192):  # in blocks: the whole may be a memory map
            norms = np.linalg.norm(self.vectors[start : start + 8192], axis=-1)
            if not np.isfinite(norms).all():
                bad = self.ids[start + int(np.argmin(np.isfinite(norms).all(axis=-1)))]
                raise InputError(f"embeddings: the vector of {bad!r} is not finite")
            if np.abs(norms - 1).max(initial=0) > 1e-3:
                raise InputError("embeddings: vectors must have unit length; normalise before building")


@dataclass(frozen=True, slots=True)
class Ranking:
    """The first `k` gallery images of every query, best first; ties in gallery order, excluded ids absent.

    `order` indexes `gallery_ids`; rows shorter than `k` are filled with -1 (scores -inf) at the end.
    """

    query_ids: tuple[str, ...]
    gallery_ids: tuple[str, ...]
    order: Int64[np.ndarray, "q k"]
    scores: Float32[np.ndarray, "q k"]

    def __post_init__(self) -> None:
        if self.order.shape != self.scores.shape or len(self.order) != len(self.query_ids):
            raise InputError(f"ranking: {len(self.query_ids)} queries, order {self.order.shape}, {self.scores.shape}")
        if self.order.size == 0:
            return
        if self.order.min() < -1 or self.order.max() >= len(self.gallery_ids):
            raise InputError(f"ranking: an index lies outside the gallery of {len(self.gallery_ids):,}")
        left, right = self.scores[:, :-1], self.scores[:, 1:]
        tied_upward = (left == right) & (self.order[:, :-1] >= self.order[:, 1:]) & (self.order[:, 1:] >= 0)
        if (left < right).any() or tied_upward.any():
            raise InputError("ranking: rows must fall in score, ties in gallery order")
        filled = np.sort(self.order, axis=1)
        if ((filled[:, 1:] == filled[:, :-1]) & (filled[:, 1:] >= 0)).any():
            raise InputError("ranking: an image occurs twice in one row")

    def row(self, index: int) -> list[str]:
        """Name the images ranked for one query, best first."""
        return [self.gallery_ids[i] for i in self.order[index] if i >= 0]


@dataclass(frozen=True, slots=True)
class TargetRanks:
    """Where each query's targets stand in the full ranking: 1 is best, 0 fills unused columns.

    The exact rank in the whole gallery after exclusions, found by counting, without a sort. `tied` marks
    queries one of whose targets shares its score with another image, so that its rank rests on the tie rule.
    """

    query_ids: tuple[str, ...]
    ranks: Int64[np.ndarray, "q m"]
    tied: Bool[np.ndarray, " q"]


@dataclass(frozen=True, slots=True)
class Scores:
    """Per-query values by metric name, fractions in [0, 1]; means and percentages exist only in reports."""

    query_ids: tuple[str, ...]
    values: Mapping[str, Float64[np.ndarray, " q"]]

    def __post_init__(self) -> None:
        for name, value in self.values.items():
            if len(value) != len(self.query_ids):
                raise InputError(f"scores: {name} has {len(value)} values for {len(self.query_ids)} queries")
            if value.size and not (value.min() >= 0 and value.max() <= 1):
                raise InputError(f"scores: {name} leaves [0, 1]; scores are fractions, not percentages")
