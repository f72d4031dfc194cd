"""Scenes and edits keep the world's limits, and ground truth is what the edit says."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cir.world import scenes
from cir.world.scenes import KINDS, MOST_GROUPS, MOST_OBJECTS, Edit, Group, edited, outcome, pins, propose_many

SEEDS = st.integers(0, 2**32)


def valid(scene: scenes.Scene) -> None:
    shapes = [group.shape for group in scene.groups]
    cells = [cell for occupied in scene.cells for cell in occupied]
    assert 1 <= len(shapes) <= MOST_GROUPS and len(set(shapes)) == len(shapes)
    assert [len(occupied) for occupied in scene.cells] == [group.count for group in scene.groups]
    assert len(cells) == len(set(cells)) <= MOST_OBJECTS, "objects share a cell"
    assert scene.groups == tuple(sorted(scene.groups))


@given(SEEDS, st.lists(st.sampled_from(KINDS), min_size=1, max_size=3))
def test_edits_keep_the_limits_and_pins_hold(seed, kinds):
    rng = random.Random(seed)
    scene = scenes.sample_scene(rng)
    valid(scene)
    edits = propose_many(scene, tuple(kinds), rng)
    if edits is None:
        return
    target = edited(scene, edits, rng)
    valid(target)
    assert target.key == tuple(reversed(outcome(scene, edits)))
    for shape, cell in pins(edits).items():
        assert target.cell(shape) == cell
    if any(edit.kind != "move" for edit in edits):
        assert target.key != scene.key, "an edit changed nothing"


def red(shape: str, **changes) -> Group:
    return Group(**{"shape": shape, "colour": "red", "fill": "solid", "size": "small", **changes})


@pytest.mark.parametrize(
    ("edit", "groups", "background"),
    [
        (Edit("attribute", "star", "colour", "red", "blue"), [red("heart"), red("star", colour="blue")], "white"),
        (Edit("replace", "star", "shape", "star", "moon"), [red("heart"), red("moon")], "white"),
        (Edit("add", new=red("moon")), [red("heart"), red("moon"), red("star")], "white"),
        (Edit("remove", "star"), [red("heart")], "white"),
        (Edit("move", "star", "cell", 0, 8), [red("heart"), red("star")], "white"),
        (Edit("count", "star", "count", 1, 3), [red("heart"), red("star", count=3)], "white"),
        (Edit("background", "", "background", "white", "navy"), [red("heart"), red("star")], "navy"),
    ],
)
def test_each_kind_of_edit_by_hand(edit, groups, background):
    scene = scenes.lay_out("white", (red("star"), red("heart")), random.Random(0), {"star": 0})
    assert outcome(scene, (edit,)) == (tuple(groups), background)
    target = edited(scene, (edit,), random.Random(1))
    assert target.background == background and list(target.groups) == groups
    if edit.kind == "move":
        assert target.cell("star") == 8


def test_what_stays_where_it_was():
    scene = scenes.lay_out("white", (red("star"), red("heart")), random.Random(0))
    for seed in range(20):
        assert scenes.relaid(scene, random.Random(seed), {"star": scene.cell("star")}).cell("star") == scene.cell(
            "star"
        )
