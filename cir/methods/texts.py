"""Texts of a training source as token rows and as frozen features, each made once."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from cir.backbones.base import Backbone, TextTower, Tokenizer
from cir.prompts import tokenize
from cir.schema import Prompt

BLOCK = 256
"""Texts encoded at once when a whole source is: fixed, because a batch's shape reaches the last bits."""
TABLE_BYTES = 2 << 30
"""The largest table of frozen features kept in memory."""


def encode_by_length(
    tower: TextTower, prompt: Prompt, pseudo: Float[Tensor, "b n w"] | None = None, parts: int = 4
) -> Float[Tensor, "b d"]:
    """Encode rows in `parts` groups of similar length, so that short rows are not padded to the longest of all.

    The same vectors as in one piece, up to rounding: rows do not see each other, and a tower that needs padding
    finds it in the rows.
    """
    order = np.argsort(prompt.ends, kind="stable")
    groups = np.array_split(order, min(parts, max(1, len(order) // 16)))
    if len({int(prompt.ends[group[-1]]) for group in groups}) == 1:
        return tower.encode(prompt, pseudo)
    places = [torch.from_numpy(group) for group in groups]
    encoded = [
        tower.encode(prompt[group], None if pseudo is None else pseudo[place.to(pseudo.device)])
        for group, place in zip(groups, places, strict=True)
    ]
    vectors = torch.cat(encoded)
    return vectors[torch.from_numpy(np.argsort(order, kind="stable")).to(vectors.device)]


class TokenRows:
    """Token rows by number, laid out when first asked for and kept, at most `keep` of them.

    `pieces(i)` gives row i's text pieces, one slot between consecutive ones; it must be a pure function, so that
    a row is the same whenever it is made. Rows longer than the tower's context are cut.
    """

    def __init__(self, tokenizer: Tokenizer, pieces: Callable[[int], Sequence[str]], keep: int = 1 << 18) -> None:
        self.tokenizer = tokenizer
        self.pieces = pieces
        self.keep = keep
        self._rows: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def prompt(self, numbers: Sequence[int]) -> Prompt:
        """Collect the rows, padded to the longest of them, or to the context for towers that need it."""
        found = {i: self._rows[i] for i in set(numbers) if i in self._rows}
        missing = sorted(set(numbers) - found.keys())
        if missing:
            fresh = tokenize(self.tokenizer, [list(self.pieces(i)) for i in missing], "cut")
            for i, ids, slots, end in zip(missing, fresh.ids, fresh.slots, fresh.ends, strict=True):
                found[i] = (ids[: end + 1].astype(np.int32), slots[slots >= 0].astype(np.int32))
            if len(self._rows) < self.keep:
                self._rows.update((i, found[i]) for i in missing)
        return self._collate([found[i] for i in numbers])

    def _collate(self, rows: list[tuple[np.ndarray, np.ndarray]]) -> Prompt:
        longest = max(len(ids) for ids, _ in rows)
        length = self.tokenizer.context if self.tokenizer.fixed_length else longest
        ids = np.full((len(rows), length), self.tokenizer.pad, dtype=np.int64)
        slots = np.full((len(rows), max(len(s) for _, s in rows)), -1, dtype=np.int64)
        for row, (tokens, places) in enumerate(rows):
            ids[row, : len(tokens)] = tokens
            slots[row, : len(places)] = places
        return Prompt(ids, slots, np.array([len(tokens) - 1 for tokens, _ in rows], dtype=np.int64))


class FrozenTexts:
    """Raw features of texts under the frozen tower: each distinct text encoded once where that pays.

    `text(i)` gives text i of `count`. Where a run draws more rows than there are texts, all distinct texts are
    encoded ahead, in blocks of a fixed size sorted by length, so that a resumed run finds the same bits. Otherwise,
    or where the table would exceed `TABLE_BYTES`, rows are encoded when asked for.
    """

    def __init__(self, backbone: Backbone, text: Callable[[int], str], count: int, draws: int) -> None:
        self.backbone = backbone
        self.tokens = TokenRows(backbone.tokenizer, lambda i: [text(i)])
        self.table: Float32[Tensor, "n d"] | None = None
        self._place: np.ndarray | None = None
        if count < draws and count * backbone.width * 4 <= TABLE_BYTES:
            self._encode_all([text(i) for i in range(count)])

    def __call__(self, numbers: Sequence[int]) -> Float32[Tensor, "b d"]:
        """Return the features of some texts, without gradient."""
        if self.table is None or self._place is None:
            return self.backbone.encode_text(self.tokens.prompt(numbers))
        return self.table[torch.from_numpy(self._place[list(numbers)]).to(self.table.device)]

    @torch.no_grad()
    def _encode_all(self, texts: Sequence[str]) -> None:
        ordered = sorted(set(texts), key=lambda text: (len(text), text))
        place = {text: i for i, text in enumerate(ordered)}
        self._place = np.array([place[text] for text in texts], dtype=np.int64)
        blocks = [[[text] for text in ordered[i : i + BLOCK]] for i in range(0, len(ordered), BLOCK)]
        tokenizer = self.backbone.tokenizer
        self.table = torch.cat([self.backbone.encode_text(tokenize(tokenizer, block, "cut")) for block in blocks])
