"""The tiny CLIP: its vision path is `CLIPModel`'s, pre-training resumes, the bundled weights are as claimed."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cir import backbones
from cir.backbones.tiny import TinyClip
from cir.prompts import tokenize
from cir.world import pool, tokenizer
from cir.world.grammar import BENCH, TRAIN, full_caption
from cir.world.pretrain import pretrain
from cir.world.pretraining import CLIMB, scale_at, truth
from cir.world.render import draw
from cir.world.scenes import Group, lay_out, sample_scene

BUNDLED = Path(__file__).parents[2] / "checkpoints" / "tiny-clip"


@pytest.fixture(scope="module")
def words(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("words")
    tokenizer.build(folder, size=2000)
    return folder


def test_all_patches_are_the_models_own_forward(words):
    clip = TinyClip(words, seed=3).eval()
    pixels = torch.rand(2, 3, 64, 64) * 255
    with torch.no_grad():
        ours = clip.tokens(pixels)
        theirs = clip.model.vision_model(pixel_values=(pixels - clip.mean) / clip.std)
        torch.testing.assert_close(ours, theirs.last_hidden_state)
        torch.testing.assert_close(clip.pooled(ours), theirs.pooler_output)
        everything = torch.arange(64).flip(0).expand(2, -1)  # any order: a patch brings its position with it
        torch.testing.assert_close(clip.pooled(clip.tokens(pixels, everything)), theirs.pooler_output)
        some = clip.tokens(pixels, torch.arange(5).expand(2, -1))
    assert some.shape[1] == 6 and not torch.allclose(some[:, 0], ours[:, 0])


def test_the_scale_stays_climbs_stays():
    scales = [scale_at(step, 100) for step in range(101)]
    assert scales[: int(100 * CLIMB[0])] == [20.0] * int(100 * CLIMB[0]) and scales[85:] == [100.0] * 16
    assert sorted(scales) == scales


def test_ground_truth_by_hand():
    scene = lay_out("navy", (Group("star", "red", "hollow", "large", 2),), random.Random(0))
    told = truth([scene])
    assert told.groups[0, 0].tolist() == [4, 0, 1, 2] and (told.groups[0, 1:] == -1).all()
    assert told.attributes[0, 4].tolist() == [0, 1, 2, 1] and told.backgrounds.tolist() == [3]
    assert told.shapes[0].nonzero().tolist() == [[4]]
    assert told.cells[0].nonzero().flatten().tolist() == list(scene.cells[0])


def test_neighbours_stand_side_by_side_in_the_pool():
    scenes = pool.scenes(40, 0, single=False)
    for first, second in zip(scenes[::2], scenes[1::2], strict=True):
        assert first != second
    assert all(len(s.groups) == 1 and s.groups[0].count == 1 for s in pool.scenes(20, 0, single=True))


def test_pretraining_runs_saves_and_is_the_same_when_resumed(tmp_path):
    scores = pretrain(tmp_path / "a", 0, (3, 3), 0.005)
    again = pretrain(tmp_path / "a", 0, (3, 3), 0.005)
    other = pretrain(tmp_path / "b", 0, (3, 3), 0.005)
    assert scores == again == other
    model = backbones.load(str(tmp_path / "a" / "model"))
    assert model.logit_scale == pytest.approx(100, rel=1e-3) and model.width == 128


def test_the_bundled_weights_find_scenes_by_captions_in_either_phrasing():
    """The model card's claim, on fresh scenes, through the ordinary backbone."""
    clip = backbones.load(str(BUNDLED))
    rng = random.Random("bundled")
    scenes = [sample_scene(rng) for _ in range(150)]
    pictures = [Image.fromarray(draw(scene, 77_000 + i)[0]) for i, scene in enumerate(scenes)]
    images = clip.encode_images(torch.stack([clip.preprocess(picture) for picture in pictures]))[:, 0]
    images = torch.nn.functional.normalize(images, dim=-1)
    for phrasing in (TRAIN, BENCH):
        prompt = tokenize(clip.tokenizer, [[full_caption(scene, rng, phrasing, positions=0.0)] for scene in scenes])
        texts = torch.nn.functional.normalize(clip.encode_text(prompt), dim=-1)
        hits = ((texts @ images.T).argmax(dim=1).numpy() == np.arange(len(scenes))).mean()
        assert hits > 0.95, phrasing


def test_the_bundle_is_small_and_complete():
    files = {path.name: path.stat().st_size for path in BUNDLED.iterdir()}
    assert {
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "tokenizer_config.json",
        "README.md",
    } <= set(files)
    assert sum(files.values()) < 15 * 2**20
    end = json.loads((BUNDLED / "config.json").read_text())["text_config"]["eos_token_id"]
    assert end == json.loads((BUNDLED / "config.json").read_text())["text_config"]["vocab_size"] - 1
