"""Context-I2W against its specification written out: both branches, the gate, contexts, loss and composition."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from cir.errors import InputError
from cir.methods import NoStore, build
from cir.methods.context_i2w import ContextProjector, spans, subjects
from cir.objectives import clip_ce
from cir.optim import trainables
from cir.prompts import JOINERS, Template, tokenize
from cir.randomness import StepRandom
from cir.schema import Query

PUBLISHED = {
    "to_c.weight", "W_R.weight_g", "W_R.weight_v", "proj", "proj_local", "local_gate",
    *(f"{norm}.{kind}" for norm in ("ln_post", "ln_post_local") for kind in ("weight", "bias")),
    *(f"{linear}{local}{place}.{kind}" for local in ("", "_local") for linear, place in
      (("layers", ".0.0"), ("layers", ".1.0"), ("fc_out", "")) for kind in ("weight", "bias")),
    "VT_Extractor.latents", "VT_Extractor.norm.weight", "VT_Extractor.norm.bias",
    *(f"VT_Extractor.layers.{i}.0.{norm}.{kind}" for i in range(6) for norm in ("norm_media", "norm_latents")
      for kind in ("weight", "bias")),
    *(f"VT_Extractor.layers.{i}.0.{linear}.weight" for i in range(6) for linear in ("to_q", "to_kv", "to_out")),
    *(f"VT_Extractor.layers.{i}.1.0.{kind}" for i in range(6) for kind in ("weight", "bias")),
    *(f"VT_Extractor.layers.{i}.1.{place}.weight" for i in range(6) for place in (1, 3)),
}  # fmt: skip


def draw(rows=4, total=None, seed=0, start=0):
    return StepRandom(seed, 0, start, start + rows, total or rows)


def make(backbone, gate=0.3, **options):
    method = build("context_i2w", {"depth": 2, **options}, backbone, seed=1)
    torch.nn.init.constant_(method.im2text.local_gate, gate)
    return method


def norm(state, name, x):
    centred = x - x.mean()
    return centred / (centred.square().mean() + 1e-5).sqrt() * state[f"{name}.weight"] + state[f"{name}.bias"]


def rows_of(state, name, x):
    return torch.stack([norm(state, name, row) for row in x])


def attend(state, name, tokens, latents):
    """Eight heads of 64, one at a time: queries from latents, keys and values from tokens and latents."""
    media, own = rows_of(state, f"{name}.norm_media", tokens), rows_of(state, f"{name}.norm_latents", latents)
    q = own @ state[f"{name}.to_q.weight"].T
    k, v = (torch.cat([media, own]) @ state[f"{name}.to_kv.weight"].T).split(512, dim=1)
    heads = []
    for h in range(8):
        part = slice(64 * h, 64 * h + 64)
        weights = (q[:, part] @ k[:, part].T / math.sqrt(64)).softmax(dim=1)
        heads.append(weights @ v[:, part])
    return torch.cat(heads, dim=1) @ state[f"{name}.to_out.weight"].T


def resample(state, tokens):
    latents = state["VT_Extractor.latents"]
    for i in range(len({key.split(".")[2] for key in state if key.startswith("VT_Extractor.layers.")})):
        name = f"VT_Extractor.layers.{i}"
        latents = latents + attend(state, f"{name}.0", tokens, latents)
        h = rows_of(state, f"{name}.1.0", latents) @ state[f"{name}.1.1.weight"].T
        latents = latents + (h * (1 + torch.erf(h / 2**0.5)) / 2) @ state[f"{name}.1.3.weight"].T
    return rows_of(state, "VT_Extractor.norm", latents)


def mlp(state, local, x, masks=(None, None)):
    for i, mask in enumerate(masks):
        x = state[f"layers{local}.{i}.0.weight"] @ x + state[f"layers{local}.{i}.0.bias"]
        x = (x if mask is None else x * mask / 0.9).clamp(min=0)
    return state[f"fc_out{local}.weight"] @ x + state[f"fc_out{local}.bias"]


def project(state, tokens, context, masks=(None, None), local_masks=(None, None)):
    """One picture: tokens "p v", context "d"; returns the word and the two branches."""
    v, g = state["W_R.weight_v"], state["W_R.weight_g"]
    folded = torch.stack([g[i, 0] * v[i] / v[i].square().sum().sqrt() for i in range(len(v))])
    seen = (tokens @ folded.T) * (state["to_c.weight"] @ context)
    whole = mlp(state, "", norm(state, "ln_post", seen[0]) @ state["proj"], masks)
    pooled = resample(state, seen[1:]).mean(dim=0)
    part = mlp(state, "_local", norm(state, "ln_post_local", pooled) @ state["proj_local"], local_masks)
    return whole + math.tanh(state["local_gate"]) * part, whole, part


# The projector


@pytest.mark.parametrize(("width", "vision", "count"), [(768, 1024, 68_471_297), (512, 768, 41_130_241)])
def test_names_and_counts_are_those_published(width, vision, count):
    with torch.device("meta"):
        module = ContextProjector(width, width, vision)
    assert set(module.state_dict()) == PUBLISHED
    assert sum(p.numel() for p in module.parameters()) == count
    shapes = {name: tuple(p.shape) for name, p in module.named_parameters()}
    assert shapes["to_c.weight"] == (vision, width) and shapes["proj"] == (vision, width)
    assert shapes["W_R.weight_g"] == (vision, 1) and shapes["VT_Extractor.latents"] == (4, vision)
    assert shapes["local_gate"] == () and shapes["VT_Extractor.layers.5.0.to_kv.weight"] == (1024, vision)


def test_the_projector_equals_the_specification_written_out(tiny_backbone):
    module = make(tiny_backbone).im2text
    with torch.no_grad():  # norms and g at their start would hide a mistake
        for name, p in module.named_parameters():
            if "norm" in name or "ln_" in name or name == "W_R.weight_g":
                p.add_(0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    tokens, context = torch.randn(3, 17, 48), torch.randn(3, 24)
    state = {name: p.detach() for name, p in module.named_parameters()}
    expected = torch.stack([project(state, t, c)[0] for t, c in zip(tokens, context, strict=True)])
    torch.testing.assert_close(module(tokens, context), expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(module(tokens[1:2], context[1:2]), expected[1:2], atol=1e-5, rtol=1e-4)


def test_training_starts_from_the_global_branch(tiny_backbone):
    module = build("context_i2w", {"depth": 1}, tiny_backbone).im2text
    tokens, context = torch.randn(2, 17, 48), torch.randn(2, 24)
    state = {name: p.detach() for name, p in module.named_parameters()}
    word, whole, part = project(state, tokens[0], context[0])
    assert module.local_gate.item() == 0 and torch.equal(word, whole) and part.abs().max() > 1e-3
    out = module(tokens, context)
    torch.testing.assert_close(out[0], whole, atol=1e-5, rtol=1e-4)
    out.square().sum().backward()
    assert module.local_gate.grad.abs() > 0 and not module.proj_local.grad.any()
    scale = 48**-0.5
    assert module.proj.std().item() == pytest.approx(scale, rel=0.1)
    weight = module.W_R.weight_v.detach()
    torch.testing.assert_close(module.W_R.weight_g.detach()[:, 0], weight.norm(dim=1))


def test_dropout_is_drawn_for_both_branches_by_row_of_the_global_batch(tiny_backbone):
    module = make(tiny_backbone).im2text.train()
    tokens, context = torch.randn(4, 17, 48), torch.randn(4, 24)
    masks = {local: [draw().keep(f"context.layers{local}.{i}", 0.9, 512) for i in (0, 1)] for local in ("", "_local")}
    state = {name: p.detach() for name, p in module.named_parameters()}
    expected = [
        project(state, tokens[i], context[i], [m[i] for m in masks[""]], [m[i] for m in masks["_local"]])[0]
        for i in range(4)
    ]
    whole = module(tokens, context, draw())
    torch.testing.assert_close(whole, torch.stack(expected), atol=1e-5, rtol=1e-4)
    halves = [module(tokens[i : i + 2], context[i : i + 2], draw(2, 4, start=i)) for i in (0, 2)]
    torch.testing.assert_close(whole, torch.cat(halves), atol=1e-5, rtol=1e-4)
    plain = torch.stack([project(state, t, c)[0] for t, c in zip(tokens, context, strict=True)])
    torch.testing.assert_close(module.eval()(tokens, context, draw()), plain, atol=1e-5, rtol=1e-4)


def test_a_gate_saved_as_a_vector_loads(tiny_backbone):
    module = make(tiny_backbone).im2text
    state = {**module.state_dict(), "local_gate": torch.tensor([0.25])}
    module.load_state_dict(state)
    assert module.local_gate.item() == 0.25 and state["local_gate"].shape == (1,)


# Contexts


def test_spans_are_found_where_they_stand():
    caption = "startling art and a  dog, that art"
    found = spans(caption, ["art", "a dog", "that", "art", "absent"])
    assert [caption[i:j] for i, j in found] == ["art", "a  dog", "art"]
    assert [i for i, _ in found] == [10, 18, 31]


def test_a_context_is_the_caption_with_one_noun_given_to_the_subject(tiny_backbone, make_images):
    tokens, subject = tiny_backbone.tokenizer, tiny_backbone.tokenizer.end - 2
    images = make_images(tiny_backbone)
    ready = make(tiny_backbone).prepare(tiny_backbone, images, seed=0, draws=100, store=NoStore())
    lazy = make(tiny_backbone).prepare(tiny_backbone, images, seed=0, draws=1, store=NoStore())
    choices = {
        0: (["", " with longer sleeves"], ["a red dress with", ""]),
        1: (["two", " on grass"], ["two dogs on", ""]),
        2: (["a photo of", ""],),  # "it is" has no noun
        3: (["a photo of", ""],),
    }
    for row, possible in choices.items():
        context = ready.batch([row], draw(1)).context
        assert context.slots.shape == (1, 0)
        laid = [tokenize(tokens, [list(pieces)]) for pieces in possible]
        found = []
        for prompt in laid:
            ids = prompt.ids[0].copy()
            ids[prompt.slots[0, 0]] = subject
            found.append(ids.tolist() == context.ids[0].tolist())
        assert sum(found) == 1, row
        again = lazy.batch([4, row], draw(2)).context  # another order of first use, nothing laid out ahead
        assert again.ids[1, : again.ends[1] + 1].tolist() == context.ids[0].tolist()
    drawn = {
        tuple(
            make(tiny_backbone)
            .prepare(tiny_backbone, images, seed=seed, draws=1, store=NoStore())
            .batch([0], draw(1))
            .context.ids[0]
        )
        for seed in range(12)
    }
    assert len(drawn) == 2  # both nouns have their turn


def test_the_subject_stands_in_every_slot_as_a_plain_word(tiny_backbone):
    prompt = tokenize(tiny_backbone.tokenizer, [["a", " and", " on grass"], ["two dogs"]])
    plain = subjects(prompt, tiny_backbone)
    assert (plain.ids != prompt.ids).sum() == 2 and plain.slots.shape == (2, 0)
    assert {plain.ids[0, place] for place in prompt.slots[0]} == {tiny_backbone.tokenizer.end - 2}
    assert (plain.ids[1] == prompt.ids[1]).all()
    weight = tiny_backbone.text.text_model.embeddings.token_embedding.weight
    row = weight[tiny_backbone.tokenizer.end - 2]
    spliced = tiny_backbone.encode_text(prompt, row.expand(2, 1, -1))
    torch.testing.assert_close(tiny_backbone.encode_text(plain), spliced, atol=1e-5, rtol=1e-4)


# Training and composition


@pytest.mark.parametrize("scale", [0.0, 5.0])
def test_the_loss_equals_the_step_written_out(tiny_backbone, make_images, scale):
    method, images = make(tiny_backbone, scale=scale), make_images(tiny_backbone)
    rows = [4, 1, 0]
    prepared = method.prepare(tiny_backbone, images, seed=3, draws=100, store=NoStore()).batch(rows, draw(3))
    loss = method.losses(tiny_backbone, prepared)
    assert list(loss) == ["clip_ce"] and set(images.asked) == {"features", "patches"}
    state = {name: p.detach() for name, p in method.im2text.named_parameters()}
    sentences = []
    for i, row in enumerate(rows):
        end = int(prepared.context.ends[i]) + 1
        context = tiny_backbone.encode_text(prepared.context[np.array([i])])[0]
        assert end <= prepared.context.ids.shape[1]
        tokens = tiny_backbone.encode_patches(images.pixels[row : row + 1])[0]
        word = project(state, tokens, context)[0]
        sentence = tokenize(tiny_backbone.tokenizer, [["a photo of", ""]])
        sentences.append(tiny_backbone.encode_text(sentence, word[None, None])[0])
    image = tiny_backbone.encode_images(images.pixels[rows])[:, 0]
    expected = clip_ce(image, torch.stack(sentences), scale or tiny_backbone.logit_scale)
    torch.testing.assert_close(loss["clip_ce"], expected, atol=1e-4, rtol=1e-4)


def test_gradients_reach_the_projector_and_nothing_frozen(tiny_backbone, make_images):
    method = make(tiny_backbone).train()
    named = trainables(method, method.trains)
    ready = method.prepare(tiny_backbone, make_images(tiny_backbone), seed=0, draws=100, store=NoStore())
    method.losses(tiny_backbone, ready.batch([0, 1, 4], draw(3)))["clip_ce"].backward()
    assert len(named) == len(list(method.parameters()))
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in named.values())
    assert all(p.grad is None for p in tiny_backbone.text.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16])
def test_mixed_precision_trains_with_finite_gradients(tiny_backbone, make_images, dtype):
    method = make(tiny_backbone).train()
    named = trainables(method, method.trains)
    ready = method.prepare(tiny_backbone, make_images(tiny_backbone), seed=0, draws=100, store=NoStore())
    with torch.autocast("cpu", dtype=dtype):
        loss = method.losses(tiny_backbone, ready.batch([0, 1, 4], draw(3)))["clip_ce"]
    loss.backward()
    assert loss.dtype == torch.float32
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in named.values())


def test_composing_equals_each_prompt_by_itself(tiny_backbone):
    """The query prompt gives the context, then takes the word that the context made of the patches."""
    method = make(tiny_backbone)
    texts = [("is blue", "with two cats."), ("on grass",)]
    tokens = torch.randn(2, 17, 48)
    asked = [Query(str(i), "r", text) for i, text in enumerate(texts)]
    template = Template("a photo of $ , {text}")
    found = method.compose(tiny_backbone, tokens, asked, template, JOINERS["both_orders"])
    state = {name: p.detach() for name, p in method.im2text.named_parameters()}

    def one(reference, text):
        prompt = tokenize(tiny_backbone.tokenizer, [["a photo of ", f" , {text}"]])
        ids = torch.from_numpy(prompt.ids)
        ids[0, prompt.slots[0, 0]] = tiny_backbone.tokenizer.end - 2
        context = tiny_backbone.text(ids, torch.from_numpy(prompt.ends))[0]
        word = project(state, reference, context)[0]
        return F.normalize(tiny_backbone.encode_text(prompt, word[None, None])[0], dim=-1)

    with torch.no_grad():
        orders = [one(tokens[0], t) for t in ("is blue and with two cats", "with two cats and is blue")]
        expected = torch.stack([F.normalize(sum(orders), dim=-1), one(tokens[1], "on grass")])
    torch.testing.assert_close(found[:, 0], expected, atol=1e-5, rtol=1e-4)


def test_what_it_cannot_work_with_is_named(tiny_backbone):
    method = make(tiny_backbone)
    with pytest.raises(InputError, match="needs a slot"):
        method.compose(tiny_backbone, torch.randn(1, 17, 48), [Query("1", "r", ("red",))], Template("a {text}"), list)
    with pytest.raises(InputError, match="expected a slot"):
        build("context_i2w", {"prompt": "a photo"}, tiny_backbone)
    with pytest.raises(InputError, match=r"ContextI2W|context_i2w"):
        build("rtd", {}, tiny_backbone, method)


def test_a_vision_tower_without_class_token_is_refused(tiny_backbone):
    names = (
        *("fingerprint", "preprocess_id", "tokenizer", "text", "width", "word_width", "vectors", "vision_width"),
        *("logit_scale", "device", "dtype", "preprocess", "encode_images", "encode_patches", "encode_text"),
    )
    siglip = SimpleNamespace(name="siglip", class_token=False, **{name: getattr(tiny_backbone, name) for name in names})
    with pytest.raises(InputError, match="siglip has none"):
        build("context_i2w", {}, siglip)
