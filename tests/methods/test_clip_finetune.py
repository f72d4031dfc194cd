"""CLIP4Cir's first stage against Hugging Face's CLIP trained plainly; as one process, as two, and after a resume.

Run as a script this file computes a step of two processes.
"""

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.nn import functional as F

from cir.backbones.base import ImageSide
from cir.config import TrainConfig
from cir.errors import InputError
from cir.methods import NoStore, build, checkpoint
from cir.methods.shape import BackboneShape
from cir.optim import adamw, trainables
from cir.prompts import JOINERS, Template, tokenize, training_text
from cir.randomness import StepRandom
from cir.train import train
from tests.methods.triplets import TEXTS, NoiseTriplets
from tests.torchrun import two_processes

ROWS = [0, 1, 2, 4]
PREFIXES = {
    "both": ("text_model.", "text_projection.", "vision_model.", "visual_projection."),
    "text": ("text_model.", "text_projection."),
    "image": ("vision_model.", "visual_projection."),
}


def draw(rows=4, total=None, seed=0, step=0, start=0):
    return StepRandom(seed, step, start, start + rows, total or rows)


def make(backbone, **options):
    method = build("clip_finetune", options, backbone, seed=1)
    trainables(method, method.trains)
    return method


def batch(method, backbone, source, rows=ROWS, random=None):
    ready = method.prepare(backbone, source, seed=0, draws=100, store=NoStore())
    return ready.batch(rows, random or draw(len(rows)))


def step(method, backbone, source, rows=ROWS, random=None):
    loss = method.losses(backbone, batch(method, backbone, source, rows, random))
    assert list(loss) == ["info_nce"]
    loss["info_nce"].backward()
    return loss["info_nce"].detach()


def hugging_face(folder, encoder):
    from transformers import CLIPModel

    model = CLIPModel.from_pretrained(folder).eval()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(PREFIXES[encoder]))
    return model


def twin_loss(model, backbone, source, rows=ROWS, random=None, scale=100.0):
    """norm(image + text) against norm(target), one row at a time, every picture encoded by itself."""
    shares = (random or draw(len(rows))).uniform("text").tolist()
    texts = [[training_text(source.query(row).texts, share)] for row, share in zip(rows, shares, strict=True)]
    ids = torch.from_numpy(tokenize(backbone.tokenizer, texts).ids)
    images, targets = (
        torch.cat([model.get_image_features(pixel_values=source.pixels([side[row]])).pooler_output for row in rows])
        for side in (source.reference, source.target)
    )
    queries = images + model.get_text_features(ids).pooler_output
    terms = []
    for i, query in enumerate(queries):
        logits = torch.stack([scale * F.cosine_similarity(query, target, dim=0) for target in targets])
        terms.append(-logits[i] + logits.exp().sum().log())
    return torch.stack(terms).mean()


def gradients(method):
    """A method's gradients by Hugging Face's names."""
    return {name.partition(".")[2]: p.grad for name, p in method.named_parameters()}


# One step


@pytest.mark.parametrize("encoder", PREFIXES)
def test_a_step_equals_hugging_faces_model_trained_plainly(tiny_backbone, tiny_clip_folder, encoder):
    method, source = make(tiny_backbone, encoder=encoder).train(), NoiseTriplets(tiny_backbone)
    loss = step(method, tiny_backbone, source)
    model = hugging_face(tiny_clip_folder, encoder)
    expected = twin_loss(model, tiny_backbone, source)
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-4, atol=1e-5)
    expected.backward()
    twin = {name: p for name, p in model.named_parameters() if p.requires_grad}
    found = gradients(method)
    assert found.keys() == twin.keys()
    scale = max(p.grad.abs().max() for p in twin.values())
    for name, parameter in twin.items():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-3, atol=1e-5 * float(scale))
    adamw(dict(method.named_parameters()), lr=1e-3, weight_decay=0.01, eps=1e-2).step()
    torch.optim.AdamW(twin.values(), lr=1e-3, weight_decay=0.01, eps=1e-2).step()
    for name, parameter in method.named_parameters():
        torch.testing.assert_close(parameter, twin[name.partition(".")[2]], rtol=1e-4, atol=1e-6)


def test_pictures_computed_again_in_parts_have_the_same_gradients(tiny_backbone):
    source = NoiseTriplets(tiny_backbone)
    whole, parts = (make(tiny_backbone, recompute=size) for size in (0, 2))
    assert torch.allclose(step(whole, tiny_backbone, source), step(parts, tiny_backbone, source), rtol=1e-5)
    seen = []
    parts.vision.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    step(parts, tiny_backbone, source)
    assert seen == [2, 2, 2, 2, 2, 2], "six pictures forwards, and again backwards"
    parts.zero_grad(), step(parts, tiny_backbone, source)
    for one, two in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad, rtol=1e-3, atol=1e-5)


def test_each_picture_of_a_batch_is_decoded_and_encoded_once(tiny_backbone):
    method, source = make(tiny_backbone), NoiseTriplets(tiny_backbone)
    given = batch(method, tiny_backbone, source)
    assert torch.equal(given.pictures, source.pixels([0, 1, 2, 3, 4, 5]))
    assert given.reference.tolist() == [0, 1, 2, 4] and given.target.tolist() == [1, 2, 3, 5]
    frozen = batch(make(tiny_backbone, encoder="text"), tiny_backbone, source)
    assert torch.equal(frozen.pictures, source.features([0, 1, 2, 3, 4, 5])), "no pixels where the tower is frozen"


def test_captions_are_drawn_for_the_global_batch_by_row(tiny_backbone):
    method, source = make(tiny_backbone, encoder="text"), NoiseTriplets(tiny_backbone)
    rows, shares = [2, 4, 0, 2], draw(step=3).uniform("text").tolist()
    wanted = [[training_text(TEXTS[row], share)] for row, share in zip(rows, shares, strict=True)]
    expected = tokenize(tiny_backbone.tokenizer, wanted).ids
    assert np.array_equal(batch(method, tiny_backbone, source, rows, draw(step=3)).prompt.ids, expected)
    second = batch(method, tiny_backbone, source, rows[2:], draw(2, 4, step=3, start=2)).prompt.ids
    assert np.array_equal(second, expected[2:, : second.shape[1]])


def test_mixed_precision_reaches_the_towers_and_not_the_loss(tiny_backbone):
    method, source = make(tiny_backbone), NoiseTriplets(tiny_backbone)
    plain, seen = step(method, tiny_backbone, source), []
    method.zero_grad()
    method.vision.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = method.losses(tiny_backbone, batch(method, tiny_backbone, source))["info_nce"]
    loss.backward()
    assert seen == [torch.bfloat16] and loss.dtype == torch.float32 and abs(loss - plain) < 0.1 * plain
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in method.parameters())


# What trains, and what does not


@pytest.mark.parametrize(
    ("encoder", "towers"), [("both", {"text", "vision"}), ("text", {"text"}), ("image", {"vision"})]
)
def test_a_tower_that_does_not_train_is_the_backbones(tiny_backbone, encoder, towers):
    before = {name: p.clone() for name, p in tiny_backbone._model.named_parameters()}
    method, source = make(tiny_backbone, encoder=encoder), NoiseTriplets(tiny_backbone)
    start = {name: p.detach().clone() for name, p in method.named_parameters()}
    assert {name.split(".")[0] for name in start} == towers and all(p.requires_grad for p in method.parameters())
    method.train()
    assert method.training and not any(module.training for name, module in method.named_modules() if name)
    step(method, tiny_backbone, source)
    torch.optim.SGD(method.parameters(), lr=1.0).step()
    moved = {name.split(".")[0] for name, p in method.named_parameters() if not torch.equal(p, start[name])}
    assert moved == towers
    for name, parameter in tiny_backbone._model.named_parameters():
        assert torch.equal(parameter, before[name]) and parameter.grad is None, name


def test_the_image_side_is_the_trained_tower(tiny_backbone, tiny_clip_folder, tmp_path):
    method, source = make(tiny_backbone), NoiseTriplets(tiny_backbone)
    with torch.no_grad():
        method.vision.visual_projection.weight.mul_(-2)
    side, pixels = method.image_side(tiny_backbone), source.pixels([0, 1])
    assert isinstance(side, ImageSide) and side.fingerprint == "", "in training nothing may be kept"
    assert side.preprocess_id == tiny_backbone.preprocess_id and (side.width, side.vectors) == (24, 1)
    found = side.encode_images(pixels)
    torch.testing.assert_close(found, -2 * tiny_backbone.encode_images(pixels), rtol=1e-4, atol=1e-5)
    assert not found.requires_grad and found.shape == (2, 1, 24)
    torch.testing.assert_close(side.encode_patches(pixels), tiny_backbone.encode_patches(pixels))
    checkpoint.save(tmp_path, method, tiny_backbone)
    one, two = (checkpoint.load(tmp_path, tiny_backbone).image_side(tiny_backbone) for _ in range(2))
    assert torch.equal(one.encode_images(pixels), found)
    assert one.fingerprint == two.fingerprint and one.fingerprint not in ("", tiny_backbone.fingerprint)
    with torch.no_grad():
        method.vision.visual_projection.weight[0, 0] += 1
    method.settled = True
    assert method.image_side(tiny_backbone).fingerprint != one.fingerprint
    text = make(tiny_backbone, encoder="text")
    assert text.image_side(tiny_backbone) is tiny_backbone


def test_queries_are_sums_of_raw_features_without_template(tiny_backbone):
    method, source = make(tiny_backbone), NoiseTriplets(tiny_backbone)
    with torch.no_grad():
        method.text.text_projection.weight.mul_(3)
    asked, join = [source.query(row) for row in (2, 4)], JOINERS["capital_first"]
    reference = method.image_side(tiny_backbone).encode_images(source.pixels([2, 4]))
    joined = [["Is blue and has a hood"], ["Person holding umbrella and in the rain"]]
    text = 3 * tiny_backbone.encode_text(tokenize(tiny_backbone.tokenizer, joined))
    expected = F.normalize(reference[:, 0] + text, dim=-1)
    for template in (Template(), Template("a sentence about {text}")):
        found = method.compose(tiny_backbone, reference, asked, template, join)
        torch.testing.assert_close(found[:, 0], expected, rtol=1e-4, atol=1e-5)
    alone = torch.cat([method.compose(tiny_backbone, reference[i : i + 1], asked[i : i + 1], Template(), join)
                       for i in (0, 1)])  # fmt: skip
    torch.testing.assert_close(alone[:, 0], expected, rtol=1e-4, atol=1e-5)
    assert found.requires_grad, "a second stage trains through it"


def test_untrained_it_is_the_raw_sum(tiny_backbone):
    method, plain = make(tiny_backbone), build("sum", {"raw": True}, tiny_backbone)
    source = NoiseTriplets(tiny_backbone)
    asked, reference = [source.query(row) for row in range(4)], source.features(range(4))
    one, two = (each.compose(tiny_backbone, reference, asked, Template(), JOINERS["first"]) for each in (method, plain))
    torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)


def test_a_second_stage_trains_the_text_tower_on(tiny_backbone):
    assert make(tiny_backbone).query_side(tiny_backbone) == (r"text\..*",)
    assert make(tiny_backbone, encoder="image").query_side(tiny_backbone) == ()


def test_what_cannot_be_trained_is_refused_with_the_reason(tiny_backbone):
    with pytest.raises(InputError, match="did you mean 'both'"):
        build("clip_finetune", {"encoder": "bot"}, tiny_backbone)
    several = BackboneShape(24, 32, name="of-32-vectors")
    several.vectors, several.text, several.vision = 32, tiny_backbone.text, tiny_backbone.vision
    for backbone in (several, BackboneShape(24, 32, name="of-widths")):
        with pytest.raises(InputError, match=r"of-(widths|32-vectors) has no vision tower of one vector per picture"):
            build("clip_finetune", {"encoder": "image"}, backbone)


# Whole runs


CONFIG = TrainConfig(steps=6, batch=4, lr=1e-3, eps=1e-4, save_every=2, evaluate_every=1)


class Interrupt(Exception):
    pass


@pytest.mark.parametrize(
    ("options", "changes"),
    [({}, {"workers": 2}), ({"encoder": "text"}, {"precision": "bfloat16"}), ({"recompute": 2}, {"accumulate": 2})],
    ids=str,
)
def test_a_resumed_run_ends_with_the_bits_of_an_uninterrupted_one(tiny_backbone, tmp_path, options, changes):
    def run(out, stop):
        def evaluate(method, step):
            if step == stop:
                raise Interrupt
            return {"bench:R@1": 0.0}

        method = build("clip_finetune", options, tiny_backbone, seed=1)
        train(method, tiny_backbone, NoiseTriplets(tiny_backbone), replace(CONFIG, **changes), out, evaluate=evaluate)
        return method.state_dict()

    whole = run(tmp_path / "a", 0)
    with pytest.raises(Interrupt):
        run(tmp_path / "b", 4)  # after the snapshot at 2: two steps are done twice
    resumed = run(tmp_path / "b", 0)
    assert whole.keys() == resumed.keys() and all(torch.equal(whole[name], resumed[name]) for name in whole)
    start = build("clip_finetune", options, tiny_backbone).state_dict()
    assert any(not torch.equal(whole[name], start[name]) for name in whole)


def test_it_learns_noise_by_heart(tiny_backbone, tmp_path):
    method, source = build("clip_finetune", {}, tiny_backbone), NoiseTriplets(tiny_backbone)
    train(method, tiny_backbone, source, TrainConfig(steps=40, batch=6, lr=1e-3), tmp_path)
    side = method.image_side(tiny_backbone)
    with torch.no_grad():
        reference = side.encode_images(source.pixels(source.reference))
        asked = [source.query(row) for row in range(6)]
        out = method.compose(tiny_backbone, reference, asked, Template(), JOINERS["capital_first"])
    gallery = F.normalize(side.encode_images(source.pixels(range(7)))[:, 0], dim=-1)
    assert (out[:, 0] @ gallery.T).argmax(dim=1).tolist() == source.target.tolist()


# Processes


NAMES = ("clip_finetune", "combiner")


def shared_step(folder, name, start, stop, processes=1):
    """Loss and averaged gradients of rows `start` to `stop` of a batch of six."""
    from cir.backbones import load

    backbone = load(folder, device="cpu")
    method = build(name, {}, backbone, seed=1).train()
    named = trainables(method, method.trains)
    loss = step(method, backbone, NoiseTriplets(backbone), range(start, stop), draw(stop - start, 6, start=start))
    found = {"loss": loss, **{name: p.grad for name, p in named.items()}}
    for tensor in found.values() if processes > 1 else ():
        dist.all_reduce(tensor)
        tensor /= processes
    return found


def main(folder, out):
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    start = 3 * dist.get_rank()
    found = {name: shared_step(folder, name, start, start + 3, processes=2) for name in NAMES}
    if dist.get_rank() == 0:
        torch.save(found, out)
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def shared(tiny_clip_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("processes") / "out"
    two_processes(__file__, tiny_clip_folder, out, timeout=240)
    return torch.load(out, weights_only=True)


@pytest.mark.parametrize("name", NAMES)
def test_two_processes_equal_one_with_the_whole_batch(tiny_clip_folder, shared, name):
    alone = shared_step(str(tiny_clip_folder), name, 0, 6)
    assert alone.keys() == shared[name].keys()
    scale = max(tensor.abs().max() for tensor in alone.values())
    for key, expected in alone.items():
        torch.testing.assert_close(shared[name][key], expected, atol=1e-6 * float(scale), rtol=2e-3)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
