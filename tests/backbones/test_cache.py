"""Galleries of small pictures on disk through the tiny CLIP: counters, batch sizes, and what cannot be read."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cir.backbones import load
from cir.backbones.cache import FeatureCache, _decode_ahead, encode_gallery
from cir.errors import InputError


@pytest.fixture
def gallery(tmp_path):
    draw = np.random.default_rng(0)
    ids, paths = [], []
    for index in range(11):
        path = tmp_path / "pictures" / f"{index}.{'png' if index % 2 else 'jpg'}"
        path.parent.mkdir(exist_ok=True)
        side = draw.integers(20, 90, 2)
        Image.fromarray(draw.integers(0, 256, (*side, 3), dtype=np.uint8)).save(path)
        ids.append(f"id/{index}")
        paths.append(path)
    return ids, paths


def one_by_one(backbone, paths):
    vectors = []
    for path in paths:
        with Image.open(path) as image:
            vectors.append(backbone.encode_images(backbone.preprocess(image)[None]).numpy())
    return np.concatenate(vectors)


def encode(backbone, gallery, cache, **options):
    return encode_gallery(backbone, *gallery, cache, **{"progress": False, **options})


@pytest.mark.parametrize(("batch_size", "workers"), [(1, 1), (4, 3), (11, 2), (64, None)])
def test_every_batch_size_equals_one_by_one(tiny_backbone, gallery, tmp_path, batch_size, workers):
    expected = one_by_one(tiny_backbone, gallery[1])
    cache = FeatureCache(tmp_path / "cache")
    found = encode(tiny_backbone, gallery, cache, batch_size=batch_size, workers=workers)
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-5)
    assert found.shape == (11, 1, 24) and np.abs(expected[0] - expected[1]).max() > 1e-2
    fresh = encode(tiny_backbone, gallery, None, batch_size=batch_size, workers=workers)
    assert np.array_equal(fresh, found)


def test_the_second_time_nothing_is_decoded_or_encoded(tiny_backbone, gallery, tmp_path):
    first, second = FeatureCache(tmp_path), FeatureCache(tmp_path)
    fresh = encode(tiny_backbone, gallery, first)
    cached = encode(tiny_backbone, gallery, second)
    assert np.array_equal(fresh, cached)
    assert (first.counters.decoded, first.counters.encoded, first.counters.hits) == (11, 11, 0)
    assert (second.counters.decoded, second.counters.encoded, second.counters.hits) == (0, 0, 1)


def test_a_changed_picture_is_noticed_by_time_or_by_content(tiny_backbone, gallery, tmp_path):
    cache = FeatureCache(tmp_path)
    before = encode(tiny_backbone, gallery, cache), encode(tiny_backbone, gallery, cache, stamp="hash")
    path = gallery[1][3]
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 10**9))
    decoded = cache.counters.decoded
    encode(tiny_backbone, gallery, cache, stamp="hash")
    assert cache.counters.decoded == decoded  # the content is the same
    encode(tiny_backbone, gallery, cache)
    assert cache.counters.decoded == decoded + 11
    Image.new("RGB", (30, 30), "red").save(path)
    for old, stamp in zip(before, ("stat", "hash"), strict=True):
        new = encode(tiny_backbone, gallery, cache, stamp=stamp)
        assert [i for i in range(11) if not np.array_equal(old[i], new[i])] == [3]


def test_another_preprocessing_or_dtype_is_another_entry(tiny_clip_folder, tiny_backbone, gallery, tmp_path):
    cache = FeatureCache(tmp_path)
    plain = encode(tiny_backbone, gallery, cache)
    padded = encode(load(str(tiny_clip_folder), device="cpu", preprocess="targetpad"), gallery, cache)
    half = encode(load(str(tiny_clip_folder), device="cpu", dtype="bfloat16"), gallery, cache)
    assert cache.counters.computed == 3 and cache.counters.hits == 0
    assert not np.array_equal(plain, padded) and not np.array_equal(plain, half)
    assert half.dtype == np.float32


def test_unreadable_pictures_are_all_counted_and_ten_are_named(tiny_backbone, tmp_path):
    paths = [tmp_path / f"{n}.png" for n in range(30)]
    for n, path in enumerate(paths):
        Image.fromarray(np.random.default_rng(n).integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(path)
    for path in paths[5:18]:
        path.write_bytes(path.read_bytes()[:2000])
    paths[20].write_bytes(b"")
    cache = FeatureCache(tmp_path / "cache")
    ids = [str(n) for n in range(30)]
    with pytest.raises(InputError, match="14 images could not be read as pictures") as error:
        encode(tiny_backbone, (ids, paths), cache, batch_size=2)
    assert str(error.value).count(".png (") == 10 and "and 4 more" in str(error.value)
    assert "5.png" in str(error.value) and "4.png (" not in str(error.value).replace("14.png", "")
    assert cache.counters.encoded <= 5 and not list(tmp_path.rglob("*.npy"))


def test_missing_pictures_are_named_before_anything_is_decoded(tiny_backbone, gallery, tmp_path):
    ids, paths = gallery
    wrong = [*paths[:9], Path(tmp_path / "nowhere.jpg"), tmp_path]
    cache = FeatureCache(tmp_path / "cache")
    with pytest.raises(InputError, match=r"2 images are missing: .*nowhere\.jpg"):
        encode(tiny_backbone, (ids, wrong), cache)
    assert cache.counters.decoded == 0


def test_wrong_arguments_and_empty_galleries(tiny_backbone, gallery, tmp_path):
    with pytest.raises(InputError, match="11 ids but 10 paths"):
        encode(tiny_backbone, (gallery[0], gallery[1][1:]), None)
    with pytest.raises(InputError, match="batch_size 0"):
        encode(tiny_backbone, gallery, None, batch_size=0)
    assert encode(tiny_backbone, ([], []), FeatureCache(tmp_path)).shape == (0, 1, 24)


class Counting:
    """A backbone that counts the pictures it prepared."""

    def __init__(self, backbone):
        self._backbone = backbone
        self.prepared = 0

    def __getattr__(self, name):
        return getattr(self._backbone, name)

    def preprocess(self, image):
        self.prepared += 1
        return self._backbone.preprocess(image)


def test_decoding_stays_a_bounded_number_ahead(tiny_backbone, gallery):
    counting = Counting(tiny_backbone)
    decoded = _decode_ahead(counting, gallery[1], workers=2, ahead=4)
    first = next(decoded)
    assert isinstance(first, torch.Tensor) and counting.prepared <= 4
    decoded.close()
    assert counting.prepared <= 4


def test_patches_are_another_entry_and_half_precision_where_asked(tiny_backbone, gallery, tmp_path):
    expected = []
    for path in gallery[1]:
        with Image.open(path) as image:
            expected.append(tiny_backbone.encode_patches(tiny_backbone.preprocess(image)[None]).numpy())
    cache = FeatureCache(tmp_path, "float16")
    encode(tiny_backbone, gallery, cache)
    found = encode(tiny_backbone, gallery, cache, kind="patches", batch_size=4)
    assert cache.counters.computed == 2 and found.shape == (11, 17, 48)
    assert found.dtype == np.float16 and isinstance(found, np.memmap)
    np.testing.assert_allclose(found, np.concatenate(expected), atol=2e-3, rtol=2e-3)
    fresh = encode(tiny_backbone, gallery, None, kind="patches", batch_size=4)
    assert fresh.dtype == np.float16 and np.array_equal(fresh, found)
    again = FeatureCache(tmp_path, "float16")
    assert np.array_equal(encode(tiny_backbone, gallery, again, kind="patches"), found)
    assert (again.counters.hits, again.counters.decoded) == (1, 0)
    assert encode(tiny_backbone, ([], []), None, kind="patches").shape == (0, 0, 48)


def test_an_interrupted_gallery_goes_on_where_it_stopped(tiny_backbone, gallery, tmp_path):
    class Dying(Counting):
        def encode_images(self, pixels):
            if self.prepared > 8:
                raise KeyboardInterrupt
            return self._backbone.encode_images(pixels)

    cache = FeatureCache(tmp_path, chunk=2)
    with pytest.raises(KeyboardInterrupt):
        encode(Dying(tiny_backbone), gallery, cache, batch_size=2, workers=1)
    kept = cache.counters.encoded
    assert 0 < kept < 11
    again = FeatureCache(tmp_path, chunk=2)
    found = encode(tiny_backbone, gallery, again, batch_size=2)
    assert again.counters.resumed_rows == kept and again.counters.decoded == 11 - kept
    np.testing.assert_allclose(found, one_by_one(tiny_backbone, gallery[1]), atol=1e-5, rtol=1e-5)
