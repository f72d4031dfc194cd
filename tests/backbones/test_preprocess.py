"""Pixels, bit for bit against Hugging Face's Pillow processor, and paddings against a canvas drawn by hand."""

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cir.backbones.preprocess import NAMES, Preprocess, from_folder, pad
from cir.errors import InputError

PHOTOS = Path(__file__).resolve().parents[3] / "shared" / "data" / "photos"


@pytest.fixture
def folder(tmp_path, make_preprocessor):
    make_preprocessor(tmp_path, 224)
    return tmp_path


def official(folder):
    from transformers import CLIPImageProcessorPil

    processor = CLIPImageProcessorPil.from_pretrained(folder)
    return lambda image: processor(image, return_tensors="pt")["pixel_values"][0]


def noise(size, mode="RGB", seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


@pytest.mark.parametrize(
    "size", [(224, 224), (640, 480), (480, 640), (225, 224), (100, 900), (31, 17), (223, 1000), (1, 1)]
)
def test_random_pictures_equal_hugging_face_bit_for_bit(folder, size):
    found = from_folder(folder, "clip")(noise(size))
    assert found.shape == (3, 224, 224) and torch.equal(found, official(folder)(noise(size)))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "1", "CMYK", "YCbCr", "I", "F"])
def test_other_modes_equal_hugging_face_bit_for_bit(folder, mode):
    picture = noise((260, 230), "RGB" if mode in "IF" else mode).convert(mode)
    assert torch.equal(from_folder(folder, "clip")(picture), official(folder)(picture))


@pytest.mark.parametrize(
    "changes",
    [
        {"crop_size": {"height": 200, "width": 100}},
        {"crop_size": {"height": 300, "width": 251}},
        {"size": {"height": 210, "width": 230}, "crop_size": {"height": 201, "width": 222}},
        {"size": {"height": 210, "width": 230}, "do_center_crop": False},
        {"resample": 2, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.6, 0.7]},
        {"do_resize": False, "crop_size": 150},
        {"size": 224, "crop_size": 224},
        {"rescale_factor": 0.003},
    ],
)
def test_other_constants_equal_hugging_face_bit_for_bit(tmp_path, make_preprocessor, changes):
    make_preprocessor(tmp_path, 224, **changes)
    picture = noise((301, 247))
    assert torch.equal(from_folder(tmp_path, "clip")(picture), official(tmp_path)(picture))


def test_real_photos_equal_hugging_face_bit_for_bit(folder):
    photos = sorted(PHOTOS.rglob("*.jpg"))[::12]
    if not photos:
        pytest.skip("needs the photographs in ../shared/data")
    ours, theirs = from_folder(folder, "clip"), official(folder)
    for path in photos:
        with Image.open(path) as picture:
            assert torch.equal(ours(picture), theirs(picture)), path


def levels(preprocess, image):
    """The grey levels that a preprocessing shows the tower, back from its normalised pixels."""
    table, pixels = preprocess._levels(), preprocess(image).numpy()
    return np.stack([np.searchsorted(table[c], pixels[c]) for c in range(3)])


def smooth(size, seed=0):
    """A picture without hard edges everywhere, grainy like a photo."""
    coarse = noise((max(1, size[0] // 8), max(1, size[1] // 8)), seed=seed).resize(size, Image.Resampling.BICUBIC)
    grain = np.random.default_rng(seed).normal(0, 9, (size[1], size[0], 1))
    return Image.fromarray(np.clip(np.asarray(coarse) + grain, 0, 255).astype(np.uint8))


def apart(exact, fast, image):
    """The share of grey levels that differ, and by how many levels at most."""
    difference = np.abs(levels(exact, image) - levels(fast, image))
    return (difference > 0).mean(), difference.max()


@pytest.mark.parametrize("name", ["clip", "targetpad", "squarepad"])
def test_fast_twins_differ_in_few_pixels_by_two_levels_at_most(folder, name):
    exact, fast = from_folder(folder, name), from_folder(folder, f"{name}-fast")
    shares = []
    for size in [(640, 480), (480, 640), (500, 375), (333, 500), (1200, 700), (900, 300), (150, 100), (31, 17)]:
        share, most = apart(exact, fast, smooth(size))
        assert most <= (2 if min(size) > 224 else 3)  # small ones are enlarged
        shares.append(share)
    assert 0 < np.mean(shares[:6]) <= 0.005 and max(shares) < 0.01
    assert apart(exact, fast, smooth((300, 900)))[1] <= 3  # Pillow 13 begins with the height
    for size in [(1, 1), (224, 224)]:  # nothing is resized to speak of
        assert torch.equal(exact(noise(size)), fast(noise(size)))
    assert not torch.equal(exact(noise((640, 480))), fast(noise((640, 480))))  # it is another way


def test_fast_twins_on_real_photos(folder):
    photos = sorted(PHOTOS.rglob("*.jpg"))[::12]
    if not photos:
        pytest.skip("needs the photographs in ../shared/data")
    exact, fast = from_folder(folder, "clip"), from_folder(folder, "clip-fast")
    found = []
    for path in photos:
        with Image.open(path) as picture:
            found.append(apart(exact, fast, picture))
    assert max(most for _, most in found) <= 2
    assert np.mean([share for share, _ in found]) <= 0.005


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK"])
def test_fast_twins_take_pictures_of_any_mode(folder, mode):
    picture = smooth((300, 240)).convert(mode)
    share, most = apart(from_folder(folder, "targetpad"), from_folder(folder, "targetpad-fast"), picture)
    assert share < 0.02 and most <= 2


def test_a_fast_twin_has_an_id_of_its_own_and_the_exact_ids_stay(folder):
    ids = {name: from_folder(folder, name).id for name in NAMES}
    assert len(set(ids.values())) == len(NAMES) == 6
    assert ids["clip"] == "clip:1e660327"  # what galleries are cached under
    assert ids["clip-fast"].startswith("clip-fast:") and ids["targetpad-fast"].startswith("targetpad-1.25-fast:")
    squashed = replace(from_folder(folder, "clip-fast"), resize=(224, 224))
    assert squashed.id.startswith("squash-fast:")


def test_a_filter_that_torch_lacks_has_no_fast_twin(tmp_path, make_preprocessor):
    make_preprocessor(tmp_path, 224, resample=1)
    assert from_folder(tmp_path, "clip").resample == 1
    with pytest.raises(InputError, match=r"'clip-fast': Pillow's filter 1 has no fast twin; use 'clip'"):
        from_folder(tmp_path, "clip-fast")
    make_preprocessor(tmp_path, 224, resample=2)
    exact, fast = (from_folder(tmp_path, name) for name in ("clip", "clip-fast"))
    assert apart(exact, fast, smooth((500, 375)))[1] <= 1
    with pytest.raises(InputError, match=r"'clip-fats'.*clip-fast"):
        from_folder(tmp_path, "clip-fats")


def test_targetpad_is_padding_and_then_the_official_pipeline(folder):
    picture = noise((400, 200))
    canvas = Image.new("RGB", (400, 320))
    canvas.paste(picture, (0, 60))
    assert torch.equal(from_folder(folder, "targetpad")(picture), official(folder)(canvas))
    assert not torch.equal(from_folder(folder, "clip")(picture), official(folder)(canvas))


@pytest.mark.parametrize(
    ("size", "ratio", "expected"),
    [
        ((400, 200), 1.25, (400, 320)),
        ((200, 400), 1.25, (320, 400)),
        ((125, 100), 1.25, (125, 100)),  # at the ratio: nothing to add
        ((124, 100), 1.25, (124, 100)),  # below it: left alone
        ((401, 201), 1.25, (401, 319)),  # int(119.8 / 2) on both sides: a pixel is lost
        ((10, 7), 1.0, (10, 9)),
        ((7, 10), 1.0, (9, 10)),
        ((5, 5), 1.0, (5, 5)),
    ],
)
def test_padding_by_hand(size, ratio, expected):
    picture = noise(size)
    padded = pad(picture, ratio)
    assert padded.size == expected
    left, top = (expected[0] - size[0]) // 2, (expected[1] - size[1]) // 2
    canvas = np.zeros((expected[1], expected[0], 3), dtype=np.uint8)
    canvas[top : top + size[1], left : left + size[0]] = np.asarray(picture)
    assert np.array_equal(np.asarray(padded), canvas)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "1", "CMYK"])
def test_padding_keeps_the_mode_and_fills_its_zero(mode):
    picture = noise((40, 10), mode)
    padded = pad(picture, 1.25)
    assert padded.mode == mode and padded.size == (40, 32)
    inside = padded.crop((0, 11, 40, 21))
    assert np.array_equal(np.asarray(inside.convert("RGB")), np.asarray(picture.convert("RGB")))
    zero = Image.new(mode, (1, 1))
    if mode == "P":
        zero.putpalette(picture.getpalette())
    assert padded.convert("RGB").getpixel((0, 0)) == zero.convert("RGB").getpixel((0, 0))


@given(st.integers(1, 60), st.integers(1, 60))
def test_property_padding_ends_within_two_pixels_of_the_ratio_and_never_cuts(width, height):
    padded = pad(Image.new("L", (width, height)), 1.25)
    assert padded.size[0] >= width and padded.size[1] >= height and max(padded.size) == max(width, height)
    assert min(padded.size) >= max(padded.size) / 1.25 - 2


def test_the_id_names_the_padding_and_follows_every_constant(folder):
    clip = from_folder(folder, "clip")
    assert clip.id.startswith("clip:") and len(clip.id) == 5 + 8
    assert from_folder(folder, "targetpad").id.startswith("targetpad-1.25:")
    other = {
        "name": "squarepad", "resize": 225, "resample": 2, "crop": (224, 223), "scale": 0.004,
        "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0),
    }  # fmt: skip
    assert set(other) == {field.name for field in fields(Preprocess)}
    assert len({clip.id, *(replace(clip, **{name: value}).id for name, value in other.items())}) == 8


def test_a_processor_config_of_new_checkpoints_is_read(folder, tmp_path):
    import json

    config = json.loads((folder / "preprocessor_config.json").read_text())
    expected = from_folder(folder, "clip")
    (folder / "preprocessor_config.json").unlink()
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": config}))
    assert from_folder(folder, "clip") == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"do_rescale": False}, "do_rescale or do_normalize is false"),
        ({"image_mean": 0.5}, "expected image_mean and image_std"),
        ({"size": {"longest_edge": 3}}, "size .* not understood"),
        ({"crop_size": "224"}, "size '224' not understood"),
    ],
)
def test_what_is_not_supported_is_refused(tmp_path, make_preprocessor, changes, message):
    make_preprocessor(tmp_path, 224, **changes)
    with pytest.raises(InputError, match=message):
        from_folder(tmp_path, "clip")


def test_pixels_of_another_size_than_the_tower_are_refused(tiny_clip_folder, tmp_path, make_preprocessor):
    import shutil

    from cir.backbones import load

    broken = Path(shutil.copytree(tiny_clip_folder, tmp_path / "broken"))
    make_preprocessor(broken, 64)
    with pytest.raises(InputError, match=r"makes \(64, 64\) pixels, the vision tower takes \(32, 32\)"):
        load(str(broken), device="cpu")
