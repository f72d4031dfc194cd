"""Images through a frozen backbone: cached = fresh = one by one, crops and patches against the plain way."""

import dataclasses
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from cir.backbones.cache import FeatureCache
from cir.backbones.crops import crop
from cir.backbones.encoded import EncodedImages
from cir.data import pictures
from cir.errors import InputError
from cir.methods.base import Images
from cir.randomness import StepRandom

COUNT = 13


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("pictures")
    draw = np.random.default_rng(0)
    for index in range(COUNT):
        shape = (*draw.integers(40, 52, 2), 3)
        Image.fromarray(draw.integers(0, 256, shape, dtype=np.uint8)).save(root / f"{index:02d}.png")
    (root / "03.txt").write_text("a red dress\n")
    return root


def encoded(backbone, folder, cache=None, **options):
    return EncodedImages(backbone, pictures.load(folder), cache, **{"progress": False, "batch_size": 4, **options})


def plain(backbone, folder):
    vectors = []
    for path in sorted(folder.glob("*.png")):
        with Image.open(path) as image:
            vectors.append(backbone.encode_images(backbone.preprocess(image)[None])[0, 0])
    return torch.stack(vectors)


def test_it_is_what_methods_ask_for(tiny_backbone, folder):
    found = encoded(tiny_backbone, folder)
    assert isinstance(found, Images)
    assert len(found) == COUNT and found.text(3) == "a red dress" and found.text(4) == "" and found.name(3) == "03.png"
    assert found.fingerprint == pictures.load(folder).fingerprint


def test_features_are_cached_memory_mapped_and_those_of_one_by_one(tiny_backbone, folder, tmp_path):
    expected = plain(tiny_backbone, folder)
    rows = [5, 0, 5, 12]
    cache = FeatureCache(tmp_path)
    first = encoded(tiny_backbone, folder, cache)
    torch.testing.assert_close(first.features(rows), expected[rows], atol=1e-5, rtol=1e-5)
    assert isinstance(first._features, np.memmap)
    assert (cache.counters.encoded, cache.counters.decoded) == (COUNT, COUNT)
    again = FeatureCache(tmp_path)
    second = encoded(tiny_backbone, folder, again, batch_size=7)
    assert torch.equal(second.features(rows), first.features(rows)) and again.counters.encoded == 0
    fresh = encoded(tiny_backbone, folder)
    assert torch.equal(fresh.features(range(COUNT)), first.features(range(COUNT)))


def test_an_interrupted_pass_goes_on_where_it_stopped(tiny_backbone, folder, tmp_path):
    class Dying:
        def __init__(self):
            self.calls = 0

        def __getattr__(self, name):
            return getattr(tiny_backbone, name)

        def encode_images(self, pixels):
            self.calls += 1
            if self.calls == 3:
                raise KeyboardInterrupt
            return tiny_backbone.encode_images(pixels)

    with pytest.raises(KeyboardInterrupt):
        encoded(Dying(), folder, FeatureCache(tmp_path, chunk=4)).features([0])
    cache = FeatureCache(tmp_path, chunk=4)
    resumed = encoded(tiny_backbone, folder, cache).features(range(COUNT))
    assert cache.counters.resumed_rows == 8 and cache.counters.encoded == COUNT - 8
    assert torch.equal(resumed, encoded(tiny_backbone, folder).features(range(COUNT)))


def test_crops_are_those_of_the_step_row_by_row(tiny_backbone, folder):
    found = encoded(tiny_backbone, folder)
    rows = [7, 2, 9, 2, 0, 11]
    random = StepRandom(3, 5, 0, 6, 6)
    draws = random.uniform("crop", 10, 4)
    expected = []
    for row, drawn in zip(rows, draws, strict=True):
        with Image.open(folder / f"{row:02d}.png") as image:
            pixels = np.asarray(crop(image, (32, 32), drawn), dtype=np.float64) / 255
        mean, std = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
        normal = torch.from_numpy(((pixels - mean) / std).transpose(2, 0, 1).astype(np.float32))
        expected.append(tiny_backbone.encode_images(normal[None])[0, 0])
    torch.testing.assert_close(found.augmented(rows, random), torch.stack(expected), atol=1e-4, rtol=1e-4)
    assert torch.equal(found.augmented(rows, random), encoded(tiny_backbone, folder).augmented(rows, random))
    other = found.augmented(rows, dataclasses.replace(random, step=6))
    assert not torch.allclose(other, torch.stack(expected), atol=1e-3)
    assert not torch.allclose(other[1], other[3], atol=1e-4)  # one picture, two draws


def test_two_processes_crop_as_one_does(tiny_backbone, folder):
    found = encoded(tiny_backbone, folder)
    rows = [7, 2, 9, 3]
    whole = found.augmented(rows, StepRandom(3, 5, 0, 4, 4))
    halves = [found.augmented(rows[a : a + 2], StepRandom(3, 5, a, a + 2, 4)) for a in (0, 2)]
    torch.testing.assert_close(torch.cat(halves), whole, atol=1e-5, rtol=1e-5)
    with pytest.raises(InputError, match="3 rows, but the step's random numbers are for 4"):
        found.augmented(rows[:3], StepRandom(3, 5, 0, 4, 4))


def test_targetpad_does_not_touch_a_crop(tiny_clip_folder, tiny_backbone, folder):
    from cir.backbones import load

    padded = load(str(tiny_clip_folder), device="cpu", preprocess="targetpad")
    random = StepRandom(0, 0, 0, 3, 3)
    assert torch.equal(
        encoded(padded, folder).augmented([0, 1, 2], random),
        encoded(tiny_backbone, folder).augmented([0, 1, 2], random),
    )


def test_patches_are_those_of_the_tower(tiny_backbone, folder):
    found = encoded(tiny_backbone, folder).patches([1, 8, 4, 0, 2])
    with Image.open(folder / "08.png") as image:
        alone = tiny_backbone.encode_patches(tiny_backbone.preprocess(image)[None])
    assert found.shape == (5, 17, 48)
    torch.testing.assert_close(found[1:2], alone, atol=1e-5, rtol=1e-5)


def test_threads_may_ask_at_once(tiny_backbone, folder, tmp_path):
    cache = FeatureCache(tmp_path)
    found = encoded(tiny_backbone, folder, cache)
    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(lambda row: found.features([row]), range(COUNT)))
    assert torch.equal(torch.cat(parts), found.features(range(COUNT)))
    assert cache.counters.encoded == COUNT


def test_a_damaged_picture_is_named_wherever_it_is_met(tiny_backbone, folder, tmp_path):
    root = tmp_path / "some"
    root.mkdir()
    for path in folder.glob("*.png"):
        (root / path.name).write_bytes(path.read_bytes())
    (root / "05.png").write_bytes((root / "05.png").read_bytes()[:900])
    found = encoded(tiny_backbone, root, FeatureCache(tmp_path / "cache"))
    with pytest.raises(InputError, match=r"1 images could not be read as pictures: 05\.png"):
        found.features([0])
    random = StepRandom(0, 0, 0, 2, 2)
    for ask in (lambda: found.patches([5]), lambda: found.augmented([4, 5], random)):
        with pytest.raises(InputError, match=r"image '05\.png' cannot be read .* train\.allow_bad"):
            ask()
    mended = EncodedImages(tiny_backbone, pictures.load(root, allow_bad=0.1), None, progress=False)
    assert len(mended) == COUNT - 1 and mended.bad.counts == {"damaged": 1}
    assert mended.name(5) == "06.png"
    torch.testing.assert_close(mended.features([5]), plain(tiny_backbone, folder)[[6]], atol=1e-5, rtol=1e-5)
