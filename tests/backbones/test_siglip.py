"""SigLIP against Hugging Face's own forward; the tokenizer is a small one trained with sentencepiece."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from cir import methods
from cir.backbones import load
from cir.errors import InputError
from cir.prompts import Template, tokenize

spm = pytest.importorskip("sentencepiece")

CORPUS = ["a photo of that is red", "two dogs on the grass", "shorter sleeves and a blue dress"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from transformers import SiglipConfig, SiglipModel, SiglipTokenizer

    folder = tmp_path_factory.mktemp("tiny-siglip")
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS * 20), model_prefix=str(folder / "spiece"), vocab_size=60, hard_vocab_limit=False,
        add_dummy_prefix=False, bos_id=-1, pad_id=0, eos_id=1, unk_id=2, minloglevel=2,
    )  # fmt: skip
    SiglipTokenizer(str(folder / "spiece.model"), model_max_length=32).save_pretrained(folder)
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**tower, "vocab_size": 64, "max_position_embeddings": 32, "projection_size": 32}
    torch.manual_seed(0)
    config = SiglipConfig(text_config=text, vision_config={**tower, "image_size": 32, "patch_size": 8})
    model = SiglipModel(config)
    with torch.no_grad():
        for parameter in model.text_model.parameters():
            parameter.mul_(3)
    model.save_pretrained(folder)
    config = {"image_processor_type": "SiglipImageProcessor", "size": {"height": 32, "width": 32}, "resample": 3}
    config |= {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "rescale_factor": 1 / 255}
    (folder / "preprocessor_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def backbone(folder):
    return load(str(folder), device="cpu")


@pytest.fixture(scope="module")
def official(folder):
    from transformers import SiglipModel

    return SiglipModel.from_pretrained(folder).eval()


@torch.no_grad()
def hf_text(model, ids):
    return model.get_text_features(torch.from_numpy(ids)).pooler_output


def test_rows_equal_the_official_tokenizers_padded_to_the_context(folder, backbone):
    from transformers import SiglipTokenizer

    texts = ["two dogs", "A red, red dress."]
    ids = SiglipTokenizer.from_pretrained(folder)(texts, padding="max_length", max_length=32)["input_ids"]
    found = tokenize(backbone.tokenizer, [[text] for text in texts])
    assert found.ids.tolist() == ids
    assert backbone.tokenizer.fixed_length and backbone.tokenizer.start == ()


def test_the_slot_is_an_id_of_the_vocabulary_although_the_tokenizer_drops_the_dollar(backbone):
    assert backbone.tokenizer.pieces("$") == []
    prompt = Template("a photo of $ that {text}").render(backbone.tokenizer, [["is red"]]).prompt
    assert prompt.slots.shape == (1, 1) and 0 <= prompt.ids[0, prompt.slots[0, 0]] < 64
    before = backbone.tokenizer.pieces("a photo of")
    assert prompt.slots[0, 0] == len(before)
    assert prompt.ids[0, len(before) + 1 : prompt.ends[0]].tolist() == backbone.tokenizer.pieces("that is red")


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_text_equals_hugging_face(folder, official, attention):
    backbone = load(str(folder), device="cpu", attention=attention)
    prompt = tokenize(backbone.tokenizer, [["two dogs"], ["a red dress"], [""]])
    found = backbone.encode_text(prompt)
    torch.testing.assert_close(found, hf_text(official, prompt.ids), atol=1e-5, rtol=1e-4)
    assert (found[0] - found[1]).abs().max() > 1e-3


def test_splicing_a_words_own_embedding_changes_nothing_and_another_one_does(backbone):
    prompt = Template("a $ {text}").render(backbone.tokenizer, [["dress"], ["two dogs"]]).prompt
    own = backbone.text.text_model.embeddings.token_embedding.weight[backbone.tokenizer.slot]
    plain = backbone.encode_text(prompt)
    assert torch.equal(backbone.encode_text(prompt, own.expand(2, 1, -1)), plain)
    other = torch.randn(2, 1, 32, generator=torch.Generator().manual_seed(2))
    assert (backbone.encode_text(prompt, other) - plain).abs().max() > 1e-3


def test_a_pseudo_word_equals_a_new_word_of_the_vocabulary(folder, backbone, official):
    from transformers import SiglipModel

    prompt = Template("a $ {text}").render(backbone.tokenizer, [["dress"]]).prompt
    pseudo = torch.randn(1, 1, 32)
    model = SiglipModel.from_pretrained(folder).eval()
    words = model.text_model.embeddings.token_embedding
    grown = torch.cat([words.weight.detach(), pseudo[0]])
    model.text_model.embeddings.token_embedding = torch.nn.Embedding.from_pretrained(grown)
    ids = prompt.ids.copy()
    ids[0, prompt.slots[0, 0]] = 64
    torch.testing.assert_close(backbone.encode_text(prompt, pseudo), hf_text(model, ids), atol=1e-5, rtol=1e-4)


def test_short_rows_are_refused_because_padding_is_seen(backbone):
    with pytest.raises(ValueError, match="rows must have 32 positions, not 3"):
        backbone.text(torch.zeros(1, 3, dtype=torch.long), torch.tensor([2]))


def test_images_equal_hugging_face_pixels_and_features(folder, backbone, official):
    from transformers import SiglipImageProcessorPil

    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 45, 3), dtype=np.uint8))
    pixels = backbone.preprocess(picture)[None]
    processor = SiglipImageProcessorPil.from_pretrained(folder)
    assert torch.equal(pixels, processor(picture, return_tensors="pt")["pixel_values"])
    with torch.no_grad():
        expected = official.get_image_features(pixels).pooler_output
    torch.testing.assert_close(backbone.encode_images(pixels)[:, 0], expected, atol=1e-5, rtol=1e-4)
    assert backbone.preprocess_id.startswith("squash:")


def test_patches_lie_before_the_final_norm_and_make_the_feature(backbone, official):
    pixels = torch.randn(2, 3, 32, 32)
    patches = backbone.encode_patches(pixels)
    assert patches.shape == (2, 16, backbone.vision_width) and not backbone.class_token
    vision = official.vision_model
    with torch.no_grad():
        expected = vision(pixels)
        torch.testing.assert_close(vision.post_layernorm(patches), expected.last_hidden_state, atol=1e-5, rtol=1e-4)
        found = vision.head(vision.post_layernorm(patches))
    torch.testing.assert_close(found, backbone.encode_images(pixels)[:, 0], atol=1e-5, rtol=1e-4)
    assert (patches - expected.last_hidden_state).abs().max() > 1e-3


def test_context_i2w_is_refused_for_want_of_a_class_token(backbone):
    with pytest.raises(InputError, match="has none"):
        methods.build("context_i2w", {}, backbone)


def test_a_causal_tower_is_refused(folder):
    with pytest.raises(InputError, match="not causal"):
        load(str(folder), device="cpu", text_tower="packed")
