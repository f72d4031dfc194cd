"""Triplets through a frozen backbone: cached = fresh = one by one, tokens in half precision, pixels decoded now."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from cir.backbones.cache import FeatureCache
from cir.backbones.encoded_triplets import EncodedTriplets, Triplets
from cir.data.bad import Bad
from cir.data.image_triplets import AnnotatedTriplets, pixels
from cir.errors import InputError
from cir.methods.base import ImageTriplets
from cir.schema import Query

NAMES = [f"{index:02d}" for index in range(9)]
PAIRS = [("00", "03"), ("05", "01"), ("03", "08"), ("02", "00"), ("07", "06"), ("04", "05")]  # 08 is a copy of 02


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root, draw = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for name in NAMES:
        shape = (*draw.integers(40, 52, 2), 3)
        Image.fromarray(draw.integers(0, 256, shape, dtype=np.uint8)).save(root / f"{name}.png")
    (root / "08.png").write_bytes((root / "02.png").read_bytes())
    return root


def triplets(folder):
    queries = [Query(f"q{row}", one, (f"text {row}",), (two,)) for row, (one, two) in enumerate(PAIRS)]
    files = {name: folder / f"{name}.png" for name in NAMES}
    return AnnotatedTriplets("some", queries, files, {name: pixels(file) for name, file in files.items()}, Bad())


def encoded(backbone, folder, cache=None, **options):
    return EncodedTriplets(backbone, triplets(folder), cache, **{"progress": False, "batch_size": 3, **options})


def plain(backbone, found, encode):
    """Encode every distinct picture alone."""
    rows = []
    for file in found.triplets.files:
        with Image.open(file) as image:
            rows.append(encode(backbone.preprocess(image)[None]))
    return torch.cat(rows)


def test_it_is_what_methods_ask_for(tiny_backbone, folder):
    found = encoded(tiny_backbone, folder)
    assert isinstance(found, ImageTriplets) and isinstance(found.triplets, Triplets)
    assert len(found) == 6 and found.count == 8 and found.fingerprint == triplets(folder).fingerprint and not found.bad
    assert found.query(4).texts == ("text 4",) and found.query(4).targets == ("06",)
    for row, (one, two) in enumerate(PAIRS):
        files = [found.triplets.files[number] for number in (found.reference[row], found.target[row])]
        assert [file.read_bytes() for file in files] == [(folder / f"{name}.png").read_bytes() for name in (one, two)]
    assert found.target[2] == found.reference[3]  # one picture under two names


def test_features_are_cached_memory_mapped_and_those_of_one_by_one(tiny_backbone, folder, tmp_path):
    cache = FeatureCache(tmp_path)
    first = encoded(tiny_backbone, folder, cache)
    expected = plain(tiny_backbone, first, tiny_backbone.encode_images)
    chosen = np.array([5, 0, 5, 7])
    assert first.features(chosen).shape == (4, 1, 24)
    torch.testing.assert_close(first.features(chosen), expected[chosen], atol=1e-5, rtol=1e-5)
    assert isinstance(first._tables["image"], np.memmap) and cache.counters.encoded == 8
    again = FeatureCache(tmp_path)
    second = encoded(tiny_backbone, folder, again, batch_size=5)
    assert torch.equal(second.features(chosen.tolist()), first.features(chosen)) and again.counters.encoded == 0
    fresh = encoded(tiny_backbone, folder)
    assert torch.equal(fresh.features(range(8)), first.features(range(8)))


def test_patches_are_kept_in_half_precision_and_returned_in_single(tiny_backbone, folder, tmp_path):
    cache = FeatureCache(tmp_path)
    first = encoded(tiny_backbone, folder, cache)
    expected = plain(tiny_backbone, first, tiny_backbone.encode_patches)
    found = first.patches([1, 6, 1])
    assert found.shape == (3, 17, 48) and found.dtype == torch.float32
    torch.testing.assert_close(found, expected[[1, 6, 1]], atol=1e-3, rtol=1e-3)  # 11 bits of mantissa
    stored = first._tables["patches"]
    assert isinstance(stored, np.memmap) and stored.dtype == np.float16 and cache.storage == "float32"
    again = FeatureCache(tmp_path)
    assert torch.equal(encoded(tiny_backbone, folder, again).patches([1, 6, 1]), found)
    assert again.counters.encoded == 0 and cache.counters.encoded == 8
    assert torch.equal(encoded(tiny_backbone, folder).patches([1, 6, 1]), found)  # the same without a cache


def test_an_interrupted_pass_goes_on_where_it_stopped(tiny_backbone, folder, tmp_path):
    class Dying:
        calls = 0

        def __getattr__(self, name):
            return getattr(tiny_backbone, name)

        def encode_patches(self, pixels):
            self.calls += 1
            if self.calls == 3:
                raise KeyboardInterrupt
            return tiny_backbone.encode_patches(pixels)

    with pytest.raises(KeyboardInterrupt):
        encoded(Dying(), folder, FeatureCache(tmp_path, chunk=3)).patches([0])
    cache = FeatureCache(tmp_path, chunk=3)
    resumed = encoded(tiny_backbone, folder, cache).patches(range(8))
    assert cache.counters.resumed_rows == 6 and cache.counters.encoded == 2
    assert torch.equal(resumed, encoded(tiny_backbone, folder).patches(range(8)))


def test_pixels_are_decoded_now_once_each(tiny_backbone, folder):
    class Counting:
        seen = 0

        def __getattr__(self, name):
            return getattr(tiny_backbone, name)

        def preprocess(self, image):
            self.seen += 1
            return tiny_backbone.preprocess(image)

    counting = Counting()
    found = encoded(counting, folder, workers=1)
    expected = plain(tiny_backbone, found, lambda pixels: pixels)
    chosen = np.array([6, 2, 6, 0])
    assert torch.equal(found.pixels(chosen), expected[chosen]) and counting.seen == 3
    assert torch.equal(found.pixels([6]), expected[[6]]) and counting.seen == 4  # nothing is kept
    halves = torch.cat([found.pixels(chosen[:2]), found.pixels(chosen[2:])])
    assert torch.equal(halves, expected[chosen])


def test_threads_may_ask_at_once(tiny_backbone, folder, tmp_path):
    cache = FeatureCache(tmp_path)
    found = encoded(tiny_backbone, folder, cache)
    asks = [ask for number in range(8) for ask in ((found.features, number), (found.pixels, number))]
    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(lambda ask: ask[0]([ask[1]]), asks))
    assert torch.equal(torch.cat(parts[::2]), found.features(range(8))) and cache.counters.encoded == 8
    assert torch.equal(torch.cat(parts[1::2]), found.pixels(range(8)))


def test_a_picture_damaged_since_it_was_looked_at_is_named(tiny_backbone, folder, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in NAMES:
        (copy / f"{name}.png").write_bytes((folder / f"{name}.png").read_bytes())
    found = encoded(tiny_backbone, copy)
    number = found.triplets.names.index("07")
    (copy / "07.png").write_bytes((copy / "07.png").read_bytes()[:900])
    with pytest.raises(InputError, match=r"image '07' cannot be read any more \(.*\): .*07\.png; mend it"):
        found.pixels([0, number])
    with pytest.raises(InputError, match=r"1 images could not be read as pictures: .*07\.png"):
        found.features([0])
    (copy / "07.png").unlink()
    with pytest.raises(InputError, match="07"):
        found.pixels([number])
