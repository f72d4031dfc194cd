"""Small random BLIP-2 models of salesforce-lavis, run: their weights, inputs and outputs, for `compare.py`.

    .venv-lavis/bin/python experiments/lavis/small.py OUT

runs inside LAVIS's environment (docs/lavis.md) and downloads nothing: `OUT/bert-base-uncased`, which is what LAVIS
finds in place of the Hub's from inside `OUT`, holds the vocabulary that `prepare.py` wrote; towers are LAVIS's classes
in another size. For each tower: `eva.pth` or `clip.pth` (as LAVIS saves), `.npz`, and the features of `job.json`.
"""

import importlib.util
import json
import os
import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch
import weights
from lavis.models import clip_vit, eva_vit
from lavis.models.blip2_models import blip2
from lavis.models.blip2_models.blip2_image_text_matching import Blip2ITM
from lavis.processors.blip_processors import BlipCaptionProcessor, BlipImageEvalProcessor
from PIL import Image
from transformers import BertConfig, BertForMaskedLM

SIDE = 28
TEXTS = (
    "A red circle, and two small blue squares.",
    "is it the same?  with (no) stars",
    "Green",
    "the circle; is #not# there: the square's top-left corner ~ is yellow!",
)


def bert(folder):
    """Write a small random BERT of the vocabulary that is there; returns the words."""
    words = (folder / "vocab.txt").read_text().splitlines()
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=128,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=192,
        max_position_embeddings=64,
    )
    BertForMaskedLM(config).save_pretrained(folder)
    return words


def small_eva(img_size, drop_path_rate, use_checkpoint, precision):
    return eva_vit.VisionTransformer(
        img_size=img_size,
        patch_size=14,
        use_mean_pooling=False,
        embed_dim=176,
        depth=2,
        num_heads=176 // 88,
        mlp_ratio=1.5,
        qkv_bias=True,
        norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
    )


def small_clip(img_size, use_checkpoint, precision):
    return clip_vit.VisionTransformer(
        input_resolution=img_size, patch_size=14, width=128, layers=3, heads=2, use_grad_checkpointing=False
    )


@torch.no_grad()
def scatter(model):
    """Give every weight the value that belongs to its name."""
    for name, weight in model.named_parameters():
        weight.copy_(torch.from_numpy(weights.weight(name, tuple(weight.shape))))


@torch.no_grad()
def run(model):
    """Everything a retriever asks of the model, by name."""
    pixels = torch.from_numpy(weights.uniform("pixels", (len(TEXTS), 3, SIDE, SIDE)))
    texts = [BlipCaptionProcessor()(text) for text in TEXTS]
    sample = {"image": pixels, "text_input": texts}
    image = model.extract_features(sample, mode="image")
    text = model.extract_features(sample, mode="text")
    tokens = model.tokenizer(texts, padding=True, return_tensors="pt")
    rolled = [{"image": pixels.roll(row, 0), "text_input": texts} for row in range(len(TEXTS))]
    return {
        "ids": tokens.input_ids,
        "mask": tokens.attention_mask,
        "patches": model.visual_encoder(pixels),
        "normed": model.ln_vision(model.visual_encoder(pixels)),
        "image_embeds": image.image_embeds,
        "image_embeds_proj": image.image_embeds_proj,
        "text_embeds": text.text_embeds,
        "text_embeds_proj": text.text_embeds_proj,
        "multimodal_embeds": model.extract_features(sample, mode="multimodal").multimodal_embeds,
        "itm": torch.stack([pairs(model, sample, "itm") for sample in rolled]),
        "itc": torch.stack([pairs(model, sample, "itc") for sample in rolled]),
    }


def pairs(model, sample, head):
    """Match pictures and texts pair by pair: LAVIS pads nothing in this function."""
    rows = [
        model({"image": sample["image"][row : row + 1], "text_input": text}, match_head=head)
        for row, text in enumerate(sample["text_input"])
    ]
    return torch.cat(rows).squeeze(-1)


def script():
    """`cir/backbones/lavis.py`, imported as the lone file it is."""
    path = Path(__file__).resolve().parents[2] / "cir" / "backbones" / "lavis.py"
    spec = importlib.util.spec_from_file_location("features_of_lavis", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main(out):
    out = Path(out).resolve()
    os.chdir(out)
    torch.manual_seed(0)
    words = bert(out / "bert-base-uncased")
    blip2.create_eva_vit_g, blip2.create_clip_vit_L = small_eva, small_clip
    features = script()
    job = features.read_job(out / "job.json")
    for name, tower in {"eva": "eva_clip_g", "clip": "clip_L"}.items():
        model = Blip2ITM(tower, img_size=SIDE, vit_precision="fp32", num_query_token=8, embed_dim=32).eval()
        scatter(model)
        torch.save({"model": model.state_dict()}, out / f"{name}.pth")
        found = {key: value.numpy() for key, value in run(model).items()}
        shapes = {key: list(value.shape) for key, value in model.state_dict().items()}
        given = {"texts": np.array(TEXTS), "words": np.array(words), "shapes": json.dumps(shapes)}
        np.savez_compressed(out / f"{name}.npz", **given, **found)
        pixels, clean = BlipImageEvalProcessor(SIDE), BlipCaptionProcessor()
        first = job["images"][job["gallery"][0]]
        with Image.open(first) as picture:
            np.save(out / "picture.npy", pixels(picture.convert("RGB")).numpy())
        for compose in features.COMPOSE:
            features.serve(model, job, out / name / compose, compose=compose, pixels=pixels, clean=clean)
        print(f"{name}: {len(model.state_dict())} tensors, {len(job['queries'])} queries, {len(job['gallery'])} images")


if __name__ == "__main__":
    main(sys.argv[1])
