"""SPRC against plain calls of Hugging Face's modules: four passes, three losses, gradients; and its training."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.nn import functional as F

from cir.backbones import load
from cir.backbones.base import ImageSide
from cir.backbones.tokens import blip_caption
from cir.config import TrainConfig
from cir.errors import InputError
from cir.methods import NoStore, build, checkpoint
from cir.methods.base import ImageTriplets
from cir.optim import adamw, trainables
from cir.prompts import JOINERS, Template, training_text
from cir.randomness import StepRandom
from cir.schema import Query
from cir.train import train
from tests.backbones.blip2_folder import tiny_blip2
from tests.methods.triplets import NoiseTriplets
from tests.torchrun import two_processes

ROOT = Path(__file__).parents[2]
LONG = "a small red circle that is on the left and " * 5
ASKED = ("is blue and has Shorter sleeves!", "two dogs", LONG, "cats (instead) of dogs")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_blip2(tmp_path_factory.mktemp("blip2") / "tiny")


@pytest.fixture(scope="module")
def backbone(folder):
    return load(str(folder), device="cpu")


@pytest.fixture
def source(backbone):
    return NoiseTriplets(backbone)


def make(backbone, **options):
    method = build("sprc", {"dropout": 0.0, **options}, backbone, seed=1)
    with torch.no_grad():  # away from what both sides would have anyway
        method.prompt_tokens.mul_(20)
        method.temperature.fill_(0.3)
    return method


def draw(rows, total=None, start=0, step=0):
    return StepRandom(0, step, start, start + rows, total or rows)


def queries(texts=ASKED):
    return [Query(str(i), "image", (text,)) for i, text in enumerate(texts)]


def references(backbone, rows, seed=0):
    coarse = torch.randn(rows, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return backbone.encode_patches(F.interpolate(coarse, size=(32, 32)))


def compose(method, backbone, reference, asked, join="first_and_second"):
    with torch.no_grad():
        return method.compose(backbone, reference, asked, Template(), JOINERS[join])


class Twin:
    """The reference's calling rules, on the stock model: section by section, nothing of `cir` but the vision tokens."""

    def __init__(self, folder, method):
        from transformers import BertTokenizer, Blip2ForImageTextRetrieval

        self.model = Blip2ForImageTextRetrieval.from_pretrained(folder).eval()
        self.tokenizer = BertTokenizer.from_pretrained(folder)
        self.norm = self.model.vision_model.post_layernorm
        self.prompts = method.prompt_tokens.detach().clone().requires_grad_()
        self.tau = method.temperature.detach().clone().requires_grad_()

    def tokens(self, patches):
        return F.layer_norm(patches, patches.shape[-1:], self.norm.weight, self.norm.bias, 1e-5)

    def text(self, texts):
        cleaned = [blip_caption(text) for text in texts]
        rows = self.tokenizer(cleaned, padding="max_length", truncation=True, max_length=32, return_tensors="pt")
        assert rows.input_ids.shape == (len(texts), 32) and bool(rows.attention_mask[:, 0].all())
        ones = torch.ones(len(texts), 32, dtype=torch.long)
        return rows.input_ids, torch.cat([ones, rows.attention_mask], dim=1)

    def sentence_prompts(self, patches, ids, mask):
        learned = self.model.query_tokens.expand(len(ids), -1, -1)
        states = self.model.qformer(
            query_embeds=self.model.embeddings(input_ids=ids, query_embeds=learned),
            query_length=32,
            attention_mask=mask,
            encoder_hidden_states=self.tokens(patches),
        )
        return states.last_hidden_state[:, :32]

    def queries(self, prompts, ids, mask):
        words = self.model.embeddings(input_ids=ids, query_embeds=prompts)
        states = self.model.qformer(query_embeds=words, query_length=0, attention_mask=mask).last_hidden_state
        return F.normalize(self.model.text_projection(states[:, 32]), dim=-1)

    def targets(self, patches):
        learned = self.model.query_tokens.expand(len(patches), -1, -1)
        states = self.model.qformer(
            query_embeds=learned, query_length=32, encoder_hidden_states=self.tokens(patches)
        ).last_hidden_state
        return F.normalize(self.model.vision_projection(states), dim=-1)

    def texts(self, ids, mask):
        known = self.model.embeddings.word_embeddings(ids)
        words = torch.cat([known[:, :1], self.prompts.expand(len(ids), -1, -1), known[:, 1:]], dim=1)
        words = words + self.model.embeddings.position_embeddings(torch.arange(64))
        states = self.model.qformer(query_embeds=words, query_length=0, attention_mask=mask).last_hidden_state
        return F.normalize(self.model.text_projection(states[:, 0]), dim=-1)

    def contrast(self, queries, targets):
        total = torch.zeros(())
        for i in range(len(queries)):
            row = torch.stack([max(queries[i] @ v for v in target) for target in targets]) / self.tau
            total = total + torch.logsumexp(row, dim=0) - row[i]
        return total / len(queries)

    def losses(self, reference, target, texts):
        ids, mask = self.text(texts)
        prompts, found = self.sentence_prompts(reference, ids, mask), self.targets(target)
        aim = self.prompts.detach().mean(dim=1)
        return {
            "itc": self.contrast(self.queries(prompts, ids, mask), found),
            "rtc": self.contrast(self.texts(ids, mask), found),
            "align": sum((row.mean(dim=0) - aim[0]).square().mean() for row in prompts) / len(prompts),
        }


# What it computes


def test_queries_equal_plain_calls_of_the_stock_model(folder, backbone):
    method, reference = make(backbone), references(backbone, 4)
    twin = Twin(folder, method)
    with torch.no_grad():
        ids, mask = twin.text(ASKED)
        expected = twin.queries(twin.sentence_prompts(reference, ids, mask), ids, mask)
    found = compose(method, backbone, reference, queries())
    assert found.shape == (4, 1, 24) and bool(mask[2].all())  # one of the texts fills its positions, and is cut
    torch.testing.assert_close(found[:, 0], expected, atol=1e-5, rtol=1e-4)
    assert (found[0] - found[1]).abs().max() > 0.01


def test_a_batch_equals_its_rows_and_a_row_of_one_keeps_its_shape(backbone):
    method, reference = make(backbone), references(backbone, 4)
    whole = compose(method, backbone, reference, queries())
    alone = [compose(method, backbone, reference[i : i + 1], queries()[i : i + 1]) for i in range(4)]
    assert all(row.shape == (1, 1, 24) for row in alone)
    torch.testing.assert_close(whole, torch.cat(alone), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(whole.norm(dim=-1), torch.ones(4, 1))


def test_two_orders_of_captions_are_averaged_as_unit_vectors(backbone):
    method, reference = make(backbone), references(backbone, 1)
    both = compose(method, backbone, reference, [Query("0", "image", ("is red", "two dogs"))], "both_orders")
    one, two = (compose(method, backbone, reference, queries([text]))
                for text in ("is red and two dogs", "two dogs and is red"))  # fmt: skip
    torch.testing.assert_close(both, F.normalize(one + two, dim=-1))
    assert (one - two).abs().max() > 1e-3
    with pytest.raises(InputError, match="1 queries have no text"):
        compose(method, backbone, reference, [Query("0", "image", ())])


def test_the_gallery_equals_plain_calls_of_the_stock_model(folder, backbone, source):
    method = make(backbone)
    side = method.image_side(backbone)
    assert isinstance(side, ImageSide) and (side.width, side.vectors, side.vision_width) == (24, 32, 48)
    found = side.encode_images(source.images)
    expected = Twin(folder, method).targets(source.patches(range(7))).detach()
    torch.testing.assert_close(F.normalize(found, dim=-1), expected, atol=1e-5, rtol=1e-4)
    assert side.encode_images(source.images[:1]).shape == (1, 32, 24) and not found.requires_grad
    assert torch.equal(side.encode_patches(source.images), backbone.encode_patches(source.images))


def test_what_may_be_kept_of_the_gallery_hangs_on_the_weights_it_goes_through(backbone):
    method = make(backbone)
    assert method.image_side(backbone).fingerprint == ""
    method.settled = True
    first = method.image_side(backbone).fingerprint
    assert len(first) == 16 and first != backbone.fingerprint
    with torch.no_grad():
        method.prompt_tokens.add_(1)
        method.parts.embeddings.word_embeddings.weight.add_(1)
    assert method.image_side(backbone).fingerprint == first
    with torch.no_grad():
        method.parts.post_layernorm.bias[0] += 1
    assert method.image_side(backbone).fingerprint != first


def test_losses_and_gradients_equal_plain_calls_of_the_stock_model(folder, backbone, source):
    """With pictures that occur twice; the weights stand in the terms, the shared prompts learn from `rtc` only."""
    assert isinstance(source, ImageTriplets)
    source.target[3] = source.target[1]  # two rows with one target: each other's negatives, as released
    method = make(backbone, rtc=0.7, align=0.3)
    named = trainables(method, method.trains)
    rows = [0, 1, 2, 3]
    random = draw(4)
    batch = method.prepare(backbone, source, seed=0, draws=9, store=NoStore()).batch(rows, random)
    assert len(batch.patches) == 4
    found = method.losses(backbone, batch)
    assert list(found) == ["itc", "rtc", "align"]
    sum(found.values()).backward()

    twin = Twin(folder, method)
    drawn = random.uniform("caption").tolist()
    texts = [training_text(source.texts[row], each) for row, each in zip(rows, drawn, strict=True)]
    expected = twin.losses(source.patches(source.reference[rows]), source.patches(source.target[rows]), texts)
    weights = {"itc": 1.0, "rtc": 0.7, "align": 0.3}
    for name, value in expected.items():
        torch.testing.assert_close(found[name], weights[name] * value, atol=1e-5, rtol=1e-4)
    sum(weights[name] * value for name, value in expected.items()).backward()
    torch.testing.assert_close(method.prompt_tokens.grad, twin.prompts.grad, atol=1e-5, rtol=1e-3)
    torch.testing.assert_close(method.temperature.grad, twin.tau.grad, atol=1e-5, rtol=1e-3)
    stock = dict(twin.model.named_parameters())
    compared = 0
    for name, parameter in named.items():
        if name.startswith("parts."):
            own = name.removeprefix("parts.")
            own = f"vision_model.{own}" if own.startswith("post_layernorm") else own
            torch.testing.assert_close(parameter.grad, stock[own].grad, atol=2e-5, rtol=2e-3, msg=name)
            compared += bool(parameter.grad.abs().max() > 0)
    assert compared > 60 and len(named) == 2 + sum(name.startswith("parts.") for name in named)
    assert not any(name.startswith("parts.itm_head") for name in named)


@pytest.mark.parametrize("left_out", ["rtc", "align"])
def test_a_weight_of_zero_leaves_a_term_out(backbone, source, left_out):
    method, plain = make(backbone, **{left_out: 0.0}), make(backbone)
    batches = method.prepare(backbone, source, seed=0, draws=9, store=NoStore())
    found, full = (m.losses(backbone, batches.batch([0, 1, 2], draw(3))) for m in (method, plain))
    assert set(full) - set(found) == {left_out}
    assert all(float(found[name].detach()) == pytest.approx(float(full[name].detach()), rel=1e-5) for name in found)


def test_captions_are_drawn_in_four_ways_for_the_global_batch(backbone, source):
    batches = make(backbone).prepare(backbone, source, seed=0, draws=9, store=NoStore())
    seen = set()
    for step in range(40):
        whole = batches.batch([2, 2, 2, 2], draw(4, step=step))
        halves = [batches.batch([2, 2], draw(2, 4, start, step)) for start in (0, 2)]
        assert torch.equal(whole.text.ids, torch.cat([half.text.ids for half in halves]))
        seen |= {backbone.tokenizer.decode(row[mask].tolist()[1:-1]) for row, mask in
                 zip(whole.text.ids, whole.text.mask, strict=True)}  # fmt: skip
    cleaned = {blip_caption(training_text(source.texts[2], each)) for each in (0.0, 0.3, 0.6, 0.9)}
    assert len(seen) == 4 and {text.replace(" ", "") for text in seen} == {text.replace(" ", "") for text in cleaned}


# Dropout


def test_dropout_acts_in_training_only_and_a_share_of_the_batch_sees_its_rows_masks(backbone, source):
    method = make(backbone, dropout=0.3).train()
    batches = method.prepare(backbone, source, seed=0, draws=9, store=NoStore())
    rows = [0, 1, 2, 3]
    whole = batches.batch(rows, draw(4))
    state = torch.get_rng_state()

    def aligned(batch):  # a mean over rows, so that halves average to the whole
        return float(method.losses(backbone, batch)["align"].detach())

    assert aligned(whole) == aligned(whole) != aligned(replace(whole, random=draw(4, step=1)))
    halves = [aligned(batches.batch(rows[i : i + 2], draw(2, 4, i))) for i in (0, 2)]
    assert aligned(whole) == pytest.approx(sum(halves) / 2, rel=1e-5)
    plain = make(backbone)
    method.eval()
    assert aligned(whole) == float(plain.losses(backbone, whole)["align"].detach())
    assert torch.equal(state, torch.get_rng_state())  # nothing is drawn behind the loop's back


def test_every_dropout_of_the_q_former_draws_by_rows(backbone):
    from cir.methods.qformer import RowDropout

    method = make(backbone, dropout=0.3)
    modules = dict(method.parts.named_modules())
    assert not [name for name, module in modules.items() if isinstance(module, torch.nn.Dropout)]
    places = [module for module in modules.values() if isinstance(module, RowDropout)]
    assert len(places) == 1 + 4 * 3 + 2  # embeddings; attention and two feed-forwards a layer; cross-attention in two
    assert len({place.name for place in places}) == len(places)
    assert {m.attention_dropout for m in modules.values() if hasattr(m, "attention_dropout")} == {0.0}


def test_the_backbone_keeps_its_own_modules(backbone):
    before = {name: p.clone() for name, p in backbone.parts.named_parameters()}
    method = make(backbone)
    assert any(isinstance(m, torch.nn.Dropout) for m in backbone.parts.modules())
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(1)
    assert all(torch.equal(p, before[name]) for name, p in backbone.parts.named_parameters())


# Training


class Stop(Exception):
    pass


CONFIG = TrainConfig(steps=6, batch=4, lr=1e-3, log_every=1, save_every=2, evaluate_every=3, eps=1e-4)


def test_a_resumed_run_ends_with_the_bits_of_an_uninterrupted_one(backbone, source, tmp_path):
    def run(out, evaluate=None):
        method = build("sprc", {"dropout": 0.2}, backbone, seed=1)
        train(method, backbone, source, CONFIG, out, evaluate=evaluate)
        return method

    def interrupt(method, step):
        if step == 3:
            raise Stop
        return {}

    whole = run(tmp_path / "whole").state_dict()
    with pytest.raises(Stop):
        run(tmp_path / "cut", interrupt)
    again = run(tmp_path / "cut").state_dict()
    assert whole.keys() == again.keys() and all(torch.equal(whole[name], again[name]) for name in whole)
    start = make(backbone).state_dict()
    moved = {name for name in whole if not torch.equal(whole[name], start[name])}
    assert {name for name in whole if name.startswith("parts.itm_head")}.isdisjoint(moved) and len(moved) > 60


def test_it_learns_to_find_the_targets(tmp_path):
    backbone = load(str(tiny_blip2(tmp_path / "small", layers=2, queries=4)), device="cpu")
    source = NoiseTriplets(backbone)

    def found(method):
        gallery = F.normalize(method.image_side(backbone).encode_images(source.images), dim=-1)
        asked = [source.query(row) for row in range(6)]
        vectors = compose(method, backbone, source.patches(source.reference), asked, "capital_first")
        ranked = torch.einsum("bnd,gtd->bgnt", vectors, gallery).amax(dim=(2, 3)).argmax(dim=1)
        return float(np.mean(ranked.numpy() == source.target))

    method = build("sprc", {"dropout": 0.0}, backbone, seed=1)
    assert found(method) < 0.7
    config = replace(CONFIG, steps=50, batch=6, lr=2e-3, eps=1e-8, evaluate_every=0)
    train(method, backbone, source, config, tmp_path / "run")
    assert found(method) == 1.0


def test_mixed_precision_stays_near(backbone, source):
    method = make(backbone)
    batch = method.prepare(backbone, source, seed=0, draws=9, store=NoStore()).batch([0, 1, 2, 3], draw(4))
    plain = method.losses(backbone, batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = method.losses(backbone, batch)
    for name, value in plain.items():
        assert float(mixed[name].detach()) == pytest.approx(float(value.detach()), rel=0.1, abs=0.05)


# Second stage, checkpoints, errors


def test_a_second_stage_trains_a_copy_of_the_text_encoder(backbone, source, tmp_path):
    method, reference = make(backbone), references(backbone, 4)
    with torch.no_grad():  # not the backbone's weights any more
        method.parts.text_projection.weight.mul_(-1.5)
    before = compose(method, backbone, reference, queries())
    patterns = method.query_side(backbone)
    torch.testing.assert_close(compose(method, backbone, reference, queries()), before, atol=1e-6, rtol=1e-5)
    named = trainables(method, patterns)
    assert all(name.startswith("query_text.") for name in named) and not any("cross" in name for name in named)
    vectors = method.compose(backbone, reference, queries(), Template(), JOINERS["first"])
    F.cosine_similarity(vectors[:1, 0], vectors[1:, 0]).sum().backward()
    assert all(p.grad is not None for p in named.values())
    assert all(p.grad is None for name, p in method.named_parameters() if name not in named)
    adamw(named, lr=1e-2).step()
    after = compose(method, backbone, reference, queries())
    assert (after - before).abs().max() > 1e-3

    checkpoint.save(tmp_path, method, backbone)
    loaded = checkpoint.load(tmp_path, backbone)
    assert loaded.options.second_stage and loaded.settled
    assert torch.equal(compose(loaded, backbone, reference, queries()), after)
    with pytest.raises(InputError, match="second stage"):
        loaded.prepare(backbone, source, seed=0, draws=9, store=NoStore())


def test_the_state_makes_the_round_trip(backbone, tmp_path):
    method, reference = make(backbone), references(backbone, 4)
    checkpoint.save(tmp_path, method, backbone)
    loaded = checkpoint.load(tmp_path, backbone)
    assert torch.equal(*(compose(m, backbone, reference, queries()) for m in (method, loaded)))
    assert loaded.image_side(backbone).fingerprint and loaded.query_text is None


def test_the_temperature_starts_as_the_backbones_and_prompts_small(backbone):
    method = build("sprc", {}, backbone, seed=1)
    assert float(method.temperature.detach()) == pytest.approx(0.05)
    assert method.prompt_tokens.shape == (1, 32, 32)
    assert 0.015 < float(method.prompt_tokens.detach().std()) < 0.025


def test_what_cannot_be_met_is_named(backbone, tiny_backbone, tmp_path):
    with pytest.raises(InputError, match=r"sprc: trains BLIP-2's Q-Former.*choose a BLIP-2"):
        build("sprc", {}, tiny_backbone)
    with pytest.raises(InputError, match=r"dropout: expected a share.*got 1"):
        build("sprc", {"dropout": 1.0}, backbone)
    with pytest.raises(InputError, match="32 prompts and 32 text positions need as many position embeddings"):
        build("sprc", {}, load(str(tiny_blip2(tmp_path / "short", positions=48)), device="cpu"))


# Several processes: this file as a script computes both sides

OPTIONS = {"sprc": {"dropout": 0.2}, "sprc_rerank": {"dropout": 0.2}}


def step(folder, name, start, stop, processes=1):
    """Loss and averaged gradients of rows `start` to `stop` of a batch of six."""
    backbone = load(str(folder), device="cpu")
    method = build(name, OPTIONS[name], backbone, seed=1).train()
    named = trainables(method, method.trains)
    ready = method.prepare(backbone, NoiseTriplets(backbone), seed=0, draws=9, store=NoStore())
    batch = ready.batch(list(range(start, stop)), StepRandom(0, 0, start, stop, 6))
    loss = sum(method.losses(backbone, batch).values())
    loss.backward()
    found = {"loss": loss.detach(), **{key: p.grad for key, p in named.items()}}
    if processes > 1:
        for value in found.values():
            dist.all_reduce(value)
            value /= processes
    return found


def main(folder, out):
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    start = 3 * dist.get_rank()
    found = {name: step(folder, name, start, start + 3, processes=2) for name in OPTIONS}
    if dist.get_rank() == 0:
        torch.save(found, out)
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def shared(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("processes") / "out"
    two_processes(__file__, folder, out, timeout=400)
    return torch.load(out, weights_only=True)


@pytest.mark.parametrize("name", OPTIONS)
def test_two_processes_equal_one_with_the_whole_batch(folder, shared, name):
    alone = step(folder, name, 0, 6)
    assert alone.keys() == shared[name].keys() and len(alone) > 60
    for key, expected in alone.items():
        torch.testing.assert_close(shared[name][key], expected, atol=2e-5, rtol=2e-3, msg=key)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
