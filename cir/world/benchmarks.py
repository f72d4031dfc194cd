"""The world's three benchmarks: questions sampled by quota, hard negatives, every ground truth in the gallery; and
the train splits of two of them.

A question is a reference scene, one to three edits and the text that says them, in the held-out half of the lexicon.
Around it the gallery gets what makes it hard: re-renderings of the reference (image-only falls for them), scenes that
match only the text (text-only does), other edits of the reference, half-done edits, and the target with one edit too
many. Ground truth is computed over the whole gallery by comparing scenes.

What supervised methods learn from is made in families of six pictures instead, as CIRR's are, three questions each:
nothing a benchmark shows is in one, nor anything another family shows.
"""

import random
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace

from cir.world.grammar import BENCH, edit_text, edits_text
from cir.world.scenes import (
    KINDS,
    MOST_GROUPS,
    MOST_OBJECTS,
    Edit,
    Group,
    Scene,
    compatible,
    edited,
    fits,
    outcome,
    pins,
    propose,
    propose_many,
    relaid,
    sample_group,
    sample_scene,
)

KINDS_ASKED = (*KINDS, "two", "three")
FAMILY = 6
"""Pictures of a family of a train split; it asks half as many questions."""
LESSONS = {"cirr": 4_002, "fashioniq": 1_302}
"""Questions of the train splits; FashionIQ's of each category."""
RICH = {"reference": 4, "text": 2, "half": 3, "other": 3}
SIX = {"reference": 2, "text": 1, "half": 1, "other": 1}
"""How many hard negatives of each kind a question puts into the gallery, beside one edit beyond the target; CIRR's
images come in groups of about six."""


@dataclass(frozen=True, slots=True)
class Question:
    """One query: `targets` index the gallery, the first is the one made for it; `subset` are CIRR's six."""

    kind: str
    reference: int
    edits: tuple[Edit, ...]
    texts: tuple[str, ...]
    targets: tuple[int, ...]
    subset: tuple[int, ...]


@dataclass
class Gallery:
    """Scenes in gallery order, found again by what they show."""

    scenes: list[Scene] = field(default_factory=list)
    by_key: dict[tuple, list[int]] = field(default_factory=lambda: defaultdict(list))

    def add(self, scene: Scene) -> int:
        """Put a scene into the gallery."""
        self.by_key[scene.key].append(len(self.scenes))
        self.scenes.append(scene)
        return len(self.scenes) - 1

    def matches(self, reference: Scene, edits: tuple[Edit, ...]) -> list[int]:
        """Find every image that shows the edited scene, moved objects in their cells."""
        groups, background = outcome(reference, edits)
        pinned = pins(edits)
        found = self.by_key.get((background, groups), [])
        return [i for i in found if all(self.scenes[i].cell(shape) == cell for shape, cell in pinned.items())]


def ask(kind: str, rng: random.Random, groups: int | None) -> tuple[Scene, tuple[Edit, ...]]:
    """Draw a reference scene and edits of the kind asked for."""
    while True:
        scene = sample_scene(rng, groups)
        count = {"two": 2, "three": 3}.get(kind, 1)
        kinds = (kind,) if count == 1 else tuple(rng.choice(KINDS) for _ in range(count))
        edits = propose_many(scene, kinds, rng)
        if edits:
            return scene, edits


def _as_named(group: Group, edits: tuple[Edit, ...], rng: random.Random) -> Group:
    """Keep of a group what the text says about it, and draw the rest."""
    if any(isinstance(e.new, Group) and e.new.shape == group.shape for e in edits):
        return group
    said = {e.attribute for e in edits if group.shape in (e.shape, e.new)}
    drawn = sample_group(rng, (group.shape,), group.count)
    free = {name: getattr(drawn, name) for name in ("colour", "fill", "size") if name not in said}
    return replace(group, **free)


def text_match(target: Scene, edits: tuple[Edit, ...], rng: random.Random) -> Scene:
    """Draw a scene that shows what the text says and otherwise has nothing of the reference."""
    named = {e.new.shape if isinstance(e.new, Group) else (e.new if e.kind == "replace" else e.shape) for e in edits}
    kept = tuple(_as_named(group, edits, rng) for group in target.groups if group.shape in named)
    background = target.background if any(e.kind == "background" for e in edits) else None
    room = MOST_OBJECTS - sum(group.count for group in kept)
    while True:
        scene = sample_scene(rng)
        shapes = {group.shape for group in kept}
        others = tuple(g for g in scene.groups if g.shape not in shapes and g.count <= room)
        fitting = others[: min(1, MOST_GROUPS - len(kept))]
        if kept or fitting:
            mixed = Scene(background or scene.background, tuple(sorted(kept + fitting)), ())
            return relaid(mixed, rng, {shape: cell for shape, cell in pins(edits).items() if shape in shapes})


def _some_edit(scene: Scene, rng: random.Random, kinds: Sequence[str]) -> tuple[Edit, ...]:
    """Draw an edit of any of these kinds that the scene allows."""
    while True:
        edits = propose_many(scene, (rng.choice(kinds),), rng)
        if edits:
            return edits


def variants(scene: Scene, edits: tuple[Edit, ...], rng: random.Random, mix: dict[str, int]) -> dict[str, list[Scene]]:
    """Draw the hard negatives of one question, by what they are: at most `mix` of each kind.

    A re-rendering keeps an object that the text moves where it was, or it could be a right answer.
    """
    target = edited(scene, edits, rng)
    more = _some_edit(target, rng, [kind for kind in KINDS if kind != "move"])
    other = [_some_edit(scene, rng, KINDS) for _ in range(mix["other"])]
    still = {edit.shape: scene.cell(edit.shape) for edit in edits if edit.kind == "move"}
    half = [edits[:i] + edits[i + 1 :] for i in range(len(edits))] if len(edits) > 1 else []
    return {
        "reference": [relaid(scene, rng, still) for _ in range(mix["reference"])],
        "text": [text_match(target, edits, rng) for _ in range(mix["text"])],
        "half": [edited(scene, part, rng, still) for part in half[: mix["half"]]],
        "other": [edited(scene, edit, rng) for edit in other],
        "beyond": [edited(target, more, rng)],
    }


def subset_of(reference: int, target: int, made: dict[str, list[int]], rng: random.Random) -> tuple[int, ...]:
    """Pick CIRR's six: the pair, a re-rendering, a text match, and half-done or other edits."""
    rest = made["half"] + made["beyond"] + made["other"] + made["text"][1:] + made["reference"][1:]
    members = [reference, target, made["reference"][0], made["text"][0], *rest[:2]]
    rng.shuffle(members)
    return tuple(members)


def sample(
    quotas: dict[str, int],
    seed: str,
    write: Callable[[Scene, tuple[Edit, ...], random.Random], tuple[str, ...]],
    *,
    mix: dict[str, int],
    groups: int | None = None,
    targets: int = 1,
    filler: int = 0,
) -> tuple[Gallery, list[Question]]:
    """Build one gallery and its questions.

    `targets` bounds how many renderings of each target are made; with one, a question that chance gave a second
    right answer is dropped (a few more than the quota are drawn for that).
    """
    rng, gallery = random.Random(seed), Gallery()
    drafts: list[tuple[str, Scene, int, tuple[Edit, ...], int, dict[str, list[int]]]] = []
    for kind, quota in quotas.items():
        for _ in range(quota + (quota // 5 + 2 if targets == 1 else 0)):
            scene, edits = ask(kind, rng, groups)
            reference = gallery.add(scene)
            first, *_ = [gallery.add(edited(scene, edits, rng)) for _ in range(rng.randint(1, targets))]
            made = {name: [gallery.add(s) for s in group] for name, group in variants(scene, edits, rng, mix).items()}
            drafts.append((kind, scene, reference, edits, first, made))
    for _ in range(filler):
        gallery.add(sample_scene(rng, groups))
    return gallery, _settle(gallery, drafts, quotas, write, rng, single=targets == 1)


def _settle(
    gallery: Gallery, drafts: Sequence, quotas: dict[str, int], write: Callable, rng: random.Random, single: bool
) -> list[Question]:
    """Label the drafts against the whole gallery, keep the quota of each kind, put them into a random order."""
    left, questions = dict(quotas), []
    for kind, scene, reference, edits, first, made in drafts:
        found = gallery.matches(scene, edits)
        six = subset_of(reference, first, made, rng)
        clean = len(set(found) & set(six)) == 1 and len(set(six)) == 6
        if left[kind] == 0 or reference in found or (single and not (len(found) == 1 and clean)):
            continue
        left[kind] -= 1
        targets = (first, *(i for i in found if i != first))
        questions.append(Question(kind, reference, edits, write(scene, edits, rng), targets, six))
    rng.shuffle(questions)
    return questions


def one_text(scene: Scene, edits: tuple[Edit, ...], rng: random.Random) -> tuple[str, ...]:
    """Say all edits in one text."""
    return (edits_text(scene, edits, rng, BENCH),)


def two_texts(scene: Scene, edits: tuple[Edit, ...], rng: random.Random) -> tuple[str, ...]:
    """Say the edits in two captions, as FashionIQ's two annotators: shared out, or the same one in other words."""
    if len(edits) == 1:
        return tuple(edit_text(scene, edits[0], rng, BENCH) for _ in range(2))
    return edits_text(scene, edits[:1], rng, BENCH), edits_text(scene, edits[1:], rng, BENCH)


def family(
    kinds: Sequence[str], rng: random.Random, groups: int | None, taken: Collection[tuple]
) -> tuple[list[Scene], list[tuple[int, tuple[Edit, ...], int]]]:
    """Draw six scenes that look alike and three questions among them, as (reference, edits, target).

    The scenes are a reference, an edit of it, that with another edit, the reference again elsewhere, an edit of this
    one, and a scene that matches only the text of the first question. No other scene of the six answers a question, and
    none shows what is in `taken`. The third question is no move: its target would answer the first one as well.
    """
    while True:
        scene = sample_scene(rng, groups)
        first = _edits(scene, kinds[0], rng)
        if first is None:
            continue
        target = edited(scene, first, rng)
        again = relaid(scene, rng, {edit.shape: scene.cell(edit.shape) for edit in first if edit.kind == "move"})
        second, third = _edits(again, kinds[1], rng), _edits(target, kinds[2], rng)
        if second is None or third is None:
            continue
        six = [scene, target, again, edited(again, second, rng), edited(target, third, rng)]
        six.append(text_match(target, first, rng))
        asked = [(0, first, 1), (2, second, 3), (1, third, 4)]
        if all(shown.groups and shown.key not in taken for shown in six) and _unmistakable(six, asked):
            return six, asked


def _edits(scene: Scene, kind: str, rng: random.Random) -> tuple[Edit, ...] | None:
    """Draw edits of a kind, several one after the other so that they go together; None where the scene allows none."""
    count = {"two": 2, "three": 3}.get(kind, 1)
    edits: list[Edit] = []
    for _ in range(30):
        edit = propose(scene, kind if count == 1 else rng.choice(KINDS), rng)
        if edit is not None and all(compatible(edit, before) for before in edits):
            edits.append(edit)
        if len(edits) == count:
            return tuple(edits) if fits(scene, edits) else None
    return None


def _unmistakable(six: Sequence[Scene], asked: Sequence[tuple[int, tuple[Edit, ...], int]]) -> bool:
    """Whether each question has exactly one right answer among the scenes."""
    gallery = Gallery()
    for scene in six:
        gallery.add(scene)
    return all(gallery.matches(six[reference], edits) == [target] for reference, edits, target in asked)


def lessons(
    count: int,
    seed: str,
    write: Callable[[Scene, tuple[Edit, ...], random.Random], tuple[str, ...]],
    *,
    taken: Collection[tuple],
    kinds: Sequence[str] = KINDS_ASKED,
    groups: int | None = None,
) -> tuple[Gallery, list[Question]]:
    """Build a train split: families of questions of all kinds, each kind as often as the others.

    What one family shows no other does, and nothing in `taken` (keys of scenes) is shown, so every question has one
    right answer in the whole gallery. Questions are in random order.
    """
    rng, gallery, shown = random.Random(seed), Gallery(), set(taken)
    questions: list[Question] = []
    deck: list[str] = []
    while len(questions) < count:
        if len(deck) < FAMILY // 2:
            deck += rng.sample(kinds, len(kinds))
        asking, deck = deck[: FAMILY // 2], deck[FAMILY // 2 :]
        while asking[-1] == "move":
            rng.shuffle(asking)
        six, asked = family(asking, rng, groups, shown)
        shown |= {scene.key for scene in six}
        start = len(gallery.scenes)
        members = [gallery.add(scene) for scene in six]
        rng.shuffle(members)
        for kind, (reference, edits, target) in zip(asking, asked, strict=True):
            texts = write(six[reference], edits, rng)
            questions.append(Question(kind, start + reference, edits, texts, (start + target,), tuple(members)))
    rng.shuffle(questions)
    return gallery, questions


def circo(seed: int, scale: float = 1.0) -> tuple[Gallery, list[Question]]:
    """CIRCO's shape: several right answers, the reference competes."""
    per_kind = max(1, round(48 * scale))
    quotas = dict.fromkeys(KINDS_ASKED, per_kind)
    return sample(quotas, f"circo:{seed}", one_text, targets=3, mix=RICH, filler=round(300 * scale))


def cirr(seed: int, scale: float = 1.0) -> tuple[Gallery, list[Question]]:
    """CIRR's shape: one right answer, subsets of six."""
    quotas = dict.fromkeys(KINDS_ASKED, max(1, round(44 * scale)))
    return sample(quotas, f"cirr:{seed}", one_text, mix=SIX)


def fashioniq(seed: int, category: int, scale: float = 1.0) -> tuple[Gallery, list[Question]]:
    """FashionIQ's shape: two captions; category 0, 1, 2 are scenes of one, two, three groups."""
    quotas = dict.fromkeys(possible(category), max(1, round(20 * scale)))
    mix = RICH | {"reference": 6, "other": 2}
    return sample(quotas, f"fashioniq:{seed}:{category}", two_texts, mix=mix, groups=category + 1)


def possible(category: int) -> list[str]:
    """List the kinds of question that a category's scenes allow: nothing to remove from one group, no fourth to add."""
    return [kind for kind in KINDS_ASKED if kind != {0: "remove", 2: "add"}.get(category)]


def cirr_train(seed: int, scale: float, taken: Collection[tuple]) -> tuple[Gallery, list[Question]]:
    """CIRR's train split: one text, the six are the family."""
    return lessons(lesson_count("cirr", scale), f"cirr:train:{seed}", one_text, taken=taken)


def fashioniq_train(seed: int, category: int, scale: float, taken: Collection[tuple]) -> tuple[Gallery, list[Question]]:
    """FashionIQ's train split of a category: two captions."""
    count = lesson_count("fashioniq", scale)
    label = f"fashioniq:train:{seed}:{category}"
    return lessons(count, label, two_texts, taken=taken, kinds=possible(category), groups=category + 1)


def lesson_count(dataset: str, scale: float) -> int:
    """Count the questions of a train split (of each category), in whole families."""
    return FAMILY // 2 * max(1, round(LESSONS[dataset] * scale / (FAMILY // 2)))
