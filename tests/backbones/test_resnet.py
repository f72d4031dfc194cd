"""CLIP with a convolutional vision tower, against the tower written out picture by picture and head by head."""

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import CLIPTextModelWithProjection

from cir.backbones import Backbone, load
from cir.backbones.clip import VisionTower
from cir.backbones.resnet import ClipResNet, ClipResNetConfig, FrozenNorm, ModifiedResNet
from cir.errors import InputError
from cir.prompts import Template, tokenize

STAGES, STEM, JOINT, SIDE = (1, 2, 1, 1), 8, 24, 64
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt")


def configured(stages, stem, joint, side, text_width, layers, words=49408):
    text = {"hidden_size": text_width, "intermediate_size": 4 * text_width, "num_hidden_layers": layers,
            "num_attention_heads": text_width // 64, "projection_dim": joint, "vocab_size": words,
            "bos_token_id": words - 2, "eos_token_id": words - 1}  # fmt: skip
    vision = {"hidden_size": 32 * stem, "num_attention_heads": stem // 2, "image_size": side, "stages": list(stages)}
    return ClipResNetConfig(text_config=text, vision_config=vision, projection_dim=joint)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_clip_folder, make_preprocessor):
    """A tiny one: two heads in the attention pool, statistics that are not 0 and 1."""
    out = tmp_path_factory.mktemp("resnet")
    for name in TOKENIZER:
        if (tiny_clip_folder / name).is_file():
            shutil.copy(tiny_clip_folder / name, out)
    words = json.loads((tiny_clip_folder / "config.json").read_text())["text_config"]["vocab_size"]
    model = ClipResNet(configured(STAGES, STEM, JOINT, SIDE, text_width=64, layers=2, words=words))
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.visual.buffers()):
            spread = 1 / max(tensor[0].numel(), 1) ** 0.5 if tensor.ndim > 1 else 0.2
            tensor.copy_(spread * torch.randn(tensor.shape, generator=random))
        for module in model.modules():
            if isinstance(module, FrozenNorm):
                module.running_var.abs_().add_(0.5)
                module.weight.add_(1)
    model.save_pretrained(out)
    make_preprocessor(out, SIDE)
    return out


@pytest.fixture(scope="module")
def backbone(folder):
    return load(str(folder), device="cpu")


@pytest.fixture(scope="module")
def weights(folder):
    return {k.removeprefix("visual."): v for k, v in load_file(folder / "model.safetensors").items()}


def pixels(n=3, side=SIDE):
    """Noise on a colour per picture."""
    random = torch.Generator().manual_seed(0)
    return torch.randn(n, 3, side, side, generator=random) + 3 * torch.randn(n, 3, 1, 1, generator=random)


def normed(w, name, x):
    scale = w[f"{name}.weight"] / torch.sqrt(w[f"{name}.running_var"] + 1e-5)
    return (x - w[f"{name}.running_mean"].view(-1, 1, 1)) * scale.view(-1, 1, 1) + w[f"{name}.bias"].view(-1, 1, 1)


def halved(x):
    """Average squares of two by two."""
    return (x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]) / 4


def conv(w, name, x, stride=1):
    kernel = w[f"{name}.weight"]
    return F.conv2d(x[None], kernel, stride=stride, padding=kernel.shape[-1] // 2)[0]


def twin_map(w, picture, stages=STAGES):
    """The last map of one picture, "c h w"."""
    x = normed(w, "bn1", conv(w, "conv1", picture, stride=2)).clamp(min=0)
    x = normed(w, "bn2", conv(w, "conv2", x)).clamp(min=0)
    x = halved(normed(w, "bn3", conv(w, "conv3", x)).clamp(min=0))
    for stage, blocks in enumerate(stages):
        for i in range(blocks):
            at = f"layer{stage + 1}.{i}"
            y = normed(w, f"{at}.bn1", conv(w, f"{at}.conv1", x)).clamp(min=0)
            y = normed(w, f"{at}.bn2", conv(w, f"{at}.conv2", y)).clamp(min=0)
            if stage > 0 and i == 0:
                x, y = halved(x), halved(y)
            y = normed(w, f"{at}.bn3", conv(w, f"{at}.conv3", y))
            if i == 0:
                x = normed(w, f"{at}.downsample.1", conv(w, f"{at}.downsample.0", x))
            x = (x + y).clamp(min=0)
    return x


def twin_tokens(w, picture):
    """The mean of the map, then its places row by row."""
    x = twin_map(w, picture)
    places = [x[:, i, j] for i in range(x.shape[1]) for j in range(x.shape[2])]
    return torch.stack([torch.stack(places).mean(0), *places])


def twin_pool(w, tokens):
    """Attention of the first token over all, head by head, and the projection."""

    def affine(name, x):
        return x @ w[f"attnpool.{name}.weight"].T + w[f"attnpool.{name}.bias"]

    x = tokens + w["attnpool.positional_embedding"]
    q, k, v = affine("q_proj", x[0]), affine("k_proj", x), affine("v_proj", x)
    heads = []
    for start in range(0, len(q), 64):
        part = slice(start, start + 64)
        heads.append(torch.softmax(k[:, part] @ q[part] / 8, dim=0) @ v[:, part])
    return affine("c_proj", torch.cat(heads))


def test_features_are_those_of_the_definition(backbone, weights):
    found = backbone.encode_images(pixels())
    assert found.shape == (3, 1, JOINT) and found.dtype == torch.float32 and not found.requires_grad
    wanted = torch.stack([twin_pool(weights, twin_tokens(weights, picture)) for picture in pixels()])
    assert wanted.std(dim=0).mean() > 0.1  # pictures are told apart
    torch.testing.assert_close(found[:, 0], wanted, atol=1e-5, rtol=1e-4)


def test_patches_are_the_last_map_behind_its_mean(backbone, weights):
    found = backbone.encode_patches(pixels())
    assert found.shape == (3, 1 + (SIDE // 32) ** 2, 32 * STEM) == (3, 5, backbone.vision_width)
    wanted = torch.stack([twin_tokens(weights, picture) for picture in pixels()])
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)
    assert backbone.class_token
    torch.testing.assert_close(found[:, 0], found[:, 1:].mean(dim=1))


def test_a_batch_is_its_rows(backbone):
    batch = backbone.encode_images(pixels(4))
    rows = torch.cat([backbone.encode_images(row[None]) for row in pixels(4)])
    torch.testing.assert_close(batch, rows, atol=1e-5, rtol=1e-4)


def test_it_is_a_backbone_with_a_vision_tower(backbone, folder):
    assert isinstance(backbone, Backbone) and isinstance(backbone.vision, VisionTower)
    assert (backbone.width, backbone.word_width, backbone.vectors) == (JOINT, 64, 1)
    stored = load_file(folder / "model.safetensors")
    assert set(backbone.vision.state_dict()) == {name for name in stored if name.startswith("visual.")}
    assert {name for name in stored if not name.startswith("visual.")} == {
        *backbone.text.state_dict(), "logit_scale"
    }  # fmt: skip
    picture = Image.effect_noise((90, 70), 80).convert("RGB")
    assert backbone.preprocess(picture).shape == (3, SIDE, SIDE)


@pytest.mark.parametrize("tower", ["packed", "padded"])
def test_texts_are_those_of_hugging_face(folder, tower):
    backbone = load(str(folder), device="cpu", text_tower=tower)
    config = ClipResNetConfig.from_pretrained(folder)
    model = CLIPTextModelWithProjection(config.text_config).eval()
    names = ("text_model.", "text_projection.")
    stored = load_file(folder / "model.safetensors")
    model.load_state_dict({name: tensor for name, tensor in stored.items() if name.startswith(names)})
    prompt = tokenize(backbone.tokenizer, [["a red dress"], ["two dogs on the grass instead"], ["rain"]])
    with torch.no_grad():
        wanted = model(input_ids=torch.from_numpy(prompt.ids)).text_embeds
    torch.testing.assert_close(backbone.encode_text(prompt), wanted, atol=1e-5, rtol=1e-4)


def test_pseudo_words_are_spliced_row_by_row(backbone):
    rendered = Template("a photo of $ that {text}").render(backbone.tokenizer, [["is red"], ["has shorter sleeves"]])
    pseudo = torch.randn(2, 1, 64, generator=torch.Generator().manual_seed(1))
    both = backbone.encode_text(rendered.prompt, pseudo)
    rows = [backbone.encode_text(rendered.prompt[i : i + 1], pseudo[i : i + 1]) for i in range(2)]
    torch.testing.assert_close(both, torch.cat(rows), atol=1e-6, rtol=1e-5)
    assert not torch.allclose(both, backbone.encode_text(rendered.prompt, 2 * pseudo))


def test_a_copy_trains_with_frozen_statistics(backbone, weights):
    """In training mode: the gradient is that of the definition, and no statistic moves."""
    vision = copy.deepcopy(backbone.vision).requires_grad_(True).train()
    before = {name: buffer.clone() for name, buffer in vision.named_buffers()}
    aim = torch.randn(2, JOINT, generator=torch.Generator().manual_seed(2))
    (vision(pixels(2))[:, 0] * aim).sum().backward()
    leaves = {name: tensor.clone().requires_grad_("running" not in name) for name, tensor in weights.items()}
    (torch.stack([twin_pool(leaves, twin_tokens(leaves, picture)) for picture in pixels(2)]) * aim).sum().backward()
    for name, parameter in vision.visual.named_parameters():
        wanted = leaves[name].grad
        torch.testing.assert_close(parameter.grad, wanted, atol=1e-4 * float(wanted.abs().max()) + 1e-5, rtol=1e-3)
    assert before and all(torch.equal(buffer, before[name]) for name, buffer in vision.named_buffers())
    torch.testing.assert_close(vision(pixels(2)).detach(), backbone.encode_images(pixels(2)))
    assert not any(parameter.requires_grad for parameter in backbone.vision.parameters())


def test_half_precision_keeps_the_norms_in_float32(folder, backbone):
    half = load(str(folder), device="cpu", dtype="bfloat16")
    norms = [module for module in half.vision.modules() if isinstance(module, FrozenNorm)]
    assert norms and all(t.dtype == torch.float32 for norm in norms for t in norm.state_dict().values())
    assert half.vision.visual.conv1.weight.dtype == half.text.text_projection.weight.dtype == torch.bfloat16
    for name in ("encode_images", "encode_patches"):
        found, wanted = getattr(half, name)(pixels()), getattr(backbone, name)(pixels())
        assert found.dtype == torch.float32
        assert F.cosine_similarity(found.flatten(1), wanted.flatten(1)).min() > 0.999
    prompt = tokenize(half.tokenizer, [["a red dress"]])
    assert F.cosine_similarity(half.encode_text(prompt), backbone.encode_text(prompt)).min() > 0.99


def test_autocast_trains_a_copy(backbone):
    vision = copy.deepcopy(backbone.vision).requires_grad_(True)
    with torch.autocast("cpu", torch.bfloat16):
        found = vision(pixels(2))
    found.float().square().sum().backward()
    assert F.cosine_similarity(found.float(), backbone.encode_images(pixels(2)), dim=-1).min() > 0.999
    assert all(bool(p.grad.isfinite().all()) and p.grad.dtype == torch.float32 for p in vision.parameters())


@pytest.mark.parametrize(
    ("stages", "stem", "joint", "side", "text_width", "count"),
    [
        ((3, 4, 6, 3), 64, 1024, 224, 512, 102_007_137),
        ((3, 4, 23, 3), 64, 512, 224, 512, 119_688_033),
        ((4, 6, 10, 6), 80, 640, 288, 640, 178_300_601),
        ((6, 8, 18, 8), 96, 768, 384, 768, 290_979_217),
        ((3, 15, 36, 10), 128, 1024, 448, 1024, 623_258_305),
    ],
    ids=["RN50", "RN101", "RN50x4", "RN50x16", "RN50x64"],
)
def test_the_published_sizes_have_their_published_counts_of_parameters(stages, stem, joint, side, text_width, count):
    with torch.device("meta"):
        model = ClipResNet(configured(stages, stem, joint, side, text_width, layers=12))
    assert sum(parameter.numel() for parameter in model.parameters()) == count


def test_the_tower_takes_pictures_of_its_own_size_only():
    with pytest.raises(Exception, match=r"size of tensor|must match|broadcast"):
        ModifiedResNet(64, (1, 1, 1, 1), 8, 8)(pixels(1, side=96))


def break_weights(change):
    def breaks(folder):
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return breaks


def break_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"].update(changes)
    (folder / "config.json").write_text(json.dumps(config))


BROKEN = {
    "a missing tensor": (
        break_weights(lambda t: t.pop("visual.layer2.0.downsample.1.running_var")),
        "1 weights of ClipResNet absent, first ..visual.layer2.0.downsample.1.running_var",
    ),
    "another shape": (
        break_weights(lambda t: t.update({"visual.conv3.weight": torch.zeros(4, 4, 3, 3)})),
        "weights not readable",
    ),
    "more blocks than weights": (lambda f: break_config(f, stages=[1, 2, 2, 1]), "weights of ClipResNet absent"),
    "pictures of another size": (lambda f: break_config(f, image_size=96), "weights not readable"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_broken_folders_are_one_clear_line(folder, tmp_path, what):
    breaks, message = BROKEN[what]
    copied = Path(shutil.copytree(folder, tmp_path / "broken"))
    breaks(copied)
    with pytest.raises(InputError, match=message) as error:
        load(str(copied), device="cpu")
    assert "\n" not in str(error.value)


def test_a_tokenizer_that_names_no_class_is_clips(folder, tmp_path, backbone):
    copied = Path(shutil.copytree(folder, tmp_path / "copied"))
    settings = json.loads((copied / "tokenizer_config.json").read_text())
    assert settings.pop("tokenizer_class") == "CLIPTokenizer"
    (copied / "tokenizer_config.json").write_text(json.dumps(settings))
    assert load(str(copied), device="cpu").tokenizer.fingerprint == backbone.tokenizer.fingerprint
