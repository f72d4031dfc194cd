"""Concepts of the world, and sentences around them: what SEARLE regularises pseudo-words with.

SEARLE (arXiv:2303.15247, section 3.1) takes class names and has a language model go on from "a photo of CONCEPT that".
Here the concepts are short noun phrases and the grammar writes the sentences, all in the training half of the lexicon.
"""

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import product

from cir.world.grammar import TRAIN, articles, noun_phrase, where
from cir.world.lexicon import WORDS
from cir.world.scenes import (
    BACKGROUNDS,
    COLOURS,
    FILLS,
    MOST_GROUPS,
    SHAPES,
    SIZES,
    Group,
    Scene,
    lay_out,
    sample_group,
    sample_scene,
)

SENTENCES = 40
"""How many sentences are written around each concept."""


@dataclass(frozen=True)
class Concept:
    """A noun phrase, and the values it names: of one object, or of the background."""

    text: str
    says: dict[str, str] = field(hash=False)


def concepts(seed: int = 0) -> list[Concept]:
    """List the world's concepts: colour + shape, fill + shape, size + colour + shape, and backgrounds.

    Colour and fill come in both training words of each value; with three words, which of them is drawn.
    """
    rng, found = random.Random(f"concepts:{seed}"), []
    for kind, values in (("colour", COLOURS), ("fill", FILLS)):
        for value, shape, wording in product(values, SHAPES, (0, 1)):
            text = f"{WORDS[kind][value][0][wording]} {WORDS['shape'][shape][0][wording]}"
            found.append(Concept(text, {kind: value, "shape": shape}))
    for size, colour, shape in product(SIZES, COLOURS, SHAPES):
        says = {"size": size, "colour": colour, "shape": shape}
        found.append(Concept(" ".join(TRAIN.word(kind, value, rng) for kind, value in says.items()), says))
    for value, wording in product(BACKGROUNDS, (0, 1)):
        text = f"{WORDS['background'][value][0][wording]} {WORDS['ground']['background'][0][wording]}"
        found.append(Concept(text, {"background": value}))
    return found


def sentences(concept: Concept, count: int, seed: int = 0) -> list[str]:
    """Write `count` different sentences about random scenes that show the concept; each holds its text verbatim.

    Half of them go on from "a photo of CONCEPT", as SEARLE's do, the others are captions.
    """
    rng, found = random.Random(f"sentences:{seed}:{concept.text}"), dict[str, None]()
    write = _about_background if "background" in concept.says else _about_object
    while len(found) < count:
        found[articles(write(concept, rng, rng.random() < 0.5))] = None
    return list(found)


def rows(listed: Sequence[Concept], seed: int = 0, count: int = SENTENCES) -> Iterator[str]:
    """Write the lines of `phrases.jsonl`: {"concept": ..., "phrases": [...]}, `count` sentences around each."""
    for concept in listed:
        yield json.dumps({"concept": concept.text, "phrases": sentences(concept, count, seed)})


def _about_object(concept: Concept, rng: random.Random, continued: bool) -> str:
    scene, shown = _scene_with(concept, rng)
    others = [_named(scene, group, rng) for group in scene.groups if group is not shown]
    behind = f" on a {_behind(scene, rng)}" if rng.random() < 0.6 else ""
    if continued:
        said = rng.sample(_statements(scene, shown, concept, rng), rng.choice((1, 2)))
        beside = f" with {' and '.join(others)}" if others and rng.random() < 0.7 else ""
        return f"a photo of {concept.text} that is {' and '.join(said)}{beside}{behind}"
    place = where(scene, shown, rng, TRAIN) if rng.random() < 0.3 else ""
    parts = [f"a {concept.text}{place}", *others]
    rng.shuffle(parts)
    return rng.choice(("", "a photo of ", "a picture of ", "image of ")) + " and ".join(parts) + behind


def _about_background(concept: Concept, rng: random.Random, continued: bool) -> str:
    scene = replace(sample_scene(rng), background=concept.says["background"])
    body = " and ".join(_named(scene, group, rng) for group in scene.groups)
    if continued:
        return f"a photo of {concept.text} with {body}"
    return rng.choice((f"{body} on a {concept.text}", f"a {concept.text} with {body}", f"{body} , {concept.text}"))


def _scene_with(concept: Concept, rng: random.Random) -> tuple[Scene, Group]:
    """Draw a scene one of whose groups is a single object as the concept says."""
    scene = sample_scene(rng)
    shown = replace(sample_group(rng, (concept.says["shape"],), most=1), **concept.says)  # type: ignore[arg-type]
    others = [group for group in scene.groups if group.shape != shown.shape]
    kept = rng.sample(others, min(len(others), len(scene.groups) - 1, MOST_GROUPS - 1))
    return lay_out(scene.background, (shown, *kept), rng), shown


def _statements(scene: Scene, shown: Group, concept: Concept, rng: random.Random) -> list[str]:
    """List what else is true of the object: where it lies, and the attributes its concept leaves open."""
    free = [name for name in ("size", "fill", "colour") if name not in concept.says]
    told = [TRAIN.word(name, getattr(shown, name), rng) for name in free]
    return [*told, where(scene, shown, rng, TRAIN).strip()]


def _named(scene: Scene, group: Group, rng: random.Random) -> str:
    phrase = noun_phrase(group, rng, TRAIN, keep=(0.5, 0.6, 0.85))
    return phrase + (where(scene, group, rng, TRAIN) if group.count == 1 and rng.random() < 0.2 else "")


def _behind(scene: Scene, rng: random.Random) -> str:
    return f"{TRAIN.word('background', scene.background, rng)} {TRAIN.ground(rng)}"
