"""The Combiner against its description written out: network, dropout, loss, gradient, captions, and a resumed run."""

import random
from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from cir.config import TrainConfig
from cir.errors import InputError
from cir.methods import NoStore, build, checkpoint
from cir.methods.combiner import Combiner, CombinerOptions, FeatureBatch
from cir.methods.shape import BackboneShape
from cir.optim import trainables
from cir.prompts import JOINERS, Template, tokenize, training_text
from cir.randomness import StepRandom
from cir.schema import Query
from cir.train import train
from tests.methods.triplets import NoiseTriplets

TEXTS = (("is red.", "Has two dogs"), ("the sofa",), ("more similar to a cat",), ("has shorter sleeves", "is green?"))
NAMES = ("text_projection_layer", "image_projection_layer", "combiner_layer", "output_layer", "dynamic_scalar.0",
         "dynamic_scalar.3")  # fmt: skip
DRAWS = ("text", "image", "mixed", "share")


def triplets(backbone, given=TEXTS):
    """Triplet i leads from picture i to picture i + 1."""
    return NoiseTriplets(backbone, given)


def draw(rows=4, total=None, seed=0, step=0, start=0):
    return StepRandom(seed, step, start, start + rows, total or rows)


def written_out(state, image, text, masks=None):
    """Section 3.3 of arXiv:2308.11485 with the published names; `masks` are 0 or 2, dropout's at one half."""
    masks = masks or dict.fromkeys(DRAWS, 1.0)

    def linear(name, x):
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    t = linear("text_projection_layer", text).clamp(min=0) * masks["text"]
    i = linear("image_projection_layer", image).clamp(min=0) * masks["image"]
    both = torch.cat([t, i], dim=1)
    v = linear("output_layer", linear("combiner_layer", both).clamp(min=0) * masks["mixed"])
    hidden = linear("dynamic_scalar.0", both).clamp(min=0) * masks["share"]
    share = 1 / (1 + torch.exp(-linear("dynamic_scalar.3", hidden)))
    out = v + share * text + (1 - share) * image
    return out / (out**2).sum(dim=1, keepdim=True).sqrt()


def loop(queries, targets, scale):
    """One direction, one pair of vectors at a time; a target of several vectors counts by its best."""
    total = 0.0
    for i, query in enumerate(queries):
        logits = []
        for vectors in targets:
            logits.append(scale * max(torch.dot(query, v / v.norm()) for v in vectors))
        total = total - logits[i] + torch.stack(logits).exp().sum().log()
    return total / len(queries)


def features(backbone, rows=4, vectors=1, seed=0):
    """Raw features of unequal length, as CLIP gives them."""
    noise = torch.Generator().manual_seed(seed)
    image = torch.randn(rows, vectors, backbone.width, generator=noise) * torch.arange(1, rows + 1).view(-1, 1, 1)
    target = torch.randn(rows, vectors, backbone.width, generator=noise)
    return FeatureBatch(image, target, 2 * torch.randn(rows, backbone.width, generator=noise), draw(rows))


def mean_direction(vectors):
    """Of the t vectors of each image, one image at a time."""
    means = [sum(v / v.norm() for v in image) for image in vectors]
    return torch.stack([mean / mean.norm() for mean in means])


def masks(random, dropout=0.5, projection=96, hidden=192):
    widths = {"text": projection, "image": projection, "mixed": hidden, "share": hidden}
    return {name: random.keep(f"combiner.{name}", 1 - dropout, w) / (1 - dropout) for name, w in widths.items()}


# The network


def test_the_state_has_the_published_names_and_shapes(tiny_backbone):
    state = build("combiner", {}, tiny_backbone).state_dict()
    d, p, h = 24, 96, 192
    shapes = dict(zip(NAMES, ((p, d), (p, d), (h, 2 * p), (d, h), (h, 2 * p), (1, h)), strict=True))
    expected = {f"{name}.weight": shape for name, shape in shapes.items()}
    expected |= {f"{name}.bias": shape[:1] for name, shape in shapes.items()}
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == expected
    chosen = build("combiner", {"projection": 10, "hidden": 6}, tiny_backbone)
    assert chosen.combiner_layer.weight.shape == (6, 20)


def test_the_parameters_are_as_many_as_published():
    with torch.device("meta"):
        method = Combiner(CombinerOptions(), BackboneShape(640, 640))
    assert sum(p.numel() for p in method.parameters()) == 59_003_521


def test_the_network_equals_its_description(tiny_backbone):
    method, given = build("combiner", {}, tiny_backbone, seed=3), features(tiny_backbone)
    with torch.no_grad():
        method.dynamic_scalar[3].bias.fill_(0.4)  # a share that is not one half everywhere
        method.dynamic_scalar[3].weight.mul_(20)
        method.output_layer.weight.mul_(10)
    image, text = given.reference[:, 0], given.text
    found = method.combine(image, text)
    torch.testing.assert_close(found, written_out(method.state_dict(), image, text))
    scaled = method.combine(3 * image, text)
    assert (found - scaled).abs().max() > 1e-3, "lengths matter"


def test_dropout_is_drawn_for_the_global_batch_by_row(tiny_backbone):
    method, given = build("combiner", {}, tiny_backbone, seed=3), features(tiny_backbone)
    image, text = given.reference[:, 0], given.text
    assert torch.equal(method.combine(image, text, draw()), method.combine(image, text)), "not in evaluation mode"
    method.train()
    found = method.combine(image, text, draw())
    torch.testing.assert_close(found, written_out(method.state_dict(), image, text, masks(draw())))
    halves = [method.combine(image[i : i + 2], text[i : i + 2], draw(2, 4, start=i)) for i in (0, 2)]
    torch.testing.assert_close(found, torch.cat(halves))
    assert (found - method.combine(image, text, draw(step=1))).abs().max() > 1e-3


# Training


@pytest.mark.parametrize(("vectors", "scale"), [(1, 100.0), (3, 7.0)])
def test_the_loss_equals_the_loop(tiny_backbone, vectors, scale):
    method, given = build("combiner", {"scale": scale}, tiny_backbone), features(tiny_backbone, vectors=vectors)
    losses = method.losses(tiny_backbone, given)
    assert list(losses) == ["info_nce"]
    image = given.reference[:, 0] if vectors == 1 else mean_direction(given.reference)
    queries = written_out(method.state_dict(), image, given.text)
    torch.testing.assert_close(losses["info_nce"], loop(queries, given.target, scale), rtol=1e-4, atol=1e-5)


def test_gradients_equal_those_of_the_description(tiny_backbone):
    method, given = build("combiner", {}, tiny_backbone, seed=2).train(), features(tiny_backbone)
    twin = {name: p.detach().clone().requires_grad_() for name, p in method.named_parameters()}
    named = trainables(method, method.trains)
    assert named.keys() == twin.keys()
    method.losses(tiny_backbone, given)["info_nce"].backward()
    queries = written_out(twin, given.reference[:, 0], given.text, masks(given.random))
    loop(queries, given.target, 100.0).backward()
    for name, parameter in named.items():
        assert parameter.grad.abs().max() > 0, name
        torch.testing.assert_close(parameter.grad, twin[name].grad, rtol=1e-3, atol=1e-5)


def test_rows_are_looked_up_and_captions_are_drawn_as_documented(tiny_backbone):
    source, method = triplets(tiny_backbone), build("combiner", {}, tiny_backbone)
    ahead, later = (method.prepare(tiny_backbone, source, seed=0, draws=draws, store=NoStore()) for draws in (1000, 1))
    rows, drawn = [3, 0, 2, 0], draw(step=5).uniform("text").tolist()
    wanted = [[training_text(TEXTS[row], share)] for row, share in zip(rows, drawn, strict=True)]
    expected = tiny_backbone.encode_text(tokenize(tiny_backbone.tokenizer, wanted))
    assert len(ahead) == 4 and ahead.frozen.table is not None and later.frozen.table is None
    for ready in (ahead, later):
        batch = ready.batch(rows, draw(step=5))
        torch.testing.assert_close(batch.text, expected, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(batch.reference, source.features([3, 0, 2, 0]), atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(batch.target, source.features([4, 1, 3, 1]), atol=1e-6, rtol=1e-5)
    halves = [ahead.batch(rows[i : i + 2], draw(2, 4, step=5, start=i)).text for i in (0, 2)]
    assert torch.equal(torch.cat(halves), ahead.batch(rows, draw(step=5)).text)


def test_two_captions_are_read_in_four_ways_equally_often_and_one_as_it_is(tiny_backbone):
    source = triplets(tiny_backbone)
    ready = build("combiner", {}, tiny_backbone).prepare(tiny_backbone, source, seed=0, draws=1, store=NoStore())
    assert [ready._text(number) for number in range(10)] == [
        "Is red and Has two dogs", "Has two dogs and is red", "Is red", "Has two dogs", "the sofa",
        "more similar to a cat", "Has shorter sleeves and is green", "Is green and has shorter sleeves",
        "Has shorter sleeves", "Is green",
    ]  # fmt: skip
    asked = Counter()
    ready.frozen = lambda numbers: asked.update(numbers) or torch.zeros(len(numbers), tiny_backbone.width)
    ready._features = lambda images: torch.zeros(len(images), 1, tiny_backbone.width)
    for step in range(300):
        ready.batch([0, 1, 3, 3], draw(step=step))
    assert asked[4] == 300 and set(asked) == {0, 1, 2, 3, 4, 6, 7, 8, 9}
    assert all(45 < asked[number] < 105 for number in range(4)), "a quarter of 300, within four deviations"
    assert all(105 < asked[number] < 195 for number in range(6, 10))


def test_it_learns_noise_by_heart(tiny_backbone, tmp_path):
    source = triplets(tiny_backbone)
    method = build("combiner", {}, tiny_backbone, seed=1)
    train(method, tiny_backbone, source, TrainConfig(steps=60, batch=4, lr=3e-3, weight_decay=0.0), tmp_path)
    queries = [source.query(row) for row in range(4)]
    out = method.compose(
        tiny_backbone, source.features(source.reference), queries, Template(), JOINERS["capital_first"]
    )
    gallery = F.normalize(source.features(range(5))[:, 0], dim=-1)
    assert (out[:, 0] @ gallery.T).argmax(dim=1).tolist() == source.target.tolist()


def texts(count, seed=0):
    rng = random.Random(seed)
    words = "a red blue dress shirt two dogs cats on grass sofa person umbrella rain shorter sleeves".split()
    made = [[" ".join(rng.choices(words, k=rng.randint(2, 6))) for _ in range(rng.randint(1, 2))] for _ in range(count)]
    return tuple(map(tuple, made))


class Interrupt(Exception):
    pass


@pytest.mark.parametrize("changes", [{}, {"accumulate": 2, "precision": "bfloat16", "workers": 2}], ids=str)
def test_a_resumed_run_ends_with_the_bits_of_an_uninterrupted_one(tiny_backbone, tmp_path, changes):
    config = TrainConfig(steps=10, batch=4, lr=1e-3, weight_decay=0.0, save_every=4, evaluate_every=1)
    config = replace(config, **changes)

    def run(out, stop):
        def evaluate(method, step):
            if step == stop:
                raise Interrupt
            return {"bench:R@1": 0.0}

        method = build("combiner", {}, tiny_backbone, seed=1)
        train(method, tiny_backbone, triplets(tiny_backbone, texts(4)), config, out, evaluate=evaluate)
        return method.state_dict()

    whole = run(tmp_path / "a", 0)
    with pytest.raises(Interrupt):
        run(tmp_path / "b", 7)  # after the snapshot at 4: three steps are done twice
    resumed = run(tmp_path / "b", 0)
    assert whole.keys() == resumed.keys() and all(torch.equal(whole[name], resumed[name]) for name in whole)


# Queries


def queries(given=TEXTS):
    return [Query(str(i), f"image{i}", each) for i, each in enumerate(given)]


def test_queries_are_composed_of_raw_features_and_joined_texts_without_template(tiny_backbone):
    method, reference = build("combiner", {}, tiny_backbone), features(tiny_backbone).reference
    joined = ["Is red and Has two dogs", "the sofa", "more similar to a cat", "Has shorter sleeves and is green"]
    text = tiny_backbone.encode_text(tokenize(tiny_backbone.tokenizer, [[each] for each in joined]))
    expected = written_out(method.state_dict(), reference[:, 0], text)
    for template in (Template(), Template("a sentence about {text}")):
        out = method.compose(tiny_backbone, reference, queries(), template, JOINERS["capital_first"])
        torch.testing.assert_close(out[:, 0], expected, atol=1e-5, rtol=1e-4)
    alone = [
        method.compose(tiny_backbone, reference[i : i + 1], queries()[i : i + 1], Template(), JOINERS["capital_first"])
        for i in range(4)
    ]
    torch.testing.assert_close(torch.cat(alone)[:, 0], expected, atol=1e-5, rtol=1e-4)


def test_two_orders_are_averaged_as_raw_features(tiny_backbone):
    method, reference = build("combiner", {}, tiny_backbone), features(tiny_backbone).reference[:1]
    orders = ["is red and Has two dogs", "Has two dogs and is red"]
    text = tiny_backbone.encode_text(tokenize(tiny_backbone.tokenizer, [[each] for each in orders]))
    expected = written_out(method.state_dict(), reference[:, 0], text.mean(dim=0, keepdim=True))
    out = method.compose(tiny_backbone, reference, queries()[:1], Template(), JOINERS["both_orders"])
    torch.testing.assert_close(out[:, 0], expected, atol=1e-5, rtol=1e-4)


def test_several_vectors_per_image_enter_as_their_mean_direction(tiny_backbone):
    method, reference = build("combiner", {}, tiny_backbone), features(tiny_backbone, vectors=3).reference
    out = method.compose(tiny_backbone, reference, queries(), Template(), JOINERS["capital_first"])
    mean = mean_direction(reference)[:, None]
    single = method.compose(tiny_backbone, mean, queries(), Template(), JOINERS["capital_first"])
    torch.testing.assert_close(out, single, atol=1e-5, rtol=1e-4)


def test_a_text_that_is_too_long_or_absent_is_refused_and_may_be_cut(tiny_backbone):
    method, reference = build("combiner", {}, tiny_backbone), features(tiny_backbone).reference[:1]
    long, join = queries([(" ".join(["red sofa"] * 60),)]), JOINERS["capital_first"]
    with pytest.raises(InputError, match="the text tower takes 77"):
        method.compose(tiny_backbone, reference, long, Template(), join)
    cut = method.compose(tiny_backbone, reference, long, Template(overflow="cut"), join)
    assert torch.isfinite(cut).all()
    with pytest.raises(InputError, match="1 queries have no text"):
        method.compose(tiny_backbone, reference, queries([()]), Template(), join)


def test_options_are_checked_and_a_checkpoint_gives_the_same_queries(tiny_backbone, tmp_path):
    with pytest.raises(InputError, match="from 0 to below 1, got 1"):
        build("combiner", {"dropout": 1}, tiny_backbone)
    method, reference = build("combiner", {"hidden": 8}, tiny_backbone, seed=4), features(tiny_backbone).reference
    checkpoint.save(tmp_path, method, tiny_backbone)
    loaded = checkpoint.load(tmp_path, tiny_backbone)
    one, two = (
        each.compose(tiny_backbone, reference, queries(), Template(), JOINERS["first"]) for each in (method, loaded)
    )
    assert torch.equal(one, two) and loaded.options.hidden == 8
