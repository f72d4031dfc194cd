"""Pictures are functions of (scene, seed), show what the scene says, and know where."""

import random
from dataclasses import replace

import numpy as np
import pytest

from cir.world.render import BACKGROUND_RGB, PATCH, RGB, draw
from cir.world.scenes import BACKGROUNDS, COLOURS, FILLS, SHAPES, SIZES, Group, lay_out, sample_scene

ONE = lay_out("white", (Group("square", "red", "solid", "large"),), random.Random(0), {"square": 4})


def test_same_seed_same_picture_other_seed_other_picture():
    (first, where), (again, again_where), (other, _) = draw(ONE, 3), draw(ONE, 3), draw(ONE, 4)
    assert np.array_equal(first, again) and np.array_equal(where, again_where)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("colour", COLOURS)
def test_the_middle_of_a_solid_square_has_its_colour(colour):
    scene = replace(ONE, groups=(replace(ONE.groups[0], colour=colour),))
    seen = np.mean([draw(scene, seed)[0][30:34, 30:34].mean(axis=(0, 1)) for seed in range(12)], axis=0)
    nearest = min(RGB, key=lambda name: np.abs(np.array(RGB[name]) - seen).sum())
    assert nearest == colour


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_corners_have_the_background(background):
    seen = np.mean(
        [draw(replace(ONE, background=background), s)[0][:6, :6].mean(axis=(0, 1)) for s in range(12)], axis=0
    )
    nearest = min(BACKGROUND_RGB, key=lambda name: np.abs(np.array(BACKGROUND_RGB[name]) - seen).sum())
    assert nearest == background


def coverage(**changes) -> float:
    """Share of the picture that differs clearly from the white ground."""
    scene = replace(ONE, groups=(replace(ONE.groups[0], **changes),))
    return float(np.mean([(draw(scene, s)[0].astype(int).min(axis=2) < 150).mean() for s in range(5)]))


def test_size_and_fill_show():
    small, medium, large = (coverage(size=size) for size in SIZES)
    assert small < medium < large
    assert coverage(fill="hollow") < 0.8 * coverage(fill="solid")
    pictures = [draw(replace(ONE, groups=(replace(ONE.groups[0], fill=f),)), 1)[0].astype(int) for f in FILLS]
    assert all(np.abs(a - b).max() > 60 for i, a in enumerate(pictures) for b in pictures[:i])


def test_shapes_differ():
    pictures = [
        draw(lay_out("white", (Group(s, "blue", "solid", "large"),), random.Random(0), {s: 4}), 7) for s in SHAPES
    ]
    masks = [picture.astype(int).sum(axis=2) < 500 for picture, _ in pictures]
    for i, a in enumerate(masks):
        for b in masks[:i]:
            assert (a & b).sum() / (a | b).sum() < 0.93


def test_patches_tell_which_group_they_show():
    rng, seen, groups = random.Random(5), 0, 0
    for seed in range(60):
        scene = sample_scene(rng)
        _, patches = draw(scene, seed)
        assert set(np.unique(patches)) <= set(range(-1, len(scene.groups)))
        for index, cells in enumerate(scene.cells):
            found = np.argwhere(patches == index)
            seen, groups = seen + bool(len(found)), groups + 1
            for row, column in found:  # near one of the group's cells
                centre = (np.array([column, row]) + 0.5) * PATCH
                reach = [np.abs(centre - (np.array([c % 3, c // 3]) + 0.5) * 64 / 3).max() for c in cells]
                assert min(reach) < 20
    assert seen > 0.95 * groups  # a small hollow object may fill no patch by a quarter
