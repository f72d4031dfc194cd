"""Ground truth, quotas and hard negatives, checked by looking at every scene of the gallery."""

import random
from collections import Counter

import pytest

from cir.world import benchmarks, pictures
from cir.world.benchmarks import FAMILY, KINDS_ASKED, Gallery, text_match
from cir.world.scenes import Edit, Group, edited, lay_out, outcome, pins

BUILT = {
    "circo": lambda: [benchmarks.circo(0)],
    "cirr": lambda: [benchmarks.cirr(0)],
    "fashioniq": lambda: [benchmarks.fashioniq(0, category) for category in range(3)],
}


@pytest.fixture(scope="module", params=BUILT)
def built(request):
    return request.param, BUILT[request.param]()


def test_every_kind_is_asked_at_least_forty_times(built):
    _, parts = built
    asked = Counter(question.kind for _, questions in parts for question in questions)
    assert set(asked) == set(KINDS_ASKED) and min(asked.values()) >= 40, asked


def test_ground_truth_is_every_scene_that_shows_the_outcome(built):
    name, parts = built
    for gallery, questions in parts:
        for question in questions[::7]:
            reference = gallery.scenes[question.reference]
            groups, background = outcome(reference, question.edits)
            right = {
                index
                for index, scene in enumerate(gallery.scenes)
                if scene.background == background
                and scene.groups == groups
                and all(scene.cell(shape) == cell for shape, cell in pins(question.edits).items())
            }
            assert set(question.targets) == right and question.reference not in right
            assert name == "circo" or len(right) == 1


def test_circo_has_several_right_answers():
    _, questions = benchmarks.circo(0)
    assert 1.8 < sum(len(q.targets) for q in questions) / len(questions) < 3


def test_subsets_hold_the_pair_and_hard_negatives():
    gallery, questions = benchmarks.cirr(0)
    near, textual = 0, 0
    for question in questions:
        assert len(set(question.subset)) == 6
        assert {question.reference, question.targets[0]} <= set(question.subset)
        rest = [gallery.scenes[i] for i in question.subset if i not in (question.reference, question.targets[0])]
        near += any(scene.key == gallery.scenes[question.reference].key for scene in rest)
        textual += any(scene.background != gallery.scenes[question.reference].background for scene in rest)
    assert near == len(questions), "a subset without a re-rendering of its reference"
    assert textual > 0.7 * len(questions)


def test_text_matches_show_what_the_text_says():
    rng = random.Random(3)
    scene = lay_out("white", (Group("star", "red", "solid", "small"), Group("moon", "pink", "dotted", "large")), rng)
    edits = (
        Edit("attribute", "star", "colour", "red", "blue"),
        Edit("move", "moon", "cell", scene.cell("moon"), 8 if scene.cell("moon") != 8 else 0),
        Edit("background", "", "background", "white", "navy"),
    )
    target = edited(scene, edits, rng)
    for _ in range(30):
        found = text_match(target, edits, rng)
        assert found.background == "navy" and found.group("star").colour == "blue"
        assert found.group("moon").count == 1 and found.cell("moon") == target.cell("moon")


def test_matches_finds_what_was_added():
    gallery, rng = Gallery(), random.Random(0)
    scene = lay_out("white", (Group("star", "red", "solid", "small"),), rng)
    edit = Edit("move", "star", "cell", scene.cell("star"), (scene.cell("star") + 1) % 9)
    gallery.add(scene)
    right = gallery.add(edited(scene, (edit,), rng))
    assert gallery.matches(scene, (edit,)) == [right]


def test_the_same_seed_asks_the_same():
    assert benchmarks.cirr(1, 0.1)[1] == benchmarks.cirr(1, 0.1)[1] != benchmarks.cirr(2, 0.1)[1]


# --- train splits -----------------------------------------------------------------------------------------------


TAKEN = pictures.known(0, 0.1)
TRAINED = {
    "cirr": lambda seed=0, taken=TAKEN: benchmarks.cirr_train(seed, 0.1, taken),
    **{
        f"fashioniq {c}": lambda seed=0, taken=TAKEN, c=c: benchmarks.fashioniq_train(seed, c, 0.2, taken)
        for c in range(3)
    },
}


@pytest.fixture(scope="module", params=TRAINED)
def trained(request):
    return request.param, *TRAINED[request.param]()


def test_a_train_split_is_as_large_as_said_and_asks_every_kind_alike(trained):
    name, gallery, questions = trained
    assert len(questions) == benchmarks.lesson_count(name.split()[0], 0.1 if name == "cirr" else 0.2)
    assert len(gallery.scenes) == 2 * len(questions)
    asked = Counter(question.kind for question in questions)
    impossible = {"fashioniq 0": {"remove"}, "fashioniq 2": {"add"}}.get(name, set())
    assert set(asked) == set(KINDS_ASKED) - impossible and max(asked.values()) - min(asked.values()) <= 2
    assert all(len(question.edits) == {"two": 2, "three": 3}.get(question.kind, 1) for question in questions)


def test_a_question_to_learn_from_has_one_right_answer_in_the_whole_split(trained):
    _, gallery, questions = trained
    for question in questions[::3]:
        groups, background = outcome(gallery.scenes[question.reference], question.edits)
        right = [
            index
            for index, scene in enumerate(gallery.scenes)
            if (scene.background, scene.groups) == (background, groups)
            and all(scene.cell(shape) == cell for shape, cell in pins(question.edits).items())
        ]
        assert right == [*question.targets] and question.reference not in right
        assert {question.reference, right[0]} < set(question.subset) and len(set(question.subset)) == FAMILY


def test_no_two_families_show_the_same_and_none_shows_what_a_benchmark_shows(trained):
    name, gallery, questions = trained
    shown = [{gallery.scenes[i].key for i in range(start, start + FAMILY)} for start in range(0, 2 * len(questions), 6)]
    assert sum(map(len, shown)) == len(set.union(*shown))
    assert not set.union(*shown) & TAKEN
    careless = {scene.key for scene in TRAINED[name](taken=frozenset())[0].scenes}
    assert careless & TAKEN  # without asking, some would be
    families = {frozenset(question.subset) for question in questions}
    assert len(families) == len(questions) // 3 and sum(map(len, families)) == len(gallery.scenes)


def test_a_family_holds_the_reference_again_and_what_matches_the_text_only(trained):
    _, gallery, _ = trained
    for start in range(0, len(gallery.scenes), FAMILY):
        reference, target, again, *_, textual = gallery.scenes[start : start + FAMILY]
        assert again.key == reference.key and all(scene.groups for scene in gallery.scenes)
        assert textual.key != target.key


def test_a_train_split_comes_from_its_seed(trained):
    name, _, questions = trained
    assert TRAINED[name]()[1] == questions != TRAINED[name](seed=1)[1]
