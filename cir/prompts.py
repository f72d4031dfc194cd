"""Prompts: templates with slots for pseudo-words, named ways to join a query's texts, and rows of token ids.

A slot is a position this module created, never one found by its token id: a template is split at `$` before the
user's text goes in, so a `$` in a text is a dollar sign.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64

from cir.errors import InputError, nearest
from cir.schema import Prompt

SLOT = "$"
FIELDS = ("text", "concept")

Overflow = Literal["error", "cut"]
"""What to do with a row longer than the tower's context: stop and name it, or cut its text."""

Joiner = Callable[[Sequence[str]], list[str]]
"""Turns the texts of one query into the texts to render: one prompt row each, averaged by the method."""


@runtime_checkable
class PromptTokenizer(Protocol):
    """What prompts need of a tokenizer: pieces to ids, and the special ids around them."""

    start: tuple[int, ...]
    """Ids put before the text (CLIP: start-of-text; SigLIP: none)."""
    end: int
    """The end-of-text id."""
    pad: int
    """The id that fills the row behind end-of-text."""
    slot: int
    """The id that stands in a slot before its embedding is replaced (CLIP: the id of `$`)."""
    context: int
    """The longest row the tower takes."""
    fixed_length: bool
    """Whether rows are always padded to `context` (towers that are not causal)."""

    def pieces(self, text: str) -> list[int]:
        """Turn text into ids, without special ids, without truncation."""
        ...


@dataclass(frozen=True, slots=True)
class Rendered:
    """Prompt rows, the query each row belongs to (ascending), and the rows whose text was cut to the context."""

    prompt: Prompt
    owner: Int64[np.ndarray, " b"]
    truncated: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Template:
    """A prompt with any number of `$` slots and the fields `{text}` and `{concept}`.

    The default is that of SEARLE, LinCIR and RTD (arXiv:2303.15247, 2312.01998, 2406.09188); Pic2Word's is
    `a photo of $ , {text}` (arXiv:2302.03084).
    """

    text: str = "a photo of $ that {text}"
    overflow: Overflow = "error"
    """What becomes of a row longer than the tower's context: an error, or it is cut behind the last slot."""

    def __post_init__(self) -> None:
        for field in re.findall(r"{(.*?)}", self.text):
            if field not in FIELDS:
                raise InputError(f"template {self.text!r}: unknown field {{{field}}}; {nearest(field, FIELDS)}")
        if re.search(r"[{}]", re.sub(r"{.*?}", "", self.text)):
            raise InputError(f"template {self.text!r}: unpaired brace; expected {{text}} or {{concept}}")

    @property
    def slots(self) -> int:
        """Count the pseudo-word slots of a row."""
        return self.text.count(SLOT)

    def fill(self, text: str, concept: str = "") -> list[str]:
        """Split at the slots, then insert the user's words.

        >>> Template("a $ that costs {text}").fill("$20")
        ['a ', ' that costs $20']
        """
        words = {"{text}": text, "{concept}": concept}
        return [re.sub(r"{text}|{concept}", lambda m: words[m[0]], piece) for piece in self.text.split(SLOT)]

    def render(
        self,
        tokenizer: PromptTokenizer,
        texts: Sequence[Sequence[str]],
        concepts: Sequence[str] | None = None,
        overflow: Overflow | None = None,
    ) -> Rendered:
        """Render one row per text: `texts[i]` are query i's joined texts, `concepts[i]` its shared concept.

        A template without `{text}` renders one row per query. Raises InputError for a query without texts, without
        a concept where the template reads it, or with a row that does not fit the tower (see `lay_out`).
        """
        if concepts is None:
            concepts = [""] * len(texts)
        if len(concepts) != len(texts):
            raise InputError(f"template: {len(texts)} queries' texts but {len(concepts)} concepts")
        rows: list[list[str]] = []
        owner: list[int] = []
        for query, (alternatives, concept) in enumerate(zip(texts, concepts, strict=True)):
            for text in self._needed(query, alternatives, concept):
                rows.append(self.fill(text, concept))
                owner.append(query)
        prompt, truncated = lay_out(tokenizer, rows, overflow or self.overflow)
        return Rendered(prompt, np.array(owner, dtype=np.int64), truncated)

    def _needed(self, query: int, texts: Sequence[str], concept: str) -> Sequence[str]:
        """Choose the texts of one query that make a row, after checking that nothing the template reads is absent."""
        if "{concept}" in self.text and not concept:
            raise InputError(f"template {self.text!r} reads {{concept}}, but query {query} of the batch has none")
        if "{text}" not in self.text:
            return [""]
        if not texts:
            raise InputError(f"template {self.text!r} reads {{text}}, but query {query} of the batch has none")
        return texts


def lay_out(
    tokenizer: PromptTokenizer, rows: Sequence[Sequence[str]], overflow: Overflow = "error"
) -> tuple[Prompt, tuple[int, ...]]:
    """Turn rows of text pieces, with one slot between consecutive pieces, into token rows; name the rows cut.

    Pieces are tokenised one by one, trailing blanks removed; a leading blank is kept, because sentence-piece
    tokenizers read from it that a word begins. With `overflow="cut"`, tokens are dropped from the last piece's tail,
    then from the piece before it, so that slots and end-of-text stay. Raises InputError where a row is too long
    (`"error"`), or where its slots alone are.
    """
    if any(isinstance(row, str) or not row for row in rows):
        raise TypeError("a prompt row is a non-empty list of text pieces, not a string")
    ids: list[list[int]] = []
    slots: list[list[int]] = []
    truncated: list[int] = []
    for index, row in enumerate(rows):
        pieces = [tokenizer.pieces(piece.rstrip()) for piece in row]
        if _cut(pieces, tokenizer, row, overflow):
            truncated.append(index)
        tokens = [*tokenizer.start, *pieces[0]]
        slots.append([])
        for piece in pieces[1:]:
            slots[-1].append(len(tokens))
            tokens += [tokenizer.slot, *piece]
        ids.append([*tokens, tokenizer.end])
    return _pack(ids, slots, tokenizer), tuple(truncated)


def tokenize(tokenizer: PromptTokenizer, rows: Sequence[Sequence[str]], overflow: Overflow = "error") -> Prompt:
    """Do what `lay_out` does, for callers that need the prompt only.

    `["a photo of", " that is red"]` has one slot between its two pieces; `["a cat"]` has none.
    """
    return lay_out(tokenizer, rows, overflow)[0]


def stack(prompts: Sequence[Prompt]) -> Prompt:
    """Put the rows of several prompts under each other; short rows are filled with a zero, which no tower reads."""
    length, slots = max(p.ids.shape[1] for p in prompts), max(p.slots.shape[1] for p in prompts)
    return Prompt(
        np.concatenate([np.pad(p.ids, ((0, 0), (0, length - p.ids.shape[1]))) for p in prompts]),
        np.concatenate([np.pad(p.slots, ((0, 0), (0, slots - p.slots.shape[1])), constant_values=-1) for p in prompts]),
        np.concatenate([p.ends for p in prompts]),
    )


def _cut(pieces: list[list[int]], tokenizer: PromptTokenizer, row: Sequence[str], overflow: Overflow) -> bool:
    """Shorten the pieces in place until the row fits the context; say whether that was needed."""
    fixed = len(tokenizer.start) + len(pieces) - 1 + 1  # specials and slots
    excess = fixed + sum(map(len, pieces)) - tokenizer.context
    if excess <= 0:
        return False
    text = SLOT.join(row)
    if fixed > tokenizer.context:
        raise InputError(
            f"prompt {text!r:.80}: {len(pieces) - 1} slots and the special tokens do not fit the "
            f"{tokenizer.context} positions of the text tower; use fewer slots"
        )
    if overflow == "error":
        raise InputError(
            f"prompt {text!r:.80}: {excess + tokenizer.context} tokens, the text tower takes {tokenizer.context}; "
            "shorten the text, or set prompt.overflow=cut"
        )
    for piece in reversed(pieces):
        dropped = min(excess, len(piece))
        del piece[len(piece) - dropped :]
        excess -= dropped
    return True


def _pack(ids: list[list[int]], slots: list[list[int]], tokenizer: PromptTokenizer) -> Prompt:
    """Pad the rows: to the longest of them, or to the context for towers that need it."""
    length = tokenizer.context if tokenizer.fixed_length else max(map(len, ids), default=1)
    packed = np.full((len(ids), length), tokenizer.pad, dtype=np.int64)
    positions = np.full((len(ids), max(map(len, slots), default=0)), -1, dtype=np.int64)
    for row, (tokens, places) in enumerate(zip(ids, slots, strict=True)):
        packed[row, : len(tokens)] = tokens
        positions[row, : len(places)] = places
    ends = np.array([len(tokens) - 1 for tokens in ids], dtype=np.int64)
    return Prompt(packed, positions, ends)


JOINERS: dict[str, Joiner] = {}
"""The named joins of the literature, by the names of the functions below."""


def _joiner(rule: Joiner) -> Joiner:
    """Register a rule, and apply it only where there is something to join: a single text (CIRR, CIRCO) stays as stored.

    An empty one among several texts is joined like any other and leaves its "and" behind, as in the official code;
    a query without texts gets no row.
    """

    @wraps(rule)
    def join(texts: Sequence[str]) -> list[str]:
        return rule(texts) if len(texts) > 1 else list(texts)

    JOINERS[rule.__name__] = join  # type: ignore[attr-defined]
    return join


def _stripped(texts: Sequence[str]) -> list[str]:
    """Strip full stops, question marks, commas and blanks from both ends of each text, as SEARLE's code does."""
    return [text.strip(".?, ") for text in texts]


@_joiner
def both_orders(texts: Sequence[str]) -> list[str]:
    """Join stripped texts with "and", in both orders: two prompts, averaged (SEARLE, LinCIR, RTD).

    >>> both_orders(["is red.", "has a hood"])
    ['is red and has a hood', 'has a hood and is red']
    """
    parts = _stripped(texts)
    return [" and ".join(parts), " and ".join(reversed(parts))]


@_joiner
def first_and_second(texts: Sequence[str]) -> list[str]:
    """Join stripped texts with "and", as stored (CIReVL, ImageScope)."""
    return [" and ".join(_stripped(texts))]


@_joiner
def second_and_first(texts: Sequence[str]) -> list[str]:
    """Join raw texts with "and", last one first (Pic2Word, Context-I2W, KEDs)."""
    return [" and ".join(reversed(texts))]


@_joiner
def capital_first(texts: Sequence[str]) -> list[str]:
    """Join stripped texts with "and", the first one capitalised and else lower-cased (CLIP4Cir, validation)."""
    first, *rest = _stripped(texts)
    return [" and ".join([first.capitalize(), *rest])]


@_joiner
def raw_and(texts: Sequence[str]) -> list[str]:
    """Join raw texts with "and", blanks and punctuation kept (MagicLens)."""
    return [" and ".join(texts)]


@_joiner
def comma_and(texts: Sequence[str]) -> list[str]:
    """Join raw texts with ", and" (MegaPairs)."""
    return [", and ".join(texts)]


@_joiner
def adjacent(texts: Sequence[str]) -> list[str]:
    """Put raw texts one after the other without a separator (SEIZE)."""
    return ["".join(texts)]


@_joiner
def first(texts: Sequence[str]) -> list[str]:
    """Take the first text only, as stored."""
    return [texts[0]]


@_joiner
def second(texts: Sequence[str]) -> list[str]:
    """Take the second text only, as stored."""
    return [texts[1]]


def training_text(texts: Sequence[str], draw: float) -> str:
    """Make one text of a training triplet's: several (FashionIQ) as CLIP4Cir draws them, a single one (CIRR) as stored.

    Equally often all texts joined with "and" as stored, all in reverse order, and each text alone; each is stripped and
    the first one used is capitalised and else lower-cased. Of two captions that is the four-way choice of CLIP4Cir's
    training (its code; SPRC and SPN4CIR train with the same), whose validation is `capital_first`. An empty caption
    that is drawn alone stays empty. `draw` in [0, 1) chooses: one number per row of the global batch, drawn on the CPU
    from a `cir.randomness.StepRandom`, makes the choice the same after a resume and on any number of processes.

    >>> [training_text(["Is Red.", "has a hood"], draw) for draw in (0.0, 0.25, 0.5, 0.75)]
    ['Is red and has a hood', 'Has a hood and Is Red', 'Is red', 'Has a hood']
    """
    if not texts:
        raise InputError("a training triplet has no text; expected at least one")
    if len(texts) == 1:
        return texts[0]
    parts = _stripped(texts)
    choices = [parts, parts[::-1], *([part] for part in parts)]
    first, *rest = choices[min(int(draw * len(choices)), len(choices) - 1)]
    return " and ".join([first.capitalize(), *rest])
