"""Words to put in the place of others, by kind: from the captions themselves, or from a file."""

import random
import re
from bisect import bisect
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import accumulate
from pathlib import Path

from cir.errors import InputError, nearest
from cir.keywords import Tagger
from cir.language.phrases import phrases, plural
from cir.language.templates import read_text

KINDS = ("noun", "nouns", "modifier")
"""Singular nouns, plural nouns, and words before a noun."""
FAMILIES: dict[str, frozenset[str]] = {
    "colour": frozenset(
        "red orange yellow green blue purple pink brown black white gray grey beige tan silver gold golden turquoise "
        "teal navy maroon violet cream".split()
    ),
    "size": frozenset("small large big tiny huge little giant tall short long wide narrow".split()),
    "material": frozenset(
        "wooden metal glass plastic leather stone brick concrete cotton silk denim wool paper cardboard rubber "
        "ceramic".split()
    ),
    "pattern": frozenset("striped plain checkered dotted floral plaid spotted patterned".split()),
    "age": frozenset("young old new ancient modern vintage elderly".split()),
    "number": frozenset("two three four five six seven eight nine ten".split()),
}
"""A word of a family is replaced by another word of it."""
LARGEST = 2000
"""Words kept of each kind, the most frequent ones."""
SAMPLE = 200_000
"""Captions read to find them."""


class Vocabulary:
    """Words by kind with their frequencies; a word is drawn with the square root of its frequency as weight."""

    def __init__(self, counts: Mapping[str, Mapping[str, int]]) -> None:
        self.words: dict[str, list[str]] = {}
        self._weights: dict[str, list[float]] = {}
        for kind in KINDS:
            ranked = sorted(counts.get(kind, {}).items(), key=lambda item: (-item[1], item[0]))[:LARGEST]
            self.words[kind] = [word for word, _ in ranked]
            self._weights[kind] = list(accumulate(count**0.5 for _, count in ranked))

    def draw(self, kind: str, rng: random.Random, avoid: frozenset[str]) -> str | None:
        """Draw a word of a kind that is not to be avoided; None where sixteen tries find none."""
        words, weights = self.words[kind], self._weights[kind]
        for _ in range(16 if words else 0):
            word = words[min(bisect(weights, rng.random() * weights[-1]), len(words) - 1)]
            if word not in avoid:
                return word
        return None

    def like(self, word: str, rng: random.Random, avoid: frozenset[str]) -> str | None:
        """Draw a modifier to take a word's place: from its family, where it has one."""
        family = next((words for words in FAMILIES.values() if word in words), None)
        if family is None:
            return self.draw("modifier", rng, avoid)
        others = sorted(family - avoid - {word})
        return rng.choice(others) if others else None


def noun_kind(noun: str) -> str:
    """Name the kind of a noun."""
    return "nouns" if plural(noun) else "noun"


def build(captions: Iterable[str], tagger: Tagger) -> Vocabulary:
    """Count the words of captions by kind.

    A noun is counted where it ends a phrase that is marked (`Phrase.marked`); a word that is seen
    as a modifier at least as often counts as that alone.
    """
    heads: Counter[str] = Counter()
    modifiers: Counter[str] = Counter()
    for caption in captions:
        for phrase in phrases(caption.lower(), tagger):
            if phrase.marked:
                heads[phrase.head.text] += 1
            modifiers.update(word.text for word in phrase.modifiers)
    counts: dict[str, dict[str, int]] = {kind: {} for kind in KINDS}
    for word, count in heads.items():
        if count > modifiers[word]:
            counts[noun_kind(word)][word] = count
    counts["modifier"] = {word: count for word, count in modifiers.items() if count >= heads[word]}
    return Vocabulary(counts)


def load(path: Path) -> Vocabulary:
    """Read `kind: word` lines (noun, nouns, modifier), all words equally likely; `#` begins a comment line."""
    counts: dict[str, dict[str, int]] = {kind: {} for kind in KINDS}
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        kind, colon, word = (part.strip() for part in line.partition(":"))
        if not colon or not re.fullmatch(r"[^\W\d_]+(?:[ -][^\W\d_]+)*", word):
            raise InputError(f"{path}:{number}: expected 'kind: word', got {line!r:.60}")
        if kind not in KINDS:
            raise InputError(f"{path}:{number}: kind {kind!r} is unknown; {nearest(kind, KINDS)}")
        counts[kind][word.lower()] = 1
    if not any(counts.values()):
        raise InputError(f"{path}: holds no words; expected lines such as 'noun: sofa'")
    return Vocabulary(counts)
