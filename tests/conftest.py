"""Fixtures for all rooms: a tiny CLIP with random weights and a small tokenizer of its own, and a small world."""

import json
from pathlib import Path

import pytest
import torch

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
"""The real annotation files, where they are."""

WORDS = (
    "a an the photo of that is red blue green dress shirt has shorter longer sleeves and with two dogs cats on "
    "grass sofa instead more similar person holding umbrella rain 'S,. don't"
).split()


def train_clip_tokenizer(folder, corpus):
    """Train byte pairs in CLIP's manner: word ends marked, special ids last, so that end-of-text is the largest id."""
    from tokenizers import Tokenizer, models, trainers
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    like = CLIPTokenizer().backend_tokenizer
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token="<|endoftext|>"))
    bpe.normalizer, bpe.pre_tokenizer = like.normalizer, like.pre_tokenizer
    alphabet = sorted(ByteLevel.alphabet())
    bpe.train_from_iterator(
        corpus,
        trainers.BpeTrainer(
            vocab_size=700, initial_alphabet=alphabet, end_of_word_suffix="</w>", special_tokens=[], show_progress=False
        ),
    )
    model = json.loads(bpe.to_str())["model"]
    tokens = dict.fromkeys([*alphabet, *(letter + "</w>" for letter in alphabet), *model["vocab"]])
    vocabulary = {token: index for index, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=[tuple(pair) for pair in model["merges"]], model_max_length=77)
    tokenizer.save_pretrained(folder)
    return tokenizer


def save_preprocessor(folder, side, **changes):
    config = {
        "crop_size": {"height": side, "width": side},
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_processor_type": "CLIPImageProcessor",
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"shortest_edge": side},
    }
    (folder / "preprocessor_config.json").write_text(json.dumps({**config, **changes}))


def save_clip(folder, *, width=32, layers=2, heads=2, size=32, patch=8, joint=24, vision_width=48, seed=0):
    """Write a CLIP of the given size with random weights: config, weights, tokenizer, preprocessing."""
    from transformers import CLIPConfig, CLIPModel

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = train_clip_tokenizer(folder, [" ".join(WORDS)] * 20)
    text = {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 77,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.eos_token_id,
        "projection_dim": joint,
    }
    vision = {
        "hidden_size": vision_width,
        "intermediate_size": 4 * vision_width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "image_size": size,
        "patch_size": patch,
        "projection_dim": joint,
    }
    torch.manual_seed(seed)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=joint))
    with torch.no_grad():  # the initial spread is so small that every text would look alike
        for parameter in model.text_model.embeddings.parameters():
            parameter.mul_(20)
    model.save_pretrained(folder)
    save_preprocessor(folder, size)
    return folder


def pytest_addoption(parser):
    parser.addoption("--regenerate", action="store_true", help="rewrite tests/golden from the code as it is")


@pytest.fixture(scope="session")
def small_world(tmp_path_factory):
    """The bundled world at a twentieth of its size, as its seed 0 builds it; for reading only."""
    from cir.world import layouts

    root = tmp_path_factory.mktemp("small") / "world"
    layouts.build(root, seed=0, scale=0.05)
    return root


@pytest.fixture(scope="session")
def make_clip():
    """`save_clip`, for tests that need another size."""
    return save_clip


@pytest.fixture(scope="session")
def make_preprocessor():
    """`save_preprocessor`, for tests that need other constants."""
    return save_preprocessor


@pytest.fixture(scope="session")
def tiny_clip_folder(tmp_path_factory):
    """A folder with a tiny random CLIP: 32 wide, 2 layers, pictures of 32 x 32, joint width 24."""
    return save_clip(tmp_path_factory.mktemp("tiny-clip"))


@pytest.fixture(scope="session")
def tiny_backbone(tiny_clip_folder):
    """The tiny CLIP, loaded on the CPU in float32; frozen, so that one instance serves all tests."""
    from cir.backbones import load

    return load(str(tiny_clip_folder), device="cpu")


@pytest.fixture
def unchecked():
    """Leave the shape checks out: around every row of real annotation files they take most of the time."""
    import jaxtyping

    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def dev_folder(tmp_path_factory):
    """CIRR's real layout with 8,102 files in dev/: the 2,297 of the split, others under made-up names; all empty."""
    root = tmp_path_factory.mktemp("cirr") / "CIRR"
    (root / "dev").mkdir(parents=True)
    (root / "cirr").symlink_to(SHARED / "CIRR" / "cirr", target_is_directory=True)
    named = json.loads((root / "cirr" / "image_splits" / "split.rc2.val.json").read_text())
    for name in (*named, *(f"dev-{9000 + n}-0-img0" for n in range(8102 - len(named)))):
        (root / "dev" / f"{name}.png").touch()
    return root
