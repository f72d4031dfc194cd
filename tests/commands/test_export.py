"""`cir export`: the folder computes what the method computes, here and in plain transformers, or is not there."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from cir.backbones import load
from cir.cli import app
from cir.commands.export import main
from cir.errors import InputError
from cir.methods import build, checkpoint
from cir.prompts import JOINERS, Template, tokenize
from cir.schema import Query

TEXTS = ("is red and has two dogs", "the sofa", "more similar to a cat")
QUERIES = [Query(str(i), f"image{i}", (text,)) for i, text in enumerate(TEXTS)]


def tuned(backbone, folder, **options):
    """A checkpoint whose towers differ from the backbone's everywhere."""
    method = build("clip_finetune", options, backbone)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=draw))
    checkpoint.save(folder, method, backbone, {"steps": 7, "run": {"seed": 3, "source": "abc"}})
    return checkpoint.load(folder, backbone)


def pixels(count=3, side=32):
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def exported(tiny_backbone, tmp_path_factory):
    place = tmp_path_factory.mktemp("export")
    method = tuned(tiny_backbone, place / "run" / "last")
    main(place / "run", place / "out", "")
    return method, place / "out"


def prompt(backbone):
    return tokenize(backbone.tokenizer, [[text] for text in TEXTS])


def test_the_folder_is_the_methods_own_image_and_text_side(exported, tiny_backbone):
    method, out = exported
    backbone = load(str(out), device="cpu")
    side = method.image_side(tiny_backbone)
    for tower, own in ((backbone.text, method.text), (backbone.vision, method.vision)):
        kept = own.state_dict()
        assert tower.state_dict().keys() == kept.keys()
        assert all(torch.equal(value, kept[name]) for name, value in tower.state_dict().items())
    near = {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(backbone.encode_images(pixels()), side.encode_images(pixels()), **near)
    torch.testing.assert_close(backbone.encode_patches(pixels()), side.encode_patches(pixels()), **near)
    with torch.no_grad():
        expected = method.text.encode(prompt(tiny_backbone))
    torch.testing.assert_close(backbone.encode_text(prompt(backbone)), expected, **near)
    assert (backbone.encode_images(pixels()) - tiny_backbone.encode_images(pixels())).abs().max() > 0.01
    assert backbone.preprocess_id == tiny_backbone.preprocess_id and backbone.logit_scale == tiny_backbone.logit_scale
    assert backbone.tokenizer.fingerprint == tiny_backbone.tokenizer.fingerprint
    assert backbone.fingerprint != tiny_backbone.fingerprint


def test_the_raw_sum_on_the_folder_is_the_method_on_the_backbone(exported, tiny_backbone):
    method, out = exported
    backbone, join = load(str(out), device="cpu"), JOINERS["first"]
    given = method.image_side(tiny_backbone).encode_images(pixels())
    expected = method.compose(tiny_backbone, given, QUERIES, Template(), join)
    plain = build("sum", {"raw": True}, backbone)
    found = plain.compose(backbone, backbone.encode_images(pixels()), QUERIES, Template(), join)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    combiner = build("combiner", {}, backbone)
    assert combiner.compose(backbone, given, QUERIES, Template(), join).shape == (3, 1, 24)


def test_plain_transformers_load_it(exported, tiny_backbone):
    from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

    method, out = exported
    model, info = CLIPModel.from_pretrained(out, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and model.dtype == torch.float32
    rows = AutoTokenizer.from_pretrained(out)(list(TEXTS), padding=True, return_tensors="pt")
    with torch.no_grad():
        texts = model.eval().get_text_features(**rows).pooler_output
        images = model.get_image_features(pixels()).pooler_output
        expected = method.text.encode(prompt(tiny_backbone))
    torch.testing.assert_close(texts, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(images, method.image_side(tiny_backbone).encode_images(pixels())[:, 0])
    assert CLIPImageProcessor.from_pretrained(out).crop_size["height"] == 32


def test_a_card_says_where_it_comes_from(exported, tiny_clip_folder, tiny_backbone):
    card = (exported[1] / "README.md").read_text()
    assert (
        "library_name: transformers" in card
        and "encoder both" in card
        and "steps: 7, seed: 3, training source: abc" in card
    )
    assert f"fine-tuned from: {tiny_clip_folder}, fingerprint {tiny_backbone.fingerprint}" in card
    files = {path.name for path in tiny_clip_folder.iterdir()}
    assert {path.name for path in exported[1].iterdir()} == files | {"README.md"}


@pytest.mark.parametrize(("encoder", "kept"), [("text", "vision_model."), ("image", "text_model.")])
def test_a_tower_that_did_not_train_stays_bit_for_bit(tiny_backbone, tiny_clip_folder, tmp_path, encoder, kept):
    tuned(tiny_backbone, tmp_path / "checkpoint", encoder=encoder)
    main(tmp_path / "checkpoint", tmp_path / "out", "")
    before, after = (load_file(folder / "model.safetensors") for folder in (tiny_clip_folder, tmp_path / "out"))
    assert before.keys() == after.keys() and torch.equal(before["logit_scale"], after["logit_scale"])
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert not {
        name for name in same if name.startswith(("vision_model.", "text_model.")) and not name.startswith(kept)
    }


def test_half_precision_and_pickled_weights_of_a_backbone_are_read_and_written_as_float32(
    tiny_clip_folder, tiny_backbone, tmp_path
):
    shutil.copytree(tiny_clip_folder, tmp_path / "old")
    weights = load_file(tiny_clip_folder / "model.safetensors")
    counted = {"text_model.embeddings.position_ids": torch.arange(77)}
    torch.save({name: t.half() for name, t in weights.items()} | counted, tmp_path / "old" / "pytorch_model.bin")
    (tmp_path / "old" / "model.safetensors").unlink()
    config = json.loads((tmp_path / "old" / "config.json").read_text())
    (tmp_path / "old" / "config.json").write_text(json.dumps(config | {"torch_dtype": "float16"}))
    tuned(load(str(tmp_path / "old"), device="cpu"), tmp_path / "checkpoint", encoder="text")
    main(tmp_path / "checkpoint", tmp_path / "out", "")
    after = load_file(tmp_path / "out" / "model.safetensors")
    assert after.keys() == weights.keys() and {t.dtype for t in after.values()} == {torch.float32}
    assert torch.equal(after["visual_projection.weight"], weights["visual_projection.weight"].half().float())
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["dtype"] == "float32" and "torch_dtype" not in config
    assert not list((tmp_path / "out").glob("*.bin"))


def test_what_cannot_be_exported_is_refused_and_leaves_nothing(tiny_backbone, tiny_clip_folder, make_clip, tmp_path):
    checkpoint.save(tmp_path / "lincir", build("lincir", {}, tiny_backbone), tiny_backbone)
    tuned(tiny_backbone, tmp_path / "tuned")
    other = make_clip(tmp_path / "other", seed=5)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    out = tmp_path / "out"
    for path, place, backbone, reason in (
        ("lincir", out, "", "holds lincir; only towers that clip_finetune trained"),
        ("absent", out, "", "no checkpoint here"),
        ("tuned", out, str(other), "name the right one with --backbone"),
        ("tuned", tmp_path / "full", "", "already there"),
    ):
        with pytest.raises(InputError, match=reason):
            main(tmp_path / path, place, backbone)
    unknown = json.loads((tmp_path / "tuned" / "config.json").read_text())
    unknown["backbone"]["fingerprint"] = ""
    (tmp_path / "tuned" / "config.json").write_text(json.dumps(unknown))
    smaller = make_clip(tmp_path / "smaller", layers=1)
    with pytest.raises(
        InputError, match=r"smaller: has no place for 32 of the checkpoint's \d+ tensors, first \['text_"
    ):
        main(tmp_path / "tuned", out, str(smaller))
    assert not [path for path in tmp_path.iterdir() if path.name.startswith((".", "out"))]


def test_the_command_says_what_it_did_and_stops_with_two(tiny_backbone, tmp_path):
    tuned(tiny_backbone, tmp_path / "checkpoint")
    call = [str(tmp_path / "checkpoint"), str(tmp_path / "out")]
    done = CliRunner().invoke(app, ["export", *call])
    assert done.exit_code == 0, done.output
    assert "tensors are the checkpoint's" in done.output and f"backbone.name={tmp_path / 'out'}" in done.output
    again = CliRunner().invoke(app, ["export", *call])
    assert again.exit_code == 2 and "already there" in again.output and again.output.count("\n") == 1
