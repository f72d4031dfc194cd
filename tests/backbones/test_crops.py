"""Random crops against RandomResizedCrop's arithmetic written out."""

import numpy as np
import pytest
import torch
from PIL import Image

from cir.backbones.crops import crop, crop_box


def written_out(width, height, draws):
    """The definition, attempt by attempt: area in 0.9..1, log-uniform ratio in 3/4..4/3, a place that fits."""
    for area, aspect, down, right in draws:
        goal = (0.9 + 0.1 * area) * width * height
        ratio = np.exp(np.log(0.75) + aspect * (np.log(4 / 3) - np.log(0.75)))
        w = int(np.rint(np.sqrt(goal * ratio)))
        h = int(np.rint(np.sqrt(goal / ratio)))
        if w <= width and h <= height:
            left, top = int(np.floor(right * (width - w + 1))), int(np.floor(down * (height - h + 1)))
            return left, top, left + w, top + h
    return None


@pytest.mark.parametrize(("width", "height"), [(64, 64), (100, 80), (61, 83), (500, 375)])
def test_the_first_attempt_that_fits_is_taken(width, height):
    generator = torch.Generator().manual_seed(0)
    seen = set()
    for _ in range(200):
        draws = torch.rand(10, 4, generator=generator)
        expected = written_out(width, height, draws.tolist())
        box = crop_box(width, height, draws)
        if expected is None:
            continue
        assert box == expected
        left, top, right, bottom = box
        assert 0 <= left < right <= width and 0 <= top < bottom <= height
        assert 0.88 < (right - left) * (bottom - top) / (width * height) <= 1.001
        seen.add(box)
    assert len(seen) > 20


@pytest.mark.parametrize(
    ("width", "height", "box"),
    [(1000, 30, (480, 0, 520, 30)), (30, 1000, (0, 480, 30, 520)), (40, 40, (0, 0, 40, 40))],
)
def test_where_nothing_fits_the_middle_is_taken(width, height, box):
    draws = torch.full((10, 4), 0.999)
    draws[:, 1] = 0.0 if width <= height else 1.0
    assert crop_box(width, height, draws) == box


def test_a_draw_next_to_one_stays_inside():
    last = torch.tensor([[1.0, 0.5, 1.0, 1.0]]).nextafter(torch.zeros(1)).repeat(10, 1)
    left, top, right, bottom = crop_box(640, 640, last)
    assert right <= 640 and bottom <= 640 and left >= 0 and top >= 0


def test_pixels_are_those_of_the_cut_part_alone():
    pixels = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    draws = torch.rand(10, 4, generator=torch.Generator().manual_seed(3))
    left, top, right, bottom = crop_box(90, 70, draws)
    found = np.asarray(crop(Image.fromarray(pixels), (32, 32), draws))
    part = np.ascontiguousarray(pixels[top:bottom, left:right])
    assert np.array_equal(found, np.asarray(Image.fromarray(part).resize((32, 32), Image.Resampling.BICUBIC)))
    around = np.full_like(pixels, 255)
    around[top:bottom, left:right] = part
    assert np.array_equal(found, np.asarray(crop(Image.fromarray(around), (32, 32), draws)))


def test_other_modes_become_rgb():
    draws = torch.rand(10, 4)
    for mode in ("L", "P", "RGBA", "CMYK"):
        assert crop(Image.new(mode, (50, 40)), (8, 8), draws).mode == "RGB"
