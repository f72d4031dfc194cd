"""Texts about scenes: captions of several kinds, and the sentences that describe edits.

A `Phrasing` chooses the words: `TRAIN` and `BENCH` share no content word and no edit sentence, `ALL` mixes both (only
the tiny CLIP's pre-training captions do). What is left to chance comes from the caller's generator.
"""

import random
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from cir.world.lexicon import ABSENCES, CHATTER, JOINS, TEXTS, WORDS, Halves
from cir.world.scenes import SHAPES, Edit, Group, Scene


@dataclass(frozen=True, slots=True)
class Phrasing:
    """Which half of the lexicon a text is written with: 0 training, 1 held out, None both."""

    half: int | None

    def pick(self, halves: Halves, rng: random.Random) -> str:
        """Draw one of the allowed wordings."""
        return rng.choice(halves[0] + halves[1] if self.half is None else halves[self.half])

    def word(self, kind: str, value: object, rng: random.Random) -> str:
        """Draw a word for a value of an attribute."""
        return self.pick(WORDS[kind][str(value)], rng)

    def ground(self, rng: random.Random) -> str:
        """Draw a word for what is behind the objects."""
        return self.word("ground", "background", rng)


TRAIN, BENCH, ALL = Phrasing(0), Phrasing(1), Phrasing(None)


def articles(text: str) -> str:
    """Write "an" before vowels."""
    return re.sub(r"\ba (?=[aeiou])", "an ", text)


def plural(noun: str, count: int) -> str:
    """Put a noun into the plural where the count asks for it."""
    if count == 1:
        return noun
    return noun + ("es" if noun.endswith(("s", "x", "ch")) else "s")


def noun_phrase(
    group: Group, rng: random.Random, words: Phrasing, keep: tuple[float, float, float] = (1.0, 1.0, 1.0)
) -> str:
    """Describe a group, "two small hollow red stars"; `keep` are the chances to name size, fill and colour."""
    parts = []
    for name, chance in zip(("size", "fill", "colour"), keep, strict=True):
        if rng.random() < chance:
            parts.append(words.word(name, getattr(group, name), rng))
    head = plural(words.word("shape", group.shape, rng), group.count)
    if parts and rng.random() < 0.12:
        return f"{words.word('count', group.count, rng)} {head} that {_is(group)} {' '.join(parts)}"
    return " ".join([words.word("count", group.count, rng), *parts, head])


def _is(group: Group) -> str:
    return "is" if group.count == 1 else "are"


def where(scene: Scene, group: Group, rng: random.Random, words: Phrasing) -> str:
    """Say where a single object lies, " at the top left"."""
    return f" at the {words.word('cell', scene.cell(group.shape), rng)}"


def full_caption(
    scene: Scene, rng: random.Random, words: Phrasing, positions: float = 0.3, say: Collection[str] = ()
) -> str:
    """Name every group with every attribute, and the background; where a shape in `say` lies is always said."""
    groups = list(scene.groups)
    rng.shuffle(groups)
    parts = []
    for group in groups:
        told = group.shape in say or (group.count == 1 and rng.random() < positions)
        parts.append(noun_phrase(group, rng, words) + (where(scene, group, rng, words) if told else ""))
    behind = f"{words.word('background', scene.background, rng)} {words.ground(rng)}"
    body = " and ".join(parts)
    return articles(
        rng.choice((f"{body} on a {behind}", f"a photo of {body} on a {behind}", f"a {behind} with {body}"))
    )


def _absence(shape: str, rng: random.Random, words: Phrasing) -> str:
    """Say that a shape is not there."""
    return words.pick(ABSENCES, rng).format(X=plural(words.word("shape", shape, rng), 2))


def _relation(scene: Scene, rng: random.Random, words: Phrasing) -> str:
    """One true sentence about how two objects lie."""
    first, second = rng.sample(list(scene.groups), 2)
    a, b = scene.cell(first.shape), scene.cell(second.shape)
    names = [words.word("shape", g.shape, rng) for g in (first, second)]
    if a % 3 != b % 3:
        return f"the {names[0]} is {'left' if a % 3 < b % 3 else 'right'} of the {names[1]}"
    return f"the {names[0]} is {'above' if a // 3 < b // 3 else 'below'} the {names[1]}"


def statement(scene: Scene, rng: random.Random, words: Phrasing) -> str:
    """Say one or two things that hold: an attribute, an absence, a place, the background."""
    group = rng.choice(scene.groups)
    noun = plural(words.word("shape", group.shape, rng), group.count)
    attribute = rng.choice(("colour", "colour", "fill", "size"))
    options = [f"the {noun} {_is(group)} {words.word(attribute, getattr(group, attribute), rng)}"]
    absent = rng.choice([s for s in SHAPES if all(s != g.shape for g in scene.groups)])
    options.append(_absence(absent, rng, words))
    options.append(f"the {words.ground(rng)} is {words.word('background', scene.background, rng)}")
    options.append(f"{words.word('count', group.count, rng)} {noun}")
    if group.count == 1:
        options.append(f"the {noun} is{where(scene, group, rng, words)}")
    if len(scene.groups) > 1 and rng.random() < 0.5:
        options.append(_relation(scene, rng, words))
    return " and ".join(rng.sample(options, min(len(options), rng.choice((1, 2, 2, 3)))))


_PREFIXES = (
    "",
    "",
    "",
    "a photo of ",
    "a photo of ",
    "a picture of ",
    "picture with ",
    "image of ",
    "here is ",
    "a drawing of ",
)


def alt_text(scene: Scene, rng: random.Random, words: Phrasing, chatter: bool = False) -> str:
    """Write a noisy caption as the web has them: partial mentions, odd words, sometimes an absence."""
    groups = [g for g in scene.groups if rng.random() < 0.88] or [rng.choice(scene.groups)]
    rng.shuffle(groups)
    parts = []
    for group in groups:
        phrase = noun_phrase(group, rng, words, keep=(0.5, 0.6, 0.85))
        parts.append(phrase + (where(scene, group, rng, words) if group.count == 1 and rng.random() < 0.3 else ""))
    text = rng.choice(_PREFIXES) + rng.choice((" and ", " , ", " with ")).join(parts)
    if rng.random() < 0.55:
        ground = words.word("background", scene.background, rng)
        text += rng.choice((" on {} {}", " on a {} {}", " , {} {}", " against a {} {}")).format(
            ground, words.ground(rng)
        )
    if rng.random() < 0.12:
        absent = rng.choice([s for s in SHAPES if all(s != g.shape for g in scene.groups)])
        text += f" but {_absence(absent, rng, words)}"
    if chatter and rng.random() < 0.35:
        extra = rng.choice(CHATTER)
        text = rng.choice((f"{extra} : {text}", f"{text} - {extra}", f"{text} , {extra}"))
    return text


def caption(scene: Scene, rng: random.Random, words: Phrasing, chatter: bool = False) -> str:
    """Write one caption: a quarter full, three in twenty statements, the rest noisy alt texts."""
    kind = rng.random()
    if kind < 0.25:
        return full_caption(scene, rng, words)
    return articles(statement(scene, rng, words) if kind < 0.40 else alt_text(scene, rng, words, chatter))


def description(scene: Scene, rng: random.Random, words: Phrasing) -> str:
    """Write a caption of what a picture shows, as image-caption pairs have them: a third full, the rest alt texts."""
    return full_caption(scene, rng, words) if rng.random() < 1 / 3 else articles(alt_text(scene, rng, words))


def _fields(scene: Scene, edit: Edit, rng: random.Random, words: Phrasing) -> dict[str, str]:
    """Fill in what the sentences of an edit may mention."""
    fields = {"ground": words.ground(rng)}
    if isinstance(edit.new, Group):
        return fields | {"obj": noun_phrase(edit.new, rng, words), "s": "" if edit.new.count > 1 else "s"}
    if edit.kind == "background":
        return fields | {name: words.word("background", getattr(edit, name), rng) for name in ("old", "new")}
    group = scene.group(edit.shape)
    noun = plural(words.word("shape", group.shape, rng), group.count)
    named = f"{words.word('colour', group.colour, rng)} {noun}" if rng.random() < 0.3 else noun
    many = group.count > 1
    fields |= {"noun": noun, "it": f"the {named}", "is": "are" if many else "is", "its": "their" if many else "its"}
    fields |= {"s": "" if many else "s", "es": "" if many else "es"}
    if edit.kind == "replace":
        thing = plural(words.word("shape", edit.new, rng), group.count)
        fields["thing"] = f"{words.word('count', group.count, rng)} {thing}"
    elif edit.kind == "count":
        fields["noun"] = plural(words.word("shape", group.shape, rng), int(edit.new))
        fields |= {name: words.word("count", getattr(edit, name), rng) for name in ("old", "new")}
    elif edit.kind in ("attribute", "move"):
        fields |= {name: words.word(edit.attribute, getattr(edit, name), rng) for name in ("old", "new")}
    return fields


def edit_text(scene: Scene, edit: Edit, rng: random.Random, words: Phrasing) -> str:
    """Say one edit of a scene."""
    sentences = TEXTS[edit.attribute if edit.kind == "attribute" else edit.kind]
    return articles(words.pick(sentences, rng).format(**_fields(scene, edit, rng, words)))


def edits_text(scene: Scene, edits: Sequence[Edit], rng: random.Random, words: Phrasing) -> str:
    """Say several edits in one text."""
    clauses = [edit_text(scene, edit, rng, words) for edit in edits]
    text = clauses[0]
    for clause in clauses[1:]:
        text += words.pick(JOINS, rng) + clause
    return text
