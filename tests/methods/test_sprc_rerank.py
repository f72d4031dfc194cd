"""SPRC's re-ranker against plain calls of Hugging Face's modules, its negatives against the draw written out."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from cir.backbones import load
from cir.backbones.tokens import blip_caption
from cir.config import TrainConfig
from cir.errors import InputError
from cir.methods import NoStore, build, checkpoint
from cir.methods.sprc_rerank import negatives
from cir.optim import trainables
from cir.prompts import JOINERS, Template, training_text
from cir.randomness import StepRandom
from cir.schema import Query
from cir.train import train
from tests.backbones.blip2_folder import tiny_blip2
from tests.methods.triplets import NoiseTriplets

ASKED = ("is blue and has Shorter sleeves!", "two dogs", "cats (instead) of dogs")


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
    return build("sprc_rerank", {"dropout": 0.0, **options}, backbone, seed=1)


def draw(rows, step=0, seed=0):
    return StepRandom(seed, step, 0, rows, rows)


def batch(method, backbone, source, rows, random=None):
    return method.prepare(backbone, source, seed=0, draws=9, store=NoStore()).batch(rows, random or draw(len(rows)))


def queries(texts=ASKED):
    return [Query(str(i), "image", (text,)) for i, text in enumerate(texts)]


def match(method, backbone, reference, asked, candidates, join="first_and_second"):
    return method.match(backbone, reference, asked, Template(), JOINERS[join], candidates)


class Twin:
    """One triplet at a time through the stock model: 32 queries and text, over both pictures' tokens in a row."""

    def __init__(self, folder):
        from transformers import BertTokenizer, Blip2ForImageTextRetrieval

        self.model = Blip2ForImageTextRetrieval.from_pretrained(folder).eval()
        self.tokenizer = BertTokenizer.from_pretrained(folder)

    def tokens(self, patches):
        norm = self.model.vision_model.post_layernorm
        return F.layer_norm(patches, patches.shape[-1:], norm.weight, norm.bias, 1e-5)

    def rows(self, text):
        row = self.tokenizer(
            blip_caption(text), padding="max_length", truncation=True, max_length=32, return_tensors="pt"
        )
        return row.input_ids, row.attention_mask

    def logits(self, reference, text, candidate):
        ids, mask = self.rows(text)
        states = self.model.qformer(
            query_embeds=self.model.embeddings(input_ids=ids, query_embeds=self.model.query_tokens),
            query_length=32,
            attention_mask=torch.cat([torch.ones(1, 32, dtype=torch.long), mask], dim=1),
            encoder_hidden_states=torch.cat([self.tokens(reference[None]), self.tokens(candidate[None])], dim=1),
        ).last_hidden_state
        return self.model.itm_head(states[:, :32])[0].mean(dim=0)

    @torch.no_grad()
    def similarity(self, text, target):
        """The frozen model's: [CLS] of the text with the picture's best query output."""
        ids, mask = self.rows(text)
        words = self.model.qformer(
            query_embeds=self.model.embeddings(input_ids=ids), query_length=0, attention_mask=mask
        ).last_hidden_state
        seen = self.model.qformer(
            query_embeds=self.model.query_tokens, query_length=32, encoder_hidden_states=self.tokens(target[None])
        ).last_hidden_state
        vector = F.normalize(self.model.text_projection(words[0, 0]), dim=-1)
        return float((F.normalize(self.model.vision_projection(seen[0]), dim=-1) @ vector).max())


def test_scores_equal_plain_calls_pair_by_pair(folder, backbone, source):
    method, twin = make(backbone), Twin(folder)
    patches = source.patches(range(7))
    reference, candidates = patches[:3], torch.stack([patches[3:7], patches[[1, 1, 0, 6]], patches[2:6]])
    found = match(method, backbone, reference, queries(), candidates)
    assert method.matches and found.shape == (3, 4) and not found.requires_grad
    for i, text in enumerate(ASKED):
        for k in range(4):
            logits = twin.logits(reference[i], text, candidates[i, k]).tolist()
            expected = np.exp(logits[1]) / sum(np.exp(logits))
            assert float(found[i, k]) == pytest.approx(expected, abs=1e-5)
    assert float(found[1, 0]) == float(found[1, 1])
    assert len({round(value, 5) for value in found.flatten().tolist()}) > 8


def test_blocks_rows_and_single_candidates_change_nothing(backbone, source, monkeypatch):
    method, patches = make(backbone), source.patches(range(7))
    reference, candidates = patches[:3], torch.stack([patches[1:6], patches[2:7], patches[:5]])
    whole = match(method, backbone, reference, queries(), candidates)
    monkeypatch.setattr("cir.methods.sprc_rerank.MATCHED_AT_ONCE", 4)
    torch.testing.assert_close(match(method, backbone, reference, queries(), candidates), whole, atol=1e-6, rtol=1e-5)
    alone = match(method, backbone, reference[:1], queries()[:1], candidates[:1, :1])
    assert alone.shape == (1, 1)
    torch.testing.assert_close(alone, whole[:1, :1], atol=1e-6, rtol=1e-5)


def test_two_orders_of_captions_are_averaged(backbone, source):
    method, patches = make(backbone), source.patches(range(7))
    asked = [Query("0", "image", ("is red", "two dogs")), Query("1", "image", ("a cat",))]
    both = match(method, backbone, patches[:2], asked, torch.stack([patches[2:4], patches[4:6]]), "both_orders")
    orders = [match(method, backbone, patches[:1], queries([text]), patches[None, 2:4])
              for text in ("is red and two dogs", "two dogs and is red")]  # fmt: skip
    torch.testing.assert_close(both[:1], (orders[0] + orders[1]) / 2, atol=1e-6, rtol=1e-5)


# Training


def written_out(folder, source, rows, random, same):
    """The draw of negatives, one row at a time: softmax, cumulated, the first column beyond the drawn number."""
    twin, scale = Twin(folder), 1 / 0.05
    captions = random.uniform("caption").tolist()
    texts = [training_text(source.texts[row], each) for row, each in zip(rows, captions, strict=True)]
    target = source.patches(source.target[rows])
    table = np.array([[twin.similarity(text, picture) * scale for picture in target] for text in texts])
    chosen = []
    for scores, name in ((table, "other target"), (table.T, "other query")):
        chosen.append([])
        for i, point in enumerate(random.uniform(name).tolist()):
            weights = np.exp(np.where(same[i], -10000.0, scores[i]) - scores[i].max())
            chosen[-1].append(int(np.argmax(np.cumsum(weights / weights.sum()) > point)))
    return texts, chosen


def test_the_loss_and_gradients_equal_plain_calls_triplet_by_triplet(folder, backbone, source):
    source.target[3] = source.target[1]  # two rows with one target
    method, rows, random = make(backbone), [0, 1, 2, 3, 5], draw(5)
    named = trainables(method, method.trains)
    found = method.losses(backbone, batch(method, backbone, source, rows, random))
    assert list(found) == ["itm"]
    found["itm"].backward()

    same = source.target[rows][:, None] == source.target[rows]
    texts, (other_target, other_query) = written_out(folder, source, rows, random, same)
    twin = Twin(folder)
    reference, target = source.patches(source.reference[rows]), source.patches(source.target[rows])
    total = torch.zeros(())
    for i in range(5):
        j, k = other_target[i], other_query[i]
        assert not same[i, j] and not same[i, k]
        for logits, label in (
            (twin.logits(reference[i], texts[i], target[i]), 1),
            (twin.logits(reference[i], texts[i], target[j]), 0),
            (twin.logits(reference[k], texts[k], target[i]), 0),
        ):
            total = total + torch.logsumexp(logits, dim=0) - logits[label]
    torch.testing.assert_close(found["itm"], total / 15, atol=1e-5, rtol=1e-4)
    (total / 15).backward()
    stock = dict(twin.model.named_parameters())
    for name, parameter in named.items():
        own = name.removeprefix("parts.")
        own = f"vision_model.{own}" if own.startswith("post_layernorm") else own
        expected = torch.zeros_like(parameter) if stock[own].grad is None else stock[own].grad
        torch.testing.assert_close(parameter.grad, expected, atol=2e-5, rtol=2e-3, msg=name)
    assert {"parts.query_tokens", "parts.itm_head.weight", "parts.post_layernorm.bias"} < set(named)


def test_negatives_follow_the_frozen_models_softmax(folder, backbone, source):
    method, rows = make(backbone), [0, 1, 3]  # single captions: the texts stay
    counts, steps = np.zeros((2, 3, 3)), 150
    one = batch(method, backbone, source, rows)
    with torch.no_grad():
        for parameter in method.parameters():  # what is trained has no say
            parameter.mul_(2)
    for step in range(steps):
        for side, drawn in enumerate(negatives(backbone, replace(one, random=draw(3, step)))):
            counts[side, np.arange(3), drawn.numpy()] += 1
    twin, target = Twin(folder), source.patches(source.target[rows])
    table = np.array([[twin.similarity(source.texts[row][0], picture) / 0.05 for picture in target] for row in rows])
    for side, scores in enumerate((table, table.T)):
        weights = np.exp(scores - scores.max(axis=1, keepdims=True)) * (1 - np.eye(3))
        np.testing.assert_allclose(counts[side] / steps, weights / weights.sum(axis=1, keepdims=True), atol=0.1)
        assert (counts[side].diagonal() == 0).all()


def test_it_learns_which_candidates_fit(tmp_path):
    backbone = load(str(tiny_blip2(tmp_path / "small", layers=2, queries=4)), device="cpu")
    source, method = NoiseTriplets(backbone), make(backbone)
    config = TrainConfig(steps=160, batch=6, lr=1e-3, log_every=20)
    train(method, backbone, source, config, tmp_path / "run")
    patches = source.patches(range(7))
    asked = [source.query(row) for row in range(6)]
    found = match(method, backbone, patches[:6], asked, patches.expand(6, -1, -1, -1), "capital_first")
    assert (found.argmax(dim=1).numpy() == source.target).mean() >= 0.8


class Stop(Exception):
    pass


def test_a_resumed_run_ends_with_the_bits_of_an_uninterrupted_one(backbone, source, tmp_path):
    config = TrainConfig(steps=5, batch=4, lr=1e-3, log_every=1, save_every=2, evaluate_every=3, eps=1e-4)

    def run(out, evaluate=None):
        method = make(backbone, dropout=0.2)
        train(method, backbone, source, config, out, evaluate=evaluate)
        return method.state_dict()

    def interrupt(method, step):
        if step == 3:
            raise Stop
        return {}

    whole = run(tmp_path / "whole")
    with pytest.raises(Stop):
        run(tmp_path / "cut", interrupt)
    again = run(tmp_path / "cut")
    assert whole.keys() == again.keys() and all(torch.equal(whole[name], again[name]) for name in whole)
    assert not torch.equal(whole["parts.itm_head.weight"], make(backbone).state_dict()["parts.itm_head.weight"])


def test_the_state_makes_the_round_trip(backbone, source, tmp_path):
    method, patches = make(backbone), source.patches(range(7))
    checkpoint.save(tmp_path, method, backbone)
    loaded = checkpoint.load(tmp_path, backbone)
    candidates = torch.stack([patches[1:3]] * 3)
    assert torch.equal(*(match(m, backbone, patches[:3], queries(), candidates) for m in (method, loaded)))
    assert not any("_projection" in name for name in method.state_dict())


def test_what_cannot_be_met_is_named(backbone, tiny_backbone, source):
    method = make(backbone)
    with pytest.raises(InputError, match=r"re-ranks another method's ranking.*rerank\.method"):
        method.compose(backbone, source.patches([0]), queries()[:1], Template(), JOINERS["first"])
    with pytest.raises(InputError, match="batch of at least 2, got 1"):
        method.losses(backbone, batch(method, backbone, source, [0]))
    with pytest.raises(InputError, match=r"sprc_rerank: trains BLIP-2's Q-Former"):
        build("sprc_rerank", {}, tiny_backbone)
