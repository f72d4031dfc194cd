"""Noun phrases of a caption: where they stand, their article, number, modifiers and head."""

import re
from dataclasses import dataclass
from itertools import takewhile

from cir.keywords import DETERMINERS, NUMBERS, Tagger

AN = re.compile(r"(?!uni|use|usu|eu|one|once|ewe|ufo|u-)[aeiou]|hour|honest|heir", re.IGNORECASE)
"""How a word begins that takes "an"; by letters, so a few words are judged wrong."""
PLURALS = frozenset("people men women children feet teeth mice geese firemen policemen sportsmen snowmen".split())
SINGULAR_ENDINGS = ("ss", "us", "is", "as", "ous")
NOT_THINGS = frozenset(
    "front next top bottom back side middle left right close photo photos photograph picture pictures image images "
    "view lot lots bunch group pair couple kind type piece pieces part number way variety row rows series".split()
)
"""Nouns that say where, how many, or that this is a picture: phrases end before them."""
WORD = re.compile(r"\S+")
LETTERS = re.compile(r"[^\W\d_]+(?:-[^\W\d_]+)*")
BEFORE = re.compile(r"([^\W\d_]+)\s+$")


@dataclass(frozen=True, slots=True)
class Word:
    """A word and where it stands in the caption."""

    text: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Phrase:
    """A noun phrase: `article` is any determiner, `number` a number word before; both may be absent."""

    article: Word | None
    number: Word | None
    modifiers: tuple[Word, ...]
    head: Word

    @property
    def start(self) -> int:
        """Where the phrase begins, its number and article included."""
        return (self.number or self.article or self.core[0]).start

    @property
    def marked(self) -> bool:
        """Whether more than the tagger's guess says that the head is a noun."""
        told = self.modifiers and not self.modifiers[0].text.endswith("ing")
        return bool(self.article or self.number or told or plural(self.head.text))

    @property
    def core(self) -> tuple[Word, ...]:
        """Modifiers and head."""
        return (*self.modifiers, self.head)


def phrases(caption: str, tagger: Tagger) -> list[Phrase]:
    """List the noun phrases a tagger finds, in order; runs that are not verbatim in the caption are passed over.

    >>> from cir.keywords import tagger
    >>> [[w.text for w in p.core] for p in phrases("two small dogs on a red sofa", tagger("builtin"))]
    [['small', 'dogs'], ['red', 'sofa']]
    """
    found: list[Phrase] = []
    at = 0
    for run in tagger.chunks(caption):
        start = _find(caption, run, at)
        if start < 0:
            continue
        at = start + len(run)
        words = [Word(m[0], m.start(), m.end()) for m in WORD.finditer(caption, start, at)]
        phrase = _phrase(words, caption)
        if phrase is not None:
            found.append(phrase)
    return found


def _find(caption: str, run: str, at: int) -> int:
    """Find a run of words from a place on, whole; -1 where it is not there as it is written."""
    while (start := caption.find(run, at)) >= 0:
        before, behind = caption[start - 1 : start], caption[start + len(run) : start + len(run) + 1]
        if not before.isalnum() and not behind.isalnum():
            return start
        at = start + 1
    return -1


def _phrase(words: list[Word], caption: str) -> Phrase | None:
    """Split a run of words; None without a head that is a word of letters."""
    article = words[0] if words[0].text.lower() in DETERMINERS else None
    core = words[1:] if article else words
    core = list(takewhile(lambda word: word.text.lower() not in NOT_THINGS, core))
    if not core or any(word.text.lower() in DETERMINERS for word in core):
        return None
    if not all(LETTERS.fullmatch(word.text) for word in core) or len(core[-1].text) < 3:
        return None
    before = BEFORE.search(caption[: words[0].start])
    number = None
    if before and before[1].lower() in NUMBERS:
        number = Word(before[1], before.start(1), before.end(1))
    return Phrase(article, number, tuple(core[:-1]), core[-1])


def plural(noun: str) -> bool:
    """Guess from its form whether a noun is plural.

    >>> [plural(noun) for noun in ("dogs", "dress", "people", "bus")]
    [True, False, True, False]
    """
    word = noun.lower()
    return word in PLURALS or (word.endswith("s") and not word.endswith(SINGULAR_ENDINGS))


def one(noun: str) -> str:
    """Put an indefinite article before a singular noun.

    >>> one("red dress"), one("owl"), one("dogs")
    ('a red dress', 'an owl', 'dogs')
    """
    return noun if plural(noun) else f"{article('a', noun)} {noun}"


def article(old: str, following: str) -> str:
    """Make "a" or "an" fit the word behind it, with the case it had; any other determiner stays.

    >>> article("A", "owl"), article("an", "dog"), article("the", "owl")
    ('An', 'a', 'the')
    """
    if old.lower() not in ("a", "an"):
        return old
    fitting = "an" if AN.match(following) else "a"
    return fitting.capitalize() if old[0].isupper() else fitting
