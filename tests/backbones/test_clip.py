"""The CLIP backbone against Hugging Face's own forward, and the splice against a tower that knows the pseudo-words."""

import copy
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cir.backbones import Backbone, TextTower, load
from cir.backbones.base import Tokenizer
from cir.errors import InputError
from cir.prompts import Template, tokenize

TEXTS = ["is red", "a dog on the grass with an umbrella", "", "has 2 shorter sleeves, and is blue"]


def hf_model(folder, **changes):
    from transformers import CLIPModel

    return CLIPModel.from_pretrained(folder, **changes).eval()


@torch.no_grad()
def hf_text(model, ids):
    return model.get_text_features(torch.from_numpy(ids)).pooler_output


def prompts(backbone, template="a photo of $ that {text}"):
    return Template(template).render(backbone.tokenizer, [[text] for text in TEXTS]).prompt


def pictures(count, seed=0, size=(50, 40)):
    draw = np.random.default_rng(seed)
    return [Image.fromarray(draw.integers(0, 256, (*size, 3), dtype=np.uint8)) for _ in range(count)]


def test_it_is_a_backbone(tiny_backbone, tiny_clip_folder):
    assert isinstance(tiny_backbone, Backbone) and isinstance(tiny_backbone.tokenizer, Tokenizer)
    assert isinstance(tiny_backbone.text, TextTower)
    assert (tiny_backbone.width, tiny_backbone.word_width, tiny_backbone.vectors) == (24, 32, 1)
    assert tiny_backbone.logit_scale == pytest.approx(hf_model(tiny_clip_folder).logit_scale.exp().item(), rel=1e-6)
    assert not any(parameter.requires_grad for parameter in tiny_backbone.text.parameters())
    assert not tiny_backbone.text.training


TOWERS = [("auto", "sdpa"), ("padded", "sdpa"), ("padded", "eager")]


@pytest.mark.parametrize(("tower", "attention"), TOWERS)
def test_text_equals_hugging_face_on_padded_rows(tiny_clip_folder, tower, attention):
    backbone = load(str(tiny_clip_folder), device="cpu", text_tower=tower, attention=attention)
    prompt = prompts(backbone)
    full = np.full((len(prompt), 77), backbone.tokenizer.pad)
    full[:, : prompt.ids.shape[1]] = prompt.ids
    expected = hf_text(hf_model(tiny_clip_folder, attn_implementation=attention), full)
    found = backbone.encode_text(prompt)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert (expected[0] - expected[1]).abs().max() > 0.1  # the texts do differ, so agreement says something


def test_eager_equals_sdpa(tiny_clip_folder, tiny_backbone):
    eager = load(str(tiny_clip_folder), device="cpu", text_tower="padded", attention="eager")
    prompt = prompts(eager)
    pseudo = torch.randn(len(prompt), 1, 32)
    torch.testing.assert_close(
        eager.encode_text(prompt, pseudo), tiny_backbone.encode_text(prompt, pseudo), atol=1e-5, rtol=1e-5
    )


def test_pooling_does_not_read_the_end_id_of_old_configs(tiny_clip_folder, tiny_backbone, tmp_path):
    shutil.copytree(tiny_clip_folder, tmp_path / "old")
    config = json.loads((tmp_path / "old/config.json").read_text())
    config["text_config"]["eos_token_id"] = 2
    (tmp_path / "old/config.json").write_text(json.dumps(config))
    model = hf_model(tmp_path / "old")
    assert model.text_model.eos_token_id == 2
    old = load(str(tmp_path / "old"), device="cpu")
    prompt = prompts(old)
    torch.testing.assert_close(old.encode_text(prompt), hf_text(model, prompt.ids), atol=1e-5, rtol=1e-5)
    assert torch.equal(old.encode_text(prompt), tiny_backbone.encode_text(prompt))


@pytest.mark.parametrize(("tower", "attention"), TOWERS)
@pytest.mark.parametrize("template", ["a photo of $ that {text}", "$ and $ {text}"])
def test_splicing_a_words_own_embedding_changes_nothing(tiny_clip_folder, tower, attention, template):
    backbone = load(str(tiny_clip_folder), device="cpu", text_tower=tower, attention=attention)
    prompt = prompts(backbone, template)
    own = backbone.text.text_model.embeddings.token_embedding.weight[backbone.tokenizer.slot]
    spliced = backbone.encode_text(prompt, own.expand(len(prompt), 1, -1))
    # Rows that share nothing are multiplied in other shapes than rows that share their beginning.
    torch.testing.assert_close(spliced, backbone.encode_text(prompt), atol=1e-6, rtol=1e-6)
    assert tower == "auto" or torch.equal(spliced, backbone.encode_text(prompt))


@pytest.mark.parametrize(("slots", "vectors"), [(1, 1), (3, 1), (3, 3)])
def test_pseudo_words_equal_new_words_of_the_vocabulary(tiny_clip_folder, tiny_backbone, slots, vectors):
    """The twin: Hugging Face's model with the vectors appended to its vocabulary, and plain ids."""
    template = "a photo of " + "$ and " * slots + "{text}"
    prompt = prompts(tiny_backbone, template)
    pseudo = torch.randn(len(prompt), vectors, 32, generator=torch.Generator().manual_seed(1))
    model = hf_model(tiny_clip_folder)
    words = model.text_model.embeddings.token_embedding
    known = words.num_embeddings
    grown = torch.nn.Embedding.from_pretrained(torch.cat([words.weight.detach(), pseudo.flatten(0, 1)]))
    model.text_model.embeddings.token_embedding = grown
    ids = prompt.ids.copy()
    for row in range(len(prompt)):
        for column, position in enumerate(prompt.slots[row]):
            ids[row, position] = known + row * vectors + (column if vectors > 1 else 0)
    found = tiny_backbone.encode_text(prompt, pseudo)
    torch.testing.assert_close(found, hf_text(model, ids), atol=1e-5, rtol=1e-5)
    assert (found - tiny_backbone.encode_text(prompt)).abs().max() > 0.1


def test_rows_with_fewer_slots_leave_the_other_columns_alone(tiny_backbone):
    tokenizer = tiny_backbone.tokenizer
    mixed = tokenize(tokenizer, [["a", " and", " dog"], ["a", " dog"], ["a dog"]])
    pseudo = torch.randn(3, 2, 32)
    found = tiny_backbone.encode_text(mixed, pseudo)
    one = tiny_backbone.encode_text(tokenize(tokenizer, [["a", " dog"]]), pseudo[1:2, :1])
    torch.testing.assert_close(found[1:2], one, atol=1e-5, rtol=1e-5)
    none = tiny_backbone.encode_text(tokenize(tokenizer, [["a dog"]]))
    torch.testing.assert_close(found[2:], none, atol=1e-5, rtol=1e-5)


def test_a_batch_equals_its_rows_and_what_stands_behind_the_end_is_not_read(tiny_backbone):
    prompt = prompts(tiny_backbone)
    pseudo = torch.randn(len(prompt), 1, 32)
    together = tiny_backbone.encode_text(prompt, pseudo)
    for row in range(len(prompt)):
        here = slice(row, row + 1)
        torch.testing.assert_close(
            together[here], tiny_backbone.encode_text(prompt[here], pseudo[here]), atol=1e-5, rtol=1e-5
        )
    other = prompt.ids.copy()
    for row, end in enumerate(prompt.ends):
        other[row, end + 1 :] = 7
    changed = tiny_backbone.encode_text(type(prompt)(other, prompt.slots, prompt.ends), pseudo)
    assert torch.equal(changed, together)


def test_no_prompts_give_no_vectors(tiny_backbone):
    assert tiny_backbone.encode_text(tokenize(tiny_backbone.tokenizer, [])).shape == (0, 24)


def test_a_copy_of_the_tower_trains_and_leaves_the_frozen_one_alone(tiny_backbone):
    prompt = prompts(tiny_backbone)
    before = tiny_backbone.encode_text(prompt)
    tower = copy.deepcopy(tiny_backbone.text).requires_grad_(True).train()
    pseudo = torch.randn(len(prompt), 1, 32, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        loss = tower.encode(prompt, pseudo).float().square().mean()
    loss.backward()
    named = dict(tower.named_parameters())
    # A softmax does not feel a shift of all its logits, so the keys' bias has no gradient to speak of.
    idle = [name for name, p in named.items() if p.grad is None or not p.grad.any()]
    assert all(name.endswith("k_proj.bias") for name in idle) and pseudo.grad.abs().min() > 0
    torch.optim.SGD(tower.parameters(), 0.1).step()
    assert torch.equal(tiny_backbone.encode_text(prompt), before)
    assert not any(p.requires_grad or p.grad is not None for p in tiny_backbone.text.parameters())
    assert not torch.equal(tower.encode(prompt).detach(), before)


def test_the_towers_parameters_have_hugging_faces_names(tiny_clip_folder, tiny_backbone):
    from transformers import CLIPTextModelWithProjection

    official = CLIPTextModelWithProjection.from_pretrained(tiny_clip_folder)
    assert tiny_backbone.text.state_dict().keys() == official.state_dict().keys()


def test_images_equal_hugging_face_and_a_batch_equals_its_rows(tiny_clip_folder, tiny_backbone):
    pixels = torch.stack([tiny_backbone.preprocess(picture) for picture in pictures(3)])
    found = tiny_backbone.encode_images(pixels)
    with torch.no_grad():
        expected = hf_model(tiny_clip_folder).get_image_features(pixels).pooler_output
    assert found.shape == (3, 1, 24) and found.dtype == torch.float32
    torch.testing.assert_close(found[:, 0], expected, atol=1e-5, rtol=1e-5)
    for row in range(3):
        torch.testing.assert_close(
            tiny_backbone.encode_images(pixels[row : row + 1]), found[row : row + 1], atol=1e-5, rtol=1e-5
        )


def test_bfloat16_towers_give_float32_vectors_close_to_float32(tiny_clip_folder, tiny_backbone):
    half = load(str(tiny_clip_folder), device="cpu", dtype="bfloat16")
    assert half.dtype == torch.bfloat16 and next(half.text.parameters()).dtype == torch.bfloat16
    assert half.fingerprint == tiny_backbone.fingerprint
    prompt, pixels = prompts(half), torch.stack([half.preprocess(picture) for picture in pictures(2)])
    pseudo = torch.randn(len(prompt), 1, 32)
    for found, expected in (
        (half.encode_text(prompt, pseudo), tiny_backbone.encode_text(prompt, pseudo)),
        (half.encode_images(pixels)[:, 0], tiny_backbone.encode_images(pixels)[:, 0]),
    ):
        assert found.dtype == torch.float32
        assert torch.nn.functional.cosine_similarity(found, expected).min() > 0.99


def test_a_vit_b_32_sized_clip_runs_end_to_end(make_clip, tmp_path):
    folder = make_clip(tmp_path / "b32", width=512, layers=12, heads=8, size=224, patch=32, joint=512, vision_width=768)
    backbone = load(str(folder), device="cpu", preprocess="targetpad")
    found = backbone.encode_images(torch.stack([backbone.preprocess(p) for p in pictures(2, size=(300, 200))]))
    assert found.shape == (2, 1, 512) and found.isfinite().all()
    prompt = prompts(backbone)
    torch.testing.assert_close(
        backbone.encode_text(prompt), hf_text(hf_model(folder), prompt.ids), atol=1e-5, rtol=1e-4
    )
    assert backbone.encode_text(prompt, torch.randn(len(prompt), 1, 512)).isfinite().all()
    shutil.rmtree(folder)  # half a gigabyte


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"device": "gpu"}, "device 'gpu'"),
        ({"device": "cuda:63"}, "CUDA devices; use device=auto"),
        ({"dtype": "float15"}, "did you mean 'float16'"),
        ({"dtype": "float16"}, "use bfloat16 or float32"),
        ({"preprocess": "targetpads"}, "did you mean 'targetpad'"),
        ({"text_tower": "pad"}, "did you mean 'padded'"),
        ({"attention": "flash"}, "known: eager, sdpa"),
    ],
)
def test_wrong_arguments_are_one_clear_line(tiny_clip_folder, wrong, message):
    with pytest.raises(InputError, match=message) as error:
        load(str(tiny_clip_folder), **{"device": "cpu", **wrong})
    assert "\n" not in str(error.value)


def break_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def drop_a_tensor(folder):
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    tensors.pop("text_projection.weight")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def remove(*names):
    return lambda folder: [path.unlink() for name in names for path in folder.glob(name)]


BROKEN = {
    "no config": (remove("config.json"), "no config.json"),
    "no weights": (remove("*.safetensors"), "no weights; looked for model.safetensors"),
    "no preprocessing": (remove("preprocessor_config.json"), "no preprocessing found"),
    "no tokenizer": (
        remove("tokenizer*", "vocab.json", "merges.txt"),
        "no tokenizer; looked for tokenizer.json, vocab.json with",
    ),
    "config is not json": (lambda f: (f / "config.json").write_text("{"), "not readable as JSON"),
    "config is a list": (lambda f: (f / "config.json").write_text("[]"), "expected a JSON object"),
    "other model": (lambda f: break_config(f, model_type="bert"), "model_type 'bert'"),
    "naflex": (lambda f: break_config(f, model_type="siglip2"), "fixed-resolution"),
    "a missing tensor": (drop_a_tensor, "1 weights of CLIPModel absent, first ..text_projection.weight"),
    "truncated weights": (
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:5000]),
        "weights not readable",
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_broken_folders_are_one_clear_line(tiny_clip_folder, tmp_path, what):
    breaks, message = BROKEN[what]
    folder = Path(shutil.copytree(tiny_clip_folder, tmp_path / "broken"))
    breaks(folder)
    with pytest.raises(InputError, match=message) as error:
        load(str(folder), device="cpu")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["./nowhere", "nowhere", "a/b/c"])
def test_a_folder_that_does_not_exist_is_named(name):
    with pytest.raises(InputError, match=f"backbone '{name}': no such folder"):
        load(name)


def test_a_hub_id_without_network_is_one_clear_line(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="backbone 'nobody/nothing': no such folder, and the hub") as error:
        load("nobody/nothing")
    assert "\n" not in str(error.value)


def test_old_bin_weights_load_and_other_weights_have_another_fingerprint(tiny_clip_folder, tiny_backbone, tmp_path):
    from safetensors.torch import load_file

    folder = Path(shutil.copytree(tiny_clip_folder, tmp_path / "bin"))
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    old = load(str(folder), device="cpu")
    prompt = prompts(old)
    assert torch.equal(old.encode_text(prompt), tiny_backbone.encode_text(prompt))
    assert old.fingerprint != tiny_backbone.fingerprint


def test_the_fingerprint_follows_weights_and_architecture_only(tiny_clip_folder, tiny_backbone, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(tiny_clip_folder, tmp_path / "copy"))
    break_config(folder, transformers_version="0.0", _name_or_path="elsewhere")
    assert load(str(folder), device="cpu").fingerprint == tiny_backbone.fingerprint
    tensors = load_file(folder / "model.safetensors")
    tensors["logit_scale"] = tensors["logit_scale"] + 1
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    changed = load(str(folder), device="cpu")
    assert changed.fingerprint != tiny_backbone.fingerprint and len(changed.fingerprint) == 16
    shutil.copy(tiny_clip_folder / "model.safetensors", folder)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["hidden_act"] = "gelu"
    (folder / "config.json").write_text(json.dumps(config))
    assert load(str(folder), device="cpu").fingerprint != tiny_backbone.fingerprint


def test_patches_begin_with_the_class_token_that_makes_the_feature(tiny_backbone):
    pixels = torch.randn(2, 3, 32, 32)
    patches = tiny_backbone.encode_patches(pixels)
    assert patches.shape == (2, 17, tiny_backbone.vision_width) and tiny_backbone.class_token
    model = tiny_backbone._model
    with torch.no_grad():
        feature = model.visual_projection(model.vision_model.post_layernorm(patches[:, 0]))
    torch.testing.assert_close(feature, tiny_backbone.encode_images(pixels)[:, 0], atol=1e-5, rtol=1e-4)
