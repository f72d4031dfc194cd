"""Parts of pictures: the crops of GeneCIS pixel by pixel, and what is refused."""

import numpy as np
import pytest
from PIL import Image

from cir.backbones.cache import encode_gallery
from cir.data.images import ImageFiles
from cir.data.views import Seen, seen
from cir.errors import InputError
from cir.schema import View

SIZE = (224, 224)
WIDTH, HEIGHT = 100, 80


def picture(mode="RGB", width=WIDTH, height=HEIGHT):
    """A picture whose every pixel says where it is, and none of which is black."""
    ys, xs = np.mgrid[:height, :width]
    pixels = np.stack([xs + 50, ys + 50, np.full_like(xs, 200)], axis=-1).astype(np.uint8)
    return Image.fromarray(pixels).convert(mode)


def cut(box, image=None):
    return seen(image or picture(), View("dilated-square", tuple(map(float, box))), SIZE)


def filled(image):
    """The smallest rectangle (left, top, right, bottom) outside of which everything is black."""
    ys, xs = np.nonzero(np.asarray(image.convert("RGB")).any(axis=2))
    return int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1


@pytest.mark.parametrize(
    ("box", "region"),
    [  # by hand: left and top move by 0.7 of the side, right and bottom are 1.7 sides away from where they end up
        ((40, 30, 20, 10), (26, 23, 60, 40)),  # free on all sides: right and bottom edge stay where they were
        ((10, 30, 20, 10), (0, 23, 34, 40)),  # stopped at the left: 4 pixels are missing there and appear at the right
        ((40, 5, 20, 10), (26, 0, 60, 17)),  # stopped at the top
        ((70, 50, 40, 40), (42, 22, 100, 80)),  # 10 too far right and down: cut there, the left is not moved for it
        ((-1.5, 30, 20, 10), (0, 23, 34, 40)),  # begins outside
        ((0, 0, 100, 80), (0, 0, 100, 80)),  # everything: 170 x 136 is more than there is
        ((40.4, 30.2, 20.5, 10.5), (26, 23, 61, 41)),  # 26.05, 22.85, 60.9, 40.7
        ((40.35, 30, 20.5, 10), (26, 23, 61, 40)),  # 26.0, 60.85
    ],
)
def test_the_region_by_hand(box, region):
    expected = picture().crop(region)
    width, height = expected.size
    side = max(width, height)
    square = cut(box)
    assert square.size == (side, side) and square.mode == "RGB"
    left, top = (side - width) // 2, (side - height) // 2
    assert filled(square) == (left, top, left + width, top + height)  # centred, black around it
    inner = square.crop((left, top, left + width, top + height))
    assert np.array_equal(np.asarray(inner), np.asarray(expected))


def test_it_does_not_grow_to_the_right_and_is_no_symmetric_dilation():
    square = np.asarray(cut((40, 30, 20, 20)))
    assert square.shape == (34, 34, 3)
    assert square[0, 0].tolist() == [26 + 50, 16 + 50, 200] and square[-1, -1].tolist() == [59 + 50, 49 + 50, 200]


@pytest.mark.parametrize(("mode", "kept"), [("L", "L"), ("RGB", "RGB"), ("P", "RGB"), ("CMYK", "RGB"), ("RGBA", "RGB")])
def test_modes_keep_their_colours_and_get_black_around_them(mode, kept):
    image = picture(mode)
    if mode == "P":  # a palette whose first colour is not black
        image = picture("RGB").quantize(16)
        image.putpalette([255, 0, 0, *image.getpalette()[3:]])
    square = cut((40, 30, 20, 10), image)
    assert square.mode == kept and square.size == (34, 34)
    rgb = np.asarray(square.convert("RGB"))
    assert not rgb[:8].any() and not rgb[25:].any() and rgb[8:25].any(axis=2).all()
    assert np.array_equal(rgb[8:25], np.asarray(image.convert("RGB").crop((26, 23, 60, 40))))


def test_the_official_crop_of_random_boxes():
    """The definition written out as a loop over pixels, on boxes that also lie a little outside."""
    rng = np.random.default_rng(0)
    for _ in range(60):
        left, top = rng.uniform(-2, 90), rng.uniform(-2, 70)
        width, height = rng.uniform(2, 104 - left), rng.uniform(2, 84 - top)
        new_left, new_top = max(0, left - 0.7 * width), max(0, top - 0.7 * height)
        right, bottom = min(WIDTH, new_left + 1.7 * width), min(HEIGHT, new_top + 1.7 * height)
        x0, y0, x1, y1 = round(new_left), round(new_top), round(right), round(bottom)
        side = max(x1 - x0, y1 - y0)
        canvas = np.zeros((side, side, 3), dtype=np.uint8)
        across, down = (side - (x1 - x0)) // 2, (side - (y1 - y0)) // 2
        for y in range(y0, y1):
            for x in range(x0, x1):
                canvas[down + y - y0, across + x - x0] = x + 50, y + 50, 200
        assert np.array_equal(np.asarray(cut((left, top, width, height))), canvas)


@pytest.mark.parametrize("box", [(400, 10, 20, 20), (10, 300, 20, 20), (50, 50, 0.1, 20)])
def test_a_box_without_pixels_is_an_error_with_both_sizes(box):
    with pytest.raises(InputError, match=r"box .* leaves nothing of a picture of 100 x 80; expected the original"):
        cut(box)


def test_a_box_left_of_the_picture_is_pulled_back_into_it():
    assert cut((-90, 30, 20, 10)).size == (34, 34)  # the official arithmetic forgets how far outside it began


def test_unknown_views_are_named():
    with pytest.raises(InputError, match="view 'dilated_square': did you mean 'dilated-square'"):
        seen(picture(), View("dilated_square", (0.0, 0.0, 5.0, 5.0)), SIZE)


def test_parts_of_files_are_opened_encoded_and_blamed_by_their_names(tmp_path, tiny_backbone):
    picture().save(tmp_path / "7.png")
    views = {"a": View("dilated-square", (40.0, 30.0, 20.0, 10.0)), "b": View("dilated-square", (9.0,) * 4)}
    files = ImageFiles(tmp_path, {"7": "7.png", **dict.fromkeys(views, "7.png")}, views)
    assert files.open("7").size == (100, 80)  # the file itself is another image
    assert np.array_equal(np.asarray(files.open("a")), np.asarray(cut((40, 30, 20, 10))))
    path = tmp_path / "7.png"
    openers = [Seen(path, view, (32, 32)) for view in views.values()]
    found = encode_gallery(tiny_backbone, list(views), [path, path], None, openers=openers, progress=False)
    crops = [tiny_backbone.preprocess(files.open(name)) for name in views]
    for row, crop in zip(found, crops, strict=True):
        np.testing.assert_allclose(row, tiny_backbone.encode_images(crop[None])[0].numpy(), atol=1e-5)
    assert not np.allclose(found[0], found[1])
    lost = Seen(path, View("dilated-square", (400.0, 10.0, 20.0, 20.0)), (32, 32))
    with pytest.raises(InputError, match=r"7\.png \(dilated-square 400.0,10.0,.* leaves nothing of a picture"):
        encode_gallery(tiny_backbone, ["a"], [path], None, openers=[lost], progress=False)
