"""Random crops of pictures: the training augmentation of Pic2Word (arXiv:2302.03084) and Context-I2W."""

import math

from jaxtyping import Float32
from PIL import Image
from torch import Tensor

ATTEMPTS = 10
SCALE = (0.9, 1.0)
"""Share of the picture's area that a crop takes (Pic2Word's released training transform)."""
RATIO = (3 / 4, 4 / 3)
"""Width over height of a crop, the default of torchvision's RandomResizedCrop."""


def crop_box(width: int, height: int, draws: Float32[Tensor, "10 4"]) -> tuple[int, int, int, int]:
    """Choose a crop (left, top, right, bottom) as torchvision's RandomResizedCrop defines it.

    `draws` are U(0, 1), per attempt: area, aspect ratio (uniform in its logarithm), top, left. The first attempt that
    fits is taken; where none does, the largest central crop whose ratio is allowed.
    """
    low, high = (math.log(ratio) for ratio in RATIO)
    for area, aspect, down, right in draws.tolist():
        goal = width * height * (SCALE[0] + (SCALE[1] - SCALE[0]) * area)
        ratio = math.exp(low + (high - low) * aspect)
        w, h = round(math.sqrt(goal * ratio)), round(math.sqrt(goal / ratio))
        if 0 < w <= width and 0 < h <= height:
            # A float32 draw may be so close to 1 that the product rounds up to the next number.
            top, left = min(int(down * (height - h + 1)), height - h), min(int(right * (width - w + 1)), width - w)
            return left, top, left + w, top + h
    w, h = width, height
    if width / height < RATIO[0]:
        h = round(width / RATIO[0])
    elif width / height > RATIO[1]:
        w = round(height * RATIO[1])
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def crop(image: Image.Image, size: tuple[int, int], draws: Float32[Tensor, "10 4"]) -> Image.Image:
    """Cut a random part out of a picture and resize it to `size` (width, height), bicubic: an RGB picture.

    The part is cut before it is resized, so that no pixel outside reaches the filter.
    """
    image = image if image.mode == "RGB" else image.convert("RGB")
    return image.crop(crop_box(*image.size, draws)).resize(size, Image.Resampling.BICUBIC)
