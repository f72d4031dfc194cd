"""Texts of a training source as token rows and as frozen features, each made once and kept where that pays."""

import hashlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int32, Int64, Shaped
from torch import Tensor

from cir import prompts
from cir.backbones.base import Backbone, Tokenizer
from cir.methods.base import Images, ImageTriplets, NoStore, Store
from cir.methods.masking import Masked
from cir.progress import bar
from cir.prompts import tokenize
from cir.schema import Prompt

BLOCK = 256
"""Texts encoded at once when a whole source is: fixed, because a batch's shape reaches the last bits."""
LAID_OUT = 4096
"""Token rows laid out between two points from which an interrupted run goes on."""
MEMORY_BYTES = 2 << 30
"""The largest table of token rows, and of frozen features, kept in memory."""
DISK_BYTES = 64 << 30
"""The largest table on disk. Beyond either limit rows are made when they are asked for."""
LAZY_ROWS = 1 << 18
"""Token rows remembered where they are made when asked for."""
KEEP_NOTHING = NoStore()


def fits(count: int, row_bytes: int, store: Store) -> bool:
    """Tell whether a table of `count` rows stays below the limit of where it would be kept."""
    return count * row_bytes <= (MEMORY_BYTES if isinstance(store, NoStore) else DISK_BYTES)


def fingerprint(source: Sequence[Any] | Images | ImageTriplets) -> str:
    """Identify a training source: by its own fingerprint, or over its rows."""
    own = getattr(source, "fingerprint", None)
    if isinstance(own, str):
        return own
    total = hashlib.sha256()
    rows: Any = source
    for row in rows:
        total.update(repr(row).encode())
    return total.hexdigest()[:16]


def rules(*modules: ModuleType) -> str:
    """Identify the code that makes rows: what was kept under other rules is not taken over."""
    return hashlib.sha256("".join(map(inspect.getsource, modules)).encode()).hexdigest()[:16]


class TokenRows:
    """Token rows by number; rows longer than the tower's context are cut.

    `pieces(i)` gives row i's text pieces, one slot between consecutive ones, or a `Masked` that also says whether
    they are the caption's own; it must be a pure function, so that a row is the same whenever it is made. With
    `count` all rows are laid out at once, through `store`, under `identity`: all that the pieces depend on (the
    tokenizer is added here). Otherwise, or where they would exceed the limit, a row is laid out when first asked for.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        pieces: Callable[[int], Sequence[str] | Masked],
        count: int | None = None,
        store: Store = KEEP_NOTHING,
        identity: Sequence[str] = (),
    ) -> None:
        self.tokenizer = tokenizer
        self.pieces = pieces
        self.count = count
        self.table: Int32[np.ndarray, "n c"] | None = None
        """Per row: how many tokens, whether they are its own, then ids; a slot's id is stored as its complement."""
        self._rows: dict[int, Int32[np.ndarray, " c"]] = {}
        if count is not None and fits(count, 4 * (tokenizer.context + 2), store):
            known = (*identity, getattr(tokenizer, "fingerprint", ""), rules(prompts))
            self.table = store.rows("tokens", known, count, self._blocks)

    def __call__(self, numbers: Sequence[int]) -> tuple[Prompt, Bool[np.ndarray, " b"]]:
        """Collect rows, padded to the longest of them (to the context for towers that need it), and which are own."""
        rows = self._lookup(numbers)
        longest = self.tokenizer.context if self.tokenizer.fixed_length else int(rows[:, 0].max(initial=1))
        return _prompt(rows, longest), rows[:, 1] == 1

    def prompt(self, numbers: Sequence[int]) -> Prompt:
        """Collect rows, for callers that need the prompt only."""
        return self(numbers)[0]

    def _lookup(self, numbers: Sequence[int]) -> Int32[np.ndarray, "b c"]:
        """Look rows up, laying out those that are not there yet."""
        if self.table is not None:
            return np.asarray(self.table[np.asarray(numbers, dtype=np.int64)])
        found = {i: self._rows[i] for i in set(numbers) if i in self._rows}
        missing = sorted(set(numbers) - found.keys())
        if missing:
            fresh = dict(zip(missing, self._lay_out(missing), strict=True))
            found |= fresh
            if len(self._rows) < LAZY_ROWS:
                self._rows |= fresh
        return np.stack([found[i] for i in numbers])

    def _lay_out(self, numbers: Sequence[int]) -> Int32[np.ndarray, "b c"]:
        """Lay rows out, in the layout of `table`."""
        made = [self.pieces(i) for i in numbers]
        own = [row.own if isinstance(row, Masked) else True for row in made]
        texts = [list(row.pieces if isinstance(row, Masked) else row) for row in made]
        prompt = tokenize(self.tokenizer, texts, "cut")
        rows = np.full((len(made), self.tokenizer.context + 2), self.tokenizer.pad, dtype=np.int32)
        rows[:, 0], rows[:, 1] = prompt.ends + 1, own
        ids = prompt.ids.astype(np.int32)
        row, column = np.nonzero(prompt.slots >= 0)
        places = prompt.slots[row, column]
        ids[row, places] = ~ids[row, places]
        rows[:, 2 : 2 + ids.shape[1]] = ids
        return rows

    def _blocks(self, start: int) -> Iterator[Int32[np.ndarray, "b c"]]:
        """Lay out all rows from `start` on."""
        total = self.count or 0
        with bar(total, "tokenizing texts", enabled=total > LAID_OUT) as shown:
            shown.skip(start)
            for first in range(start, total, LAID_OUT):
                numbers = range(first, min(first + LAID_OUT, total))
                yield self._lay_out(numbers)
                shown.advance(len(numbers))


def _prompt(rows: Int32[np.ndarray, "b c"], length: int) -> Prompt:
    """Undo the layout of `TokenRows.table`."""
    ids = rows[:, 2 : 2 + length].astype(np.int64)
    row, places = np.nonzero(ids < 0)
    ids[row, places] = ~ids[row, places]
    counts = np.bincount(row, minlength=len(ids))
    slots = np.full((len(ids), int(counts.max(initial=0))), -1, dtype=np.int64)
    slots[row, np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)] = places
    return Prompt(ids, slots, rows[:, 0].astype(np.int64) - 1)


class FrozenTexts:
    """Raw features of texts under the frozen tower: each distinct text encoded once where that pays.

    `text(i)` gives text i of `count`. Where a run draws more rows than there are texts, all distinct texts are
    encoded ahead through `store`, in blocks of a fixed size, so that a resumed run finds the same bits; `identity` is
    all that the texts depend on. Otherwise, or where the table would exceed the limit (`MEMORY_BYTES`, `DISK_BYTES`),
    rows are encoded when asked for.
    """

    def __init__(
        self,
        backbone: Backbone,
        text: Callable[[int], str],
        count: int,
        draws: int,
        store: Store = KEEP_NOTHING,
        identity: Sequence[str] = (),
    ) -> None:
        self.backbone = backbone
        ahead = count < draws and fits(count, 4 * backbone.width, store)
        self.tokens = TokenRows(
            backbone.tokenizer, lambda i: [text(i)], count if ahead else None, store, (*identity, "text")
        )
        self.table: Float32[np.ndarray, "m d"] | None = None
        """One row per distinct text: a memory map where a store keeps it."""
        self.places: Int64[np.ndarray, " n"] | None = None
        """The row of each text in `table`."""
        if ahead and self.tokens.table is not None:
            known = (*identity, "text", getattr(backbone.tokenizer, "fingerprint", ""), rules(prompts))
            self._keep(self.tokens.table, store, known)

    def __call__(self, numbers: Sequence[int]) -> Float32[Tensor, "b d"]:
        """Return the features of some texts, without gradient, on the backbone's device."""
        if self.table is None or self.places is None:
            return self.backbone.encode_text(self.tokens.prompt(numbers))
        found = np.asarray(self.table[self.places[np.asarray(numbers, dtype=np.int64)]])
        return torch.from_numpy(found).to(self.backbone.device, non_blocking=True)

    def _keep(self, rows: Int32[np.ndarray, "n c"], store: Store, known: Sequence[str]) -> None:
        """Encode each distinct row once, in order of first occurrence."""
        first, self.places = distinct(rows)
        self.table = store.rows("texts", known, len(first), lambda start: self._blocks(first, start))

    @torch.no_grad()
    def _blocks(self, first: Int64[np.ndarray, " m"], start: int) -> Iterator[Float32[np.ndarray, "b d"]]:
        """Encode the distinct rows from `start` on."""
        with bar(len(first), "encoding texts", enabled=len(first) > BLOCK) as shown:
            shown.skip(start)
            for at in range(start, len(first), BLOCK):
                numbers = first[at : at + BLOCK]
                yield self.backbone.encode_text(self.tokens.prompt(numbers.tolist())).cpu().numpy()
                shown.advance(len(numbers))


def distinct(rows: Shaped[np.ndarray, "n c"]) -> tuple[Int64[np.ndarray, " m"], Int64[np.ndarray, " n"]]:
    """Find the distinct rows, in order of first occurrence: where that is, and which of them every row is.

    Rows are read block by block, for they may be a memory map larger than memory, and compared by a digest of their
    bytes (128 bits).
    """
    marks = np.empty((len(rows), 2), dtype=np.uint64)
    for start in range(0, len(rows), LAID_OUT):
        block = np.ascontiguousarray(rows[start : start + LAID_OUT])
        digests = b"".join(hashlib.blake2b(row, digest_size=16).digest() for row in block)
        marks[start : start + len(block)] = np.frombuffer(digests, dtype=np.uint64).reshape(-1, 2)
    order = np.lexsort((marks[:, 1], marks[:, 0]))
    fresh = np.concatenate([[True], (marks[order][1:] != marks[order][:-1]).any(axis=1)])[: len(rows)]
    number = np.empty(len(rows), dtype=np.int64)
    number[order] = np.cumsum(fresh) - 1
    first = np.minimum.reduceat(order, np.flatnonzero(fresh)) if len(rows) else order
    by_row = np.argsort(first, kind="stable")
    rank = np.empty_like(by_row)
    rank[by_row] = np.arange(len(by_row))
    return first[by_row].astype(np.int64), rank[number]
