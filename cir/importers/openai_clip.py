"""OpenAI's names of CLIP's weights, the sizes they show, and the folder they make: the key map as data.

Radford et al., ICML 2021, arXiv:2103.00020. A vision transformer goes into a folder that `transformers` reads too, a
convolutional tower (`RN50x4`) into the layout of `cir.backbones.resnet`. The activation is OpenAI's QuickGELU
throughout. open_clip keeps the same names, so its `openai` weights are read too.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from cir.errors import InputError

HEAD = 64
"""Width of an attention head in all of OpenAI's models, also in the pool of a convolutional tower."""
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
BLOCK = {
    "ln_1": "layer_norm1", "ln_2": "layer_norm2", "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2",
}  # fmt: skip
TEXT = {
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "text_projection": "text_projection.weight",
    "logit_scale": "logit_scale",
    "transformer.resblocks": "text_model.encoder.layers",
}
VIT = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    "visual.proj": "visual_projection.weight",
    "visual.transformer.resblocks": "vision_model.encoder.layers",
}
TRANSPOSED = ("text_projection", "visual.proj")
"""Projections, which OpenAI multiplies from the right."""
RESNET = re.compile(
    r"visual\.(conv[123]|layer[1-4]\.\d+\.conv[123]|layer[1-4]\.0\.downsample\.0)\.weight"
    r"|visual\.(bn[123]|layer[1-4]\.\d+\.bn[123]|layer[1-4]\.0\.downsample\.1)\.(weight|bias|running_mean|running_var)"
    r"|visual\.attnpool\.(positional_embedding|[qkvc]_proj\.(weight|bias))"
)
"""All weights of a convolutional tower, whose names stay."""
LEFT_BEHIND = re.compile(r"input_resolution|context_length|vocab_size|visual\..*\.num_batches_tracked")
"""Counters: sizes that OpenAI's archives keep as tensors, and batches seen in pre-training."""


@dataclass(frozen=True)
class Sizes:
    """What shapes say of a CLIP: the sides of its pictures in pixels, d, and both towers in Hugging Face's terms."""

    stages: tuple[int, ...]
    """Blocks per stage of a convolutional tower; empty for a transformer."""
    side: int
    joint: int
    text: Mapping[str, Any]
    vision: Mapping[str, Any]


def measured(tensors: Mapping[str, Tensor], path: Path) -> Sizes:
    """Read the sizes off the shapes."""
    try:
        vocabulary, width = tensors["token_embedding.weight"].shape
        joint = tensors["text_projection"].shape[1]
        text = {
            "model_type": "clip_text_model", "vocab_size": vocabulary, "projection_dim": joint,
            "max_position_embeddings": len(tensors["positional_embedding"]),
            "bos_token_id": vocabulary - 2, "eos_token_id": vocabulary - 1, "pad_token_id": vocabulary - 1,
            **_transformer(tensors, "transformer", width),
        }  # fmt: skip
        shared = {"model_type": "clip_vision_model", "projection_dim": joint}
        if "visual.proj" in tensors:
            width, _, patch, _ = tensors["visual.conv1.weight"].shape
            side = patch * _grid(tensors["visual.positional_embedding"])
            vision = {**shared, "patch_size": patch, **_transformer(tensors, "visual.transformer", width)}
            return Sizes((), side, joint, text, {**vision, "image_size": side})
        width = tensors["visual.attnpool.positional_embedding"].shape[1]
        stages = tuple(_count(tensors, rf"visual\.layer{stage}\.(\d+)\.") for stage in range(1, 5))
        side = 32 * _grid(tensors["visual.attnpool.positional_embedding"])
        vision = {**shared, "stages": list(stages), "hidden_size": width, "num_attention_heads": width // HEAD}
        return Sizes(stages, side, joint, text, {**vision, "patch_size": 32, "image_size": side})
    except KeyError as error:
        raise InputError(f"{path}: {error.args[0]} is missing; not a whole CLIP under OpenAI's names") from None
    except (ValueError, IndexError):
        raise InputError(f"{path}: not the shapes of a CLIP; a damaged file?") from None


def _transformer(tensors: Mapping[str, Tensor], name: str, width: int) -> dict[str, Any]:
    """Describe one transformer."""
    return {
        "hidden_size": width,
        "intermediate_size": len(tensors[f"{name}.resblocks.0.mlp.c_fc.weight"]),
        "num_hidden_layers": _count(tensors, rf"{re.escape(name)}\.resblocks\.(\d+)\."),
        "num_attention_heads": width // HEAD,
        "hidden_act": "quick_gelu",
    }


def _count(tensors: Mapping[str, Tensor], pattern: str) -> int:
    return len({found[1] for name in tensors if (found := re.match(pattern, name))})


def _grid(positions: Float[Tensor, "p v"]) -> int:
    """Read the side of the map off its positions, the first of which is no place."""
    side = math.isqrt(len(positions) - 1)
    if side**2 != len(positions) - 1:
        raise ValueError("positions of no square")
    return side


def renamed(tensors: Mapping[str, Tensor], convolutional: bool, path: Path) -> dict[str, Tensor]:
    """Give every tensor its name and shape in the folder; `InputError` names those no rule is for."""
    rules = TEXT if convolutional else TEXT | VIT
    made: dict[str, Tensor] = {}
    unknown = []
    for name, tensor in tensors.items():
        block = re.fullmatch(r"((?:visual\.)?transformer\.resblocks)\.(\d+)\.(.+)[._](weight|bias)", name)
        if convolutional and RESNET.fullmatch(name):
            made[name] = tensor
        elif block and block[1] in rules:
            where, part, kind = f"{rules[block[1]]}.{block[2]}", block[3], block[4]
            if part == "attn.in_proj":
                for letter, third in zip("qkv", tensor.chunk(3), strict=True):
                    made[f"{where}.self_attn.{letter}_proj.{kind}"] = third.contiguous()
            elif part in BLOCK:
                made[f"{where}.{BLOCK[part]}.{kind}"] = tensor
            else:
                unknown.append(name)
        elif name in rules:
            made[rules[name]] = tensor.T.contiguous() if name in TRANSPOSED else tensor
        else:
            unknown.append(name)
    if unknown:
        raise InputError(f"{path}: {len(unknown)} unexpected tensors, first {sorted(unknown)[:3]}; not OpenAI's CLIP")
    return made


def config(sizes: Sizes) -> dict[str, Any]:
    """Describe the encoders as Hugging Face's CLIP does."""
    kind = ("clip_resnet", "ClipResNet") if sizes.stages else ("clip", "CLIPModel")
    shared = {"model_type": kind[0], "architectures": [kind[1]], "dtype": "float32", "projection_dim": sizes.joint}
    return {**shared, "text_config": dict(sizes.text), "vision_config": dict(sizes.vision)}


def preprocessor(side: int) -> dict[str, Any]:
    """Describe OpenAI's preprocessing: short side to `side`, bicubic, centre crop."""
    return {
        "image_processor_type": "CLIPImageProcessor", "do_resize": True, "size": {"shortest_edge": side},
        "resample": 3, "do_center_crop": True, "crop_size": {"height": side, "width": side}, "do_rescale": True,
        "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": MEAN, "image_std": STD, "do_convert_rgb": True,
    }  # fmt: skip
