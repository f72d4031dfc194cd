import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from cir.backbones.cache import FeatureCache
from cir.backbones.kept import KeptRows
from cir.errors import InputError
from cir.methods import NoStore, build, token_table
from cir.methods.inversion import InversionOptions, invert
from cir.methods.phrases import Phrasebook, read
from cir.methods.searle import GROUP, read_tokens
from cir.optim import adamw, trainables
from cir.prompts import tokenize
from cir.randomness import StepRandom

WORDS = ["cat", "dog", "red dress", "umbrella", "sofa"]
ROWS = [(w, [f"a photo of {w} that is on grass", f"two {w} and {w}s", f"person holding the {w}"]) for w in WORDS]


@pytest.fixture(scope="module")
def phrases(tmp_path_factory):
    path = tmp_path_factory.mktemp("phrases") / "phrases.jsonl"
    path.write_text("\n".join(json.dumps({"concept": name, "phrases": said}) for name, said in ROWS))
    return str(path)


class Named:
    """Raw features with names; `broken` raises once rows behind it are asked for."""

    fingerprint = "named"

    def __init__(self, backbone, count=10, broken=None):
        draw = torch.Generator().manual_seed(2)
        self.table = 3 * torch.randn(count, backbone.width, generator=draw)
        self.broken = broken
        self.asked = []

    def __len__(self):
        return len(self.table)

    def name(self, row):
        return f"folder/{row:02}.jpg"

    def text(self, row):
        return ""

    def features(self, rows):
        self.asked.append(list(rows))
        if self.broken is not None and max(rows) >= self.broken:
            raise KeyboardInterrupt
        return self.table[list(rows)]

    def augmented(self, rows, random):
        return self.features(rows)

    def patches(self, rows):
        return self.features(rows)[:, None]


def draw(rows=4, total=None, step=0, start=0):
    return StepRandom(0, step, start, start + rows, total or rows)


def kept_rows(backbone, folder):
    return KeptRows(FeatureCache(folder, chunk=1), backbone)


def make(backbone, phrases, **more):
    settings = {"phrases": phrases, "oti_steps": 2, "oti_top_k": 2, "top_k": 3, "dropout": 0.0}
    return build("searle", settings | more, backbone).train()


def prepared(method, backbone, source=None, draws=3, store=None):
    return method.prepare(backbone, source or Named(backbone), seed=0, draws=draws, store=store or NoStore())


def written_out(method, backbone, batches, rows, random):
    """The two terms of section 3.2 in plain arithmetic, one row at a time."""
    known, uniform = read("", method.options.phrases), random.uniform("searle.phrase", 2)
    words, cosines = [], 0.0
    for i, row in enumerate(rows):
        made = method.phi(batches.source.table[row][None])
        words.append(made[0])
        near = list(batches.near[row])
        concept = known.names[near[int(uniform[i, 0] * len(near))]]
        said = dict(ROWS)[concept]
        phrase = said[int(uniform[i, 1] * len(said))]
        before, behind = phrase.split(concept, 1)
        with_slot = tokenize(backbone.tokenizer, [[before, f" {behind}".replace(concept, " $ ")]])
        a = backbone.text.encode(with_slot, made[:, None])[0]
        b = backbone.text.encode(tokenize(backbone.tokenizer, [[phrase]]))[0].detach()
        cosines = cosines + (1 - (a * b).sum() / a.norm() / b.norm()) / len(rows)
    z = torch.stack([*torch.from_numpy(np.array(batches.tokens[rows])), *words])
    z = z / z.norm(dim=1, keepdim=True)
    total, n = 0.0, len(rows)
    for i in range(2 * n):
        others = [z[i] @ z[j] / 0.25 for j in range(2 * n) if j != i]
        total = total - z[i] @ z[(i + n) % (2 * n)] / 0.25 + torch.stack(others).exp().sum().log()
    return {"nt_xent": total / (2 * n), "cosine": 0.75 * cosines}


@pytest.mark.parametrize("draws", [0, 1000], ids=["phrases along", "phrases cached"])
def test_losses_and_gradients_equal_the_step_written_out(tiny_backbone, phrases, draws):
    method = make(tiny_backbone, phrases)
    batches = prepared(method, tiny_backbone, Named(tiny_backbone, 4), draws - 8)  # 8 are the inversion's
    assert (batches.book.cached([0]) is None) == (draws == 0)
    rows, random = [2, 0, 3], draw(3, step=4)
    terms = method.losses(tiny_backbone, batches.batch(rows, random))
    expected = written_out(method, tiny_backbone, batches, rows, random)
    parameters = list(method.phi.parameters())
    gradients = [torch.autograd.grad(sum(given.values()), parameters) for given in (terms, expected)]
    for name in expected:
        torch.testing.assert_close(terms[name], expected[name], atol=1e-5, rtol=1e-5)
    for one, two in zip(*gradients, strict=True):
        torch.testing.assert_close(one, two, atol=1e-6, rtol=1e-3)
    assert terms.keys() == expected.keys()


def test_one_step_of_adamw_is_the_step_written_out(tiny_backbone, phrases):
    method = make(tiny_backbone, phrases)
    batches, rows, random = prepared(method, tiny_backbone), [1, 5, 7, 8], draw(4)
    named = trainables(method, method.trains)
    before = {name: parameter.detach().clone() for name, parameter in named.items()}
    expected = written_out(method, tiny_backbone, batches, rows, random)
    gradients = torch.autograd.grad(sum(expected.values()), list(named.values()))
    optimizer = adamw(named, lr=1e-3, weight_decay=0.01, eps=1e-4)
    sum(method.losses(tiny_backbone, batches.batch(rows, random)).values()).backward()
    optimizer.step()
    for (name, parameter), g in zip(named.items(), gradients, strict=True):
        stepped = before[name] * (1 - 1e-3 * 0.01) - 1e-3 * g / (g.abs() + 1e-4)
        torch.testing.assert_close(parameter.detach(), stepped, atol=1e-6, rtol=1e-4)
    assert all(parameter.grad is None for parameter in tiny_backbone.text.parameters())


def test_tokens_are_those_of_the_inversion(tiny_backbone, phrases):
    method, source = make(tiny_backbone, phrases, oti_batch=4, oti_mean_over=32), Named(tiny_backbone)
    batches = prepared(method, tiny_backbone, source)
    book = Phrasebook(tiny_backbone, read("", phrases), draws=0, store=NoStore())
    options = InversionOptions(steps=2, top_k=2, mean_over=32)
    names = [source.name(row) for row in range(10)]
    found = invert(tiny_backbone, source.table, names, options, book).tokens
    torch.testing.assert_close(torch.from_numpy(np.array(batches.tokens)), found, atol=1e-5, rtol=1e-3)
    batch = batches.batch([3, 1], draw(2))
    assert torch.equal(batch.token, torch.from_numpy(np.array(batches.tokens[[3, 1]])))
    assert torch.equal(batch.image, source.table[[3, 1]])


def test_an_interrupted_inversion_goes_on_with_the_same_bits(tiny_backbone, phrases, tmp_path):
    method = make(tiny_backbone, phrases, oti_batch=3)
    whole = prepared(method, tiny_backbone)
    with pytest.raises(KeyboardInterrupt):
        prepared(method, tiny_backbone, Named(tiny_backbone, broken=6), store=kept_rows(tiny_backbone, tmp_path))
    again = Named(tiny_backbone)
    resumed = prepared(method, tiny_backbone, again, store=kept_rows(tiny_backbone, tmp_path))
    assert again.asked[:2] == [[6, 7, 8], [9]]  # the first two blocks were kept
    third = Named(tiny_backbone, broken=0)  # all is there: nothing is asked for
    kept = prepared(method, tiny_backbone, third, store=kept_rows(tiny_backbone, tmp_path))
    for other in (resumed, kept):
        assert np.array_equal(whole.tokens, other.tokens) and np.array_equal(whole.near, other.near)
    changed = make(tiny_backbone, phrases, oti_batch=3, oti_seed=1)
    other = prepared(changed, tiny_backbone, store=kept_rows(tiny_backbone, tmp_path))
    assert not np.array_equal(whole.tokens, other.tokens)


@pytest.mark.parametrize("fraction", [0.0, 0.5])
def test_a_process_sees_its_rows_of_the_whole_batch(tiny_backbone, phrases, fraction):
    method = make(tiny_backbone, phrases, hard_negative_fraction=fraction)
    batches, again = prepared(method, tiny_backbone), prepared(method, tiny_backbone)
    rows = [9, 3, 1, 0, 7, 2]
    whole = batches.batch(rows, draw(6))
    again.batch([5, 5], draw(2))  # another history
    parts = [again.batch(rows[i : i + 3], draw(3, 6, start=i)) for i in (0, 3)]
    for name in ("image", "token"):
        assert torch.equal(getattr(whole, name), torch.cat([getattr(part, name) for part in parts]))
    for i, part in enumerate(parts):
        half = whole.phrases[np.r_[3 * i : 3 * i + 3]] if whole.meaning is not None else None
        ids = whole.phrases.ids[3 * i : 3 * i + 3] if half is None else half.ids
        width = min(ids.shape[1], part.phrases.ids.shape[1])
        assert (ids[:, :width] == part.phrases.ids[:3, :width])[ids[:, :width] > 0].all()


def test_hard_negatives_are_groups_of_similar_images(tiny_backbone, phrases):
    method = make(tiny_backbone, phrases, hard_negative_fraction=0.5, oti_steps=0)
    batches, total = prepared(method, tiny_backbone, Named(tiny_backbone, 40)), 40
    rows = list(range(total))
    mixed = batches._with_similar(rows, draw(total, step=3))
    kept = [place for place in range(total) if place % 2 == 0]
    assert [mixed[place] for place in kept] == kept  # every other row, spread evenly
    table = torch.nn.functional.normalize(batches.source.table, dim=-1)
    for group in range(total // 2 // GROUP):
        members = [mixed[2 * place + 1] for place in range(group * GROUP, (group + 1) * GROUP)]
        anchor = members[0]  # closest to itself
        assert members == (table @ table[anchor]).argsort(descending=True)[:GROUP].tolist()
    assert mixed != batches._with_similar(rows, draw(total, step=4))
    assert batches._with_similar(rows[10:20], draw(10, total, start=10, step=3)) == mixed[10:20]
    few = prepared(method, tiny_backbone, Named(tiny_backbone, 3))
    assert set(few._with_similar([0] * 20, draw(20))) <= {0, 1, 2}


def test_dropout_is_drawn_from_the_step(tiny_backbone, phrases):
    method = make(tiny_backbone, phrases, dropout=0.5)
    batches = prepared(method, tiny_backbone)
    one, two = (method.losses(tiny_backbone, batches.batch([0, 1, 2], draw(3))) for _ in range(2))
    other = batches.batch([0, 1, 2], draw(3))
    off = method.losses(tiny_backbone, replace(other, random=draw(3, step=9)))
    assert torch.equal(one["nt_xent"], two["nt_xent"]) and not torch.equal(one["nt_xent"], off["nt_xent"])
    image = Named(tiny_backbone).table
    assert torch.equal(method.eval().words(image), method.phi(image)[:, None])


def test_terms_can_be_left_out(tiny_backbone, phrases):
    alone = build("searle", {"text_weight": 0.0, "oti_text_weight": 0.0, "oti_steps": 1}, tiny_backbone)
    assert alone.losses(tiny_backbone, prepared(alone, tiny_backbone).batch([0, 1], draw(2))).keys() == {"nt_xent"}
    text = make(tiny_backbone, phrases, token_weight=0.0)
    assert text.losses(tiny_backbone, prepared(text, tiny_backbone).batch([0, 1], draw(2))).keys() == {"cosine"}


# Tokens of another run


def folder(path, tokens, names):
    return token_table.write(path, tokens, names, {"width": 24, "word_width": tokens.shape[1]})


def test_tokens_are_matched_by_name(tiny_backbone, phrases, tmp_path):
    tokens, source = torch.randn(12, tiny_backbone.word_width), Named(tiny_backbone)
    names = [f"{row:02}" for row in reversed(range(12))]  # stems, in another order, and more than there are images
    given = str(folder(tmp_path / "tokens", tokens, names))
    assert np.array_equal(
        read_tokens(tmp_path / "tokens", source, tiny_backbone.word_width), tokens.flip(0)[:10].numpy()
    )
    batches = prepared(make(tiny_backbone, phrases, tokens=given), tiny_backbone, source)
    assert torch.equal(batches.batch([4], draw(1)).token, tokens.flip(0)[4:5])
    exact = folder(tmp_path / "exact", tokens[:10], [source.name(row) for row in range(10)])
    assert np.array_equal(read_tokens(exact, source, tiny_backbone.word_width), tokens[:10].numpy())


def test_tokens_that_do_not_fit_are_refused(tiny_backbone, make_images, tmp_path):
    source, width = Named(tiny_backbone), tiny_backbone.word_width
    short = folder(tmp_path / "short", torch.randn(3, width), ["00", "01", "x"])
    with pytest.raises(InputError, match=r"no token for 8 of 10 images, first \['folder/02.jpg'"):
        read_tokens(short, source, width)
    with pytest.raises(InputError, match="tokens of width 32, this backbone's words have 5"):
        read_tokens(short, source, 5)
    with pytest.raises(InputError, match="no table of pseudo-words"):
        read_tokens(tmp_path, source, width)
    nameless = make_images(tiny_backbone)  # five images without names
    with pytest.raises(InputError, match="3 tokens, but the training source has 5 images"):
        read_tokens(short, nameless, width)
    five = folder(tmp_path / "five", torch.ones(5, width), list("abcde"))
    assert read_tokens(five, nameless, width).shape == (5, width)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"hard_negative_fraction": 1.5}, "expected a share"),
        ({"token_weight": 0.0, "text_weight": 0.0}, "both zero"),
        ({"oti_batch": 0}, "batch"),
    ],
)
def test_settings_that_cannot_be_met_are_refused(tiny_backbone, options, match):
    with pytest.raises(InputError, match=match):
        build("searle", options, tiny_backbone)


def test_phrases_are_asked_for(tiny_backbone):
    with pytest.raises(InputError, match="phrases: no file given"):
        prepared(build("searle", {}, tiny_backbone), tiny_backbone)
