from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from cir.errors import InputError
from cir.methods import NoStore, build
from cir.methods.concepts import TEMPLATES
from cir.methods.inversion import Inversion, InversionOptions, digests, invert
from cir.methods.phrases import Phrasebook, Vocabulary
from cir.prompts import JOINERS, Template, tokenize
from cir.schema import Query

WORDS = ["cat", "dog", "red dress", "umbrella", "sofa"]
ROWS = [(w, [f"a photo of {w} that is on grass", f"two {w} and {w}s", f"person holding the {w}"]) for w in WORDS]
SHORT = InversionOptions(steps=3, top_k=2, seed=5)
KEYS = ["one", "two", "three", "four"]


def book(backbone, draws=0):
    return Phrasebook(backbone, Vocabulary([*ROWS, ("Sleeves", ["sleeves"])]), draws=draws, store=NoStore())


def images(backbone, n=4, seed=0):
    return 3 * torch.randn(n, backbone.width, generator=torch.Generator().manual_seed(seed))


def cos(x, y):
    return (x * y).sum() / x.norm() / y.norm()


class Twin:
    """Section 3.1 of the paper in plain arithmetic: one image after the other, one sentence at a time."""

    def __init__(self, backbone, started, options):
        self.backbone, self.options = backbone, options
        self.started = started  # for its draws
        self.tau = [row.clone() for row in started.token.detach()]
        self.average = [row.clone() for row in self.tau]
        self.first = [torch.zeros_like(row) for row in self.tau]
        self.second = [torch.zeros_like(row) for row in self.tau]

    def encode(self, pieces, tau=None):
        prompt = tokenize(self.backbone.tokenizer, [pieces])
        return self.backbone.text.encode(prompt, None if tau is None else tau[None, None])[0]

    def terms(self, i, step, tau):
        template = TEMPLATES[self.started.sentences[i, step]]
        number = int(self.started.phrases[i, step])
        known = self.started.book.vocabulary
        phrase, concept = known.phrase(number), known.concept(number)
        before, behind = phrase.split(concept, 1)
        said = self.encode(template.split("{}"), tau)
        slotted = self.encode([before, " " + behind], tau)
        meant = self.encode([phrase]).detach()
        return 1 - cos(said, self.started.targets[i]), 1 - cos(slotted, meant)

    def step(self, number):
        """One step of AdamW and the moving average for every image; returns terms and gradients."""
        seen = []
        for i in range(len(self.tau)):
            tau = self.tau[i].clone().requires_grad_()
            image, text = self.terms(i, number, tau)
            over = self.options.mean_over or len(self.tau)
            (g,) = torch.autograd.grad((1.0 * image + 0.5 * text) / 1.5 / over, tau)
            seen.append((image.item(), text.item(), g))
            self.first[i] = 0.9 * self.first[i] + 0.1 * g
            self.second[i] = 0.999 * self.second[i] + 0.001 * g * g
            m, v = self.first[i] / (1 - 0.9 ** (number + 1)), self.second[i] / (1 - 0.999 ** (number + 1))
            self.tau[i] = self.tau[i] * (1 - 0.02 * 0.01) - 0.02 * m / (v.sqrt() + 1e-8)
            self.average[i] = 0.99 * self.average[i] + 0.01 * self.tau[i]
        return seen


@pytest.mark.parametrize("draws", [0, 1000], ids=["phrases along", "phrases cached"])
def test_three_steps_equal_the_steps_written_out(tiny_backbone, draws):
    started = Inversion(tiny_backbone, images(tiny_backbone), KEYS, SHORT, book(tiny_backbone, draws))
    assert (started.book.cached([0]) is None) == (draws == 0)
    twin = Twin(tiny_backbone, started, SHORT)
    for number in range(3):
        expected = twin.step(number)
        terms = started.step()
        for i, (image, text, gradient) in enumerate(expected):
            assert terms["image"][i].item() == pytest.approx(image, abs=2e-6)
            assert terms["text"][i].item() == pytest.approx(text, abs=2e-6)
            torch.testing.assert_close(started.token.grad[i], gradient, atol=1e-6, rtol=1e-3)
    torch.testing.assert_close(started.token.detach(), torch.stack(twin.tau), atol=1e-5, rtol=1e-3)
    torch.testing.assert_close(started.average, torch.stack(twin.average), atol=1e-6, rtol=1e-3)
    found = invert(tiny_backbone, images(tiny_backbone), KEYS, SHORT, book(tiny_backbone, draws))
    assert torch.equal(found.tokens, started.average) and torch.equal(found.last, started.token.detach())


def test_the_start_is_small_and_the_result_is_the_moving_average(tiny_backbone):
    many = [str(i) for i in range(200)]
    options = replace(SHORT, steps=0, text_weight=0.0)
    start = invert(tiny_backbone, images(tiny_backbone, 200), many, options)
    assert start.tokens.std().item() == pytest.approx(0.02, rel=0.05)
    assert torch.equal(start.tokens, start.last)  # e_0 = tau_0
    one = invert(tiny_backbone, images(tiny_backbone, 200), many, replace(options, steps=1))
    torch.testing.assert_close(one.tokens, 0.99 * start.tokens + 0.01 * one.last)


def test_an_image_is_inverted_the_same_in_any_company(tiny_backbone):
    features, pages = images(tiny_backbone), book(tiny_backbone)
    alone = replace(SHORT, mean_over=32)
    whole = invert(tiny_backbone, features, KEYS, alone, pages).tokens
    for batch in (1, 3):
        parts = invert(tiny_backbone, features, KEYS, replace(alone, batch=batch), pages).tokens
        torch.testing.assert_close(parts, whole, atol=1e-5, rtol=1e-3)
    order = [2, 0, 3, 1]
    mixed = invert(tiny_backbone, features[order], [KEYS[i] for i in order], alone, pages).tokens
    torch.testing.assert_close(mixed, whole[order], atol=1e-5, rtol=1e-3)


def test_streams_belong_to_the_key_and_the_seed(tiny_backbone):
    features = images(tiny_backbone, 1).expand(2, -1)
    options = replace(SHORT, steps=40)
    started = Inversion(tiny_backbone, features, ["a", "b"], options, book(tiny_backbone))
    longer = Inversion(tiny_backbone, features, ["a", "b"], replace(options, steps=60), book(tiny_backbone))
    other = Inversion(tiny_backbone, features, ["a", "b"], replace(options, seed=6), book(tiny_backbone))
    for name in ("sentences", "phrases"):
        drawn = getattr(started, name)
        assert (drawn[0] != drawn[1]).any() and (drawn == getattr(longer, name)[:, :40]).all()
        assert (drawn != getattr(other, name)).any()
    assert not torch.equal(started.token[0], started.token[1])
    assert len(set(longer.sentences.ravel().tolist())) == 24


def test_phrases_are_about_the_closest_concepts_that_are_good(tiny_backbone):
    pages = book(tiny_backbone)
    bad = pages.vocabulary.names.index("Sleeves")
    target = torch.from_numpy(np.array(pages.concepts[bad]))[None]  # the closest of all is a bad one
    options = replace(SHORT, steps=200)
    started = Inversion(tiny_backbone, target, ["x"], options, pages)
    cosines = np.asarray(pages.concepts) @ pages.concepts[bad]
    near = [pages.vocabulary.names[i] for i in np.argsort(-cosines) if i != bad][:2]
    assert {pages.vocabulary.concept(int(n)) for n in started.phrases[0]} == set(near)
    assert len(set(started.phrases[0].tolist())) == 6


def test_inversion_finds_what_it_looks_for(tiny_backbone):
    hidden = 0.5 * torch.randn(2, tiny_backbone.word_width, generator=torch.Generator().manual_seed(3))
    prompt = tokenize(tiny_backbone.tokenizer, [["A photo of a", ""]] * 2)
    targets = tiny_backbone.encode_text(prompt, hidden[:, None])
    started = Inversion(tiny_backbone, targets, ["a", "b"], InversionOptions(steps=80, text_weight=0.0))
    started.sentences[:] = TEMPLATES.index("A photo of a {}")  # a random tower understands no other
    seen = torch.stack([started.step()["image"] for _ in range(80)])
    assert (seen[-1] < 0.3 * seen[0]).all()


def test_a_tower_left_trainable_gets_no_gradient(tiny_backbone):
    backbone = replace(tiny_backbone) if hasattr(tiny_backbone, "__dataclass_fields__") else deepcopy(tiny_backbone)
    backbone.text = deepcopy(tiny_backbone.text).requires_grad_(True)
    started = Inversion(backbone, images(backbone), KEYS, SHORT, book(tiny_backbone))
    started.step()
    assert all(parameter.grad is None for parameter in backbone.text.parameters())
    frozen = invert(tiny_backbone, images(tiny_backbone), KEYS, replace(SHORT, steps=1), book(tiny_backbone))
    torch.testing.assert_close(started.average, frozen.tokens, atol=1e-5, rtol=1e-3)


def test_noise_moves_the_sentence_only_and_is_the_images_own(tiny_backbone):
    features, pages = images(tiny_backbone), book(tiny_backbone)
    noisy = replace(SHORT, text_noise_std=0.3)
    plain = Inversion(tiny_backbone, features, KEYS, SHORT, pages).losses()
    started = Inversion(tiny_backbone, features, KEYS, noisy, pages)
    terms = started.losses()
    torch.testing.assert_close(terms["text"], plain["text"])
    assert (terms["image"] - plain["image"]).abs().min() > 1e-4
    alone = [Inversion(tiny_backbone, features[i : i + 1], KEYS[i : i + 1], noisy, pages).losses() for i in range(4)]
    torch.testing.assert_close(terms["image"], torch.cat([one["image"] for one in alone]), atol=1e-5, rtol=1e-4)
    drawn = Inversion(tiny_backbone, features[:1], KEYS[:1], noisy, pages)._noisy(torch.ones(1, tiny_backbone.width))
    assert (drawn - tiny_backbone.width**-0.5).std().item() == pytest.approx(0.3, rel=0.5)


@pytest.mark.parametrize(
    ("options", "match"),
    [({"steps": -1}, "steps"), ({"batch": 0}, "batch"), ({"image_weight": 0.0, "text_weight": 0.0}, "both zero")],
)
def test_settings_that_cannot_be_met_are_refused(options, match):
    with pytest.raises(InputError, match=match):
        InversionOptions(**options)


def test_phrases_are_asked_for(tiny_backbone):
    with pytest.raises(InputError, match="text_weight needs phrases"):
        Inversion(tiny_backbone, images(tiny_backbone), KEYS, SHORT)
    with pytest.raises(InputError, match="phrases: no file given"):
        build("oti", {"steps": 1}, tiny_backbone).words(images(tiny_backbone))


# The method


@pytest.fixture(scope="module")
def phrases(tmp_path_factory):
    import json

    path = tmp_path_factory.mktemp("phrases") / "phrases.jsonl"
    path.write_text("\n".join(json.dumps({"concept": name, "phrases": said}) for name, said in ROWS))
    return str(path)


def options(phrases, **more):
    return {"phrases": phrases, "steps": 3, "top_k": 2, "mean_over": 32, **more}


def test_composing_inverts_each_distinct_image_once(tiny_backbone, phrases, monkeypatch):
    from cir.methods import oti

    inverted = []

    def counted(backbone, features, keys, *others):
        inverted.append(len(keys))
        return invert(backbone, features, keys, *others)

    monkeypatch.setattr(oti, "invert", counted)
    method = build("oti", options(phrases), tiny_backbone)
    features = images(tiny_backbone)[[0, 1, 0, 2, 1]][:, None]
    queries = [Query(str(i), "x", (text,)) for i, text in enumerate(["is red", "is red", "is blue", "on grass", "is"])]
    with torch.inference_mode():
        out = method.compose(tiny_backbone, features, queries, Template(), JOINERS["both_orders"])
        again = method.compose(tiny_backbone, features[:2], queries[:2], Template(), JOINERS["both_orders"])
    assert inverted == [3]
    torch.testing.assert_close(again, out[:2], atol=1e-5, rtol=1e-4)
    prompt = tokenize(tiny_backbone.tokenizer, [["a photo of", f" that {query.texts[0]}"] for query in queries])
    distinct = images(tiny_backbone)[:3]
    tokens = invert(tiny_backbone, distinct, digests(distinct), method.options, method._book).tokens
    expected = F.normalize(tiny_backbone.encode_text(prompt, tokens[[0, 1, 0, 2, 1]][:, None]), dim=-1)
    torch.testing.assert_close(out[:, 0], expected, atol=1e-5, rtol=1e-4)


def test_rows_alone_equal_a_batch_without_remembering(tiny_backbone, phrases):
    features = images(tiny_backbone)
    whole = build("oti", options(phrases), tiny_backbone).words(features)
    alone = [build("oti", options(phrases), tiny_backbone).words(row[None]) for row in features]
    torch.testing.assert_close(whole, torch.cat(alone), atol=1e-5, rtol=1e-3)
    along = build("oti", options(phrases, phrase_cache=0), tiny_backbone)
    torch.testing.assert_close(along.words(features), whole, atol=1e-5, rtol=1e-3)
    assert along._book.frozen is None


def test_what_is_remembered_is_bounded(tiny_backbone, phrases, monkeypatch):
    from cir.methods import oti

    monkeypatch.setattr(oti, "REMEMBERED", 3)
    method = build("oti", options(phrases, steps=1), tiny_backbone)
    assert method.words(images(tiny_backbone, 5)).shape == (5, 1, tiny_backbone.word_width)
    assert list(method._tokens) == digests(images(tiny_backbone, 5))[2:]
