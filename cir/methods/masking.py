"""LinCIR's captions: cleaned, and cut into pieces where key words give way to the pseudo-word's slots.

`substring` follows the code released with arXiv:2312.01998, side effects included; `whole_word` is the clean variant,
another distribution of training texts.
"""

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cir.backbones.base import Tokenizer
from cir.errors import InputError, nearest
from cir.randomness import seed_of

SLOT = "[$]"
"""Marks a slot inside a caption under work; captions hold no `$` of their own once cleaned."""
FALLBACK = ("a photo of", "")
"""The pieces of "a photo of [$]": the masked text of a caption in which nothing could be masked."""


@dataclass(frozen=True, slots=True)
class Masked:
    """A masked caption as text pieces with a slot between consecutive ones; `own` is False for the fallback."""

    pieces: tuple[str, ...]
    own: bool


def clean(caption: str | None, tokenizer: Tokenizer) -> str:
    """Clean a caption: None to "", `<PERSON>` to person, lower case, no `$`, stripped, cut to the context.

    A caption longer than the tower's context is decoded back from as many of its tokens as fit.
    """
    text = (caption or "").replace("<PERSON>", "person").lower().replace("$", "").strip()
    specials = len(tokenizer.start) + 1
    if len(text.encode()) + specials <= tokenizer.context:  # a token is a byte at least
        return text
    pieces = tokenizer.pieces(text)
    if len(pieces) + specials <= tokenizer.context:
        return text
    return tokenizer.decode(pieces[: tokenizer.context - specials]).strip()


def by_substring(caption: str, keywords: Sequence[str], word: str) -> str:
    """Mask as the released code does: every key word everywhere, inside other words too.

    The walk stops at the first key word that is not found verbatim, and the fallback `word` is masked instead; so
    it is when there are no key words.

    >>> by_substring("he has a of it", ["a"], "it")
    'he h[$]s [$] of it'
    """
    masked = caption
    for keyword in keywords or [""]:
        if not keyword or keyword not in caption:
            return masked.replace(word, SLOT) if word else masked
        masked = masked.replace(keyword, SLOT)
    return masked


def by_word(caption: str, keywords: Sequence[str], word: str) -> str:
    """Mask key words where they stand as whole words, longest first; the fallback `word` only if none is found.

    >>> by_word("he has a of it", ["a"], "it")
    'he has [$] of it'
    """
    masked = caption
    for keyword in sorted(set(keywords), key=lambda k: (-len(k), k)):
        masked = _whole(keyword).sub(lambda _: SLOT, masked)
    if SLOT in masked or not word:
        return masked
    return _whole(word).sub(lambda _: SLOT, masked)


def _whole(words: str) -> re.Pattern[str]:
    """Match words as a whole; blanks between them may be missing, as around a hyphen a tagger split at."""
    return re.compile(r"(?<!\w)" + r"\s*".join(map(re.escape, words.split())) + r"(?!\w)")


MASKINGS: dict[str, Callable[[str, Sequence[str], str], str]] = {"substring": by_substring, "whole_word": by_word}


def masking(name: str) -> Callable[[str, Sequence[str], str], str]:
    """Find a way of masking by name; `InputError` for an unknown one."""
    if name not in MASKINGS:
        raise InputError(f"masking {name!r} is unknown; {nearest(name, MASKINGS)}")
    return MASKINGS[name]


def mask(
    caption: str, keywords: Sequence[str], rule: Callable[[str, Sequence[str], str], str], seed: int, number: int
) -> Masked:
    """Mask a cleaned caption; the fallback word is drawn from (seed, the caption's number in its source)."""
    words = caption.split()
    word = random.Random(seed_of(seed, number, "word")).choice(words) if words else ""
    pieces = rule(caption, keywords, word).split(SLOT)
    return Masked(tuple(pieces), True) if len(pieces) > 1 else Masked(FALLBACK, False)


def fit(masked: Masked, tokenizer: Tokenizer) -> Masked:
    """Drop the slots behind the tower's context; without any left, fall back to "a photo of [$]"."""
    if sum(len(piece.encode()) + 1 for piece in masked.pieces) + len(tokenizer.start) <= tokenizer.context:
        return masked
    room, used, kept = tokenizer.context - len(tokenizer.start) - 1, 0, 0
    for index, piece in enumerate(masked.pieces):
        if index and used >= room:
            break
        used += len(tokenizer.pieces(piece)) + (1 if index else 0)
        kept = index + 1
    return Masked(masked.pieces[:kept], masked.own) if kept > 1 else Masked(FALLBACK, False)
