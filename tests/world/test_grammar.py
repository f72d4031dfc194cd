"""The benchmark's phrasing is held out: no content word and no edit sentence of it is in a training text."""

import random
import re
from string import Formatter

import pytest

from cir.world import benchmarks, concepts, corpus, grammar, pictures
from cir.world.grammar import ALL, BENCH, TRAIN
from cir.world.lexicon import CHATTER, JOINS, TEXTS, WORDS
from cir.world.scenes import KINDS, propose_many, sample_scene

FUNCTION_WORDS = set(
    "a an the of it its their is are to with and on in no not at that there by for should as into has be".split()
)


def words(text: str) -> set[str]:
    return set(re.findall(r"[a-z0-9]+", text.lower()))


def held_out() -> set[str]:
    """Every word that only the held-out half has: attribute words (and plurals), and those of its sentences."""
    singular = {w for kind in WORDS.values() for halves in kind.values() for phrase in halves[1] for w in words(phrase)}
    plurals = {grammar.plural(w, 2) for halves in WORDS["shape"].values() for w in halves[1]}
    return (singular | plurals) - FUNCTION_WORDS


def test_halves_share_no_word():
    for kind, values in WORDS.items():
        seen = [w for halves in values.values() for phrase in halves[0] for w in words(phrase)]
        assert not (set(seen) & held_out() - FUNCTION_WORDS), kind
        for value, halves in values.items():
            assert halves[0] and halves[1], value


def test_words_are_unambiguous():
    """No two values of the world share a word in one role, or a text could mean two things."""
    for kind, values in WORDS.items():
        for half in (0, 1):
            phrases = [phrase for halves in values.values() for phrase in halves[half]]
            assert len(phrases) == len(set(phrases)), kind


def test_sentences_are_disjoint():
    for kind, (train, bench) in TEXTS.items():
        assert not set(train) & set(bench), kind
        skeletons = [{re.sub(r"{\w+}", "_", s) for s in half} for half in (train, bench)]
        assert not skeletons[0] & skeletons[1], kind
    assert not set(JOINS[0]) & set(JOINS[1])


def test_training_texts_have_no_held_out_word():
    rows = list(corpus.triplets(800, seed=0))
    texts = [t for row in rows for t in row.values()] + list(corpus.captions(1500, seed=0))
    texts += [text for _, _, text in pictures.scenes(range(1500), 0, set())]
    for concept in concepts.concepts(0):
        texts += [concept.text, *concepts.sentences(concept, 6)]
    found = {w for text in texts for w in words(text)} & held_out()
    assert not found, f"held-out words in the training texts: {sorted(found)}"


def test_benchmark_texts_have_no_attribute_word_of_training():
    trained = {w for kind in WORDS.values() for halves in kind.values() for phrase in halves[0] for w in words(phrase)}
    trained |= {grammar.plural(w, 2) for halves in WORDS["shape"].values() for w in halves[0]}
    texts = [t for q in benchmarks.circo(0)[1] + benchmarks.fashioniq(0, 1)[1] for t in q.texts]
    assert not {w for text in texts for w in words(text)} & (trained - FUNCTION_WORDS)


def test_benchmark_texts_never_occur_in_training():
    trained = {row["conditioning_caption"] for row in corpus.triplets(2000, seed=0)} | set(
        corpus.captions(2000, seed=0)
    )
    asked = {t for q in benchmarks.circo(0)[1] + benchmarks.cirr(0)[1] for t in q.texts}
    assert not asked & trained


def test_the_tiny_clip_reads_every_word_in_captions_that_describe_no_edit():
    """As real CLIP has read every English word; what the words do in a sentence about an edit is left to learn."""
    rng = random.Random(0)
    seen = {w for _ in range(8000) for w in words(grammar.caption(sample_scene(rng), rng, ALL, chatter=True))}
    asked = {w for q in benchmarks.circo(0)[1] + benchmarks.cirr(0)[1] for t in q.texts for w in words(t)}
    asked |= {w for row in corpus.triplets(2000, seed=0) for text in row.values() for w in words(text)}
    assert not asked - seen, f"words pre-training never shows: {sorted(asked - seen)}"


@pytest.mark.parametrize("phrasing", [TRAIN, BENCH, ALL])
def test_every_text_is_filled_in(phrasing):
    rng = random.Random(1)
    for _ in range(400):
        scene = sample_scene(rng)
        kind = rng.choice(KINDS)
        edits = propose_many(scene, (kind,), rng)
        for text in (
            grammar.caption(scene, rng, phrasing),
            *([grammar.edits_text(scene, edits, rng, phrasing)] if edits else []),
        ):
            assert text and "{" not in text and "  " not in text
            assert not re.search(r"\ba [aeiou]", text), text


def test_sentences_name_only_known_fields():
    known = {"it", "is", "its", "new", "old", "noun", "thing", "obj", "ground", "s", "es"}
    for halves in TEXTS.values():
        for sentence in halves[0] + halves[1]:
            assert {name for _, name, _, _ in Formatter().parse(sentence) if name} <= known


def test_chatter_describes_nothing():
    shapes = {w for halves in WORDS["shape"].values() for half in halves for w in half} - {
        "plus",
        "love",
        "open",
        "full",
    }
    assert not [line for line in CHATTER if words(line) & shapes]
