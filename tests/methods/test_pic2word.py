"""Pic2Word against its specification written out: projector, sentence, loss, gradient and one optimizer step."""

import math
from itertools import pairwise

import pytest
import torch
from torch.nn import functional as F

from cir.backbones.packed import count_tokens
from cir.errors import InputError
from cir.methods import NoStore, build
from cir.methods.projector import Im2Text
from cir.optim import adamw, trainables
from cir.prompts import tokenize
from cir.randomness import StepRandom

UNDECAYED = [r".*(bias|bn|ln|logit_scale).*"]


def draw(rows=4, total=None, seed=0, step=0, start=0):
    return StepRandom(seed, step, start, start + rows, total or rows)


def batch(method, backbone, images, rows=(0, 1, 2, 3), random=None):
    ready = method.prepare(backbone, images, seed=0, draws=100, store=NoStore())
    return ready.batch(list(rows), random or draw(len(rows)))


def project(state, image, masks=(None, None), prefix=""):
    """[Linear - Dropout(0.1) - ReLU] twice, then Linear."""
    x = image
    for index, mask in enumerate(masks):
        x = x @ state[f"{prefix}layers.{index}.0.weight"].T + state[f"{prefix}layers.{index}.0.bias"]
        if mask is not None:
            x = x * mask / 0.9
        x = x.clamp(min=0)
    return x @ state[f"{prefix}fc_out.weight"].T + state[f"{prefix}fc_out.bias"]


def appended(backbone, words):
    """The released "append": "a photo of", the word put in before the end token, pooled one place behind it."""
    model, projection = backbone.text.text_model, backbone.text.text_projection
    plain = tokenize(backbone.tokenizer, [["a photo of"]])
    end = int(plain.ends[0])
    ids = torch.full((77,), backbone.tokenizer.pad)
    ids[: end + 1] = torch.from_numpy(plain.ids[0, : end + 1])
    known = model.embeddings.token_embedding.weight[ids]
    rows = torch.stack([torch.cat([known[:end], word[None], known[end:-1]]) for word in words])
    states = rows + model.embeddings.position_embedding.weight[:77]
    causal = torch.full((77, 77), torch.finfo(states.dtype).min).triu(1)[None, None]
    states = model.encoder(inputs_embeds=states, attention_mask=causal)[0]
    return model.final_layer_norm(states[:, end + 1]) @ projection.weight.T


def both_ways(image, sentence, scale):
    """Average of the cross-entropies over rows and over columns, one element at a time."""
    cosines = F.normalize(image, dim=-1) @ F.normalize(sentence, dim=-1).T * scale
    terms = []
    for i in range(len(cosines)):
        for line in (cosines[i], cosines[:, i]):
            terms.append(torch.logsumexp(line, dim=0) - line[i])
    return torch.stack(terms).mean()


# Im2Text


def test_the_projector_equals_the_layers_written_out_under_the_published_names():
    module = Im2Text(6, 5, middle=8).eval()
    state, x = module.state_dict(), torch.randn(3, 6)
    shapes = {"layers.0.0": (8, 6), "layers.1.0": (8, 8), "fc_out": (5, 8)}
    assert {k: tuple(v.shape) for k, v in state.items() if k.endswith("weight")} == {
        f"{name}.weight": shape for name, shape in shapes.items()
    }
    assert len(state) == 6
    torch.testing.assert_close(module(x), project(state, x))


@pytest.mark.parametrize(("width", "count"), [(512, 787_968), (768, 1_050_368), (1024, 1_312_768), (1280, 1_575_168)])
def test_the_parameters_are_as_many_as_published(width, count):
    with torch.device("meta"):
        assert sum(p.numel() for p in Im2Text(width, width).parameters()) == count


def test_other_depths_are_linear_layers_between_the_widths():
    for layers in (0, 1, 3):
        module = Im2Text(6, 5, middle=8, layers=layers)
        widths = [6, *[8] * layers, 5]
        weights = [p for name, p in module.named_parameters() if name.endswith("weight")]
        assert [tuple(p.shape) for p in weights] == [(o, i) for i, o in pairwise(widths)]


def test_dropout_comes_before_the_relu_by_row_of_the_global_batch():
    module, x = Im2Text(6, 5, middle=8), torch.randn(4, 6)
    assert torch.equal(module.eval()(x, draw()), module(x))
    module.train()
    torch.testing.assert_close(module(x), project(module.state_dict(), x))  # nothing to draw from: no dropout
    masks = [draw().keep(f"im2text.layers.{i}", 0.9, 8) for i in (0, 1)]
    assert not all(mask.all() for mask in masks)
    torch.testing.assert_close(module(x, draw()), project(module.state_dict(), x, masks))
    halves = [module(x[i : i + 2], draw(2, 4, start=i)) for i in (0, 2)]
    torch.testing.assert_close(module(x, draw()), torch.cat(halves))


# The method


def test_words_come_from_raw_features(tiny_backbone):
    method = build("pic2word", {}, tiny_backbone)
    image = torch.randn(3, tiny_backbone.width)
    torch.testing.assert_close(method.words(image)[:, 0], project(method.im2text.state_dict(), image))
    assert not torch.allclose(method.words(image), method.words(3 * image))


def test_appending_the_word_equals_a_slot_in_the_sentence(tiny_backbone):
    words = torch.randn(3, tiny_backbone.word_width)
    sentence = tokenize(tiny_backbone.tokenizer, [["a photo of", ""]] * 3)
    expected = appended(tiny_backbone, words)
    torch.testing.assert_close(tiny_backbone.encode_text(sentence, words[:, None]), expected, atol=1e-5, rtol=1e-4)
    assert (expected[0] - expected[1]).abs().max() > 1e-3


@pytest.mark.parametrize("scale", [0.0, 7.0])
def test_the_loss_equals_the_sum_written_out(tiny_backbone, make_images, scale):
    method, images = build("pic2word", {"scale": scale}, tiny_backbone), make_images(tiny_backbone)
    rows = [3, 0, 4]
    loss = method.losses(tiny_backbone, batch(method, tiny_backbone, images, rows))
    assert list(loss) == ["clip_ce"]
    image = tiny_backbone.encode_images(images.pixels[rows])[:, 0]
    sentence = appended(tiny_backbone, project(method.im2text.state_dict(), image))
    expected = both_ways(image, sentence, scale or tiny_backbone.logit_scale)
    torch.testing.assert_close(loss["clip_ce"], expected, atol=1e-5, rtol=1e-4)


def test_a_step_equals_the_step_written_out(tiny_backbone, make_images):
    method, images = build("pic2word", {}, tiny_backbone, seed=2).train(), make_images(tiny_backbone)
    twin = {name: p.detach().clone().requires_grad_() for name, p in method.im2text.named_parameters()}
    named = trainables(method, method.trains)
    optimizer = adamw(named, lr=1e-2, weight_decay=0.1, betas=(0.9, 0.98), eps=1e-6, undecayed=UNDECAYED)
    method.losses(tiny_backbone, batch(method, tiny_backbone, images, random=draw(seed=7)))["clip_ce"].backward()

    masks = [draw(seed=7).keep(f"im2text.layers.{i}", 0.9, 512) for i in (0, 1)]
    image = tiny_backbone.encode_images(images.pixels[:4])[:, 0]
    both_ways(image, appended(tiny_backbone, project(twin, image, masks)), tiny_backbone.logit_scale).backward()
    for name, parameter in method.im2text.named_parameters():
        torch.testing.assert_close(parameter.grad, twin[name].grad, atol=1e-5, rtol=1e-3)
    optimizer.step()
    for name, parameter in method.im2text.named_parameters():
        old, grad = twin[name].detach(), method.im2text.get_parameter(name).grad
        decayed = old * (1 - 1e-2 * 0.1) if name.endswith("weight") else old
        first, second = (1 - 0.9) * grad, (1 - 0.98) * grad**2
        moved = 1e-2 * (first / (1 - 0.9)) / ((second / (1 - 0.98)).sqrt() + 1e-6)
        torch.testing.assert_close(parameter.detach(), decayed - moved, atol=1e-6, rtol=1e-5)


def test_only_the_word_and_the_end_carry_gradient_in_the_frozen_tower(tiny_backbone, make_images):
    method = build("pic2word", {}, tiny_backbone)
    trainables(method, method.trains)
    prepared = batch(method, tiny_backbone, make_images(tiny_backbone))
    with count_tokens(tiny_backbone.text) as count:
        method.losses(tiny_backbone, prepared)["clip_ce"].backward()
    prefix, own = 4, 2  # start, a, photo, of; the word and the end
    assert 0 < count.forward <= prefix + own * 4
    assert 0 < count.backward_inputs <= own * 4 and count.weight_gradients == 0
    assert all(p.grad is None for p in tiny_backbone.text.parameters())


def test_crops_are_encoded_anew_and_plain_features_are_not(tiny_backbone, make_images):
    images = make_images(tiny_backbone)
    plain = batch(build("pic2word", {}, tiny_backbone), tiny_backbone, images).image
    assert images.asked == ["features", "features"]  # once ahead, to have all encoded, and for the batch
    cropped = batch(build("pic2word", {"augment": "crop"}, tiny_backbone), tiny_backbone, images).image
    assert images.asked == ["features", "features", "augmented"] and (plain - cropped).abs().max() > 1e-4


def test_rtd_wraps_it(tiny_backbone):
    base = build("pic2word", {}, tiny_backbone)
    image = torch.randn(2, tiny_backbone.width)
    assert torch.equal(build("rtd", {}, tiny_backbone, base).words(image), base.words(image))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"augment": "crops"}, "did you mean 'crop'"),
        ({"prompt": "a photo"}, "expected a slot"),
        ({"dropot": 1}, "did you mean 'dropout'"),
    ],
)
def test_wrong_options_are_named(tiny_backbone, options, match):
    with pytest.raises(InputError, match=match):
        build("pic2word", options, tiny_backbone)


def test_the_scale_is_that_of_the_frozen_model(tiny_backbone):
    assert tiny_backbone.logit_scale == pytest.approx(math.exp(2.6592), rel=1e-4)
