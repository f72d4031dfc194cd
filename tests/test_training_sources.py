"""Runs that learn from images: from files to a checkpoint, killed and resumed inside an epoch, what is left out."""

import io
import json
import logging
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

from cir import config as configs
from cir import runs
from cir.cli import app
from cir.errors import InputError
from cir.methods import checkpoint
from cir.methods.pic2word import Pic2Word
from cir.train import order


def png(seed):
    buffer = io.BytesIO()
    noise = np.random.default_rng(seed).integers(0, 256, (36, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder of 20 pictures, and the same in five shards."""
    (tmp_path / "pictures").mkdir()
    (tmp_path / "shards").mkdir()
    for shard in range(5):
        with tarfile.open(tmp_path / "shards" / f"{shard}.tar", "w") as file:
            for number in range(4):
                content, name = png(4 * shard + number), f"{4 * shard + number:02d}.png"
                (tmp_path / "pictures" / name).write_bytes(content)
                info = tarfile.TarInfo(name)
                info.size = len(content)
                file.addfile(info, io.BytesIO(content))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(order, "WINDOW_BLOCKS", 2)
    monkeypatch.setattr(order, "WINDOW_ROWS", 1)
    for cached in (order._windows, order._shuffled):
        cached.cache_clear()
    yield tmp_path
    for cached in (order._windows, order._shuffled):
        cached.cache_clear()


def settings(folder, source, *more):
    return configs.load(
        None,
        [
            "name=p",
            "method.name=pic2word",
            "method.middle=16",
            f"backbone.name={folder}",
            "backbone.device=cpu",
            "backbone.cache=cache",
            f"train.source={source}",
            "train.steps=9",
            "train.batch=8",
            "train.save_every=2",
            *more,
        ],
    )


def weights(path):
    return load_file(Path(path) / "last" / "model.safetensors")


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("augment", ["none", "crop"])
@pytest.mark.parametrize("source", ["pictures", "'shards/{0..4}.tar'"])
def test_a_run_killed_inside_an_epoch_ends_with_the_same_bits(
    place, tiny_clip_folder, tiny_backbone, source, augment, monkeypatch
):
    config = settings(tiny_clip_folder, source, f"method.augment={augment}")
    runs.train(config, tiny_backbone, Path("whole"))
    honest = Pic2Word.losses

    def dying(self, backbone, batch):
        if batch.random.step == 5:  # row 40 of epochs of 20; the last snapshot is of step 4, row 32
            raise KeyboardInterrupt
        return honest(self, backbone, batch)

    monkeypatch.setattr(Pic2Word, "losses", dying)
    with pytest.raises(KeyboardInterrupt):
        runs.train(config, tiny_backbone, Path("parts"))
    monkeypatch.setattr(Pic2Word, "losses", honest)
    for cached in (order.permutation, order._windows, order._shuffled):
        cached.cache_clear()  # a new process knows nothing
    runs.train(config, tiny_backbone, Path("parts"))
    assert same(weights("whole"), weights("parts"))


def test_threads_that_prepare_ahead_change_nothing(place, tiny_clip_folder, tiny_backbone):
    for name, more in (("none", []), ("some", ["train.workers=3"])):
        config = settings(tiny_clip_folder, "shards", "method.augment=crop", *more)
        runs.train(config, tiny_backbone, Path(name))
    assert same(weights("none"), weights("some"))


def test_shards_are_drawn_near_each_other_and_a_folder_is_not(place, tiny_clip_folder, tiny_backbone, monkeypatch):
    drawn = {}
    honest = order.rows_at

    def noted(seed, position, length, count, blocks=()):
        rows = honest(seed, position, length, count, blocks)
        drawn.setdefault(blocks, []).extend(rows)
        return rows

    monkeypatch.setattr(order, "rows_at", noted)
    for source in ("pictures", "shards"):
        runs.train(settings(tiny_clip_folder, source), tiny_backbone, Path(source))
    assert drawn.keys() == {(), (4, 4, 4, 4, 4)}
    for rows in drawn.values():
        assert sorted(rows[:20]) == list(range(20))
    assert len({row // 4 for row in drawn[4, 4, 4, 4, 4][:8]}) == 2


def test_what_is_left_out_is_said_limited_and_kept(place, tiny_clip_folder, tiny_backbone, caplog):
    Path("pictures/07.png").write_bytes(png(7)[:500])
    with pytest.raises(InputError, match=r"1 images could not be read as pictures: 07\.png"):
        runs.train(settings(tiny_clip_folder, "pictures"), tiny_backbone, Path("strict"))
    with pytest.raises(InputError, match=r"5\.00% of the source, 1\.00% are allowed"):
        runs.train(settings(tiny_clip_folder, "pictures", "train.allow_bad=0.01"), tiny_backbone, Path("strict"))
    with caplog.at_level(logging.WARNING):
        runs.train(settings(tiny_clip_folder, "pictures", "train.allow_bad=0.1"), tiny_backbone, Path("lax"))
    assert "pictures: 19 rows are used, left out are 1 damaged: 07.png" in caplog.text
    details = checkpoint.describe(Path("lax/last"))["details"]
    assert details["left_out"]["counts"] == {"damaged": 1} and "07.png" in details["left_out"]["first"][0]


def test_another_source_is_another_run(place, tiny_clip_folder, tiny_backbone):
    runs.train(settings(tiny_clip_folder, "pictures"), tiny_backbone, Path("run"))
    for more in (["train.limit=10"], ["train.source=shards"]):
        with pytest.raises(InputError, match="run holds another run: source is"):
            runs.train(settings(tiny_clip_folder, "pictures", *more), tiny_backbone, Path("run"))
    before = weights("run")
    runs.train(settings(tiny_clip_folder, "pictures", "train.limit=20"), tiny_backbone, Path("run"))
    assert same(weights("run"), before)


# The command


def cir(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_the_command_shows_what_a_source_holds(place):
    Path("pictures/07.png").write_bytes(png(7)[:500])
    Path("pictures/00.txt").write_text("a cat")
    Path("c.jsonl").write_text('"a cat"\n{\n\n"a dog"\n')
    keys = ("reference_caption", "conditioning_caption", "target_caption")
    Path("t.jsonl").write_text(json.dumps(dict.fromkeys(keys, "x")) + "\n" + json.dumps(dict.fromkeys(keys, "y")))
    shown = cir("data", "source", "pictures", "--kind", "images").stdout
    assert "pictures  19 images" in shown and "format       folder" in shown
    assert "bad          1 damaged: 07.png: " in shown and "first        00.png (PNG, 40 x 36), 'a cat'" in shown
    shown = cir("data", "source", "shards/{0..4}.tar", "--kind", "images", "--limit", "6").stdout
    assert "6 images" in shown and "blocks       2, of 2 to 4 rows" in shown and "bad          none" in shown
    shown = cir("data", "source", "c.jsonl").stdout
    assert "c.jsonl  2 captions" in shown and "bad          1 not JSON: c.jsonl:2: " in shown
    assert "blank        1" in shown and "first        'a cat'" in shown
    shown = cir("data", "source", "t.jsonl", "--kind", "triplets", "--limit", "1").stdout
    assert "t.jsonl  1 triplets" in shown and "fingerprint" in shown
    wrong = cir("data", "source", "c.jsonl", "--kind", "caption")
    assert wrong.exit_code == 2 and "did you mean 'captions'?" in wrong.stderr
    assert cir("data", "source", "c.jsonl", "--allow-bad", "0").exit_code == 2
