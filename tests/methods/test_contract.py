"""What every entry of METHODS owes: unit vectors, rows alone as in a batch, inputs that matter, honest gradients."""

from dataclasses import dataclass

import pytest
import torch

from cir.errors import InputError
from cir.methods import METHODS, NoStore, build, checkpoint, name_of
from cir.optim import adamw, trainables
from cir.prompts import JOINERS, Template
from cir.randomness import StepRandom
from cir.schema import Query

TEXTS = ("is blue and has shorter sleeves", "two dogs on grass", "has a red umbrella", "more similar to a cat")


@dataclass
class Row:
    reference: str
    text: str
    target: str


SOURCES = {
    "captions": ["a red dress with longer sleeves", "two dogs on grass", "person holding umbrella", "the blue sofa"],
    "triplets": [
        Row("a red dress", "is blue", "a blue dress"),
        Row("two dogs", "on grass instead", "two dogs on grass"),
        Row("a sofa", "has cats", "a sofa with cats"),
        Row("person", "holding umbrella", "person holding umbrella"),
    ],
}


OPTIONS = {  # short, and without the files of phrases, which tests/methods/test_oti.py and test_searle.py bring
    "oti": {"steps": 3, "text_weight": 0.0},
    "searle": {"oti_steps": 2, "oti_text_weight": 0.0, "text_weight": 0.0},
}


def make(name, backbone, options=None):
    kind = METHODS[name]
    base = build("lincir", {}, backbone, seed=3) if kind.wraps else None
    method = build(name, OPTIONS.get(name, {}) | (options or {}), backbone, base, seed=1)
    if name == "context_i2w":  # its local branch has no gradient until the gate has left zero
        torch.nn.init.constant_(method.im2text.local_gate, 0.5)
    return method


def queries(texts=TEXTS):
    return [Query(str(i), f"image{i}", (text, "is a photo")) for i, text in enumerate(texts)]


def references(backbone, name, n=4, seed=0):
    patches = METHODS[name].reads == "patches"
    shape = (17, backbone.vision_width) if patches else (backbone.vectors, backbone.width)
    return 3 * torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def compose(method, backbone, reference, asked, join="both_orders"):
    return method.compose(backbone, reference, asked, Template(), JOINERS[join])


@pytest.fixture(params=METHODS)
def name(request):
    return request.param


def test_vectors_are_of_unit_length_and_finite(name, tiny_backbone):
    out = compose(make(name, tiny_backbone), tiny_backbone, references(tiny_backbone, name), queries())
    extra = 1 if METHODS[name].fusion == "product" else 0  # the text's vector beside the reference's
    assert out.shape == (4, tiny_backbone.vectors + extra, tiny_backbone.width)
    torch.testing.assert_close(out.norm(dim=-1), torch.ones(out.shape[:2]))


def test_a_batch_equals_its_rows(name, tiny_backbone):
    method, reference, asked = make(name, tiny_backbone), references(tiny_backbone, name), queries()
    whole = compose(method, tiny_backbone, reference, asked)
    alone = [compose(method, tiny_backbone, reference[i : i + 1], asked[i : i + 1]) for i in range(4)]
    torch.testing.assert_close(whole, torch.cat(alone), atol=1e-5, rtol=1e-4)


def test_text_and_image_matter_as_declared(name, tiny_backbone):
    method, reference = make(name, tiny_backbone), references(tiny_backbone, name)
    out = compose(method, tiny_backbone, reference, queries())
    other_text = compose(method, tiny_backbone, reference, queries(TEXTS[1:] + TEXTS[:1]))
    other_image = compose(method, tiny_backbone, references(tiny_backbone, name, seed=9), queries())
    for what, changed in (("text", other_text), ("image", other_image)):
        moved = (out - changed).abs().amax(dim=(1, 2)) > 1e-4
        assert bool(moved.all()) if what in method.needs else not bool(moved.any()), what


def test_composing_is_deterministic_and_leaves_the_generator(name, tiny_backbone):
    method, reference = make(name, tiny_backbone), references(tiny_backbone, name)
    state = torch.get_rng_state()
    one, two = (compose(method, tiny_backbone, reference, queries()) for _ in range(2))
    assert torch.equal(one, two) and torch.equal(state, torch.get_rng_state())


def test_one_step_moves_all_that_is_trained_and_nothing_else(name, tiny_backbone, make_images):
    method = make(name, tiny_backbone)
    if not method.learns_from:
        assert not list(method.parameters()) and not method.trains
        with pytest.raises(NotImplementedError):
            method.losses(tiny_backbone, None)
        return
    named = trainables(method, method.trains)
    before = {n: p.detach().clone() for n, p in method.named_parameters()}
    frozen = {n: p.detach().clone() for n, p in tiny_backbone.text.named_parameters()}
    source = make_images(tiny_backbone) if method.learns_from == "images" else SOURCES[method.learns_from]
    batches = method.prepare(tiny_backbone, source, seed=0, draws=100, store=NoStore())
    method.train()
    losses = method.losses(tiny_backbone, batches.batch([0, 1, 2, 3], StepRandom(0, 0, 0, 4, 4)))
    assert all(term.ndim == 0 and torch.isfinite(term) for term in losses.values())
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in named.values())
    adamw(named, lr=1e-2).step()
    for n, p in method.named_parameters():
        assert torch.equal(p, before[n]) == (n not in named), n
    for n, p in tiny_backbone.text.named_parameters():
        assert torch.equal(p, frozen[n]) and p.grad is None, n


def test_the_state_makes_the_round_trip(name, tiny_backbone, tmp_path):
    method = make(name, tiny_backbone)
    checkpoint.save(tmp_path, method, tiny_backbone)
    loaded = checkpoint.load(tmp_path, tiny_backbone)
    assert type(loaded) is type(method) and loaded.options == method.options and name_of(loaded) == name
    reference = references(tiny_backbone, name)
    for one, two in zip(method.state_dict().values(), loaded.state_dict().values(), strict=True):
        assert torch.equal(one, two)
    assert torch.equal(*(compose(m, tiny_backbone, reference, queries()) for m in (method, loaded)))


def test_the_seed_makes_the_weights(name, tiny_backbone):
    state = torch.get_rng_state()
    one, two = make(name, tiny_backbone), make(name, tiny_backbone)
    for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(state, torch.get_rng_state())


def test_unknown_methods_options_and_types_are_named(tiny_backbone):
    with pytest.raises(InputError, match="did you mean 'lincir'"):
        build("linncir", {}, tiny_backbone)
    with pytest.raises(InputError, match="'noise_scal' is unknown; did you mean 'noise_scale'"):
        build("lincir", {"name": "lincir", "noise_scal": 1}, tiny_backbone)
    with pytest.raises(InputError, match="image_only has no options"):
        build("image_only", {"weight": 1}, tiny_backbone)
    with pytest.raises(InputError, match="noise_scale: expected float, got 'much'"):
        build("lincir", {"noise_scale": "much"}, tiny_backbone)
    with pytest.raises(InputError, match="wraps another method"):
        build("rtd", {}, tiny_backbone)
    with pytest.raises(InputError, match="does not wrap"):
        build("sum", {}, tiny_backbone, build("lincir", {}, tiny_backbone))


def test_numbers_written_as_text_are_converted(tiny_backbone):
    method = build("lincir", {"noise_scale": "1e-1", "dropout": 0, "l2_normalize": True}, tiny_backbone)
    assert method.options.noise_scale == 0.1 and type(method.options.dropout) is float and method.options.l2_normalize
