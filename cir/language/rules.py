"""Text triplets by rules: a caption, one edit of it in words, the edited caption; no model is asked.

RTD trains on such triplets too (arXiv:2406.09188, the rule-based rows of its comparison of sources); the rules, the
sentences and the choice of words here are this project's.
"""

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from cir.keywords import Tagger
from cir.language.phrases import Phrase, Word, article, one, phrases, plural
from cir.language.templates import Templates, fill
from cir.language.vocabulary import FAMILIES, Vocabulary, noun_kind

JOINED = re.compile(r"[\s,]*\b(?:with|and|near|beside|behind|under|wearing|holding|next to|in front of)\s+$", re.I)
"""What may stand before a phrase that can be left out together with it."""
TRIES = 8
"""Attempts at an edit that a caption does not have yet."""
NO_PHRASE, NO_FORM, NO_WORD = "no noun phrase", "no form fits", "no other word of the kind"


@dataclass(frozen=True, slots=True)
class Edit:
    """An edited caption, and the fields that say how."""

    form: str
    target: str
    fields: dict[str, str]


Maker = Callable[[random.Random], Edit | None]
"""Makes an edit of a caption, with words drawn; None where the vocabulary has none."""


@dataclass(frozen=True, slots=True)
class Row:
    """One triplet: what a file of triplets holds of it, and which form it has."""

    reference: str
    text: str
    target: str
    form: str


@dataclass(frozen=True)
class Rules:
    """Makes triplets of captions: a pure function of the seed, a caption's number and its text."""

    templates: Templates
    vocabulary: Vocabulary
    tagger: Tagger
    seed: int = 0

    def rows(self, number: int, caption: str, most: int = 1) -> tuple[list[Row], str]:
        """Make up to `most` different triplets of a caption; with none, the reason comes instead."""
        found = phrases(caption, self.tagger)
        if not found:
            return [], NO_PHRASE
        makers = self._makers(caption, found)
        forms = [form for form in self.templates if makers.get(form)]
        if not forms:
            return [], NO_FORM
        rng = random.Random(f"{self.seed}/{number}")  # of text: the same on every machine
        rows: list[Row] = []
        for _ in range(TRIES * most):
            if len(rows) == most:
                break
            form = rng.choice(forms)
            edit = rng.choice(makers[form])(rng)
            if edit is None or edit.target == caption:
                continue
            row = Row(caption, fill(rng.choice(self.templates[form]), edit.fields), edit.target, form)
            if all(row.target != other.target for other in rows):
                rows.append(row)
        return rows, "" if rows else NO_WORD

    def _makers(self, caption: str, found: list[Phrase]) -> dict[str, list[Maker]]:
        """List, by form, the edits a caption allows."""
        taken = frozenset(re.findall(r"[^\W\d_]+(?:-[^\W\d_]+)*", caption.lower()))
        makers: dict[str, list[Maker]] = {form: [] for form in self.templates}

        def offer(form: str, maker: Maker) -> None:
            if form in makers:
                makers[form].append(maker)

        offer("add", partial(self._added, caption, taken))
        for phrase in found:
            if phrase.marked:
                for size in sorted({1, len(phrase.core)}):
                    offer("replace", partial(self._replaced, caption, phrase, size, taken))
                for word in phrase.modifiers:
                    offer("attribute", partial(self._recast, caption, phrase, word, taken))
            if phrase.number and not phrase.article and phrase.number.text.lower() in FAMILIES["number"]:
                if plural(phrase.head.text):
                    offer("count", partial(_counted, caption, phrase, phrase.number))
            joined = _joined(caption, phrase)
            if joined is not None:
                offer("remove", partial(_removed, caption, phrase, joined))
        return makers

    def _replaced(
        self, caption: str, phrase: Phrase, size: int, taken: frozenset[str], rng: random.Random
    ) -> Edit | None:
        """Replace the last `size` words of a phrase by a noun."""
        words = phrase.core[-size:]
        new = self.vocabulary.draw(noun_kind(phrase.head.text), rng, taken)
        if new is None:
            return None
        old = caption[words[0].start : words[-1].stop].lower()
        target = _put(caption, phrase, words[0].start, words[-1].stop, new)
        return Edit("replace", target, {"a": old, "b": new, "one_b": one(new)})

    def _recast(
        self, caption: str, phrase: Phrase, word: Word, taken: frozenset[str], rng: random.Random
    ) -> Edit | None:
        """Replace a modifier."""
        new = self.vocabulary.like(word.text.lower(), rng, taken)
        if new is None:
            return None
        target = _put(caption, phrase, word.start, word.stop, new)
        return Edit("attribute", target, {"noun": phrase.head.text.lower(), "old": word.text.lower(), "new": new})

    def _added(self, caption: str, taken: frozenset[str], rng: random.Random) -> Edit | None:
        """Name one more thing at the end."""
        new = self.vocabulary.draw(rng.choice(("noun", "noun", "nouns")), rng, taken)
        if new is None:
            return None
        body = caption.rstrip(" .,;!")
        joint = "and" if re.search(r"\bwith\b", body, re.I) else "with"
        target = f"{body} {joint} {one(new)}{caption[len(body) :].rstrip()}"
        return Edit("add", target, {"b": new, "one_b": one(new)})


def _counted(caption: str, phrase: Phrase, number: Word, rng: random.Random) -> Edit:
    """Replace a number word by another; both are above one, so that the noun stays as it is."""
    old = number.text.lower()
    new = rng.choice(sorted(FAMILIES["number"] - {old}))
    target = caption[: number.start] + _cased(number.text, new) + caption[number.stop :]
    noun = caption[phrase.core[0].start : phrase.head.stop].lower()
    return Edit("count", target, {"noun": noun, "old": old, "new": new})


def _joined(caption: str, phrase: Phrase) -> int | None:
    """Find where a phrase that can be left out begins, with the word it hangs on.

    It must end a clause, hang on a word that goes with it, and leave words before.
    """
    joined = JOINED.search(caption[: phrase.start])
    if joined is None or not caption[: joined.start()].strip():
        return None
    return joined.start() if re.match(r"\s*([.,;!]|$)", caption[phrase.head.stop :]) else None


def _removed(caption: str, phrase: Phrase, joined: int, rng: random.Random) -> Edit:
    """Leave a phrase out, with the word it hangs on."""
    first = phrase.number if phrase.number and not phrase.article else phrase.core[0]
    what = caption[first.start : phrase.head.stop].lower()
    return Edit("remove", caption[:joined] + caption[phrase.head.stop :].rstrip(), {"a": what})


def _put(caption: str, phrase: Phrase, start: int, stop: int, new: str) -> str:
    """Replace a stretch of a caption, and make the phrase's article fit."""
    before = caption[:start]
    if phrase.article and not caption[phrase.article.stop : start].strip():
        fitting = article(phrase.article.text, new)
        before = caption[: phrase.article.start] + fitting + caption[phrase.article.stop : start]
    return before + _cased(caption[start:stop], new) + caption[stop:]


def _cased(old: str, new: str) -> str:
    """Begin with a capital where the old words did."""
    return new[0].upper() + new[1:] if old[:1].isupper() else new
