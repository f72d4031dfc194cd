"""The world on disk: ordinary loaders read it, the seed rebuilds it, and nothing else is ever deleted."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from cir import data
from cir.data import images
from cir.errors import InputError
from cir.world import benchmarks, corpus, layouts, pictures
from cir.world.render import draw

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


# --- train splits -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def taught(small_world, tmp_path_factory):
    """The small world with its train splits, added to a copy."""
    root = tmp_path_factory.mktemp("taught") / "world"
    shutil.copytree(small_world, root)
    assert layouts.add_train(root)
    return root


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", ["world/cirr/train", "world/fashioniq/train"])
def test_ordinary_loaders_read_the_train_splits(taught, name):
    for part in data.expand(name):
        found = images.check(data.load(part, taught))
        assert found.name == part and found.labelled and not found.stamps and found.split == "train"
        assert all(query.tags and query.reference in found.gallery for query in found.queries)
        assert {len(query.texts) for query in found.queries} == {1 if "cirr" in name else 2}
        if "cirr" in name:
            assert {Path(place).parts[0] for place in found.paths.values()} == {"train"}
            assert all(
                len(set(q.candidates)) == 6 and {q.reference, *q.targets} < {*q.candidates} for q in found.queries
            )


def test_what_was_there_is_left_alone_and_a_second_call_adds_nothing(world, taught):
    before, after = files(world), files(taught)
    assert {name for name in before if after[name] != before[name]} == {"world.json"}
    old, new = (json.loads(content["world.json"]) for content in (before, after))
    assert new["counts"]["cirr"].pop("train") == {"queries": 201, "gallery": 402}
    for category in layouts.CATEGORIES:
        assert new["counts"]["fashioniq"][category].pop("train") == {"queries": 66, "gallery": 132}
    assert old == new
    added = sum(layouts.lacking(world).values())
    assert added == 402 + 3 * 132 == sum(name.endswith(".png") for name in set(after) - set(before))
    for name in ("world/cirr/val", *data.expand("world/fashioniq/val")):
        assert data.load(name, world).fingerprint == data.load(name, taught).fingerprint
    assert layouts.lacking(taught) == {} and not layouts.add_train(taught) and files(taught) == after


def test_an_interrupted_call_is_finished_by_the_next(world, taught, tmp_path):
    root, drawn = tmp_path / "world", []
    shutil.copytree(world, root)

    def interrupt(count: int) -> None:
        drawn.append(count)
        if len(drawn) == 3 * 132 + 40:  # in CIRR's split, FashionIQ's is there
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        layouts.add_train(root, interrupt)
    assert layouts.lacking(root) == {"CIRR": 402} and not [path for path in root.iterdir() if path.name[0] == "."]
    assert len(data.load("world/fashioniq/dress/train", root).queries) == 66
    with pytest.raises(InputError, match=r"cap\.rc2\.train\.json"):
        data.load("world/cirr/train", root)
    drawn.clear()
    assert layouts.add_train(root, lambda count: drawn.append(count)) and sum(drawn) == 402
    assert files(root) == files(taught)


def test_a_picture_shows_the_scene_that_its_row_names(taught):
    """By hand: the texts of a row, and the pixels of its pair, are those of one question."""
    gallery, questions = benchmarks.cirr_train(0, SCALE, pictures.known(0, SCALE))
    found = data.load("world/cirr/train", taught)
    for question, query in list(zip(questions, found.queries, strict=True))[::40]:
        assert query.texts == question.texts and query.tags == (question.kind,)
        for name, number in ((query.reference, question.reference), (query.targets[0], question.targets[0])):
            with Image.open(found.root / found.paths[name]) as picture:
                shown = draw(gallery.scenes[number], 2**61 + number)[0]
                assert picture.tobytes() == shown.tobytes()


def test_no_picture_of_a_train_split_is_a_benchmarks(taught):
    def pixels(part: str) -> set[bytes]:
        return {path.read_bytes() for path in taught.rglob("*.png") if part in path.parts}

    train = pixels("train")
    assert len(train) == 402 and not train & pixels("dev")
    names = {split: set(data.load(f"fashioniq/shirt/{split}", taught).gallery) for split in ("train", "val")}
    assert len(names["train"]) == 132 and not names["train"] & names["val"]
