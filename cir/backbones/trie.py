"""Token rows as a trie: the distinct prefixes of a batch, laid out for a causal tower that computes each one once.

Under a causal mask the state at a position depends on the tokens up to it and on nothing else, so rows that begin
alike have equal states there, padding need not exist, and a row equal to another is that row. All of it is index
work in numpy, before the tower starts.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Int64

from cir.schema import Prompt

SHORT = 16
"""Rows up to this length are padded to one another in attention; longer ones where they round up to one power of 2."""

PSEUDO = 1 << 40
"""The key of the first pseudo-word; smaller ones are tokens."""

A = TypeVar("A", np.ndarray, torch.Tensor)


@dataclass(frozen=True)
class Bucket(Generic[A]):
    """Paths of similar length, for attention: a query sees the keys at and before its own position."""

    keys: A
    """Numbers the nodes of each path from the root, "r l"; behind its length stands a filler no query of it sees."""
    queries: A
    """Numbers nodes within the part: the one at each key position, "r l", or the last one of each path, "r 1"."""
    lengths: A
    """Nodes on each path, "r"."""


@dataclass(frozen=True)
class Part(Generic[A]):
    """Nodes computed together, in depth-first order; keys and values of the parts before it count as known."""

    ids: A
    """Token of each node, "n"; meaningless in a slot."""
    positions: A
    """Position of each node, "n"."""
    slots: A
    """Nodes that take a pseudo-word, "k"."""
    sources: A
    """Which one they take, "k": a row of the flattened "(o n) w"."""
    inner: tuple[Bucket[A], ...]
    """Attention of all nodes."""
    picked: A
    """Where each node's output lies in the flattened outputs of `inner`, "n"."""
    last: tuple[Bucket[A], ...]
    """Attention of the nodes where rows end, each numbered by its place in `ends`."""
    ends: A
    """Those nodes, "e", in the order of the output."""
    constant: bool
    """Whether no gradient can flow to the nodes: the tower is frozen and no pseudo-word is on their paths."""


@dataclass(frozen=True)
class Trie(Generic[A]):
    """A batch of token rows as distinct nodes, numbered part by part."""

    parts: tuple[Part[A], ...]
    enter: A
    """Place of each node in the depth-first order of all, "n"."""
    leave: A
    """Place of the first later node that does not descend from it, "n": j is on the path to i where
    `enter[j] <= enter[i] < leave[j]`."""
    rows: A
    """Where each row's vector lies in the outputs of the parts, one after the other, "b"."""


def grow(
    prompt: Prompt, words: int = 0, owner: Int64[np.ndarray, " b"] | None = None, split: bool = False
) -> Trie[np.ndarray]:
    """Find the distinct prefixes of the rows.

    `words` counts the pseudo-words of an owner: 0 for plain rows, whose slots are ordinary tokens, 1 where every slot
    takes the same one, else one per slot column; without `owner` row i belongs to owner i. Two positions are the same
    where token and, in a slot, pseudo-word are the same at them and at all positions before. With `split`, nodes that
    have no slot on their path make the first part, all others the second; without, all nodes are one part.
    """
    if words > 1 and words != prompt.slots.shape[1]:
        raise ValueError(f"splice: {words} pseudo-words for {prompt.slots.shape[1]} slot columns")
    length = int(prompt.ends.max(initial=0)) + 1
    sources = _sources(prompt, words, owner)[:, :length]
    inside = np.arange(length) <= prompt.ends[:, None]
    ids = prompt.ids[:, :length]
    # One number per position says whether two are the same; nothing, behind the end, comes first in the order.
    keys = np.where(inside, np.where(sources >= 0, PSEUDO + sources, ids), -1)
    order = np.lexsort(keys.T[::-1]) if len(keys) else np.zeros(0, dtype=np.int64)
    keys = keys[order]
    differs = np.ones(keys.shape, dtype=bool)
    differs[1:] = np.logical_or.accumulate(keys[1:] != keys[:-1], axis=1)
    fresh = differs & (keys != -1)
    distinct = fresh.any(axis=1)
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.cumsum(distinct) - 1
    return _lay_out(keys[distinct], fresh[distinct], rank, split)


def _sources(prompt: Prompt, words: int, owner: Int64[np.ndarray, " b"] | None) -> Int64[np.ndarray, "b l"]:
    """Say which pseudo-word each position takes, as a row of the flattened "(o n) w"; -1 for an ordinary token."""
    rows, length = prompt.ids.shape
    sources = np.full((rows, length + 1), -1, dtype=np.int64)  # unused slots, -1, land in the last column
    if words:
        first = (np.arange(rows) if owner is None else owner)[:, None] * words
        columns = np.arange(prompt.slots.shape[1]) if words > 1 else 0
        np.put_along_axis(sources, prompt.slots, np.broadcast_to(first + columns, prompt.slots.shape), axis=1)
    return sources[:, :length]


def _lay_out(
    keys: Int64[np.ndarray, "u l"], fresh: Bool[np.ndarray, "u l"], rank: Int64[np.ndarray, " b"], split: bool
) -> Trie[np.ndarray]:
    """Give nodes their numbers, in parts: `fresh` marks where a sorted, distinct row leaves the ones before."""
    first = np.cumsum(fresh).reshape(fresh.shape) - 1
    varies = np.logical_or.accumulate(keys >= PSEUDO, axis=1) & split
    order = np.argsort(varies[fresh], kind="stable")
    number = np.argsort(order)
    # A row's path follows the row above up to where it leaves it, and node numbers only grow.
    path = number[np.maximum.accumulate(np.where(fresh, first, 0), axis=0)]
    parts: list[Part[np.ndarray]] = []
    rows, nodes, ends = np.empty(len(keys), dtype=np.int64), 0, 0
    for late in (False, True):
        members = fresh & (varies == late)
        if not members.any():
            continue
        part, pooled = _part(keys, path, members, np.flatnonzero(varies[:, -1] == late), nodes, split and not late)
        rows[pooled] = ends + np.arange(len(pooled))
        nodes, ends = nodes + len(part.ids), ends + len(pooled)
        parts.append(part)
    return Trie(tuple(parts), order, _leave(fresh, first)[order], rows[rank])


def _part(
    keys: Int64[np.ndarray, "u l"],
    path: Int64[np.ndarray, "u l"],
    members: Bool[np.ndarray, "u l"],
    pooled: Int64[np.ndarray, " e"],
    before: int,
    constant: bool,
) -> tuple[Part[np.ndarray], Int64[np.ndarray, " e"]]:
    """Lay out the nodes first met at `members`, and the rows `pooled` among them; return those in output order."""
    own = keys[members]
    slots = np.flatnonzero(own >= PSEUDO)
    inner, picked = _inner(path, members, before)
    last, ordered = _last(path, pooled, (keys != -1).sum(axis=1))
    part = Part(
        ids=np.where(own >= PSEUDO, 0, own),
        positions=np.nonzero(members)[1],
        slots=slots,
        sources=own[slots] - PSEUDO,
        inner=inner,
        picked=picked,
        last=last,
        ends=path[ordered, (keys != -1).sum(axis=1)[ordered] - 1] - before,
        constant=constant,
    )
    return part, ordered


def _inner(
    path: Int64[np.ndarray, "u l"], members: Bool[np.ndarray, "u l"], before: int
) -> tuple[tuple[Bucket[np.ndarray], ...], Int64[np.ndarray, " n"]]:
    """Bucket the rows where nodes are first met; say where each node's output will lie."""
    local = np.where(members, path - before, 0)
    place = np.zeros(path.shape, dtype=np.int64)
    buckets, offset = [], 0
    stops = path.shape[1] - np.argmax(members[:, ::-1], axis=1)
    for rows in _alike(np.flatnonzero(members.any(axis=1)), stops):
        bucket = Bucket(_paths(path, rows, stops[rows]), local[rows, : stops[rows].max()], stops[rows])
        place[rows, : bucket.keys.shape[1]] = offset + np.arange(bucket.keys.size).reshape(bucket.keys.shape)
        offset += bucket.keys.size
        buckets.append(bucket)
    return tuple(buckets), place[members]


def _last(
    path: Int64[np.ndarray, "u l"], pooled: Int64[np.ndarray, " e"], stops: Int64[np.ndarray, " u"]
) -> tuple[tuple[Bucket[np.ndarray], ...], Int64[np.ndarray, " e"]]:
    """Bucket the rows that end in a part, each with one query; return them in the order of the buckets."""
    buckets, ordered = [], [pooled[:0]]
    for rows in _alike(pooled, stops):
        queries = sum(map(len, ordered)) + np.arange(len(rows))
        buckets.append(Bucket(_paths(path, rows, stops[rows]), queries[:, None], stops[rows]))
        ordered.append(rows)
    return tuple(buckets), np.concatenate(ordered)


def _alike(rows: Int64[np.ndarray, " r"], stops: Int64[np.ndarray, " u"]) -> Iterator[Int64[np.ndarray, " n"]]:
    """Group rows by where they stop, rounded up to a power of 2."""
    groups = np.ceil(np.log2(np.maximum(stops[rows], SHORT)))
    for group in np.unique(groups):
        yield rows[groups == group]


def _paths(
    path: Int64[np.ndarray, "u l"], rows: Int64[np.ndarray, " n"], stops: Int64[np.ndarray, " n"]
) -> Int64[np.ndarray, "n m"]:
    """Cut paths to the longest of some rows, filled behind each one's stop."""
    longest = stops.max()
    return np.where(np.arange(longest) < stops[:, None], path[rows, :longest], 0)


def _leave(fresh: Bool[np.ndarray, "u l"], first: Int64[np.ndarray, "u l"]) -> Int64[np.ndarray, " n"]:
    """Find, per node in depth-first order, the first later node that does not descend from it."""
    count = int(fresh.sum())
    # A row's first new node, in every column at or behind which the row has left the one above.
    opening = np.where(fresh, first, count).min(axis=1, initial=count, keepdims=True)
    opening = np.where(np.logical_or.accumulate(fresh, axis=1), opening, count)
    after = np.full(fresh.shape, count, dtype=np.int64)
    after[:-1] = np.minimum.accumulate(opening[::-1], axis=0)[::-1][1:]
    return after[fresh]


def upload(trie: Trie[np.ndarray], device: torch.device) -> Trie[torch.Tensor]:
    """Copy the arrays to a device, in one transfer that does not wait for it."""
    arrays = list(_arrays(trie))
    flat = torch.from_numpy(np.concatenate([array.ravel() for array in arrays]))
    if device.type == "cuda":
        flat = flat.pin_memory().to(device, non_blocking=True)
    pieces = iter(flat.split([array.size for array in arrays]))
    moved: Trie[torch.Tensor] = _mapped(trie, lambda array: next(pieces).view(array.shape))
    return moved


def _arrays(value: Any) -> Iterator[np.ndarray]:
    """Find the arrays in nested dataclasses and tuples."""
    if isinstance(value, np.ndarray):
        yield value
    elif isinstance(value, tuple) or is_dataclass(value):
        for item in value if isinstance(value, tuple) else (getattr(value, field.name) for field in fields(value)):
            yield from _arrays(item)


def _mapped(value: Any, function: Callable[[np.ndarray], Any]) -> Any:
    """Rebuild nested dataclasses and tuples with a function of every array, in the order of `_arrays`."""
    if isinstance(value, np.ndarray):
        return function(value)
    if isinstance(value, tuple):
        return tuple(_mapped(item, function) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{field.name: _mapped(getattr(value, field.name), function) for field in fields(value)})
    return value
