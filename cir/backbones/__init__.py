"""Frozen image and text encoders behind one protocol; the only importers of `transformers`."""

from importlib import import_module

from cir.backbones.base import Backbone, TextTower, splice
from cir.errors import InputError, nearest

__all__ = ["BACKBONES", "Backbone", "TextTower", "load", "splice"]

BACKBONES: dict[str, str] = {
    "blip-2": "cir.backbones.blip2:Blip2Backbone",
    "clip": "cir.backbones.clip:ClipBackbone",
    "clip_resnet": "cir.backbones.resnet:ResNetBackbone",
    "siglip": "cir.backbones.siglip:SiglipBackbone",
}
"""`model_type` of a checkpoint's config.json: the class that runs it, imported when asked for (seconds of CPU)."""


def load(
    name: str,
    *,
    device: str = "auto",
    dtype: str = "float32",
    preprocess: str = "clip",
    text_tower: str = "auto",
    attention: str = "sdpa",
) -> Backbone:
    """Load frozen encoders in the Hugging Face format, from a local folder or the hub.

    `name` is a folder with `config.json`, or a hub id (`HF_HUB_OFFLINE` is respected). `device` is `auto` (CUDA
    where there is one), `cpu`, `cuda`, `cuda:1`; `dtype` what the towers compute in: `float32`, `bfloat16`, `float16`
    (CUDA only); outputs are float32 whatever it is. `preprocess` is `clip` (as the weights ask for), `targetpad`,
    `squarepad`, or a `-fast` twin of these (`cir.backbones.preprocess`), `text_tower` a name in
    `cir.backbones.text.TEXT_TOWERS` or `auto` (`packed` for CLIP, the only one there is for SigLIP and BLIP-2),
    `attention` `sdpa` or `eager`, how Hugging Face's modules attend (packed towers do it themselves). Raises
    InputError, in one line, for names, files or values that do not exist.
    """
    from cir.backbones import weights

    folder = weights.locate(name)
    config = weights.read_config(folder)
    kind = str(config.get("model_type", "none"))
    if kind == "siglip2":
        raise InputError(
            f"backbone {name!r}: NaFlex weights (model_type siglip2) take patches of any shape; "
            "use a fixed-resolution SigLIP 2 such as google/siglip2-base-patch16-224"
        )
    if kind not in BACKBONES:
        raise InputError(f"backbone {name!r}: model_type {kind!r} in its config.json; {nearest(kind, BACKBONES)}")
    module, cls = BACKBONES[kind].split(":")
    backbone: Backbone = getattr(import_module(module), cls)(
        name,
        folder,
        device=weights.pick_device(device),
        dtype=weights.pick_dtype(dtype, weights.pick_device(device)),
        preprocess=preprocess,
        text_tower=text_tower,
        attention=weights.pick_attention(attention),
    )
    return backbone
