"""From a picture to pixels, with Pillow alone: named, fingerprinted, bit for bit what `CLIPImageProcessorPil` gives.

`clip` does what the weights' preprocessor_config.json says (CLIP: short side to n, bicubic, centre crop; SigLIP and
BLIP-2: squashed to n x n). `targetpad` first pads pictures whose long side is 1.25 times the short one or more,
`squarepad` all that are not square (CLIP4Cir, arXiv:2308.11485; SEARLE's checkpoints expect targetpad). What is padded
goes on as with `clip`, but for BLIP-2: there the short side becomes n and the centre is cropped, as in SPRC and all
others who train BLIP and BLIP-2 on padded pictures. A method's numbers belong to its preprocessing, so
`Preprocess.id` is part of every feature cache key.

Each has a `-fast` twin that resizes with torch instead of Pillow, in integers of 16 bits instead of 32: about 0.4 % of
the grey levels of a photo differ, by one or two. Torch resizes the width first; Pillow 13 takes the height first where
a picture is more than twice as high as wide, and there a quarter of the levels differ, by up to three (seven where the
weights squash pictures). The twins are for galleries whose decoding keeps a GPU waiting.
"""

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional as F

from cir.backbones.weights import read_config
from cir.errors import InputError, nearest

TARGET_RATIO = 1.25

PADDING = {"clip": "none", "targetpad": f"ratio-{TARGET_RATIO}", "squarepad": "square"}
FAST = "-fast"
NAMES = (*PADDING, *(f"{name}{FAST}" for name in PADDING))
FILTERS = {int(Image.Resampling.BILINEAR): "bilinear", int(Image.Resampling.BICUBIC): "bicubic"}
"""Pillow's filters that torch has too."""

CONFIGS = ("preprocessor_config.json", "processor_config.json")


@dataclass(frozen=True)
class Preprocess:
    """One preprocessing with all its constants: calling it turns a picture into normalised float32 pixels."""

    name: str
    """One of NAMES."""
    resize: tuple[int, int] | int | None
    """(height, width) to squash to, or the short side's length, or no resizing."""
    resample: int
    """Pillow's number of the filter (3 is bicubic)."""
    crop: tuple[int, int] | None
    """(height, width) of the centre crop, zeros around what is too small."""
    scale: float
    """What the grey levels are multiplied by (1/255)."""
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if self.name.endswith(FAST) and self.resample not in FILTERS:
            raise InputError(
                f"preprocess {self.name!r}: Pillow's filter {self.resample} has no fast twin; "
                f"use {self.padding!r}, or weights that ask for bicubic (3) or bilinear (2)"
            )

    @property
    def padding(self) -> str:
        """The name without what says how it is computed; a key of PADDING."""
        return self.name.removesuffix(FAST)

    @property
    def id(self) -> str:
        """Name and eight hex digits over every constant, e.g. `targetpad-1.25:1f3a60c2`."""
        shown = f"{self.padding}-{TARGET_RATIO}" if self.padding == "targetpad" else self.padding
        if isinstance(self.resize, tuple):
            shown = "squash" if self.padding == "clip" else f"{shown}-squash"
        shown += self.name.removeprefix(self.padding)
        constants = json.dumps([asdict(self), PADDING[self.padding]], sort_keys=True)
        return f"{shown}:{hashlib.sha256(constants.encode()).hexdigest()[:8]}"

    @property
    def size(self) -> tuple[int, int] | None:
        """(height, width) of the result, where it is the same for all pictures."""
        return self.crop or (self.resize if isinstance(self.resize, tuple) else None)

    def __call__(self, image: Image.Image) -> Float32[Tensor, "3 h w"]:
        """Pad in the picture's own mode, convert to RGB, resize, crop, normalise."""
        if self.padding != "clip":
            image = pad(image, TARGET_RATIO if self.padding == "targetpad" else 1.0)
        image = image if image.mode == "RGB" else image.convert("RGB")
        pixels = np.asarray(image) if self.resize is None else self._resize(image, *_resized(image, self.resize))
        if self.crop is not None:
            pixels = _centre(pixels, self.crop)
        levels, normal = self._levels(), np.empty((3, *pixels.shape[:2]), dtype=np.float32)
        for channel in range(3):
            np.take(levels[channel], pixels[..., channel], out=normal[channel], mode="clip")  # no index is outside
        return torch.from_numpy(normal)

    def _resize(self, image: Image.Image, height: int, width: int) -> UInt8[np.ndarray, "h w 3"]:
        """Resize with Pillow, or nearly so with torch, which takes a quarter of the time."""
        if not self.name.endswith(FAST):
            return np.asarray(image.resize((width, height), resample=Image.Resampling(self.resample)))
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
        mode = FILTERS[self.resample]
        resized = F.interpolate(pixels, size=(height, width), mode=mode, antialias=True)
        return resized[0].permute(1, 2, 0).numpy()

    def _levels(self) -> Float32[np.ndarray, "3 256"]:
        """Normalise each of the 256 grey levels once: scaled in float64, then rounded, then float32 throughout."""
        levels = (np.arange(256).astype(np.float64) * self.scale).astype(np.float32)
        mean, std = np.array(self.mean, dtype=np.float32), np.array(self.std, dtype=np.float32)
        return (levels - mean[:, None]) / std[:, None]


def pad(image: Image.Image, ratio: float) -> Image.Image:
    """Pad with zeros, equally on both sides, until the long side is `ratio` times the short one.

    Odd gaps lose a pixel, and the picture's own mode is kept (zeros of a palette are its first colour), both as in
    the official code.
    """
    width, height = image.size
    if max(width, height) / min(width, height) < ratio:
        return image
    goal = max(width, height) / ratio
    across, down = max(int((goal - width) / 2), 0), max(int((goal - height) / 2), 0)
    if not across and not down:
        return image
    padded = ImageOps.expand(image, border=(across, down, across, down), fill=_zero(image))
    if image.mode == "P":
        padded.putpalette(image.getpalette() or [])
    return padded


def _zero(image: Image.Image) -> Any:
    """Give the zero of a mode: a number, or one per band."""
    bands = len(image.getbands())
    return 0 if bands == 1 else (0,) * bands


def _resized(image: Image.Image, goal: tuple[int, int] | int) -> tuple[int, int]:
    """Height and width after resizing; the long side is cut down to an integer, as in torchvision."""
    if isinstance(goal, tuple):
        return goal
    width, height = image.size
    return (goal, int(goal * width / height)) if height <= width else (int(goal * height / width), goal)


def _centre(pixels: UInt8[np.ndarray, "h w 3"], size: tuple[int, int]) -> UInt8[np.ndarray, "n m 3"]:
    """Cut the centre out; a picture smaller than the crop gets zeros around it."""
    height, width = pixels.shape[:2]
    if height < size[0] or width < size[1]:
        tall, wide = max(height, size[0]), max(width, size[1])
        top, left = math.ceil((tall - height) / 2), math.ceil((wide - width) / 2)
        pixels = np.pad(pixels, ((top, tall - height - top), (left, wide - width - left), (0, 0)))
        height, width = tall, wide
    top, left = (height - size[0]) // 2, (width - size[1]) // 2
    return pixels[top : top + size[0], left : left + size[1]]


def from_folder(folder: Path, name: str) -> Preprocess:
    """Read a checkpoint's preprocessing, and choose the padding by name.

    Raises InputError for an unknown name, or where the file is absent or asks for what is not done here.
    """
    if name not in NAMES:
        raise InputError(f"preprocess {name!r}: {nearest(name, NAMES)}")
    for file in CONFIGS:
        if (folder / file).is_file():
            config = read_config(folder, file)
            config = config.get("image_processor", config if file == CONFIGS[0] else {})
            if config:
                return _from_config(config, name, folder / file)
    raise InputError(f"{folder}: no preprocessing found; looked for {' and '.join(CONFIGS)}")


def _from_config(config: dict[str, Any], name: str, path: Path) -> Preprocess:
    """Read the keys of an image processor's config; absent switches are on except the crop, as in transformers."""
    kind = str(config.get("image_processor_type", config.get("feature_extractor_type", ""))).lower()
    blip = kind.startswith("blip")
    clip = not blip and "siglip" not in kind
    if not config.get("do_rescale", True) or not config.get("do_normalize", True):
        raise InputError(f"{path}: do_rescale or do_normalize is false; only normalised pixels are supported")
    mean, std = config.get("image_mean"), config.get("image_std")
    if not isinstance(mean, list) or not isinstance(std, list) or len(mean) != 3 or len(std) != 3:
        raise InputError(f"{path}: expected image_mean and image_std with three numbers each")
    cropped = config.get("crop_size") if config.get("do_center_crop", clip) else None
    crop = None if cropped is None else _pair(cropped, path)
    size = config.get("size") if config.get("do_resize", True) else None
    resize = None if size is None else _size(size, path, square=not clip)
    if blip and PADDING[name.removesuffix(FAST)] != "none" and isinstance(resize, tuple):
        crop, resize = resize, min(resize)
    return Preprocess(
        name=name,
        resize=resize,
        resample=int(config.get("resample", Image.Resampling.BICUBIC)),
        crop=crop,
        scale=float(config.get("rescale_factor", 1 / 255)),
        mean=tuple(map(float, mean)),
        std=tuple(map(float, std)),
    )


def _size(size: Any, path: Path, square: bool) -> tuple[int, int] | int:
    """Read `size`: a number (old files), the shortest edge, or height and width."""
    if isinstance(size, dict) and "shortest_edge" in size and "longest_edge" not in size:
        return int(size["shortest_edge"])
    if isinstance(size, int) and not square:
        return size
    return _pair(size, path)


def _pair(size: Any, path: Path) -> tuple[int, int]:
    """Read height and width, or one number for both."""
    if isinstance(size, int):
        return size, size
    if isinstance(size, dict) and {"height", "width"} <= set(size):
        return int(size["height"]), int(size["width"])
    raise InputError(f"{path}: size {size!r} not understood; expected a number, shortest_edge, or height and width")
