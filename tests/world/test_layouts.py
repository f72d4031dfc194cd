"""The world on disk: ordinary loaders read it, the seed rebuilds it, and nothing else is ever deleted."""

import hashlib
import json
from pathlib import Path

import pytest
from PIL import Image

from cir import data
from cir.data import images
from cir.errors import InputError
from cir.world import corpus, layouts

SCALE = 0.05


@pytest.fixture
def world(small_world) -> Path:
    return small_world


@pytest.mark.parametrize("name", ["world/fashioniq/val", "world/cirr/val", "world/circo/val"])
def test_ordinary_loaders_read_it(world, name):
    for part in data.expand(name):
        found = images.check(data.load(part, world))
        assert found.name == part and found.labelled and not found.stamps
        assert {tag for query in found.queries for tag in query.tags} <= set(layouts.benchmarks.KINDS_ASKED)
        assert all(query.tags for query in found.queries)
        oracle = json.loads((found.root / "oracle.json").read_text())
        assert all(set(oracle[query.id]) == {"reference", "target"} for query in found.queries)
        with Image.open(found.root / found.paths[found.gallery[0]]) as picture:
            assert picture.size == (64, 64)


def test_a_world_cannot_pass_for_the_real_thing(world):
    assert data.load("cirr/val", world).name == "world/cirr/val"


def test_subsets_of_six_reach_the_queries(world):
    found = data.load("world/cirr/val", world)
    assert all(len(q.candidates) == 6 and q.reference in q.candidates for q in found.queries)


def digest(root: Path) -> str:
    total = hashlib.sha256()
    for path in sorted(root.rglob("*")):
        if path.is_file():
            total.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return total.hexdigest()


def test_the_seed_rebuilds_it_and_an_equal_call_keeps_it(world, tmp_path):
    again = tmp_path / "again"
    assert layouts.build(again, seed=0, scale=SCALE)
    assert digest(again) == digest(world)
    assert not layouts.build(again, seed=0, scale=SCALE)
    assert layouts.build(again, seed=1, scale=SCALE) and digest(again) != digest(world)


def test_foreign_files_are_never_deleted(tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="choose another"):
        layouts.build(mine, scale=SCALE)
    assert (mine / "thesis.txt").read_text() == "years of work"


def test_an_interrupted_build_leaves_nothing(tmp_path):
    def interrupt(count: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        layouts.build(tmp_path / "world", scale=SCALE, tick=interrupt)
    assert not list(tmp_path.iterdir())


def test_training_texts_come_from_the_seed(tmp_path):
    assert list(corpus.captions(20, 0)) == list(corpus.captions(20, 0)) != list(corpus.captions(20, 1))
    for row in corpus.triplets(50, 0):
        assert set(row) == {"reference_caption", "conditioning_caption", "target_caption"} and all(row.values())
