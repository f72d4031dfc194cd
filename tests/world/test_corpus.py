"""What methods train on: the training half of the lexicon, concepts verbatim, pictures no benchmark shows."""

import io
import json
import random
import re
import tarfile
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from cir.world import concepts, corpus, pictures
from cir.world.grammar import plural
from cir.world.lexicon import WORDS
from cir.world.scenes import sample_scene

SCALE = 0.004  # 32 pictures
EVERY = concepts.concepts(0)


@pytest.fixture(scope="module", autouse=True)
def few():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus, "CAPTIONS", 60 / SCALE)
        patch.setattr(corpus, "TRIPLETS", 40 / SCALE)
        yield


@pytest.fixture(scope="module")
def written(tmp_path_factory, few):
    return corpus.write(tmp_path_factory.mktemp("corpus"), seed=0, scale=SCALE)


def members(path):
    with tarfile.open(path) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar.getmembers()}


def pixels(content):
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def test_concepts_are_a_few_hundred_different_noun_phrases():
    texts = [concept.text for concept in EVERY]
    assert 300 <= len(texts) == len(set(texts)) <= 700
    named = Counter(tuple(sorted(concept.says)) for concept in EVERY)
    assert set(named) == {("colour", "shape"), ("fill", "shape"), ("colour", "shape", "size"), ("background",)}


def test_a_concept_names_the_values_it_says():
    for concept in EVERY:
        for kind, value in concept.says.items():
            assert any(word in concept.text.split() for word in WORDS[kind][value][0]), concept


@pytest.mark.parametrize("concept", EVERY[::29], ids=lambda concept: concept.text)
def test_every_sentence_holds_its_concept_once_and_whole(concept):
    found = concepts.sentences(concept, 32)
    assert len(set(found)) == len(found) == 32
    for sentence in found:
        assert len(re.findall(rf"\b{concept.text}\b", sentence)) == 1 == sentence.count(concept.text), sentence
        assert "  " not in sentence and not re.search(r"\ba [aeiou]", sentence), sentence
        if "shape" in concept.says:  # one thing of the concept's shape, or the sentence would speak of two
            shapes = WORDS["shape"][concept.says["shape"]][0]
            assert sum(word in sentence.split() for s in shapes for word in (s, plural(s, 2))) == 1, sentence
    assert 5 <= sum(sentence.startswith(f"a photo of {concept.text}") for sentence in found) <= 27


def test_sentences_come_from_the_seed():
    first = EVERY[0]
    assert concepts.sentences(first, 8) == concepts.sentences(first, 8) != concepts.sentences(first, 8, seed=1)
    assert concepts.sentences(first, 8) == concepts.sentences(first, 16)[:8]


def test_phrases_are_written_for_every_concept(written):
    rows = [json.loads(line) for line in written.phrases.read_text().splitlines()]
    assert [row["concept"] for row in rows] == written.concepts.read_text().splitlines()
    assert all(len(row["phrases"]) == 4 for row in rows) and concepts.SENTENCES >= 32


def test_shards_hold_pairs_of_picture_and_caption(written):
    assert [path.name for path in sorted(written.images.iterdir())] == ["world-00000.tar"]
    found = members(written.images / "world-00000.tar")
    assert list(found) == [f"{n:06d}.{kind}" for n in range(32) for kind in ("png", "txt")]
    assert all(pixels(found[name]).shape == (64, 64, 3) for name in found if name.endswith("png"))
    assert all(found[name].decode().strip() for name in found if name.endswith("txt"))


def test_a_full_world_has_eight_shards_of_a_thousand():
    assert [(name, len(numbers)) for name, numbers in pictures.shards().items()] == [
        (f"world-{shard:05d}.tar", 1000) for shard in range(8)
    ]
    uneven = pictures.shards(0.2)
    assert [numbers for numbers in uneven.values()] == [range(1000), range(1000, 1600)]


def test_equal_calls_write_equal_bytes_and_another_seed_others(written, tmp_path):
    again = corpus.write(tmp_path / "again", seed=0, scale=SCALE)
    shard = "images/world-00000.tar"
    for name in ("concepts.txt", "phrases.jsonl", "captions.txt", "triplets.jsonl", shard):
        assert (tmp_path / "again" / name).read_bytes() == (written.images.parent / name).read_bytes(), name
    assert again.images == tmp_path / "again" / "images"
    shard = "world-00000.tar"
    pictures.write(tmp_path / "other", seed=1, scale=SCALE)
    assert not set(members(tmp_path / "other" / shard).values()) & set(members(written.images / shard).values())


def test_what_is_there_is_kept_and_what_is_missing_added(written, tmp_path):
    (tmp_path / "captions.txt").write_text("mine\n")
    (tmp_path / "phrases.jsonl").write_text("mine too\n")
    found = corpus.write(tmp_path, seed=0, scale=SCALE)
    assert found.captions.read_text() == "mine\n" and found.phrases.read_text() == "mine too\n"
    assert found.triplets.read_bytes() == written.triplets.read_bytes()
    ticks = []
    corpus.write(tmp_path, seed=0, scale=SCALE, tick=ticks.append)
    assert not ticks and pictures.missing(found.images, SCALE) == 0


def test_an_interrupted_build_goes_on_to_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "SHARD", 12)
    whole = pictures.write(tmp_path / "whole", scale=SCALE)
    drawn = []

    def interrupt(count):
        drawn.append(count)
        if len(drawn) == 17:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pictures.write(tmp_path / "cut", scale=SCALE, tick=interrupt)
    assert [path.name for path in (tmp_path / "cut").iterdir()] == ["world-00000.tar"]
    drawn.clear()
    again = pictures.write(tmp_path / "cut", scale=SCALE, tick=drawn.append)
    assert sum(drawn) == 20  # the first shard was there
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in whole]


def test_no_picture_is_one_of_a_benchmark(small_world, written):
    """By pixels on the small world; by what is shown, and by the seeds they are drawn with, on the full one."""
    shown = {pixels(path.read_bytes()).tobytes() for path in small_world.rglob("*.png")}
    assert len(shown) > 100
    assert (
        not {pixels(c).tobytes() for n, c in members(written.images / "world-00000.tar").items() if "png" in n} & shown
    )
    known = pictures.known(0)
    assert len(known) > 5000
    drawn = [scene.key for _, scene, _ in pictures.scenes(range(1000), 0, known)]
    assert not set(drawn) & known
    assert {
        scene.key for _, scene, _ in pictures.scenes(range(1000), 0, set())
    } & known  # without asking, some would be


def test_the_mix_of_groups_is_the_benchmarks_own():
    rng, count = random.Random(5), 3000
    ours = Counter(len(scene.groups) for _, scene, _ in pictures.scenes(range(count), 0, pictures.known(0)))
    theirs = Counter(len(sample_scene(rng).groups) for _ in range(count))
    for groups in (1, 2, 3):
        assert abs(ours[groups] - theirs[groups]) < 4 * (count * 0.25) ** 0.5 * 1.42
