"""OpenAI's CLIP written out in plain torch over its own names, to try a converted folder against.

Nothing here is shared with `cir.backbones`: no module, no key map, no padding, no packing.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from cir.importers.openai_clip import HEAD, Sizes


def plain_images(tensors: Mapping[str, Tensor], sizes: Sizes, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
    """Run the vision tower on its own tensors, function by function; nothing is shared with `cir.backbones`."""
    t = {name.removeprefix("visual."): tensor for name, tensor in tensors.items() if name.startswith("visual.")}
    if sizes.stages:
        return _plain_resnet(t, sizes.stages, pixels)
    x = F.conv2d(pixels, t["conv1.weight"], stride=sizes.vision["patch_size"]).flatten(2).permute(2, 0, 1)
    first = t["class_embedding"].expand(1, len(pixels), -1)
    x = _norm(t, "ln_pre", torch.cat([first, x]) + t["positional_embedding"][:, None])
    for layer in range(sizes.vision["num_hidden_layers"]):
        x = _plain_block(t, f"transformer.resblocks.{layer}", x, None)
    return _norm(t, "ln_post", x[0]) @ t["proj"]


def plain_texts(
    tensors: Mapping[str, Tensor], sizes: Sizes, ids: Int[Tensor, "b l"], ends: Int[Tensor, " b"]
) -> Float[Tensor, "b d"]:
    """Run the text tower on its own tensors."""
    x = (tensors["token_embedding.weight"][ids] + tensors["positional_embedding"][: ids.shape[1]]).transpose(0, 1)
    mask = torch.full((ids.shape[1], ids.shape[1]), float("-inf")).triu(1)
    for layer in range(sizes.text["num_hidden_layers"]):
        x = _plain_block(tensors, f"transformer.resblocks.{layer}", x, mask)
    return _norm(tensors, "ln_final", x[ends, torch.arange(len(ids))]) @ tensors["text_projection"]


def _norm(t: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], t[f"{name}.weight"], t[f"{name}.bias"])


def _plain_block(t: Mapping[str, Tensor], name: str, x: Float[Tensor, "l b w"], mask: Tensor | None) -> Tensor:
    """Run one pre-norm block on rows of positions; its MLP's activation is x sigmoid(1.702 x)."""
    at, y = f"{name}.attn", _norm(t, f"{name}.ln_1", x)
    x = x + F.multi_head_attention_forward(
        y, y, y, x.shape[-1], x.shape[-1] // HEAD, t[f"{at}.in_proj_weight"], t[f"{at}.in_proj_bias"], None, None,
        False, 0.0, t[f"{at}.out_proj.weight"], t[f"{at}.out_proj.bias"], False, None, False, mask,
    )[0]  # fmt: skip
    y = F.linear(_norm(t, f"{name}.ln_2", x), t[f"{name}.mlp.c_fc.weight"], t[f"{name}.mlp.c_fc.bias"])
    return x + F.linear(y * torch.sigmoid(1.702 * y), t[f"{name}.mlp.c_proj.weight"], t[f"{name}.mlp.c_proj.bias"])


def _plain_resnet(
    t: Mapping[str, Tensor], stages: tuple[int, ...], pixels: Float[Tensor, "b 3 h w"]
) -> Float[Tensor, "b d"]:
    """Run a convolutional tower: stem, stages of bottlenecks, attention of the mean over the map."""

    def convolved(x: Tensor, conv: str, norm: str, stride: int = 1) -> Tensor:
        weight = t[f"{conv}.weight"]
        x = F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)
        mean, variance, scale, shift = (t[f"{norm}.{n}"] for n in ("running_mean", "running_var", "weight", "bias"))
        factor = scale / (variance + 1e-5).sqrt()
        return x * factor[:, None, None] + (shift - mean * factor)[:, None, None]

    x = convolved(pixels, "conv1", "bn1", stride=2).relu()
    x = F.avg_pool2d(convolved(convolved(x, "conv2", "bn2").relu(), "conv3", "bn3").relu(), 2)
    for stage, blocks in enumerate(stages, start=1):
        for block in range(blocks):
            at, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            y = convolved(x, f"{at}.conv1", f"{at}.bn1").relu()
            y = F.avg_pool2d(convolved(y, f"{at}.conv2", f"{at}.bn2").relu(), stride)
            if block == 0:
                x = convolved(F.avg_pool2d(x, stride), f"{at}.downsample.0", f"{at}.downsample.1")
            x = (x + convolved(y, f"{at}.conv3", f"{at}.bn3")).relu()
    x = x.flatten(2).permute(2, 0, 1)
    x = torch.cat([x.mean(0, keepdim=True), x]) + t["attnpool.positional_embedding"][:, None]
    q, k, v, c = (t[f"attnpool.{p}_proj.weight"] for p in "qkvc")
    biases = torch.cat([t[f"attnpool.{p}_proj.bias"] for p in "qkv"])
    return F.multi_head_attention_forward(
        x[:1], x, x, x.shape[-1], x.shape[-1] // HEAD, None, biases, None, None, False, 0.0, c,
        t["attnpool.c_proj.bias"], False, None, False, None, True, q, k, v,
    )[0][0]  # fmt: skip
