"""The tiny BLIP-2: its calls are Hugging Face's, its losses are as written out, the bundled weights are as claimed."""

import hashlib
import math
import random
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from transformers import Blip2ForImageTextRetrieval

from cir import backbones
from cir.backbones import weights
from cir.backbones.tiny_blip2 import TinyBlip2, start_from, teacher
from cir.errors import InputError
from cir.optim import trainables
from cir.prompts import tokenize
from cir.randomness import StepRandom, seed_of
from cir.world import commands, pool, pretrain_blip2, wordpiece
from cir.world.grammar import ALL, BENCH, TRAIN, caption, edits_text, full_caption
from cir.world.pretrain_blip2 import pretrain
from cir.world.pretraining import truth
from cir.world.pretraining_blip2 import (
    Blip2Options,
    Matching,
    MatchingOptions,
    PairBatch,
    Pairs,
    Pretraining,
    differences,
    hard_negatives,
)
from cir.world.render import draw
from cir.world.scenes import KINDS, SHAPES, propose_many, sample_scene

CHECKPOINTS = Path(__file__).parents[2] / "checkpoints"
CLIP, BUNDLED = CHECKPOINTS / "tiny-clip", CHECKPOINTS / "tiny-blip2"


@pytest.fixture(scope="module")
def words(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("words")
    wordpiece.build(folder, size=5_000)
    return folder


@pytest.fixture
def blip(words):
    return TinyBlip2(words, joint=16, layers=2, queries=4, seed=3).eval()


def test_every_word_of_the_world_is_one_piece(blip):
    rng = random.Random(5)
    vocabulary = wordpiece.vocabulary(["$"])
    assert vocabulary.index("[PAD]") == 0 and vocabulary[-1] == "[DEC]" and len(set(vocabulary)) == len(vocabulary)
    for _ in range(300):
        scene = sample_scene(rng)
        edits = propose_many(scene, (rng.choice(KINDS),), rng) or ()
        texts = [caption(scene, rng, ALL, chatter=True), full_caption(scene, rng, BENCH)]
        texts += [edits_text(scene, edits, rng, half) for half in (TRAIN, BENCH) if edits]
        for text in texts:
            cleaned = re.sub(r"[.!\"()*#:;~]", " ", text)
            assert len(blip.tokenizer.pieces(text)) == len(re.findall(r"[a-z]+|[0-9]+|[^\sa-z0-9]", cleaned)), text
    unknown = blip.tokenizer.pieces("Zebra")
    assert blip.tokenizer.decode(unknown) == "zebra" and len(unknown) == 5
    assert len(blip.tokenizer.pieces("$")) == 1 and blip.tokenizer.slot == blip.tokenizer.pieces("$")[0]


def test_full_captions_without_places_fit_the_context(blip):
    rng = random.Random(6)
    lengths = [len(blip.tokenizer.pieces(full_caption(sample_scene(rng), rng, ALL, positions=0.0))) for _ in range(500)]
    assert max(lengths) + 2 <= wordpiece.CONTEXT
    long = "a red star and " * 20
    ids, mask = blip.rows([long, "a star"])
    assert ids.shape == (2, 32) and ids[0, -1] == blip.tokenizer.end and mask.sum(1).tolist() == [32, 4]


def test_images_texts_and_match_are_hugging_faces_own_forward(blip):
    captions = ["a red star on a white background", "two hollow circles", "$ that is blue"]
    pictures = torch.rand(3, 3, 64, 64) * 255
    ids, mask = blip.rows(captions)
    with torch.no_grad():
        given = {"pixel_values": blip.pixels(pictures), "input_ids": ids, "attention_mask": mask.long()}
        theirs = blip.model(**given)
        normed = blip.parts.normed(blip.tokens(pictures))
        images = torch.nn.functional.normalize(blip.images(normed), dim=-1)
        texts = torch.nn.functional.normalize(blip.texts((ids, mask)), dim=-1)
        torch.testing.assert_close(images, theirs.image_embeds)
        torch.testing.assert_close(texts, theirs.text_embeds)
        matched = blip.model(**given, use_image_text_matching_head=True).logits_per_image
        torch.testing.assert_close(blip.match(normed, (ids, mask)), matched)
    assert images.shape == (3, 4, 16) and (matched[0] - matched[1]).abs().max() > 1e-4
    assert not torch.allclose(blip.model.query_tokens[0, 0], blip.model.query_tokens[0, 1]), "queries would stay equal"


def test_the_vision_tower_starts_as_the_clips(blip):
    clip, tower = teacher(CLIP).vision_model, blip.model.vision_model
    pictures = blip.pixels(torch.from_numpy(pool_pictures(6)))
    start_from(tower, teacher(CLIP), pictures)
    with torch.no_grad():
        x = torch.randn(2, 65, 128)  # the blocks are the same; their norms' epsilons are 1e-5 and 1e-6
        torch.testing.assert_close(
            tower.encoder(x).last_hidden_state, clip.encoder(inputs_embeds=x).last_hidden_state, rtol=1e-3, atol=1e-3
        )
        raw, ours = clip.embeddings(pictures), tower.embeddings(pictures)
        torch.testing.assert_close(ours[:, 0], clip.pre_layrnorm(raw[:, 0]))  # the class token: exactly
        norm, deviations = clip.pre_layrnorm, []
        for token in raw[:, 1:].flatten(0, 1):
            deviations.append(math.sqrt(float(((token - token.mean()) ** 2).mean()) + norm.eps))
        average = sum(deviations) / len(deviations)
        for picture, position in ((0, 1), (3, 30), (5, 64)):
            token = raw[picture, position]
            wanted = norm.weight * (token - token.mean()) / average + norm.bias
            torch.testing.assert_close(ours[picture, position], wanted, rtol=1e-4, atol=1e-5)


def pool_pictures(count):
    rng = random.Random(1)
    drawn = [draw(sample_scene(rng), index)[0] for index in range(count)]
    return np.stack(drawn).transpose(0, 3, 1, 2).astype(np.float32)


def test_a_teacher_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="no CLIP here"):
        teacher(tmp_path)


def test_hard_negatives_are_drawn_from_the_softmax_of_the_others():
    logits = torch.tensor([[9.0, 1.0, 0.0, 2.0], [0.5, 9.0, 0.0, 0.0]])
    draws = 4_000
    noise = torch.rand(draws, 2, 4, generator=torch.Generator().manual_seed(0))
    found = torch.stack([hard_negatives(logits, one) for one in noise])
    for row in range(2):
        others = [column for column in range(4) if column != row]
        total = sum(math.exp(logits[row, column]) for column in others)
        assert not (found[:, row] == row).any()
        for column in others:
            share = float((found[:, row] == column).float().mean())
            assert share == pytest.approx(math.exp(logits[row, column]) / total, abs=0.03)


def test_the_losses_written_out(blip):
    """Every pair by itself: the greatest cosine over an image's vectors, both directions, then three matches a row."""
    captions = ["a red star", "a small blue circle on a white background", "two moons", "a heart and a star"]
    tokens = blip.tokens(torch.from_numpy(pool_pictures(4))).detach()
    told = truth(pool.scenes(4, 0, single=False))
    noise = torch.rand(4, 2, 4, generator=torch.Generator().manual_seed(1))
    method = Pretraining(Blip2Options(10, alone=0.5, matched=0.5, aux_weight=0.5), blip, np.zeros((4, 65, 128), "f2"))
    rows = blip.rows(captions)
    with torch.no_grad():
        found = method.losses(blip, PairBatch(tokens, rows, told, noise, step=5))
        assert set(method.losses(blip, PairBatch(tokens, rows, told, noise, step=4))) == {"itc", "aux"}
        normed = [blip.parts.normed(row[None]) for row in tokens]
        images = [torch.nn.functional.normalize(blip.images(one), dim=-1)[0] for one in normed]
        texts = [torch.nn.functional.normalize(blip.texts(blip.rows([one])), dim=-1)[0] for one in captions]
        logits = torch.tensor([[max(float(v @ t) for v in image) / 0.07 for image in images] for t in texts])
        contrast = 0.0
        for i in range(4):
            contrast += torch.logsumexp(logits[i], 0) - logits[i, i] + torch.logsumexp(logits[:, i], 0) - logits[i, i]
        torch.testing.assert_close(found["itc"], contrast / 8)
        pooled = torch.stack([sum(blip.seen(one)[0, t] for t in range(4)) / 4 for one in normed])
        first = torch.stack([blip.read(blip.rows([one]))[0] for one in captions])
        read = method.heads.scene(pooled, told) + method.heads.scene(first, told)
        torch.testing.assert_close(found["aux"], 0.5 * read)
        terms = []
        for i in range(2):
            other = []
            for side, row in enumerate((logits[i], logits[:, i])):  # an image for text i, a text for image i
                gumbel = [-math.log(-math.log(float(noise[i, side, j]))) for j in range(4)]
                perturbed = [-math.inf if j == i else float(row[j]) + gumbel[j] for j in range(4)]
                other.append(perturbed.index(max(perturbed)))
            for image, text, label in ((i, i, 1), (other[0], i, 0), (i, other[1], 0)):
                terms.append(-blip.match(normed[image], blip.rows([captions[text]])).log_softmax(dim=1)[0, label])
        torch.testing.assert_close(found["itm"], torch.stack(terms).mean())


def test_the_matching_stage_written_out(blip):
    """Every pair by itself: even negatives for the first rows, the contrast's for the others, and what differs."""
    captions = ["a red star", "a small blue circle on a white background", "two moons", "a heart and a star"]
    scenes = pool.scenes(4, 0, single=False)
    tokens = blip.tokens(torch.from_numpy(pool_pictures(4))).detach()
    noise = torch.rand(4, 2, 4, generator=torch.Generator().manual_seed(1))
    rows = blip.rows(captions)
    options = MatchingOptions(matched=0.75, easy=1, differ_weight=0.5)
    method = Matching(options, blip, np.zeros((4, 65, 128), "f2"))
    with torch.no_grad():
        found = method.losses(blip, PairBatch(tokens, rows, truth(scenes), noise, step=0))
        normed = [blip.parts.normed(row[None]) for row in tokens]
        images = [torch.nn.functional.normalize(blip.images(one), dim=-1)[0] for one in normed]
        texts = [torch.nn.functional.normalize(blip.texts(blip.rows([one])), dim=-1)[0] for one in captions]
        logits = torch.tensor([[max(float(v @ t) for v in image) / 0.07 for image in images] for t in texts])
        matched, told = [], []
        for i in range(3):
            other = []
            for side, row in enumerate((logits[i], logits[:, i])):
                gumbel = [-math.log(-math.log(float(noise[i, side, j]))) for j in range(4)]
                perturbed = [-math.inf if j == i else (float(row[j]) if i else 0.0) + gumbel[j] for j in range(4)]
                other.append(perturbed.index(max(perturbed)))
            for image, text, label in ((i, i, 1), (other[0], i, 0), (i, other[1], 0)):
                fused = blip.parts.fuse(normed[image], *blip.rows([captions[text]]))
                matched.append(-blip.parts.matching(fused).log_softmax(dim=1)[0, label])
                guess = method.differ(fused[0, :4].flatten())
                for place, differs in enumerate(unlike(scenes[image], scenes[text])):
                    p = 1 / (1 + math.exp(-float(guess[place])))
                    told.append(-math.log(p if differs else 1 - p))
        torch.testing.assert_close(found["itm"], torch.stack(matched).mean())
        assert float(found["differ"]) == pytest.approx(0.5 * sum(told) / 9, rel=1e-4)  # nine pairs of nine answers
        assert float(found["itc"]) > 0.1


def unlike(left, right):
    """Which shapes are not the same in two scenes, and whether the background is not."""
    said = [{g.shape: (g.colour, g.fill, g.size, g.count) for g in scene.groups} for scene in (left, right)]
    return [said[0].get(shape) != said[1].get(shape) for shape in SHAPES] + [left.background != right.background]


def test_what_differs_is_what_differs():
    rng = random.Random(2)
    scenes = [sample_scene(rng) for _ in range(40)]
    found = differences(truth(scenes), truth(scenes[::-1]))
    assert found.tolist() == [[float(x) for x in unlike(a, b)] for a, b in zip(scenes, scenes[::-1], strict=True)]
    assert 0.1 < found.mean() < 0.9


def test_the_first_rows_of_a_matching_batch_tell_everything(blip, tmp_path):
    source = pool.load(tmp_path, 12, 0, single=False)
    pairs = Pairs(blip, source, np.zeros((12, 2, 3), np.float16), seed=4, full=0.5)
    ids, mask = pairs.batch([4, 1], StepRandom(4, 7, 0, 2, 2)).rows
    for place, scene in enumerate((8, 9, 2, 3)):
        rng = random.Random(seed_of(4, 7, scene))
        shown = source.scenes[scene]
        told = full_caption(shown, rng, ALL, positions=0.0) if place < 2 else caption(shown, rng, ALL, chatter=True)
        assert ids[place][mask[place]].tolist() == blip.rows([told])[0][0].tolist(), told


def test_what_is_trained(blip):
    method = Pretraining(Blip2Options(), blip, np.zeros((1, 65, 128), np.float16))
    trained = set(trainables(method, method.trains))
    frozen = {name for name, _ in method.named_parameters()} - trained
    assert frozen and all(name.startswith(("blip.model.vision_model.e", "heads.patch")) for name in frozen)
    last = Matching(MatchingOptions(), blip, np.zeros((1, 65, 128), np.float16))
    assert {n for n in trainables(last, last.trains) if n.startswith("blip")} == {
        n for n in trained if n.startswith("blip")
    }
    assert {"blip.temperature", "blip.model.vision_model.post_layernorm.weight", "blip.model.query_tokens"} <= trained


def test_a_batch_is_its_rows(blip, tmp_path):
    """Pairs stand side by side, captions belong to their scenes and change with the step, halves are the whole."""
    source = pool.load(tmp_path, 12, 0, single=False)
    tokens = np.arange(12 * 2 * 3, dtype=np.float16).reshape(12, 2, 3)
    pairs = Pairs(blip, source, tokens, seed=4)
    whole = pairs.batch([4, 1], StepRandom(4, 7, 0, 2, 2))
    assert torch.equal(whole.tokens, torch.from_numpy(tokens[[8, 9, 2, 3]]).float())
    assert whole.noise.shape == (4, 2, 4) and whole.step == 7
    assert torch.equal(whole.truth.groups, truth([source[i] for i in (8, 9, 2, 3)]).groups)
    second = pairs.batch([1], StepRandom(4, 7, 1, 2, 2))
    length = int(second.rows[1].sum(1).max())
    assert torch.equal(second.rows[0][:, :length], whole.rows[0][2:, :length])
    later = pairs.batch([4, 1], StepRandom(4, 8, 0, 2, 2))
    assert later.rows[0].shape != whole.rows[0].shape or not torch.equal(later.rows[0], whole.rows[0])


def test_pretraining_runs_saves_and_is_the_same_when_resumed(words, tmp_path, monkeypatch):
    """A run killed at the third step of the second stage goes on from the snapshot of the second."""
    small = {"seed": 0, "steps": (3, 4, 2), "pool_scale": 0.001, "scenes": 12}
    for run in "ab":
        shutil.copytree(words, tmp_path / run / "tokenizer")
    settings, losses, calls = pretrain_blip2._settings, Pretraining.losses, []

    def killed(self, backbone, batch):
        calls.append(batch.step)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return losses(self, backbone, batch)

    monkeypatch.setattr(Pretraining, "losses", killed)
    with monkeypatch.context() as patched:
        patched.setattr(pretrain_blip2, "_settings", lambda steps, batch: replace(settings(steps, 4), save_every=1))
        with pytest.raises(KeyboardInterrupt):
            pretrain(tmp_path / "a", **small)
    monkeypatch.setattr(pretrain_blip2, "_settings", lambda steps, batch: settings(steps, 4))
    scores = pretrain(tmp_path / "a", **small)
    assert calls == [0, 1, 2, 2, 3]
    assert scores == pretrain(tmp_path / "b", **small)
    model, info = Blip2ForImageTextRetrieval.from_pretrained(tmp_path / "a" / "model", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    backbone = backbones.load(str(tmp_path / "a" / "model"))
    assert backbone.vectors == 32 and backbone.logit_scale == pytest.approx(1 / scores["temperature"], rel=1e-5)
    same = (tmp_path / "a/model/model.safetensors").read_bytes() == (
        tmp_path / "b/model/model.safetensors"
    ).read_bytes()
    assert same and model.config.cir["temperature"] == pytest.approx(scores["temperature"])


def test_a_model_that_is_not_known(tmp_path):
    with pytest.raises(InputError, match="blip2"):
        commands.pretrain(tmp_path, model="blip3")


@pytest.fixture(scope="module")
def bundled():
    return backbones.load(str(BUNDLED))


def test_the_bundled_weights_find_scenes_by_captions_in_either_phrasing(bundled):
    """The model card's claim, on fresh scenes, through the ordinary backbone."""
    rng = random.Random("bundled")
    scenes = [sample_scene(rng) for _ in range(150)]
    pictures = [Image.fromarray(draw(scene, 77_000 + i)[0]) for i, scene in enumerate(scenes)]
    pixels = torch.stack([bundled.preprocess(picture) for picture in pictures])
    images = torch.nn.functional.normalize(bundled.encode_images(pixels), dim=-1)
    for phrasing in (TRAIN, BENCH):
        prompt = tokenize(bundled.tokenizer, [[full_caption(scene, rng, phrasing, positions=0.0)] for scene in scenes])
        texts = torch.nn.functional.normalize(bundled.encode_text(prompt), dim=-1)
        similar = torch.einsum("qd,gtd->qgt", texts, images).amax(dim=2)
        assert (similar.argmax(dim=1).numpy() == np.arange(len(scenes))).mean() > 0.9, phrasing
        fits = bundled.match(bundled.encode_patches(pixels), prompt)
        wrong = bundled.match(bundled.encode_patches(pixels.roll(1, dims=0)), prompt)
        assert (fits > wrong).float().mean() > 0.97, phrasing


def test_the_bundle_is_small_complete_and_as_the_manifest_says(bundled):
    files = {path.name: path for path in BUNDLED.iterdir() if path.name != "README.md"}
    assert sum(path.stat().st_size for path in BUNDLED.iterdir()) < 15 * 2**20 and (BUNDLED / "README.md").exists()
    entry = yaml.safe_load((CHECKPOINTS / "manifest.yaml").read_text())["tiny-blip2"]
    assert entry["fingerprint"] == weights.fingerprint(BUNDLED) == bundled.fingerprint
    assert set(entry["files"]) == set(files)
    for name, path in files.items():
        told = hashlib.sha256(path.read_bytes()).hexdigest()
        assert entry["files"][name] == {"bytes": path.stat().st_size, "sha256": told}, name


def test_the_bundle_is_a_stock_model():
    _, info = Blip2ForImageTextRetrieval.from_pretrained(BUNDLED, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
