import random
import re
from pathlib import Path

import pytest

from cir.errors import InputError
from cir.keywords import NUMBERS, tagger
from cir.language import templates, vocabulary
from cir.language.phrases import one, phrases, plural
from cir.language.rules import NO_FORM, NO_PHRASE, NO_WORD, Rules
from cir.language.vocabulary import FAMILIES

CAPTIONS = [
    "A man wearing a red hat and a coat.",
    "two brown dogs on a small wooden sofa",
    "An old woman is holding an umbrella in front of a building",
    "three people ride horses near a river",
    "a photo of a striped cat sleeping on an orange chair next to a lamp",
    "Dogs!",
    "a large glass bowl with fruit, on a table",
]
TAGGER = tagger("builtin")


def rules(only=None, words=None, seed=0):
    said = templates.load(None) if only is None else templates.parse(only, "test")
    found = vocabulary.build(CAPTIONS, TAGGER) if words is None else words
    return Rules(said, found, TAGGER, seed)


def words(tmp_path, text):
    (tmp_path / "words.txt").write_text(text)
    return vocabulary.load(tmp_path / "words.txt")


@pytest.mark.parametrize(
    ("only", "caption", "text", "target"),
    [
        ("replace: {a} > {b} > {one_b}", "An old sofa.", "sofa > owl > an owl", "An old owl."),
        ("replace: {a} > {one_b}", "A sofa", "sofa > an owl", "An owl"),
        ("replace: {a}", "an egg on the table", "egg", "an owl on the table"),
        ("attribute: {old} {noun} {new}", "a wet dog", "wet dog icy", "an icy dog"),
        ("remove: no {a}", "A man with a red hat.", "no red hat", "A man."),
        ("remove: no {a}", "a man wearing a hat, smiling", "no hat", "a man, smiling"),
        ("remove: no {a}", "a cat and two small dogs", "no two small dogs", "a cat"),
        ("remove: no {a}", "a cat next to the wet dog", "no wet dog", "a cat"),
        ("add: {b}, {one_b}", "A dog runs!", "owl, an owl", "A dog runs with an owl!"),
        ("add: {one_b}", "a dog with a hat.", "an owl", "a dog with a hat and an owl."),
    ],
)
def test_each_form_on_a_hand_made_case(tmp_path, only, caption, text, target):
    made = rules(only, words(tmp_path, "noun: owl\nmodifier: icy\n"), seed=1)
    found = {(row.text, row.target) for number in range(30) for row in made.rows(number, caption, 1)[0]}
    assert (text, target) in found, found


def test_numbers_change_to_other_numbers():
    made = rules("count: {noun}: {old} > {new}")
    for number in range(40):
        (row,), _ = made.rows(number, "Two brown dogs on a sofa")
        old, new = re.fullmatch(r"brown dogs: (\w+) > (\w+)", row.text).groups()
        assert old == "two" != new and new in FAMILIES["number"]
        assert row.target == f"{new.capitalize()} brown dogs on a sofa"
    assert FAMILIES["number"] <= NUMBERS
    assert made.rows(0, "one dog on a sofa") == ([], NO_FORM)


def test_nouns_keep_their_number_and_attributes_their_family():
    made = rules("replace: {a}|{b}")
    found = vocabulary.build(CAPTIONS, TAGGER)
    for number in range(200):
        for row in made.rows(number, CAPTIONS[number % len(CAPTIONS)], 2)[0]:
            old, new = row.text.split("|")
            assert plural(old.split()[-1]) == plural(new), row
            assert new in found.words["nouns" if plural(new) else "noun"]
    rng = random.Random(0)
    for word in ("red", "wooden", "striped", "small", "old"):
        family = next(words for words in FAMILIES.values() if word in words)
        assert all(found.like(word, rng, frozenset()) in family - {word} for _ in range(20))


def test_every_triplet_changes_the_caption_and_is_found_in_it():
    made = rules()
    for number in range(300):
        caption = CAPTIONS[number % len(CAPTIONS)]
        rows, why = made.rows(number, caption, 3)
        assert bool(rows) != bool(why)
        assert len({row.target for row in rows}) == len(rows)
        for row in rows:
            assert row.reference == caption != row.target and row.text.strip() and "{" not in row.text
            assert "  " not in row.target and not row.target.endswith(" ")
            kept = set(row.reference.lower().split()) & set(row.target.lower().split())
            assert kept or caption == "Dogs!"


def test_rows_depend_on_seed_number_and_caption_alone():
    one_run = [rules().rows(i, caption, 2) for i, caption in enumerate(CAPTIONS)]
    backwards = [rules().rows(i, CAPTIONS[i], 2) for i in reversed(range(len(CAPTIONS)))][::-1]
    assert one_run == backwards
    assert one_run != [rules(seed=1).rows(i, caption, 2) for i, caption in enumerate(CAPTIONS)]


def test_captions_without_triplets_say_why(tmp_path):
    assert rules().rows(0, "running") == ([], NO_PHRASE)
    assert rules("remove: no {a}").rows(0, "a red sofa") == ([], NO_FORM)
    only = words(tmp_path, "noun: owl\n")
    assert rules("replace: {b}", only).rows(0, "an owl") == ([], NO_WORD)


def test_phrases_stop_before_words_that_are_no_things():
    found = phrases("an orange chair next to a lot of old lamps in a photo", TAGGER)
    assert [[word.text for word in phrase.core] for phrase in found] == [["orange", "chair"], ["old", "lamps"]]
    assert [one(noun) for noun in ("umbrella", "uniform", "hour", "glasses", "bus")] == [
        "an umbrella", "a uniform", "an hour", "glasses", "a bus",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("replace the {a}", "expected 'form: sentence'"),
        ("replce: {a}", "did you mean 'replace'"),
        ("remove: {b}", r"remove has no field \{b\}"),
        ("remove: {a", "unpaired brace"),
        ("# nothing\n\n", "holds no templates"),
    ],
)
def test_broken_templates_are_named(tmp_path, text, match):
    path = tmp_path / "t.txt"
    path.write_text(text)
    with pytest.raises(InputError, match=match):
        templates.load(path)
    with pytest.raises(InputError, match="cannot be read"):
        templates.load(Path("absent.txt"))


@pytest.mark.parametrize(
    ("text", "match"), [("owl", "kind: word"), ("nuon: owl", "'nouns?'"), ("noun: $", "kind: word"), ("", "no words")]
)
def test_broken_vocabularies_are_named(tmp_path, text, match):
    with pytest.raises(InputError, match=match):
        words(tmp_path, text)


def test_the_vocabulary_counts_by_kind():
    found = vocabulary.build(["a red dog", "a red dog", "the dog", "a dog house", "two cats", "red"], TAGGER)
    assert found.words == {"noun": ["dog", "house"], "nouns": ["cats"], "modifier": ["red"]}
    drawn = [found.draw("noun", random.Random(i), frozenset()) for i in range(300)]
    assert 150 < drawn.count("dog") < 240  # the square roots of 3 and 1
    assert found.draw("nouns", random.Random(0), frozenset({"cats"})) is None
