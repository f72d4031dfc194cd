"""The BLIP-2 backbone against Hugging Face's own forward: contrastive, matching, both vision towers."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from cir.backbones import Backbone, TextTower, blip2, load
from cir.backbones.base import ImageSide, Matcher, Tokenizer
from cir.errors import InputError
from cir.prompts import Template, tokenize
from tests.backbones.blip2_folder import tiny_blip2

TEXTS = ["is red", "a dog on the grass with an umbrella", "", "two dogs, and a cat"]
CLOSE = {"atol": 1e-5, "rtol": 1e-4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_blip2(tmp_path_factory.mktemp("tiny-blip2"))


@pytest.fixture(scope="module")
def vitl_folder(tmp_path_factory):
    return tiny_blip2(tmp_path_factory.mktemp("tiny-blip2-vitl"), vision="clip_vision_model")


@pytest.fixture(scope="module")
def backbone(folder):
    return load(str(folder), device="cpu")


def hf_model(folder, **changes):
    """Stock `transformers`, with LAVIS's epsilon in the norm behind the vision tower."""
    from transformers import Blip2ForImageTextRetrieval

    model = Blip2ForImageTextRetrieval.from_pretrained(folder, **changes).eval()
    model.vision_model.post_layernorm.eps = 1e-5
    return model


@pytest.fixture(scope="module")
def official(folder):
    return hf_model(folder)


@pytest.fixture(scope="module")
def pixels():
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def copied(folder, to, **config):
    """Copy a folder, its config.json changed."""
    shutil.copytree(folder, to)
    path = to / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    return to


def mask_of(prompt):
    return torch.from_numpy((np.arange(prompt.ids.shape[1]) <= prompt.ends[:, None]).astype(np.int64))


def test_it_is_a_backbone_with_a_matching_head(backbone, tiny_backbone):
    assert isinstance(backbone, Backbone) and isinstance(backbone, ImageSide)
    assert isinstance(backbone.tokenizer, Tokenizer) and isinstance(backbone.text, TextTower)
    assert isinstance(backbone, Matcher) and not isinstance(tiny_backbone, Matcher)
    assert (backbone.width, backbone.word_width, backbone.vectors, backbone.vision_width) == (24, 32, 32, 48)
    assert backbone.logit_scale == pytest.approx(1 / 0.05)
    assert not backbone.text.training and not backbone.parts.training
    frozen = [*backbone.text.parameters(), *backbone.parts.parameters()]
    assert not any(parameter.requires_grad for parameter in frozen)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_contrastive_similarities_equal_hugging_face(folder, pixels, attention):
    backbone, model = (
        load(str(folder), device="cpu", attention=attention),
        hf_model(folder, attn_implementation=attention),
    )
    prompt = tokenize(backbone.tokenizer, [[text] for text in TEXTS])
    with torch.no_grad():
        expected = model(pixel_values=pixels, input_ids=torch.from_numpy(prompt.ids), attention_mask=mask_of(prompt))
    images, texts = backbone.encode_images(pixels), backbone.encode_text(prompt)
    assert images.shape == (3, 32, 24) and images.dtype == texts.dtype == torch.float32
    torch.testing.assert_close(F.normalize(images, dim=-1), expected.image_embeds, **CLOSE)
    torch.testing.assert_close(F.normalize(texts, dim=-1), expected.text_embeds, **CLOSE)
    best = torch.einsum("itd,qd->itq", F.normalize(images, dim=-1), F.normalize(texts, dim=-1)).amax(dim=1)
    torch.testing.assert_close(best, expected.logits_per_image, **CLOSE)
    assert (images.norm(dim=-1) - 1).abs().max() > 0.1  # raw, not unit


def test_matching_equals_hugging_face(backbone, official, pixels):
    prompt = tokenize(backbone.tokenizer, [[text] for text in TEXTS[:3]])
    with torch.no_grad():
        logits = official(
            pixel_values=pixels,
            input_ids=torch.from_numpy(prompt.ids),
            attention_mask=mask_of(prompt),
            use_image_text_matching_head=True,
        ).logits_per_image
    found = backbone.match(backbone.encode_patches(pixels), prompt)
    torch.testing.assert_close(found, logits.softmax(dim=1)[:, 1], **CLOSE)
    assert found.dtype == torch.float32 and (found[0] - found[1]).abs() > 1e-3
    probability = torch.stack([torch.exp(row[1]) / (torch.exp(row[0]) + torch.exp(row[1])) for row in logits])
    torch.testing.assert_close(found, probability, **CLOSE)


def test_matching_with_pseudo_words_equals_words_of_the_vocabulary(backbone, official, pixels):
    """A pseudo-word that is the embedding of "dress" matches as the word does, in the row of its owner."""
    words = official.embeddings.word_embeddings.weight.detach()
    names = ["dress", "sofa"]
    pseudo = torch.stack([words[backbone.tokenizer.pieces(name)] for name in names])
    rendered = Template("a photo of $ that {text}").render(backbone.tokenizer, [["is red", "is blue"], ["is red"]])
    patches = backbone.encode_patches(pixels)
    found = backbone.match(patches, rendered.prompt, pseudo, rendered.owner)
    texts = ["a photo of dress that is red", "a photo of dress that is blue", "a photo of sofa that is red"]
    expected = backbone.match(patches, tokenize(backbone.tokenizer, [[text] for text in texts]))
    torch.testing.assert_close(found, expected, **CLOSE)
    assert (found - backbone.match(patches, rendered.prompt)).abs().max() > 1e-3


def test_matching_goes_in_blocks_and_refuses_unequal_numbers(backbone, pixels, monkeypatch):
    texts = ["red dress", "two dogs on grass", "", "cats", "a person holding umbrella in rain"]
    prompt = Template("$ {text}").render(backbone.tokenizer, [[text] for text in texts]).prompt
    pseudo, owner = torch.randn(3, 1, 32, generator=torch.Generator().manual_seed(1)), np.array([2, 0, 1, 1, 2])
    patches = backbone.encode_patches(pixels)[[0, 1, 2, 0, 1]]
    whole = backbone.match(patches, prompt, pseudo, owner)
    seen = []
    fuse = type(backbone.parts).fuse
    monkeypatch.setattr(
        type(backbone.parts),
        "fuse",
        lambda self, tokens, *a, **k: seen.append(len(tokens)) or fuse(self, tokens, *a, **k),
    )
    monkeypatch.setattr(blip2, "MATCHED_AT_ONCE", 2)
    torch.testing.assert_close(backbone.match(patches, prompt, pseudo, owner), whole, **CLOSE)
    assert seen == [2, 2, 1]
    kept = patches.half()  # as a cache has them
    torch.testing.assert_close(backbone.match(kept, prompt, pseudo, owner), whole, atol=1e-2, rtol=1e-2)
    rows = [backbone.match(patches[i : i + 1], prompt[i : i + 1], pseudo[owner[i : i + 1]]) for i in range(5)]
    torch.testing.assert_close(torch.cat(rows), whole, **CLOSE)
    assert backbone.match(patches[:0], prompt[:0]).shape == (0,)
    with pytest.raises(InputError, match="4 pictures for 5 texts"):
        backbone.match(patches[:4], prompt)


def test_patches_lie_before_the_norm_class_token_first(backbone, official, pixels):
    patches = backbone.encode_patches(pixels)
    vision = official.vision_model
    with torch.no_grad():
        expected = vision.encoder(inputs_embeds=vision.embeddings(pixels)).last_hidden_state
        normed = vision(pixel_values=pixels).last_hidden_state
    assert patches.shape == (3, 17, 48) and backbone.class_token
    torch.testing.assert_close(patches, expected, **CLOSE)
    torch.testing.assert_close(backbone.parts.normed(patches), normed, **CLOSE)
    again = backbone.parts.vision_projection(backbone.parts.image(backbone.parts.normed(patches)))
    torch.testing.assert_close(again, backbone.encode_images(pixels), **CLOSE)


def test_an_empty_batch_of_texts(backbone):
    prompt = tokenize(backbone.tokenizer, [["red"]])[:0]
    assert backbone.encode_text(prompt).shape == (0, 24)


def test_vit_l_equals_clips_vision_model_before_its_norm(vitl_folder, pixels):
    """LAVIS's pretrain_vitL: the tokens of CLIP's last kept block, then `ln_vision`."""
    from safetensors.torch import load_file
    from transformers import CLIPVisionConfig, CLIPVisionModel

    backbone = load(str(vitl_folder), device="cpu")
    state = load_file(vitl_folder / "model.safetensors")
    assert "post_layernorm.weight" in state and not any("vision_model.post_layernorm" in name for name in state)
    config = json.loads((vitl_folder / "config.json").read_text())["vision_config"]
    assert config["model_type"] == "clip_vision_model"
    tower = CLIPVisionModel(CLIPVisionConfig.from_dict(config)).eval()
    own = {name.removeprefix("vision_model."): w for name, w in state.items() if name.startswith("vision_model.")}
    missing, unexpected = tower.load_state_dict(own, strict=False)
    assert not unexpected and {name.split(".")[-2] for name in missing} == {"post_layernorm"}
    with torch.no_grad():
        tokens = tower(pixel_values=pixels).last_hidden_state
    torch.testing.assert_close(backbone.encode_patches(pixels), tokens, **CLOSE)
    normed = F.layer_norm(tokens, (48,), state["post_layernorm.weight"], state["post_layernorm.bias"], eps=1e-5)
    torch.testing.assert_close(backbone.parts.normed(tokens), normed, **CLOSE)
    with torch.no_grad():
        seen = backbone.parts.vision_projection(backbone.parts.image(normed))
    torch.testing.assert_close(backbone.encode_images(pixels), seen, **CLOSE)
    prompt = tokenize(backbone.tokenizer, [[text] for text in TEXTS[:3]])
    assert backbone.match(tokens, prompt).shape == (3,) and backbone.encode_text(prompt).shape == (3, 24)


def test_the_vision_tower_alone_computes_in_half_precision(folder, backbone, pixels):
    half = load(str(folder), device="cpu", dtype="bfloat16")
    assert half.dtype == torch.bfloat16
    assert {p.dtype for p in half.parts.parameters()} == {torch.float32}
    patches, images = half.encode_patches(pixels), half.encode_images(pixels)
    assert patches.dtype == images.dtype == torch.float32
    assert torch.equal(patches, patches.bfloat16().float())  # bfloat16 numbers, which is what the tower gave
    torch.testing.assert_close(patches, backbone.encode_patches(pixels), atol=0.2, rtol=0.05)
    similar = F.cosine_similarity(images, backbone.encode_images(pixels), dim=-1)
    assert not torch.equal(images, backbone.encode_images(pixels)) and similar.min() > 0.99
    prompt = tokenize(half.tokenizer, [["two dogs"]])
    torch.testing.assert_close(half.encode_text(prompt), backbone.encode_text(prompt), **CLOSE)


def test_weights_stored_in_half_precision_load_as_float32(folder, tmp_path, pixels):
    from safetensors.torch import load_file, save_file

    to = copied(folder, tmp_path / "half")
    state = {name: weight.half() for name, weight in load_file(folder / "model.safetensors").items()}
    save_file(state, to / "model.safetensors", metadata={"format": "pt"})
    loaded = load(str(to), device="cpu")
    assert {p.dtype for p in loaded.parts.parameters()} == {torch.float32}
    assert torch.equal(loaded.parts.query_tokens, state["query_tokens"].float())


# ------------------------------------------------------------------------------------------- tokens and pixels


def test_rows_equal_the_official_tokenizer_on_cleaned_text(folder, backbone):
    from transformers import BertTokenizer

    official = BertTokenizer.from_pretrained(folder)
    texts = ["Two  dogs (on grass)!", "a red-blue dress, isn't it?", "costs $20; half/half.\n"]
    cleaned = ["two dogs on grass", "a red-blue dress, isn't it?", "costs $20 half/half"]
    found = tokenize(backbone.tokenizer, [[text] for text in texts])
    for row, text in enumerate(cleaned):
        assert found.ids[row, : found.ends[row] + 1].tolist() == official(text)["input_ids"]
    assert (found.ids[0, found.ends[0] + 1 :] == official.pad_token_id).all()
    assert backbone.tokenizer.start == (official.cls_token_id,) and backbone.tokenizer.end == official.sep_token_id
    assert backbone.tokenizer.context == 32 and not backbone.tokenizer.fixed_length


def test_a_prompt_is_the_official_string_with_a_dollar(folder, backbone):
    from transformers import BertTokenizer

    found = Template().render(backbone.tokenizer, [["is red (very)."]]).prompt
    ids = BertTokenizer.from_pretrained(folder)("a photo of $ that is red very")["input_ids"]
    assert found.ids[0].tolist() == ids
    assert found.slots[0].tolist() == [ids.index(backbone.tokenizer.slot)] == [4]


def test_long_texts_are_an_error_or_cut_as_lavis_cuts_them(folder, backbone):
    from transformers import BertTokenizer

    text = " ".join(["dogs", "red"] * 20)
    with pytest.raises(InputError, match="42 tokens, the text tower takes 32"):
        tokenize(backbone.tokenizer, [[text]])
    cut = tokenize(backbone.tokenizer, [[text]], overflow="cut")
    expected = BertTokenizer.from_pretrained(folder)(text, truncation=True, max_length=32)["input_ids"]
    assert cut.ids[0].tolist() == expected and cut.ends[0] == 31


@pytest.mark.parametrize("size", [(60, 45), (45, 60), (32, 32), (20, 90)])
def test_pixels_equal_hugging_faces_processor(folder, backbone, size):
    from transformers import BlipImageProcessorPil

    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8))
    processor = BlipImageProcessorPil.from_pretrained(folder)
    expected = processor(picture, return_tensors="pt")["pixel_values"]
    assert torch.equal(backbone.preprocess(picture)[None], expected)
    assert backbone.preprocess_id.startswith("squash:")


def test_padded_pictures_are_cropped_as_in_sprc(folder):
    """TargetPad(1.25), short side to n, centre crop, and not squashed: CLIP4Cir's transform, which SPRC took over."""
    padded = load(str(folder), device="cpu", preprocess="targetpad")
    assert padded.preprocess_id.startswith("targetpad-1.25:")
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (60, 30, 3), dtype=np.uint8))
    canvas = Image.new("RGB", (48, 60))
    canvas.paste(picture, (9, 0))  # 60 / 1.25 = 48 wide
    grown = np.asarray(canvas.resize((32, 40), resample=Image.Resampling.BICUBIC))[4:36]
    mean, std = (np.array(v) for v in ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)))
    expected = torch.from_numpy((grown / 255 - mean) / std).permute(2, 0, 1).float()
    torch.testing.assert_close(padded.preprocess(picture), expected, **CLOSE)


# ----------------------------------------------------------------------------------------------------- bad input


def test_a_folder_without_a_temperature_has_laviss(folder, tmp_path):
    to = copied(folder, tmp_path / "plain")
    config = json.loads((to / "config.json").read_text())
    del config["cir"]
    (to / "config.json").write_text(json.dumps(config))
    assert load(str(to), device="cpu").logit_scale == pytest.approx(1 / 0.07)


@pytest.mark.parametrize("value", [0, -1, "0.07", None])
def test_a_temperature_that_is_none_is_refused(folder, tmp_path, value):
    with pytest.raises(InputError, match="expected a positive number"):
        load(str(copied(folder, tmp_path / "bad", cir={"temperature": value})), device="cpu")


def test_weights_that_are_missing_or_left_over_are_refused(folder, vitl_folder, tmp_path):
    from safetensors.torch import load_file, save_file

    state = load_file(folder / "model.safetensors")
    to = copied(folder, tmp_path / "missing")
    save_file({k: v for k, v in state.items() if k != "itm_head.weight"}, to / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"1 weights of .* absent, first \['itm_head.weight'\]"):
        load(str(to), device="cpu")
    to = copied(folder, tmp_path / "more")
    save_file({**state, "vision_model.encoder.layers.3.x": torch.zeros(1)}, to / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"1 weights that Blip2ForImageTextRetrieval does not have.*layers.3.x"):
        load(str(to), device="cpu")
    config = json.loads((vitl_folder / "config.json").read_text())["vision_config"]
    to = copied(vitl_folder, tmp_path / "blocks", vision_config={**config, "num_hidden_layers": 2})
    with pytest.raises(InputError, match="16 weights that Blip2ClipForImageTextRetrieval does not have"):
        load(str(to), device="cpu")


def test_other_models_and_towers_are_refused(folder, tmp_path):
    config = json.loads((folder / "config.json").read_text())
    former = {**config["qformer_config"], "use_qformer_text_input": False}
    with pytest.raises(InputError, match="use one for image-text retrieval, such as Salesforce/blip2-itm-vit-g"):
        load(str(copied(folder, tmp_path / "generates", qformer_config=former)), device="cpu")
    vision = {**config["vision_config"], "model_type": "siglip_vision_model"}
    with pytest.raises(InputError, match="vision tower 'siglip_vision_model'"):
        load(str(copied(folder, tmp_path / "siglip", vision_config=vision)), device="cpu")
    with pytest.raises(InputError, match="not causal; use text_tower=auto"):
        load(str(folder), device="cpu", text_tower="packed")
    to = copied(folder, tmp_path / "size")
    processor = json.loads((to / "preprocessor_config.json").read_text())
    (to / "preprocessor_config.json").write_text(json.dumps({**processor, "size": {"height": 64, "width": 64}}))
    with pytest.raises(InputError, match=r"makes \(64, 64\) pixels, the vision tower takes \(32, 32\)"):
        load(str(to), device="cpu")
    to = copied(folder, tmp_path / "words")
    for path in to.glob("*token*"):
        path.unlink()
    (to / "vocab.txt").unlink()
    with pytest.raises(InputError, match="no tokenizer"):
        load(str(to), device="cpu")


def test_the_temperature_is_part_of_the_fingerprint(folder, backbone, tmp_path):
    other = load(str(copied(folder, tmp_path / "hot", cir={"temperature": 0.2})), device="cpu")
    assert other.fingerprint != backbone.fingerprint and len(backbone.fingerprint) == 16
