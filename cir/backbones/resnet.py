"""CLIP with a convolutional vision tower, which `transformers` lacks: OpenAI's RN50, RN101, RN50x4, RN50x16, RN50x64.

A folder holds `config.json` with `model_type: "clip_resnet"`: the keys of Hugging Face's CLIP, and in `vision_config`
`stages` (blocks per stage) and `hidden_size` (32 times the width of the stem). `model.safetensors` holds the vision
tower under OpenAI's own names (`visual.*`, without the batch counters `num_batches_tracked`) and the rest under Hugging
Face's (`text_model.*`, `text_projection.weight`, `logit_scale`). `cir import clip4cir` writes such folders.
"""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoTokenizer,
    CLIPConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    PreTrainedModel,
)

from cir.backbones.clip import ClipBackbone, VisionTower, read_model

GROWTH, STRIDE, HEAD = 4, 32, 64
"""A block's outputs per inner channel; pixels per token of the last map; width of a head of the attention pool."""


class FrozenNorm(nn.Module):
    """Batch normalisation with the statistics of pre-training, in training mode too; the affine part may be trained.

    Kept in float32 when the tower computes in 16 bits, as OpenAI's code does.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Normalise by the stored mean and variance (eps 1e-5)."""
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=1e-5)


class Block(nn.Module):
    """A bottleneck whose stride is an average pooling behind the 3 x 3 convolution, and before the shortcut's 1 x 1."""

    def __init__(self, inputs: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, channels, 1, bias=False)
        self.bn1 = FrozenNorm(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = FrozenNorm(channels)
        self.conv3 = nn.Conv2d(channels, GROWTH * channels, 1, bias=False)
        self.bn3 = FrozenNorm(GROWTH * channels)
        self.stride = stride
        self.downsample = None
        if stride > 1 or inputs != GROWTH * channels:
            conv = nn.Conv2d(inputs, GROWTH * channels, 1, bias=False)
            self.downsample = nn.Sequential(conv, FrozenNorm(GROWTH * channels))

    def forward(self, x: Float[Tensor, "b i h w"]) -> Float[Tensor, "b o m n"]:
        """Convolve, pool, add the shortcut."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = _pooled(F.relu(self.bn2(self.conv2(y))), self.stride)
        y = self.bn3(self.conv3(y))
        shortcut = x if self.downsample is None else self.downsample(_pooled(x, self.stride))
        return F.relu(y + shortcut)


def _pooled(x: Float[Tensor, "b c h w"], stride: int) -> Float[Tensor, "b c m n"]:
    """Average squares of side `stride`."""
    return F.avg_pool2d(x, stride) if stride > 1 else x


class AttentionPool(nn.Module):
    """One layer of attention in which the mean of all tokens asks; heads are 64 wide."""

    def __init__(self, side: int, width: int, joint: int) -> None:
        super().__init__()
        self.positional_embedding = nn.Parameter(torch.randn(side**2 + 1, width) / width**0.5)
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.c_proj = nn.Linear(width, joint)

    def forward(self, tokens: Float[Tensor, "b p v"]) -> Float[Tensor, "b d"]:
        """Add positions, attend with the first token as the only query, project."""
        x = tokens + self.positional_embedding
        q, k, v = (
            projection(rows).unflatten(-1, (-1, HEAD)).transpose(1, 2)
            for projection, rows in ((self.q_proj, x[:, :1]), (self.k_proj, x), (self.v_proj, x))
        )
        return self.c_proj(F.scaled_dot_product_attention(q, k, v).flatten(1))


class ModifiedResNet(nn.Module):
    """The convolutional vision tower of CLIP (arXiv:2103.00020, section 2.4): pixels to raw joint vectors.

    A stem of three convolutions and an average pooling, four stages of bottlenecks with anti-aliased strides, attention
    in place of global pooling. Parameter names are OpenAI's. `size` is the side of the pictures in pixels, a multiple
    of 32; `stages` counts the blocks; the four maps are `width` times 4, 8, 16 and 32 channels deep; `joint` is d.
    """

    def __init__(self, size: int, stages: tuple[int, ...], width: int, joint: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width // 2, 3, stride=2, padding=1, bias=False)
        self.bn1 = FrozenNorm(width // 2)
        self.conv2 = nn.Conv2d(width // 2, width // 2, 3, padding=1, bias=False)
        self.bn2 = FrozenNorm(width // 2)
        self.conv3 = nn.Conv2d(width // 2, width, 3, padding=1, bias=False)
        self.bn3 = FrozenNorm(width)
        inputs = width
        for index, blocks in enumerate(stages):
            channels = width * 2**index
            stage = [Block(inputs, channels, stride=2 if index else 1)]
            inputs = GROWTH * channels
            stage += [Block(inputs, channels, stride=1) for _ in range(blocks - 1)]
            setattr(self, f"layer{index + 1}", nn.Sequential(*stage))
        self.stages = len(stages)
        self.attnpool = AttentionPool(size // STRIDE, inputs, joint)

    def tokens(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b p v"]:
        """Encode pixels into what the attention pool reads, positions not yet added.

        The mean of the last map comes first, in the place of a class token, then the map row by row.
        """
        x = pixels
        for index in (1, 2, 3):
            x = F.relu(getattr(self, f"bn{index}")(getattr(self, f"conv{index}")(x)))
        x = F.avg_pool2d(x, 2)
        for index in range(self.stages):
            x = getattr(self, f"layer{index + 1}")(x)
        x = x.flatten(2).transpose(1, 2)
        return torch.cat([x.mean(dim=1, keepdim=True), x], dim=1)

    def forward(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """Encode pixels into raw joint vectors; gradients flow unless the caller turned them off."""
        return self.attnpool(self.tokens(pixels))


# Made by a call: Hugging Face's configurations take keys they do not declare, which the checkers that wrap a class
# statement's constructor refuse. Its vision part has `stages` besides.
ClipResNetConfig: Any = type("ClipResNetConfig", (CLIPConfig,), {"model_type": "clip_resnet", "__module__": __name__})
AutoConfig.register(ClipResNetConfig.model_type, ClipResNetConfig, exist_ok=True)
AutoTokenizer.register(ClipResNetConfig, CLIPTokenizer, exist_ok=True)  # for folders whose tokenizer names no class


class ClipResNet(PreTrainedModel):
    """The dual encoder as Hugging Face's loader sees it, for reading and writing folders; `ResNetBackbone` runs it."""

    config_class = ClipResNetConfig
    _supports_sdpa = True

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        vision = config.vision_config
        text: Any = CLIPTextModelWithProjection._from_config(config.text_config)
        self.visual = ModifiedResNet(
            vision.image_size, tuple(vision.stages), vision.hidden_size // STRIDE, config.projection_dim
        )
        self.text_model = text.text_model
        self.text_projection = text.text_projection
        self.logit_scale = nn.Parameter(torch.tensor(config.logit_scale_init_value))
        self.post_init()


class ResNetVision(VisionTower):
    """CLIP's convolutional vision tower, by OpenAI's names."""

    def __init__(self, visual: ModifiedResNet) -> None:
        super().__init__()
        self.visual = visual

    def forward(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b t d"]:
        """Encode pixels; one vector each."""
        return self.visual(pixels)[:, None]

    def patches(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b p v"]:
        """Return what the attention pool reads, positions not yet added."""
        return self.visual.tokens(pixels)


class ResNetBackbone(ClipBackbone):
    """Frozen CLIP with a convolutional vision tower, behind `cir.backbones.base.Backbone`.

    `encode_patches` gives the tokens that the attention pool reads: the mean of the last map first, in the place of
    the class token (`class_token`), then the map row by row, `v` = 32 times the stem's width (2,560 for RN50x4).
    """

    def _load(self, folder: Path, dtype: torch.dtype, attention: str) -> Any:
        """Load the whole dual encoder; all but the norms of the vision tower in the dtype asked for."""
        model = read_model(ClipResNet, folder, torch.float32, attention)
        for module in model.modules():
            if not isinstance(module, FrozenNorm):
                for parameter in module.parameters(recurse=False):
                    parameter.data = parameter.data.to(dtype)
        return model

    def _vision(self) -> VisionTower:
        """Build the vision tower around the loaded weights."""
        return ResNetVision(self._model.visual)
