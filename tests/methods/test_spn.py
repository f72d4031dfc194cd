"""SPN: the bank loss against loops and pytorch-metric-learning; a second stage on real bases, resumed exactly."""

import math
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pytorch_metric_learning.losses import NTXentLoss
from torch import nn
from torch.nn import functional as F

from cir import config
from cir.backbones import load
from cir.config import TrainConfig
from cir.errors import InputError
from cir.methods import METHODS, Method, NoStore, build, checkpoint
from cir.methods.spn import NUMBERS, SPN, BankRows, bank_similarity
from cir.objectives import info_nce
from cir.optim import trainables
from cir.prompts import JOINERS, Template, tokenize
from cir.randomness import StepRandom
from cir.schema import Query
from cir.train import train
from tests.backbones.blip2_folder import tiny_blip2

TEXTS = (
    ("is blue and has shorter sleeves.",),
    ("two dogs on grass",),
    ("has a red umbrella, ", "Is more similar to a cat"),
    ("the photo of a sofa",),
    ("with longer sleeves", "is green"),
    ("person holding umbrella",),
)
PAIRS = ((0, 1), (1, 2), (3, 4), (4, 7), (5, 0), (2, 5))
"""Reference and target of each triplet, by file; files 1 and 6 hold the same picture."""


class NoiseTriplets:
    """Six triplets over eight files of coarse noise, numbered by their content; notes what was asked for."""

    def __init__(self, backbone, files=(0, 1, 2, 3, 4, 5, 1, 7), fingerprint="noise", texts=TEXTS):
        draw = torch.Generator().manual_seed(0)
        pictures = F.interpolate(torch.randn(8, 3, 4, 4, generator=draw), size=(32, 32))[list(files)]
        kept, number = [], []
        for picture in pictures:
            same = [i for i, one in enumerate(kept) if torch.equal(one, picture)]
            number.append(same[0] if same else len(kept))
            kept += [] if same else [picture]
        self.backbone, self.fingerprint, self.texts = backbone, fingerprint, texts
        self.pictures, self.count = torch.stack(kept), len(kept)
        self.reference, self.target = (np.array([number[pair[side]] for pair in PAIRS]) for side in (0, 1))
        self.asked = []

    def __len__(self):
        return len(PAIRS)

    def query(self, row):
        return Query(str(row), f"image{PAIRS[row][0]}", self.texts[row], (f"image{PAIRS[row][1]}",))

    def features(self, images):
        return self.backbone.encode_images(self.pictures[list(images)])

    def patches(self, images):
        return self.backbone.encode_patches(self.pictures[list(images)])

    def pixels(self, images):
        self.asked.append(list(images))
        return self.pictures[list(images)]


class Kept:
    """A store in memory that goes on where a computation was interrupted, as the feature cache does."""

    def __init__(self):
        self.found = {}

    def rows(self, kind, identity, count, compute):
        blocks = self.found.setdefault((kind, tuple(identity)), [])
        start = sum(map(len, blocks))
        if start < count:
            blocks.extend(compute(start))
        return NoStore().rows(kind, identity, count, lambda _: iter(blocks))


class OwnSide:
    """An image side as a fine-tuned method has it: the frozen one's features, turned by a matrix."""

    def __init__(self, frozen, turn, fingerprint):
        self.fingerprint, self.turn, self.frozen = fingerprint, turn, frozen
        self.preprocess_id, self.width, self.vectors = frozen.preprocess_id, frozen.width, frozen.vectors
        self.vision_width, self.device, self.dtype = frozen.vision_width, frozen.device, frozen.dtype

    def preprocess(self, image):
        return self.frozen.preprocess(image)

    def encode_images(self, pixels):
        return self.frozen.encode_images(pixels) @ self.turn.detach()

    def encode_patches(self, pixels):
        return self.frozen.encode_patches(pixels)


class FineTuned(Method):
    """A first stage with both sides of its own: a turned image side, and a copy of the text tower that composes."""

    learns_from = "image_triplets"
    matches = True

    def __init__(self, options, backbone, base=None):
        super().__init__(options, backbone, base)
        self.turn = nn.Parameter(torch.linalg.qr(torch.randn(backbone.width, backbone.width))[0])
        self.tower = deepcopy(backbone.text)

    def image_side(self, backbone):
        return OwnSide(backbone, self.turn, f"{float(self.turn.sum()):.9f}" if self.settled else "")

    def query_side(self, backbone):
        return (r"tower\..*",)

    def compose(self, backbone, reference, queries, template, join):
        texts = self.tower.encode(tokenize(backbone.tokenizer, [join(q.texts) for q in queries]))
        return F.normalize(reference + texts[:, None], dim=-1)

    def match(self, backbone, reference, queries, template, join, candidates):
        return candidates.mean(dim=(2, 3)) + reference.mean(dim=(1, 2))[:, None]


def base_of(name, backbone):
    if name == "fine_tuned":
        torch.manual_seed(5)
        return FineTuned(None, backbone).eval()
    if name == "clip_finetune_image":
        return build("clip_finetune", {"encoder": "image"}, backbone, seed=3)
    if name == "rtd":
        return build("rtd", {}, backbone, build("lincir", {}, backbone, seed=3), seed=2)
    return build(name, {"raw": True} if name == "sum" else {}, backbone, seed=3)


def make(name, backbone, **options):
    return build("spn", options, backbone, base_of(name, backbone), seed=1)


def batch_of(method, backbone, source, rows=range(6), random=None, store=None):
    ready = method.prepare(backbone, source, seed=0, draws=100, store=store or NoStore())
    return ready.batch(list(rows), random or StepRandom(0, 0, 0, len(rows), len(rows)))


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def looped(queries, bank, labels, tau):
    """The loss as it is defined: sample by sample, bank row by bank row, vector by vector."""
    total = 0.0
    for query, label in zip(queries, labels.tolist(), strict=True):
        scores = [max(float(q @ t) for q in query for t in image) / tau for image in bank]
        total += math.log(sum(math.exp(score) for score in scores)) - scores[label]
    return total / len(queries)


# The bank's loss


@pytest.mark.parametrize(("n", "t"), [(1, 1), (1, 4), (3, 4)])
def test_the_loss_equals_the_loop_over_samples_and_bank_rows(n, t):
    queries, bank = (F.normalize(rand(*shape), dim=-1) for shape in ((5, n, 8), (11, t, 8)))
    labels = torch.tensor([3, 0, 10, 3, 7])
    ours = info_nce(bank_similarity(queries, bank, NUMBERS) / 0.1, labels)
    assert float(ours) == pytest.approx(looped(queries, bank, labels, 0.1), rel=1e-5)


def test_the_loss_equals_that_of_pytorch_metric_learning_in_value_and_gradient():
    queries, bank = F.normalize(rand(6, 8), dim=-1), F.normalize(rand(20, 8, seed=1), dim=-1)
    labels = torch.tensor([3, 0, 19, 4, 7, 12])
    one, two = queries.clone().requires_grad_(), queries.clone().requires_grad_()
    ours = info_nce(bank_similarity(one[:, None], bank[:, None], NUMBERS) / 0.05, labels)
    theirs = NTXentLoss(0.05)(two, labels, ref_emb=bank, ref_labels=torch.arange(20))
    torch.testing.assert_close(ours, theirs)
    ours.backward()
    theirs.backward()
    torch.testing.assert_close(one.grad, two.grad, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("numbers", [1, 5 * 2 * 3, 5 * 2 * 3 * 4, 10**9])
def test_blocks_equal_the_whole_in_value_and_gradient(numbers):
    bank, labels = F.normalize(rand(11, 3, 8, seed=1), dim=-1), torch.tensor([3, 0, 10, 3, 7])
    found = []
    for most in (numbers, 10**9):
        queries = rand(5, 2, 8).requires_grad_()
        similarity = bank_similarity(queries, bank, most)
        info_nce(similarity / 0.1, labels).backward()
        found.append((similarity.detach(), queries.grad))
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two, atol=1e-6, rtol=1e-5)


def test_blocks_keep_no_comparison_of_single_vectors_for_the_gradient():
    queries, bank = rand(4, 1, 8).requires_grad_(), rand(500, 32, 8, seed=1)

    def kept(most):
        numbers = []
        own = {bank.untyped_storage().data_ptr(), queries.untyped_storage().data_ptr()}

        def note(tensor):
            numbers.append(0 if tensor.untyped_storage().data_ptr() in own else tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            info_nce(bank_similarity(queries, bank, most) / 0.1, torch.arange(4)).backward()
        return sum(numbers)

    assert kept(10**9) > 4 * 500 * 32
    assert kept(4 * 32 * 50) < 4 * 4 * 500


# The bank


def test_the_bank_holds_every_picture_once_references_too(tiny_backbone):
    source = NoiseTriplets(tiny_backbone)
    method = make("lincir", tiny_backbone)
    batch = batch_of(method, tiny_backbone, source)
    assert source.count == 7 and batch.bank.shape == (7, 1, tiny_backbone.width)
    for number in range(7):
        alone = tiny_backbone.encode_images(source.pictures[number : number + 1])[0]
        torch.testing.assert_close(batch.bank[number], F.normalize(alone, dim=-1), atol=1e-5, rtol=1e-4)
    assert batch.target.tolist() == [1, 2, 4, 6, 0, 5]  # file 7 is the seventh picture: 6 is 1 again
    apart = NoiseTriplets(tiny_backbone, files=(0, 1, 2, 3, 4, 5, 6, 7))
    assert batch_of(method, tiny_backbone, apart).bank.shape[0] == 8


def test_a_bank_of_an_own_side_is_encoded_once_and_only_kept_when_settled(tiny_backbone, monkeypatch):
    monkeypatch.setattr("cir.methods.spn.BLOCK", 3)
    method, source, store = make("fine_tuned", tiny_backbone), NoiseTriplets(tiny_backbone), Kept()
    batch = batch_of(method, tiny_backbone, source, store=store)
    assert source.asked == [[0, 1, 2], [3, 4, 5], [6]] and len(store.found) == 1
    expected = tiny_backbone.encode_images(source.pictures) @ method.base.turn.detach()
    torch.testing.assert_close(batch.bank, F.normalize(expected, dim=-1), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(batch.reference, expected[source.reference], atol=1e-5, rtol=1e-4)
    blocks = next(iter(store.found.values()))
    again = batch_of(method, tiny_backbone, source, store=store)
    assert len(source.asked) == 3 and torch.equal(again.bank, batch.bank)
    del blocks[1:], source.asked[:]  # interrupted behind the first block
    assert torch.equal(batch_of(method, tiny_backbone, source, store=store).bank, batch.bank)
    assert source.asked == [[3, 4, 5], [6]]
    moving = OwnSide(tiny_backbone, method.base.turn, "")
    assert torch.equal(BankRows("features", tiny_backbone, moving, source, store).bank, batch.bank)
    assert len(store.found) == 1  # an image side in training has no fingerprint, and nothing of it is kept


# A whole step


@pytest.mark.parametrize("name", ["lincir", "sum", "fine_tuned"])
def test_a_step_equals_the_step_written_out(tiny_backbone, name):
    method, source = make(name, tiny_backbone, tau=0.05), NoiseTriplets(tiny_backbone, texts=TEXTS[:2] * 3)
    named = trainables(method, method.trains)
    tower = method.text if method.text is not None else method.base.tower
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.add_(0.05 * rand(*parameter.shape))
    loss = method.losses(tiny_backbone, batch_of(method, tiny_backbone, source))["info_nce"]
    loss.backward()
    gradients = {key: p.grad.clone() for key, p in named.items()}
    method.zero_grad()

    turn = method.base.turn.detach() if name == "fine_tuned" else torch.eye(tiny_backbone.width)
    bank = F.normalize(tiny_backbone.encode_images(source.pictures)[:, 0] @ turn, dim=-1)
    total = torch.zeros(())
    for row, (reference, target) in enumerate(zip(source.reference, source.target, strict=True)):
        image = tiny_backbone.encode_images(source.pictures[reference : reference + 1])[0] @ turn
        text = source.texts[row][0]
        pieces = ["a photo of", f" that {text}"] if name == "lincir" else [text]
        prompt = tokenize(tiny_backbone.tokenizer, [pieces])
        if name == "lincir":
            query = tower.encode(prompt, method.base.phi(image)[:, None])[0]
        else:
            query = image[0] + tower.encode(prompt)[0]
        scores = (F.normalize(query, dim=-1) @ bank.T / 0.05).double()
        total = total - scores[target] + scores.exp().sum().log()
    torch.testing.assert_close(loss, (total / 6).float(), atol=1e-5, rtol=1e-4)
    (total / 6).backward()
    for key, parameter in named.items():
        torch.testing.assert_close(gradients[key], parameter.grad, atol=2e-4, rtol=2e-3, msg=key)


BASES = (
    "lincir", "pic2word", "searle", "sum", "slerp", "text_only", "combiner", "context_i2w", "rtd", "fine_tuned",
    "clip_finetune", "clip_finetune_image",
)  # fmt: skip
OWN_TEXT = {"rtd": "base.text.", "fine_tuned": "base.tower.", "clip_finetune": "base.text."}


@pytest.mark.parametrize("name", BASES)
def test_every_base_with_a_text_trains_that_and_nothing_else(tiny_backbone, name):
    method, source = make(name, tiny_backbone), NoiseTriplets(tiny_backbone)
    named = trainables(method, method.trains)
    before = {key: p.detach().clone() for key, p in method.named_parameters()}
    frozen = {key: p.detach().clone() for key, p in tiny_backbone.text.named_parameters()}
    batch = batch_of(method.train(), tiny_backbone, source)
    bank = batch.bank.clone()
    method.losses(tiny_backbone, batch)["info_nce"].backward()
    assert named and all(p.grad is not None for p in named.values())
    torch.optim.AdamW(named.values(), lr=1e-2).step()
    assert all(key.startswith(OWN_TEXT.get(name, "text.")) for key in named)
    for key, parameter in method.named_parameters():
        assert torch.equal(parameter, before[key]) == (key not in named), key
    assert all(torch.equal(p, frozen[key]) and p.grad is None for key, p in tiny_backbone.text.named_parameters())
    assert torch.equal(batch_of(method, tiny_backbone, source).bank, bank)
    assert not method.base.training and method.training


@pytest.fixture(scope="module")
def blip2(tmp_path_factory):
    return load(str(tiny_blip2(tmp_path_factory.mktemp("blip2"))), device="cpu")


@pytest.mark.parametrize("name", ["sprc", "lincir"])
def test_on_blip2_the_best_of_a_pictures_vectors_counts(blip2, name, monkeypatch):
    method, source = make(name, blip2, tau=0.5, learn_tau=True), NoiseTriplets(blip2)
    named = trainables(method, method.trains)
    before = {key: p.detach().clone() for key, p in method.named_parameters()}
    batch = batch_of(method.train(), blip2, source)
    assert batch.bank.shape == (7, 32, blip2.width) and batch.reference.shape[1] == (17 if name == "sprc" else 32)
    raw = method.image_side(blip2).encode_images(source.pictures)
    torch.testing.assert_close(batch.bank, F.normalize(raw, dim=-1), atol=1e-5, rtol=1e-4)
    with torch.no_grad():
        queries = method.compose(blip2, batch.reference, batch.queries, Template(), JOINERS["first"])
    whole = method.losses(blip2, batch)["info_nce"]
    monkeypatch.setattr("cir.methods.spn.NUMBERS", 32 * blip2.width * 2)  # two pictures at a time
    loss = method.losses(blip2, batch)["info_nce"]
    torch.testing.assert_close(loss, whole)
    assert float(loss.detach()) == pytest.approx(looped(queries, batch.bank, batch.target, 0.5), rel=1e-4)
    loss.backward()
    assert all(p.grad is not None for p in named.values())
    torch.optim.AdamW(named.values(), lr=1e-2).step()
    prefix = "base.query_text." if name == "sprc" else "text."
    assert {key for key in named if not key.startswith(prefix)} == {"temperature"}
    for key, parameter in method.named_parameters():
        assert torch.equal(parameter, before[key]) == (key not in named), key
    assert torch.equal(method.image_side(blip2).encode_images(source.pictures), raw)


def test_captions_are_drawn_per_row_of_the_global_batch(tiny_backbone):
    method, source = make("lincir", tiny_backbone), NoiseTriplets(tiny_backbone)
    ready = method.prepare(tiny_backbone, source, seed=0, draws=100, store=NoStore())
    drawn = [[], [], []]
    for step in range(60):
        whole = ready.batch(range(6), StepRandom(0, step, 0, 6, 6))
        parts = [ready.batch(range(at, at + 3), StepRandom(0, step, at, at + 3, 6)) for at in (0, 3)]
        texts = [query.texts for query in whole.queries]
        assert texts == [query.texts for part in parts for query in part.queries]
        for row, seen in zip((0, 2, 4), drawn, strict=True):
            seen.append(texts[row])
    assert set(drawn[0]) == {TEXTS[0]}  # one text: as annotated
    red, cat = "Has a red umbrella", "Is more similar to a cat"
    both = {(f"{red} and Is more similar to a cat",), (f"{cat} and has a red umbrella",), (red,), (cat,)}
    assert set(drawn[1]) == both and len(set(drawn[2])) == 4 and drawn[1] != drawn[2]


def test_parts_of_a_batch_average_to_its_loss(tiny_backbone):
    method, source = make("lincir", tiny_backbone), NoiseTriplets(tiny_backbone)
    ready = method.prepare(tiny_backbone, source, seed=0, draws=100, store=NoStore())
    whole = method.losses(tiny_backbone, ready.batch(range(6), StepRandom(0, 0, 0, 6, 6)))["info_nce"]
    parts = [ready.batch(range(at, at + 3), StepRandom(0, 0, at, at + 3, 6)) for at in (0, 3)]
    mean = sum(method.losses(tiny_backbone, part)["info_nce"] for part in parts) / 2
    torch.testing.assert_close(whole, mean, atol=1e-5, rtol=1e-5)


def test_the_temperature_is_trained_from_tau_on(tiny_backbone, tmp_path):
    method, source = make("fine_tuned", tiny_backbone, tau=0.05, learn_tau=True), NoiseTriplets(tiny_backbone)
    fixed = make("fine_tuned", tiny_backbone, tau=0.05)
    batch = batch_of(method, tiny_backbone, source)
    loss = method.losses(tiny_backbone, batch)["info_nce"]
    torch.testing.assert_close(loss, fixed.losses(tiny_backbone, batch)["info_nce"])
    loss.backward()
    similarity = (method._queries(tiny_backbone, batch).detach()[:, 0] @ batch.bank[:, 0].T).double()
    by_hand = [float(info_nce((similarity / tau).float(), batch.target)) for tau in (0.05 - 1e-3, 0.05 + 1e-3)]
    assert float(method.temperature.grad) == pytest.approx((by_hand[1] - by_hand[0]) / 2e-3, rel=0.02)
    assert "temperature" in trainables(method, method.trains) and fixed.temperature is None


def test_mixed_precision_reaches_the_tower_and_not_the_loss(tiny_backbone):
    method, source = make("lincir", tiny_backbone, tau=0.5), NoiseTriplets(tiny_backbone)
    named, batch = trainables(method, method.trains), batch_of(method, tiny_backbone, source)
    plain = method.losses(tiny_backbone, batch)["info_nce"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = method.losses(tiny_backbone, batch)["info_nce"]
    mixed.backward()
    assert mixed.dtype == torch.float32 and 0 < (mixed - plain).abs().item() < 0.1
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in named.values())


# Training, checkpoints, refusals


class Interrupt(Exception):
    pass


def stop_at(step):
    def evaluate(method, at):
        if at == step:
            raise Interrupt
        return {"bench:R@1": 0.0}

    return evaluate


CONFIG = TrainConfig(steps=5, batch=4, lr=1e-3, eps=1e-7, save_every=2, log_every=1, evaluate_every=1)


@pytest.mark.parametrize("name", ["sum", "lincir"])
def test_a_resumed_run_ends_with_the_bits_of_an_uninterrupted_one(tiny_backbone, tmp_path, name):
    def run(out, stop=0, **changes):
        method = make(name, tiny_backbone, learn_tau=True)
        settings = replace(CONFIG, **changes)
        train(method, tiny_backbone, NoiseTriplets(tiny_backbone), settings, out, evaluate=stop_at(stop))
        return method.state_dict()

    whole = run(tmp_path / "a")
    with pytest.raises(Interrupt):
        run(tmp_path / "b", stop=4)
    resumed = run(tmp_path / "b", workers=2)
    assert all(torch.equal(whole[key], resumed[key]) for key in whole) and whole.keys() == resumed.keys()
    first = make(name, tiny_backbone, learn_tau=True).state_dict()
    assert {key for key in first if not torch.equal(first[key], whole[key])} >= {
        "temperature",
        "text.text_projection.weight",
    }
    assert all(torch.equal(first[key], whole[key]) for key in first if key.startswith("base."))


def test_a_checkpoint_makes_the_round_trip(tiny_backbone, tmp_path):
    method = make("lincir", tiny_backbone, learn_tau=True, tau=0.03)
    with torch.no_grad():
        method.text.text_projection.weight.mul_(rand(*method.text.text_projection.weight.shape))
    checkpoint.save(tmp_path, method, tiny_backbone)
    loaded = checkpoint.load(tmp_path, tiny_backbone)
    assert isinstance(loaded, SPN) and loaded.options == method.options and loaded.settled and loaded.base.settled
    reference, queries = rand(2, 1, tiny_backbone.width), [Query("0", "a", ("is red",)), Query("1", "b", ("has cats",))]
    one, two = (
        m.compose(tiny_backbone, reference, queries, Template(), JOINERS["both_orders"]) for m in (method, loaded)
    )
    base = method.base.compose(tiny_backbone, reference, queries, Template(), JOINERS["both_orders"])
    assert torch.equal(one, two) and not torch.allclose(one, base, atol=1e-3)
    assert checkpoint.projector(tmp_path).words(reference[:, 0]).shape == (2, 1, tiny_backbone.word_width)


def test_what_the_base_declares_is_passed_through(tiny_backbone):
    method = make("fine_tuned", tiny_backbone)
    assert method.matches and method.reads == "features" and method.needs == method.base.needs
    assert method.image_side(tiny_backbone).fingerprint == method.base.image_side(tiny_backbone).fingerprint != ""
    reference, candidates = rand(2, 1, tiny_backbone.width), rand(2, 3, 5, 7)
    asked = ([Query("0", "a", ("is red",))] * 2, Template(), JOINERS["first"], candidates)
    expected = method.base.match(tiny_backbone, reference, *asked)
    assert torch.equal(method.match(tiny_backbone, reference, *asked), expected)
    patches = make("context_i2w", tiny_backbone)
    assert patches.reads == "patches"
    source = NoiseTriplets(tiny_backbone)
    expected = tiny_backbone.encode_patches(source.pictures[source.reference[:1]])
    torch.testing.assert_close(batch_of(patches, tiny_backbone, source, [0]).reference, expected)


def test_bases_that_cannot_be_trained_through_are_refused(tiny_backbone):
    with pytest.raises(InputError, match="ImageOnly reads none"):
        make("image_only", tiny_backbone)
    with pytest.raises(InputError, match="Product scores by the product of several vectors"):
        make("product", tiny_backbone)
    with pytest.raises(InputError, match="tau: expected a temperature above 0"):
        make("lincir", tiny_backbone, tau=0)
    twice = build("spn", {}, tiny_backbone, make("lincir", tiny_backbone))
    with pytest.raises(InputError, match=r"queries of SPN have no gradient to text\\\.\.\*"):
        batch_of(twice, tiny_backbone, NoiseTriplets(tiny_backbone))
    assert METHODS["spn"].wraps and METHODS["spn"].learns_from == "image_triplets"


RUNS = Path(__file__).parents[2] / "experiments" / "runs"


@pytest.mark.parametrize(
    ("name", "batch", "epochs", "triplets", "lr", "tau", "learnt", "betas", "decay"),
    [
        ("spn_clip4cir_cirr", 256, 3, 28_225, 2e-5, 0.02, False, [0.9, 0.999], 0.01),
        ("spn_clip4cir_fashioniq", 256, 3, 18_000, 2e-5, 0.02, False, [0.9, 0.999], 0.01),
        ("spn_sprc_cirr", 32, 3, 28_225, 1e-5, 0.05, True, [0.9, 0.98], 0.05),
        ("spn_sprc_fashioniq", 32, 3, 18_000, 1e-5, 0.05, True, [0.9, 0.98], 0.05),
    ],
)
def test_presets_carry_the_published_settings(name, batch, epochs, triplets, lr, tau, learnt, betas, decay):
    run = config.load(RUNS / f"{name}.yaml")
    assert (run.train.batch, run.train.steps, run.train.lr) == (batch, epochs * (triplets // batch), lr)
    assert (run.method["tau"], run.method.get("learn_tau", False)) == (tau, learnt)
    assert (run.train.betas, run.train.weight_decay, run.train.eps) == (betas, decay, 1e-7)
    assert (run.train.schedule, run.train.warmup, run.train.clip_norm) == ("constant", 0, 0)
    assert run.backbone.preprocess == "targetpad" and run.prompt.join == "capital_first"
