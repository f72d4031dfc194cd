"""RTD's step against a twin in plain torch: padded rows, the sum of the loss written out, AdamW by hand."""

import pytest
import torch
from torch.nn import functional as F

from cir.data.triplets import Triplet
from cir.methods import NoStore, build
from cir.optim import adamw, trainables
from cir.randomness import StepRandom

HEADS = 2  # of the tiny CLIP

ROWS = [
    Triplet("A red dress $5", "is Blue, with sleeves", "A blue dress"),
    Triplet("two dogs", "on grass instead", "two dogs on grass"),
    Triplet("a sofa <PERSON>", "has cats", "a sofa with cats"),
    Triplet("person", "holding umbrella", "person holding umbrella"),
    Triplet("two dogs", "a photo of that", "A blue dress"),
]


def encode(weights, ids, ends, slots=(), pseudo=None):
    """CLIP's text tower, all rows padded to the context, quick GELU, additive causal mask."""
    p = {name.removeprefix("text_model."): w for name, w in weights.items()}
    x = F.embedding(ids, p["embeddings.token_embedding.weight"])
    for row, slot in enumerate(slots):
        x = torch.cat([x[:row], torch.cat([x[row, :slot], pseudo[row][None], x[row, slot + 1 :]])[None], x[row + 1 :]])
    x = x + p["embeddings.position_embedding.weight"]
    length, width = x.shape[1:]
    mask = torch.full((length, length), float("-inf")).triu(1)
    for layer in range(2):
        w = {k.removeprefix(f"encoder.layers.{layer}."): v for k, v in p.items() if f"layers.{layer}." in k}

        def linear(x, name, w=w):
            return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

        def norm(x, name, w=w):
            return F.layer_norm(x, (width,), w[f"{name}.weight"], w[f"{name}.bias"], 1e-5)

        y = norm(x, "layer_norm1")
        q, k, v = (linear(y, f"self_attn.{n}_proj").unflatten(-1, (HEADS, -1)).transpose(1, 2) for n in "qkv")
        weights_of = ((q @ k.transpose(-1, -2)) * (width // HEADS) ** -0.5 + mask).softmax(-1)
        x = x + linear((weights_of @ v).transpose(1, 2).flatten(2), "self_attn.out_proj")
        y = linear(norm(x, "layer_norm2"), "mlp.fc1")
        x = x + linear(y * torch.sigmoid(1.702 * y), "mlp.fc2")
    x = F.layer_norm(x, (width,), p["final_layer_norm.weight"], p["final_layer_norm.bias"], 1e-5)
    return x[torch.arange(len(x)), ends] @ p["text_projection.weight"].T


def padded(tokenizer, rows):
    """Lists of ids between the special tokens, filled to the context."""
    full = [[*tokenizer.start, *row, tokenizer.end] for row in rows]
    ids = torch.tensor([row + [0] * (tokenizer.context - len(row)) for row in full])
    return ids, torch.tensor([len(row) - 1 for row in full])


def clean(text):
    return text.replace("<PERSON>", "person").lower().replace("$", "").strip()


def twin(method, backbone, rows, random):
    """The targets Y, the queries Q and the loss of one step, as the specification has them."""
    tokenizer, options = backbone.tokenizer, method.options
    frozen, trained = dict(backbone.text.named_parameters()), dict(method.text.named_parameters())
    captions = [tokenizer.pieces(clean(row.target)) for row in rows]
    captions += [tokenizer.pieces(clean(row.reference)) for row in rows]
    with torch.no_grad():
        y = encode(frozen, *padded(tokenizer, captions))
        e = y[len(rows) :]
        u, g = random.uniform("noise.scale", 1), random.normal("noise.gaussian", e.shape[1])
        phi = {name: p for name, p in method.base.named_parameters()}
        s = e + options.noise_scale * u * g
        for place in (0, 3, 6):
            s = s @ phi[f"phi.layers.{place}.weight"].T + phi[f"phi.layers.{place}.bias"]
            s = s if place == 6 else 0.5 * s * (1 + torch.erf(s / 2**0.5))
    head = tokenizer.pieces("a photo of")
    sentences = [[*head, tokenizer.slot, *tokenizer.pieces(" that " + row.text)] for row in rows]
    sentences += [[*head, tokenizer.slot]] * len(rows)
    slot = len(tokenizer.start) + len(head)
    q = encode(trained, *padded(tokenizer, sentences), [slot] * len(sentences), torch.cat([s, s]))
    z = F.normalize(torch.cat([y, q]), dim=-1)
    total, n = torch.zeros(()), len(y)
    for i in range(2 * n):
        similarity = z @ z[i] / options.tau
        others = torch.arange(2 * n) != i
        total = total + similarity[others].exp().sum().log() - similarity[(i + n) % (2 * n)]
    return y, q, total / (2 * n)


@pytest.mark.parametrize("text_tower", ["packed", "padded"])
def test_a_whole_step_equals_the_twin(tiny_clip_folder, text_tower):
    from cir.backbones import load

    backbone = load(str(tiny_clip_folder), device="cpu", text_tower=text_tower)
    ours = build("rtd", {}, backbone, build("lincir", {}, backbone, seed=3))
    theirs = build("rtd", {}, backbone, build("lincir", {}, backbone, seed=3))
    shift = torch.Generator().manual_seed(0)
    with torch.no_grad():  # a tower that has left its start
        for one, two in zip(ours.text.parameters(), theirs.text.parameters(), strict=True):
            one.add_(0.02 * torch.randn(one.shape, generator=shift))
            two.copy_(one)
    random = StepRandom(5, 7, 0, len(ROWS), len(ROWS))
    batches = ours.train().prepare(backbone, ROWS, seed=0, draws=10, store=NoStore())
    batch = batches.batch(range(len(ROWS)), random)
    named, reference = trainables(ours, ours.trains), trainables(theirs, theirs.trains)
    loss = ours.losses(backbone, batch)["nt_xent"]
    y, q, expected = twin(theirs, backbone, ROWS, random)
    torch.testing.assert_close(ours._anchors(batch), y, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(ours._queries(batch), q, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    loss.backward()
    expected.backward()
    assert named.keys() == reference.keys() and len(named) == len(list(ours.text.parameters()))
    for name in named:
        torch.testing.assert_close(named[name].grad, reference[name].grad, atol=2e-6, rtol=1e-3, msg=name)
    adamw(named, lr=1e-2, weight_decay=0.1, eps=1e-3).step()
    with torch.no_grad():
        for name, p in reference.items():  # the first step: both moments are the gradient's, bias corrected
            p.mul_(1 - 1e-2 * 0.1).sub_(1e-2 * p.grad / (p.grad.abs() + 1e-3))
            torch.testing.assert_close(named[name], p, atol=1e-5, rtol=1e-4, msg=name)
    assert all(p.grad is None for p in [*ours.base.parameters(), *backbone.text.parameters()])
