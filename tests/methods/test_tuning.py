import copy

import pytest
import torch

from cir.errors import InputError
from cir.methods import NoStore, build, checkpoint, tuning
from cir.optim import adamw, trainables
from cir.prompts import tokenize
from cir.randomness import StepRandom
from tests.backbones.blip2_folder import tiny_blip2

pytest.importorskip("peft")


def make(backbone, **options):
    return build("rtd", options, backbone, build("lincir", {}, backbone, seed=3), seed=1)


def step(method, backbone, rows):
    named = trainables(method, method.trains)
    batches = method.prepare(backbone, rows, seed=0, draws=100, store=NoStore())
    method.losses(backbone, batches.batch([0, 1], StepRandom(0, 0, 0, 2, 2)))["nt_xent"].backward()
    adamw(named, lr=1e-2).step()
    return named


class Row:
    def __init__(self, reference, text, target):
        self.reference, self.text, self.target = reference, text, target


ROWS = [Row("a red dress", "is blue", "a blue dress"), Row("two dogs", "on grass", "two dogs on grass")]


@pytest.mark.parametrize("text_tower", ["packed", "padded"])
def test_adapters_start_as_the_tower_and_equal_the_low_rank_product(tiny_clip_folder, text_tower):
    from cir.backbones import load

    backbone = load(str(tiny_clip_folder), device="cpu", text_tower=text_tower)
    method = make(backbone, trainable="lora_3", lora_alpha=6)
    prompt = tokenize(backbone.tokenizer, [["a red dress"], ["two dogs on grass"]])
    assert torch.equal(method.text.encode(prompt), backbone.text.encode(prompt))
    with torch.no_grad():
        for name, p in method.text.named_parameters():
            if ".lora_B." in name:
                p.normal_(generator=torch.Generator().manual_seed(p.numel()))
    plain = make(backbone, trainable="all")
    weights = dict(method.text.named_parameters())
    with torch.no_grad():
        for name, p in plain.text.named_parameters():
            base = name.replace(".weight", ".base_layer.weight")
            if base not in weights:
                continue
            down, up = (weights[base.replace("base_layer", f"lora_{side}.default")] for side in "AB")
            p.add_(6 / 3 * up @ down)
    adapted = [name for name in weights if ".lora_A." in name]
    assert len(adapted) == 2 * 6 and not any("projection" in name for name in adapted)
    torch.testing.assert_close(method.text.encode(prompt), plain.text.encode(prompt), atol=1e-4, rtol=1e-4)


def test_only_adapters_train_and_the_checkpoint_reloads(tiny_backbone, tmp_path):
    method = make(tiny_backbone, trainable="lora_2")
    before = {name: p.detach().clone() for name, p in method.named_parameters()}
    named = step(method, tiny_backbone, ROWS)
    assert named and all(".lora_A." in name or ".lora_B." in name for name in named)
    moved = {name for name, p in method.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name in named if ".lora_B." in name or not torch.equal(before[name], named[name])}
    assert {name for name in named if ".lora_B." in name} <= moved
    checkpoint.save(tmp_path, method, tiny_backbone)
    loaded = checkpoint.load(tmp_path, tiny_backbone)
    prompt = tokenize(tiny_backbone.tokenizer, [["a red dress"]])
    assert torch.equal(loaded.text.encode(prompt), method.text.encode(prompt))
    assert not torch.equal(loaded.text.encode(prompt), tiny_backbone.text.encode(prompt))


def test_adapters_train_under_mixed_precision(tiny_backbone):
    method = make(tiny_backbone, trainable="lora_2")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        named = step(method, tiny_backbone, ROWS)
    assert all(p.dtype == torch.float32 and p.grad is not None for p in named.values())


@pytest.mark.parametrize(
    ("trainable", "match"),
    [("lora_0", "expected all"), ("lora_33", "rank 32 at most"), ("lora", "lora_<rank>"), ("last_0", "last_1 to")],
)
def test_impossible_choices_are_refused(tiny_backbone, trainable, match):
    with pytest.raises(InputError, match=match):
        make(tiny_backbone, trainable=trainable)


def test_a_tower_that_passes_over_its_adapters_is_refused(tiny_clip_folder, monkeypatch):
    from cir.backbones import load
    from cir.backbones.text import PaddedTower

    backbone = load(str(tiny_clip_folder), device="cpu", text_tower="padded")
    whole = PaddedTower.forward

    def past(self, *arguments, **named):
        layers = [m for m in self.modules() if hasattr(m, "base_layer")]
        kept = [(m, m.forward) for m in layers]
        for m in layers:
            m.forward = m.base_layer.forward
        try:
            return whole(self, *arguments, **named)
        finally:
            for m, forward in kept:
                m.forward = forward

    monkeypatch.setattr(PaddedTower, "forward", past)
    with pytest.raises(InputError, match="passes over the adapter"):
        make(backbone, trainable="lora_2")


def test_without_peft_the_extra_is_named(tiny_backbone, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(InputError, match=r"cir\[lora\]"):
        make(tiny_backbone, trainable="lora_2")


# ------------------------------------------------------------------------------- the Q-Former's text pass (BLIP-2)


@pytest.fixture(scope="module")
def blip2(tmp_path_factory):
    from cir.backbones import load

    return load(str(tiny_blip2(tmp_path_factory.mktemp("tiny-blip2"), layers=3)), device="cpu")


class Wrapping(torch.nn.Module):
    """A method that calls its tower `text`, as RTD does."""

    def __init__(self, tower):
        super().__init__()
        self.text = copy.deepcopy(tower)


BLOCK = 16
"""Parameters of a BERT block's text pass: query, key, value, dense, norm, and two layers and a norm behind it."""


@pytest.mark.parametrize(
    ("trainable", "count", "named", "never"),
    [
        ("all", 3 * BLOCK + 2 + 2 + 2, "text.embeddings.word_embeddings.weight", "crossattention"),
        ("projection", 2, "text.text_projection.bias", "encoder"),
        ("attention", 3 * 8, "text.qformer.encoder.layer.2.attention.output.dense.weight", "LayerNorm"),
        ("layer_norm", 3 * 4 + 2, "text.qformer.layernorm.weight", "dense"),
        ("last_1", BLOCK + 2, "text.qformer.encoder.layer.2.output.LayerNorm.bias", "layer.1."),
        ("last_3", 3 * BLOCK + 2, "text.qformer.encoder.layer.0.intermediate.dense.weight", "embeddings"),
    ],
)
def test_parts_of_the_qformers_text_pass(blip2, trainable, count, named, never):
    method = Wrapping(blip2.text)
    chosen = trainables(method, tuning.prepared(trainable, method.text))
    assert len(chosen) == count and named in chosen and not any(never in name for name in chosen)
    prompt = tokenize(blip2.tokenizer, [["a red dress"]])
    (method.text.encode(prompt) ** 2).sum().backward()
    assert all(parameter.grad is not None for parameter in chosen.values())
    assert all(p.grad is None for name, p in method.named_parameters() if name not in chosen)


def test_adapters_in_the_qformers_text_pass(blip2):
    method = Wrapping(blip2.text)
    patterns = tuning.prepared("lora_2", method.text)
    prompt = tokenize(blip2.tokenizer, [["a red dress"], ["two dogs on grass"]])
    assert torch.equal(method.text.encode(prompt), blip2.text.encode(prompt))
    chosen = trainables(method, patterns)
    adapted = {name.split(".lora_")[0] for name in chosen}
    assert len(chosen) == 2 * len(adapted) and len(adapted) == 3 * 6
    kinds = ("attention.query", "attention.key", "attention.value", "attention.output.dense", "intermediate.dense")
    assert all(any(name.endswith(kind) for kind in (*kinds, "output.dense")) for name in adapted)
    with pytest.raises(InputError, match="last_1 to last_3"):
        tuning.prepared("last_4", Wrapping(blip2.text).text)
