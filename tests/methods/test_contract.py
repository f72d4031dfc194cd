"""What every entry of METHODS owes on CLIP and on BLIP-2: unit vectors, rows as in a batch, inputs that matter,
honest gradients."""

from dataclasses import dataclass

import pytest
import torch

from cir.backbones import load
from cir.errors import InputError
from cir.methods import METHODS, NoStore, build, checkpoint, name_of
from cir.optim import adamw, trainables
from cir.prompts import JOINERS, Template
from cir.randomness import StepRandom
from cir.schema import Query
from tests.backbones.blip2_folder import tiny_blip2
from tests.methods.triplets import NoiseTriplets

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


ELSEWHERE = {"clip_finetune": "blip2", "sprc": "clip", "sprc_rerank": "clip"}
"""Backbones that a method refuses."""
NO_VECTORS = {"sprc_rerank"}
"""Methods that score a ranking's images again and make no query vectors."""
PAIRS = [(name, kind) for name in METHODS for kind in ("clip", "blip2") if ELSEWHERE.get(name) != kind]
composing = pytest.mark.parametrize(
    "pair", [pair for pair in PAIRS if pair[0] not in NO_VECTORS], ids="-".join, indirect=True
)
every = pytest.mark.parametrize("pair", PAIRS, ids="-".join, indirect=True)
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
    patches = make(name, backbone).reads == "patches"
    shape = (17, backbone.vision_width) if patches else (backbone.vectors, backbone.width)
    return 3 * torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def compose(method, backbone, reference, asked, join="both_orders"):
    return method.compose(backbone, reference, asked, Template(), JOINERS[join])


@pytest.fixture(scope="module")
def tiny_blip2_backbone(tmp_path_factory):
    return load(str(tiny_blip2(tmp_path_factory.mktemp("tiny-blip2"))), device="cpu")


@pytest.fixture
def backbones(tiny_backbone, tiny_blip2_backbone):
    return {"clip": tiny_backbone, "blip2": tiny_blip2_backbone}


@pytest.fixture
def pair(request, backbones):
    """A method's name and the backbone it is built on."""
    return request.param[0], backbones[request.param[1]]


@composing
def test_vectors_are_of_unit_length_and_finite(pair):
    name, backbone = pair
    out = compose(make(name, backbone), backbone, references(backbone, name), queries())
    counts = {"product": 2, **dict.fromkeys(("image_only", "sum", "slerp"), backbone.vectors)}
    count = counts.get(name, 1)
    assert out.shape == (4, count, backbone.width)
    torch.testing.assert_close(out.norm(dim=-1), torch.ones(out.shape[:2]))


@composing
def test_a_batch_equals_its_rows(pair):
    name, backbone = pair
    method, reference, asked = make(name, backbone), references(backbone, name), queries()
    whole = compose(method, backbone, reference, asked)
    alone = [compose(method, backbone, reference[i : i + 1], asked[i : i + 1]) for i in range(4)]
    torch.testing.assert_close(whole, torch.cat(alone), atol=1e-5, rtol=1e-4)


@composing
def test_text_and_image_matter_as_declared(pair):
    name, backbone = pair
    method, reference = make(name, backbone), references(backbone, name)
    out = compose(method, backbone, reference, queries())
    other_text = compose(method, backbone, reference, queries(TEXTS[1:] + TEXTS[:1]))
    other_image = compose(method, backbone, references(backbone, name, seed=9), queries())
    for what, changed in (("text", other_text), ("image", other_image)):
        moved = (out - changed).abs().amax(dim=(1, 2)) > 1e-6
        assert bool(moved.all()) if what in method.needs else not bool(moved.any()), what


@composing
def test_composing_is_deterministic_and_leaves_the_generator(pair):
    name, backbone = pair
    method, reference = make(name, backbone), references(backbone, name)
    state = torch.get_rng_state()
    one, two = (compose(method, backbone, reference, queries()) for _ in range(2))
    assert torch.equal(one, two) and torch.equal(state, torch.get_rng_state())


@every
def test_one_step_moves_all_that_is_trained_and_nothing_else(pair, make_images):
    name, backbone = pair
    method = make(name, backbone)
    if not method.learns_from:
        assert not list(method.parameters()) and not method.trains
        with pytest.raises(NotImplementedError):
            method.losses(backbone, None)
        return
    named = trainables(method, method.trains)
    before = {n: p.detach().clone() for n, p in method.named_parameters()}
    frozen = {n: p.detach().clone() for n, p in backbone.text.named_parameters()}
    makers = {"images": make_images, "image_triplets": NoiseTriplets}
    source = makers[method.learns_from](backbone) if method.learns_from in makers else SOURCES[method.learns_from]
    batches = method.prepare(backbone, source, seed=0, draws=100, store=NoStore())
    method.train()
    losses = method.losses(backbone, batches.batch([0, 1, 2, 3], StepRandom(0, 0, 0, 4, 4)))
    assert all(term.ndim == 0 and torch.isfinite(term) for term in losses.values())
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in named.values())
    adamw(named, lr=1e-2).step()
    for n, p in method.named_parameters():
        assert torch.equal(p, before[n]) == (n not in named), n
    for n, p in backbone.text.named_parameters():
        assert torch.equal(p, frozen[n]) and p.grad is None, n


@every
def test_the_state_makes_the_round_trip(pair, tmp_path):
    name, backbone = pair
    method = make(name, backbone)
    checkpoint.save(tmp_path, method, backbone)
    loaded = checkpoint.load(tmp_path, backbone)
    assert type(loaded) is type(method) and loaded.options == method.options and name_of(loaded) == name
    reference = references(backbone, name)
    for one, two in zip(method.state_dict().values(), loaded.state_dict().values(), strict=True):
        assert torch.equal(one, two)
    if name not in NO_VECTORS:
        assert torch.equal(*(compose(m, backbone, reference, queries()) for m in (method, loaded)))


@every
def test_the_seed_makes_the_weights(pair):
    name, backbone = pair
    state = torch.get_rng_state()
    one, two = make(name, backbone), make(name, backbone)
    for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("name", ELSEWHERE)
def test_a_backbone_it_cannot_use_is_refused_by_name(name, backbones):
    with pytest.raises(InputError, match=f"{name}.*backbone|{name}: "):
        build(name, {}, backbones[ELSEWHERE[name]])


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
