"""Phrases: sentences about concepts, which keep a pseudo-word readable to the text tower (SEARLE, arXiv:2303.15247).

A concept is a class name ("Acoustic guitar"); its phrases contain it and are written by a language model. With the
name replaced by the pseudo-word, a phrase shall still encode to what it encoded to.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from cir.backbones.base import Backbone
from cir.errors import InputError
from cir.methods.base import Store
from cir.methods.concepts import concept_features, read_names
from cir.methods.texts import FrozenTexts, TokenRows
from cir.schema import Prompt

logger = logging.getLogger(__name__)


class Vocabulary:
    """Concepts that have phrases; phrases are numbered through all concepts and kept as one block of bytes.

    `names` are in the order of the class list. A concept is bad, and has no phrases here, when any of its phrases
    lacks its name (case-sensitive), as in SEARLE; `good` says which are not. Raises `InputError` where none is good.
    """

    def __init__(self, rows: Iterable[tuple[str, Sequence[str]]]) -> None:
        names, good, blocks, ends = [], [], [], [0]
        starts, total = [0], 0
        for name, phrases in rows:
            names.append(name)
            good.append(bool(phrases) and all(name in phrase for phrase in phrases))
            for phrase in phrases if good[-1] else ():
                blocks.append(phrase.encode())
                total += len(blocks[-1])
                ends.append(total)
            starts.append(len(blocks))
        if not any(good):
            raise InputError(f"phrases: none of {len(names):,} concepts is named in each of its phrases; wrong file?")
        self.names = tuple(names)
        self.good: Bool[np.ndarray, " c"] = np.array(good, dtype=bool)
        self.starts: Int64[np.ndarray, " n"] = np.array(starts, dtype=np.int64)
        self._bytes, self._ends = b"".join(blocks), np.array(ends, dtype=np.int64)
        listed = json.dumps([self.names, starts, good]).encode()
        digest = hashlib.sha256(listed + self._ends.tobytes())
        digest.update(self._bytes)
        self.fingerprint = digest.hexdigest()[:16]

    def __len__(self) -> int:
        """Count the phrases."""
        return int(self.starts[-1])

    @property
    def counts(self) -> Int64[np.ndarray, " c"]:
        """Phrases per concept."""
        return np.diff(self.starts)

    @property
    def dropped(self) -> int:
        """Count the bad concepts."""
        return int((~self.good).sum())

    def phrase(self, number: int) -> str:
        """Return a phrase."""
        return self._bytes[self._ends[number] : self._ends[number + 1]].decode()

    def concept(self, number: int) -> str:
        """Return the concept a phrase is about."""
        return self.names[int(np.searchsorted(self.starts, number, side="right")) - 1]

    def first(self, number: int) -> list[str]:
        """Cut a phrase around the first occurrence of its concept, where the slot is (SEARLE's inversion)."""
        before, _, behind = self.phrase(number).partition(self.concept(number))
        return [before, f" {behind}"]

    def every(self, number: int) -> list[str]:
        """Do what `first` does, and put a plain "$" for every later occurrence (SEARLE's distillation)."""
        before, behind = self.first(number)
        return [before, behind.replace(self.concept(number), " $ ")]

    def any_phrase(
        self, concepts: Int64[np.ndarray, "n k"], uniform: Float[np.ndarray, "n s"]
    ) -> Int64[np.ndarray, "n s"]:
        """Turn numbers from [0, 1) into phrases, uniform over all phrases of a row's concepts."""
        counts = self.counts[concepts]
        ends = counts.cumsum(axis=1)
        place = np.minimum((uniform * ends[:, -1:]).astype(np.int64), ends[:, -1:] - 1)
        column = (place[:, :, None] >= ends[:, None, :]).sum(axis=2)
        offset = place - np.take_along_axis(ends - counts, column, axis=1)
        return np.take_along_axis(self.starts[concepts], column, axis=1) + offset

    def phrase_of_any(
        self, concepts: Int64[np.ndarray, "n k"], uniform: Float[np.ndarray, "n 2"]
    ) -> Int64[np.ndarray, " n"]:
        """Turn two numbers from [0, 1) per row into a phrase: a good concept of the row's first, then one of its own.

        The same distribution as drawing concepts until none of the batch is bad. Raises `InputError` for a row whose
        concepts are all bad.
        """
        good = self.good[concepts]
        many = good.sum(axis=1)
        if not many.all():
            raise InputError(
                f"concepts: none of the {concepts.shape[1]} concepts closest to an image is named in each of its "
                f"phrases ({self.dropped:,} of {len(self.names):,} are not); mend the phrases"
            )
        pick = np.minimum((uniform[:, 0] * many).astype(np.int64), many - 1)
        column = (good.cumsum(axis=1) == pick[:, None] + 1).argmax(axis=1)
        chosen = np.take_along_axis(concepts, column[:, None], axis=1)
        return self.any_phrase(chosen, uniform[:, 1:])[:, 0]


class Phrasebook:
    """A vocabulary on a backbone: its concepts' features, and its phrases as token rows and frozen features.

    `draws` phrases will be asked for in all: where that is more than there are, and their features fit the bound of
    `FrozenTexts`, each is encoded once, ahead. Otherwise `rows` brings the phrases along, to be encoded in the same
    call as their versions with a slot, where a tower that shares prefixes computes half of them only.
    """

    def __init__(self, backbone: Backbone, vocabulary: Vocabulary, *, draws: int, store: Store) -> None:
        self.vocabulary, self.tokenizer, self.store = vocabulary, backbone.tokenizer, store
        self.concepts = concept_features(backbone, vocabulary.names, store)
        known = (vocabulary.fingerprint,)
        frozen = FrozenTexts(backbone, vocabulary.phrase, len(vocabulary), draws, store, known)
        self.frozen = frozen if frozen.table is not None else None
        self.plain = TokenRows(backbone.tokenizer, lambda number: [vocabulary.phrase(number)])

    @cached_property
    def first(self) -> TokenRows:
        """Phrases with a slot at the first mention of their concept."""
        return self._slotted(self.vocabulary.first, "first")

    @cached_property
    def every(self) -> TokenRows:
        """The same, with a plain "$" at later mentions."""
        return self._slotted(self.vocabulary.every, "every")

    def _slotted(self, pieces: Callable[[int], list[str]], kind: str) -> TokenRows:
        ahead = len(self.vocabulary) if self.frozen is not None else None
        return TokenRows(self.tokenizer, pieces, ahead, self.store, (self.vocabulary.fingerprint, kind))

    def rows(self, slotted: TokenRows, numbers: Sequence[int]) -> list[Prompt]:
        """Lay out phrases with a slot (`first` or `every`), and behind them the phrases themselves if not cached."""
        prompt = slotted.prompt(numbers)
        return [prompt] if self.frozen is not None else [prompt, self.plain.prompt(numbers)]

    def cached(self, numbers: Sequence[int]) -> Float[Tensor, "n d"] | None:
        """Look up the phrases' features, None where `rows` brings the phrases along."""
        return None if self.frozen is None else self.frozen(numbers)


def read(concepts: str | Path, phrases: str | Path) -> Vocabulary:
    """Read a class list (`concepts.read_names`; empty: the order of the phrases) and the phrases of its concepts.

    Phrases are lines of `{"concept": ..., "phrases": [...]}`. Concepts without a line are left out; how many that are,
    and how many are dropped for a phrase without their name, is logged.
    """
    if not phrases:
        raise InputError('phrases: no file given; expected lines of {"concept": ..., "phrases": [...]}')
    wanted = read_names(concepts) if concepts else []
    found: dict[str, list[str]] = {}
    for name, sentences in _read_phrases(Path(phrases)):
        if name in found:
            raise InputError(f"{phrases}: concept {name!r} occurs twice; expected one line per concept")
        found[name] = sentences
    vocabulary = Vocabulary((name, found.pop(name)) for name in (wanted or list(found)) if name in found)
    absent = len(wanted) - len(vocabulary.names) if wanted else 0
    if absent or vocabulary.dropped:
        logger.warning(
            "%s: %d concepts have no phrases, %d of the other %d are dropped because a phrase lacks their name",
            phrases, absent, vocabulary.dropped, len(vocabulary.names),
        )  # fmt: skip
    return vocabulary


def _read_phrases(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield the concepts of a JSONL file with their phrases."""
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                row = json.loads(line)
                name, phrases = (row.get("concept"), row.get("phrases")) if isinstance(row, dict) else (None, None)
                if not isinstance(name, str) or not isinstance(phrases, list) or not name.strip():
                    raise InputError(f'{path}:{number}: expected {{"concept": text, "phrases": [texts]}}')
                if not all(isinstance(phrase, str) for phrase in phrases):
                    raise InputError(f"{path}:{number}: a phrase of {name!r} is not a text")
                yield name.strip(), phrases
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not readable as lines of JSON ({error})") from None
