from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from cir import runs
from cir.backbones.kept import KeptRows
from cir.backbones.store import FeatureCache
from cir.config import RunConfig
from cir.errors import InputError
from cir.methods import NoStore, build, lincir
from cir.methods.masking import FALLBACK, Masked, by_substring, by_word, clean, fit, mask
from cir.methods.noise import perturb
from cir.methods.projector import Phi, dropped
from cir.prompts import tokenize
from cir.randomness import StepRandom
from cir.train.checks import digest

CAPTIONS = ["a red dress with longer sleeves", "two dogs on grass", "it is", "", "the photo of a cat on the blue sofa"]


def draw(rows=4, total=None, seed=0, step=0, start=0):
    return StepRandom(seed, step, start, start + rows, total or rows)


# Phi


def test_phi_equals_the_layers_written_out(tiny_backbone):
    phi = Phi(6, 5).eval()
    x = torch.randn(3, 6)
    state = phi.state_dict()
    assert {k: tuple(v.shape) for k, v in state.items()} == {
        "layers.0.weight": (24, 6), "layers.0.bias": (24,), "layers.3.weight": (24, 24), "layers.3.bias": (24,),
        "layers.6.weight": (5, 24), "layers.6.bias": (5,),
    }  # fmt: skip
    h = x
    for layer in (0, 3):
        h = h @ state[f"layers.{layer}.weight"].T + state[f"layers.{layer}.bias"]
        h = h * (1 + torch.erf(h / 2**0.5)) / 2
    torch.testing.assert_close(phi(x), h @ state["layers.6.weight"].T + state["layers.6.bias"])


def test_phi_drops_only_in_training_and_by_row_of_the_global_batch():
    phi, x = Phi(6, 5, dropout=0.5), torch.randn(4, 6)
    assert torch.equal(phi.eval()(x, draw()), phi(x))
    phi.train()
    assert torch.equal(phi(x), phi.eval()(x))  # nothing to draw from: no dropout
    phi.train()
    whole = phi(x, draw())
    assert not torch.allclose(whole, phi(x))
    halves = [phi(x[i : i + 2], draw(2, 4, start=i)) for i in (0, 2)]
    torch.testing.assert_close(whole, torch.cat(halves))
    torch.testing.assert_close(Phi.forward(Phi(6, 5, dropout=0.0).train(), x, draw()).shape, torch.Size((4, 5)))


def test_dropout_keeps_the_mean():
    x = torch.ones(20000, 4)
    assert dropped(x, 0.5, draw(20000), "x").mean().item() == pytest.approx(1, abs=0.02)
    assert set(dropped(x, 0.5, draw(20000), "x").unique().tolist()) == {0.0, 2.0}


# Noise


def test_noise_of_each_kind_has_its_spread():
    x, random = torch.zeros(4000, 8), draw(4000)
    assert torch.equal(perturb(x, "none", 1.0, random), x)
    assert perturb(x, "gaussian", 2.0, random).std().item() == pytest.approx(2, abs=0.03)
    assert perturb(x, "uniform", 1.0, random).abs().max().item() <= 1
    scaled = perturb(x, "uniform_gaussian", 1.0, random)
    assert scaled.std().item() == pytest.approx((1 / 3) ** 0.5, abs=0.02)  # E u^2 = 1/3
    rows = scaled.std(dim=1)
    assert rows.std() > 0.2  # one u per row: rows differ in spread
    with pytest.raises(InputError, match="did you mean 'gaussian'"):
        perturb(x, "gausian", 1.0, random)


# Cleaning and masking


def test_cleaning_follows_the_rules(tiny_backbone):
    tokenizer = tiny_backbone.tokenizer
    assert clean(None, tokenizer) == ""
    assert clean(" <PERSON> pays $20 for a CAT ", tokenizer) == "person pays 20 for a cat"
    long = clean("red dress " * 60, tokenizer)
    assert len(tokenizer.pieces(long)) + 2 <= tokenizer.context
    assert "red dress " * 60 == long + ("red dress " * 60)[len(long) :]


def test_substring_masking_has_the_released_side_effects():
    assert by_substring("he has a of it", ["a"], "it") == "he h[$]s [$] of it"
    assert by_substring("a dog and a dog", ["a dog"], "and") == "[$] and [$]"
    # a key word that is not there verbatim: the fallback word is masked instead, and the walk stops
    assert by_substring("a t-shirt on the dog", ["a", "t - shirt", "the dog"], "on") == "[$] t-shirt [$] the dog"
    assert by_substring("it is", [], "is") == "it [$]"


def test_whole_word_masking_leaves_other_words_alone():
    assert by_word("he has a of it", ["a"], "it") == "he has [$] of it"
    assert by_word("a cat and a catalogue", ["a cat"], "and") == "[$] and a catalogue"
    assert by_word("a t-shirt on the dog", ["a t - shirt", "the dog"], "on") == "[$] on [$]"
    assert by_word("it is", ["absent"], "is") == "it [$]"
    assert by_word("dog dog", ["dog", "dog dog"], "") == "[$]"


def test_the_fallback_word_is_drawn_from_seed_and_number():
    words = [mask("one two three four five six", [], by_word, 0, i).pieces for i in range(30)]
    assert len(set(words)) > 3
    assert words == [mask("one two three four five six", [], by_word, 0, i).pieces for i in range(30)]
    assert words != [mask("one two three four five six", [], by_word, 1, i).pieces for i in range(30)]


def test_nothing_to_mask_falls_back_to_a_photo():
    assert mask("", [], by_substring, 0, 0) == Masked(FALLBACK, False)


def test_slots_behind_the_context_are_dropped(tiny_backbone):
    tokenizer = tiny_backbone.tokenizer
    filler = "red " * 74
    assert len(tokenizer.pieces(filler)) == 74
    assert fit(Masked((filler, "", "x"), True), tokenizer) == Masked((filler, ""), True)  # the last place but one
    assert fit(Masked((filler + "red red", "x"), True), tokenizer) == Masked(FALLBACK, False)
    short = Masked(("a", "b"), True)
    assert fit(short, tokenizer) is short


# The method


def test_the_loss_equals_the_step_written_out(tiny_backbone):
    method = build("lincir", {"dropout": 0.0, "noise_scale": 0.3}, tiny_backbone).train()
    batches = method.prepare(tiny_backbone, CAPTIONS, seed=0, draws=1000, store=NoStore())
    random = draw(2, seed=5)
    loss = method.losses(tiny_backbone, batches.batch([0, 1], random))["mse"]
    total = 0.0
    for row, (caption, pieces) in enumerate(
        [(CAPTIONS[0], ["", " with longer sleeves"]), (CAPTIONS[1], ["two", " on", ""])]
    ):
        e = tiny_backbone.encode_text(tokenize(tiny_backbone.tokenizer, [[caption]]))[0]
        u = random.uniform("noise.scale", 1)[row]
        z = e + 0.3 * u * random.normal("noise.gaussian", tiny_backbone.width)[row]
        s = method.phi(z[None])[:, None]
        if row == 0:
            pieces = ["", " with", ""]  # "a red dress" and "longer sleeves"
        r = tiny_backbone.encode_text(tokenize(tiny_backbone.tokenizer, [pieces]), s)[0]
        total += float((r - e).square().mean()) / 2
    assert loss.item() == pytest.approx(total, rel=1e-3)


def test_l2_normalize_reaches_training_and_inference(tiny_backbone):
    method = build("lincir", {"l2_normalize": True}, tiny_backbone)
    image = torch.randn(3, tiny_backbone.width)
    torch.testing.assert_close(method.words(image), method.words(F.normalize(image, dim=-1)))
    raw = build("lincir", {}, tiny_backbone)
    assert not torch.allclose(raw.words(image), raw.words(F.normalize(image, dim=-1)))


def test_batches_are_a_function_of_rows(tiny_backbone):
    method = build("lincir", {"masking": "whole_word"}, tiny_backbone)
    one, two = (method.prepare(tiny_backbone, CAPTIONS, seed=0, draws=9, store=NoStore()) for _ in range(2))
    two.batch([4, 3, 2], draw(3))  # another order of first use
    a, b = one.batch([2, 3], draw(2)), two.batch([2, 3], draw(2))
    assert (a.masked.ids == b.masked.ids).all() and torch.equal(a.target, b.target)
    assert a.own.tolist() == b.own.tolist() == [True, False]  # the empty caption falls back


@pytest.mark.parametrize("draws", [1, 1000])
def test_what_a_store_keeps_is_what_is_made_fresh(tiny_backbone, tmp_path, monkeypatch, draws):
    method = build("lincir", {}, tiny_backbone)
    store = KeptRows(FeatureCache(tmp_path), tiny_backbone)
    fresh = method.prepare(tiny_backbone, CAPTIONS, seed=0, draws=draws, store=NoStore())
    method.prepare(tiny_backbone, CAPTIONS, seed=0, draws=draws, store=store)
    if draws == 1000:  # what is kept is read, not made
        monkeypatch.setattr(lincir, "mask", None)
        monkeypatch.setattr(lincir, "clean", None)
    kept = method.prepare(tiny_backbone, CAPTIONS, seed=0, draws=draws, store=store)
    for rows in ([2, 3], [3, 4, 0]):
        a, b = fresh.batch(rows, draw(len(rows))), kept.batch(rows, draw(len(rows)))
        for name in ("ids", "slots", "ends"):
            assert np.array_equal(getattr(a.masked, name), getattr(b.masked, name))
        assert torch.equal(a.target, b.target) and a.own.tolist() == b.own.tolist() == [row != 3 for row in rows]


@pytest.mark.parametrize(
    ("options", "seed", "source"),
    [({"masking": "whole_word"}, 0, CAPTIONS), ({}, 1, CAPTIONS), ({}, 0, [*CAPTIONS[:4], "another cat on a sofa"])],
)
def test_another_option_seed_or_source_masks_again(tiny_backbone, tmp_path, options, seed, source):
    store = KeptRows(FeatureCache(tmp_path), tiny_backbone)

    def entries(options, seed, source):
        build("lincir", options, tiny_backbone).prepare(tiny_backbone, source, seed=seed, draws=1000, store=store)
        return {kind: len(list(tmp_path.rglob(f"{kind}-*.npy"))) for kind in ("tokens", "texts")}

    assert entries({}, 0, CAPTIONS) == entries({}, 0, CAPTIONS) == {"tokens": 2, "texts": 1}
    assert entries({"noise": "gaussian", "dropout": 0.1}, 0, CAPTIONS) == {"tokens": 2, "texts": 1}  # not of the rows
    other = source is not CAPTIONS
    assert entries(options, seed, source) == {"tokens": 4 if other else 3, "texts": 2 if other else 1}


@pytest.mark.parametrize(
    ("options", "match"),
    [({"noise": "pink"}, "noise 'pink'"), ({"masking": "none"}, "masking 'none'"), ({"tagger": "x"}, "tagger 'x'")],
)
def test_unknown_choices_are_named(tiny_backbone, options, match):
    with pytest.raises(InputError, match=match):
        build("lincir", options, tiny_backbone).prepare(tiny_backbone, CAPTIONS, seed=0, draws=1, store=NoStore())


def test_a_run_keeps_its_rows_and_the_next_one_finds_them(tiny_clip_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("captions.txt").write_text("\n".join(text for text in CAPTIONS if text))
    config = RunConfig(name="kept", method={"name": "lincir"})
    config.backbone.name, config.backbone.cache, config.backbone.device = str(tiny_clip_folder), "cache", "cpu"
    config.train.source, config.train.steps, config.train.batch = "captions.txt", 3, 4
    digests = []
    for attempt in range(2):
        method, _ = runs.train(config, runs.load_backbone(config), tmp_path / str(attempt))
        digests.append(digest(method.state_dict()))
        assert [len(list(Path("cache").rglob(f"{kind}-*.npy"))) for kind in ("tokens", "texts")] == [2, 1]
        monkeypatch.setattr(lincir, "mask", None)  # the second run makes nothing
    assert digests[0] == digests[1]
