import pytest
import torch
from torch.nn import functional as F

from cir.errors import InputError
from cir.methods import NoStore, build
from cir.methods.masking import FALLBACK, Masked, by_substring, by_word, clean, fit, mask
from cir.methods.noise import perturb
from cir.methods.projector import Phi
from cir.methods.texts import FrozenTexts, TokenRows, encode_by_length
from cir.prompts import tokenize
from cir.randomness import StepRandom

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
    phi = Phi(4, 4, dropout=0.5).train()
    x = torch.ones(20000, 4)
    assert phi._drop(x, draw(20000), "x").mean().item() == pytest.approx(1, abs=0.02)
    assert set(phi._drop(x, draw(20000), "x").unique().tolist()) == {0.0, 2.0}


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


# Token rows and frozen features


def test_token_rows_equal_tokenize_and_are_made_once(tiny_backbone):
    made = []

    def pieces(i):
        made.append(i)
        return [CAPTIONS[i], " that is red"]

    rows = TokenRows(tiny_backbone.tokenizer, pieces)
    first, again = rows.prompt([4, 1, 1]), rows.prompt([1, 4])
    fresh = tokenize(tiny_backbone.tokenizer, [[CAPTIONS[i], " that is red"] for i in (4, 1, 1)])
    for name in ("ids", "slots", "ends"):
        assert (getattr(first, name) == getattr(fresh, name)).all()
    assert sorted(made) == [1, 4] and len(again) == 2


def test_token_rows_stay_bounded(tiny_backbone):
    rows = TokenRows(tiny_backbone.tokenizer, lambda i: [f"{i}"], keep=2)
    for i in range(6):
        rows.prompt([i])
    assert len(rows._rows) <= 2


@pytest.mark.parametrize("draws", [1, 100])
def test_frozen_features_equal_the_tower_cached_or_not(tiny_backbone, draws):
    frozen = FrozenTexts(tiny_backbone, CAPTIONS.__getitem__, len(CAPTIONS), draws)
    assert (frozen.table is not None) == (draws == 100)
    prompt = tokenize(tiny_backbone.tokenizer, [[CAPTIONS[i]] for i in (4, 0, 4)])
    torch.testing.assert_close(frozen([4, 0, 4]), tiny_backbone.encode_text(prompt), atol=1e-5, rtol=1e-4)


def test_a_repeated_caption_is_encoded_once(tiny_backbone):
    frozen = FrozenTexts(tiny_backbone, lambda i: CAPTIONS[i % 2], 10, 100)
    assert frozen.table.shape[0] == 2
    assert torch.equal(frozen([0, 1]), frozen([8, 9]))


def test_encoding_by_length_equals_one_piece_with_its_gradient(tiny_backbone):
    prompt = tokenize(tiny_backbone.tokenizer, [["a photo of", " red" * (1 + i % 17)] for i in range(70)])
    pseudo = torch.randn(70, 1, tiny_backbone.word_width, requires_grad=True)
    outs, gradients = [], []
    for out in (encode_by_length(tiny_backbone.text, prompt, pseudo), tiny_backbone.text.encode(prompt, pseudo)):
        gradients.append(torch.autograd.grad(out.square().sum(), pseudo)[0])
        outs.append(out)
    torch.testing.assert_close(*outs, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-3)


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


@pytest.mark.parametrize(
    ("options", "match"),
    [({"noise": "pink"}, "noise 'pink'"), ({"masking": "none"}, "masking 'none'"), ({"tagger": "x"}, "tagger 'x'")],
)
def test_unknown_choices_are_named(tiny_backbone, options, match):
    with pytest.raises(InputError, match=match):
        build("lincir", options, tiny_backbone).prepare(tiny_backbone, CAPTIONS, seed=0, draws=1, store=NoStore())
