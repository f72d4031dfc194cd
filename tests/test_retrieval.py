"""Retrieval for methods that read patch tokens, have an image side of their own, or look at what was found again."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from cir import config as configs
from cir import runs
from cir.backbones.cache import FeatureCache
from cir.errors import InputError
from cir.methods.baselines import Sum
from cir.prompts import JOINERS, Template
from cir.retrieval import compose, embed, encode, load_benchmark, run_search

TEXTS = ["is blue", "has two dogs", "is more red", "with shorter sleeves"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A CIRCO of 12 pictures and 4 queries, two of which share their reference."""
    root = tmp_path_factory.mktemp("data")
    base, pictures = root / "CIRCO", root / "CIRCO/COCO2017_unlabeled/unlabeled2017"
    (base / "annotations").mkdir(parents=True)
    pictures.mkdir(parents=True)
    (base / "COCO2017_unlabeled/annotations").mkdir()
    rows = [
        {
            "id": i, "reference_img_id": reference, "target_img_id": i + 5, "gt_img_ids": [i + 5],
            "relative_caption": TEXTS[i], "shared_concept": "a dog", "semantic_aspects": ["addition"],
        }
        for i, reference in enumerate([3, 1, 3, 9])
    ]  # fmt: skip
    (base / "annotations/val.json").write_text(json.dumps(rows))
    images = [{"id": i, "file_name": f"{i:012d}.png"} for i in range(12)]
    info = base / "COCO2017_unlabeled/annotations/image_info_unlabeled2017.json"
    info.write_text(json.dumps({"images": images}))
    for i in range(12):
        noise = np.random.default_rng(i).integers(0, 255, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((40, 36), Image.Resampling.BICUBIC).save(pictures / f"{i:012d}.png")
    counts = {"circo": {"val": {"queries": 4, "gallery": 12, "targets": 4}}}
    (root / "world.json").write_text(json.dumps({"counts": counts}))
    return root


@pytest.fixture
def config(root, tmp_path, tiny_clip_folder):
    overrides = [f"data.root={root}", f"backbone.cache={tmp_path / 'cache'}", "backbone.device=cpu"]
    method = ["method.name=context_i2w", "method.depth=1", f"backbone.name={tiny_clip_folder}"]
    return configs.load(None, [*overrides, *method])


@pytest.fixture
def method(config, tiny_backbone):
    method = runs.build(config, tiny_backbone)
    torch.nn.init.constant_(method.im2text.local_gate, 0.5)
    return method


def test_only_distinct_references_are_encoded_and_only_once(config, tiny_backbone, tmp_path):
    benchmark = load_benchmark(config, "world/circo/val")
    cache = FeatureCache(tmp_path / "mine", "float16")
    first = encode(benchmark, config, tiny_backbone, cache=cache, progress=False, kind="patches")
    (tokens,), (found,) = first.names, first.arrays
    assert tokens == ("3", "1", "9")
    assert found.shape == (3, 17, tiny_backbone.vision_width) and cache.counters.encoded == 3
    for row, name in zip(found, ("3", "1", "9"), strict=True):
        path = benchmark.root / next(p for image, p in benchmark.paths.items() if int(image) == int(name))
        with Image.open(path) as image:
            expected = tiny_backbone.encode_patches(tiny_backbone.preprocess(image)[None])[0]
        np.testing.assert_allclose(row, expected.numpy(), atol=2e-3, rtol=2e-3)
    again = FeatureCache(tmp_path / "mine", "float16")
    second = encode(benchmark, config, tiny_backbone, cache=again, progress=False, kind="patches")
    assert np.array_equal(found, second.arrays[0]) and isinstance(second.arrays[0], np.memmap)
    assert (again.counters.decoded, again.counters.encoded) == (0, 0)


def test_queries_are_composed_from_their_references_patches(config, tiny_backbone, method):
    benchmark = load_benchmark(config, "world/circo/val")
    patches = encode(benchmark, config, tiny_backbone, progress=False, kind="patches")
    found = compose(benchmark, patches, config, tiny_backbone, method, progress=False)
    template, join = Template(config.prompt.template), JOINERS[config.prompt.join]
    for vector, query, row in zip(found.vectors, benchmark.queries, (0, 1, 0, 2), strict=True):
        tokens = torch.from_numpy(np.asarray(patches.arrays[0][row : row + 1], dtype=np.float32))
        alone = method.compose(tiny_backbone, tokens, [query], template, join)[0]
        np.testing.assert_allclose(vector, alone.numpy(), atol=1e-5, rtol=1e-4)
    assert np.abs(found.vectors[0] - found.vectors[2]).max() > 1e-4  # same reference, another text


def test_a_search_from_the_cache_equals_one_without_any(config, tiny_backbone, method, tmp_path):
    benchmark = load_benchmark(config, "world/circo/val")
    fresh, cached = (run_search(benchmark, config, tiny_backbone, method, progress=False) for _ in range(2))
    files = sorted(path.name.split("-")[0] for path in (tmp_path / "cache").rglob("*.npy"))
    assert files == ["image", "patches"]
    config.backbone.cache = ""
    without = run_search(benchmark, config, tiny_backbone, method, progress=False)
    for other in (cached, without):
        assert np.array_equal(fresh.ranking.order, other.ranking.order)
        assert np.array_equal(fresh.ranking.scores, other.ranking.scores)


class Looking(Sum):
    """The sum, which can look again: at the class token's first number, more of it is better, for odd texts less."""

    matches = True

    def match(self, backbone, reference, queries, template, join, candidates):
        odd = torch.tensor([len(query.texts[0]) % 2 for query in queries], dtype=torch.bool)
        first = candidates[:, :, 0, 0].sigmoid()
        return torch.where(odd[:, None], 1 - first, first)


class Bright(Sum):
    """The sum, with an image side of its own: its vectors turned by a matrix."""

    def image_side(self, backbone):
        return Turned(backbone, f"{backbone.fingerprint}-turned" if self.settled else "")


class Turned:
    def __init__(self, backbone, fingerprint):
        self.backbone, self.fingerprint = backbone, fingerprint

    def __getattr__(self, name):
        return getattr(self.backbone, name)

    def encode_images(self, pixels):
        return self.backbone.encode_images(pixels).flip(-1)


def test_a_second_look_orders_the_first_images_by_its_scores_and_ranks_follow(config, tiny_backbone):
    config.rerank.top = 5
    benchmark = load_benchmark(config, "world/circo/val")
    method = Looking(Sum.Options(), tiny_backbone)
    plain = run_search(benchmark, config, tiny_backbone, method, progress=False)
    found = run_search(benchmark, config, tiny_backbone, method, reranker=method, progress=False)
    patches = encode(benchmark, config, tiny_backbone, progress=False, kind="patches", of=benchmark.gallery)
    for row, query in enumerate(benchmark.queries):
        value = dict(zip(benchmark.gallery, patches.arrays[0][:, 0, 0], strict=True))
        sign = 1 if len(query.texts[0]) % 2 else -1
        listed = plain.ranking.row(row)
        expected = sorted(listed[:5], key=lambda name: sign * value[name]) + listed[5:]
        assert found.ranking.row(row) == expected
        assert found.ranks.ranks[row].tolist() == [expected.index(query.targets[0]) + 1]
    assert any("first 5 images" in note for note in benchmark.notes)
    assert plain.ranking.row(0) != found.ranking.row(0)


def test_a_method_that_cannot_look_again_is_refused(config, tiny_backbone):
    config.rerank.top = 5
    benchmark, method = load_benchmark(config, "world/circo/val"), Sum(Sum.Options(), tiny_backbone)
    with pytest.raises(InputError, match=r"rerank\.method"):
        run_search(benchmark, config, tiny_backbone, method, reranker=method, progress=False)


def test_an_image_side_of_ones_own_encodes_gallery_and_references(config, tiny_backbone, tmp_path):
    benchmark = load_benchmark(config, "world/circo/val")
    method = Bright(Sum.Options(weight=0.0), tiny_backbone)
    for settled, kept in ((False, 0), (True, 1)):
        method.settled = settled
        queries, gallery = embed(benchmark, config, tiny_backbone, method, progress=False)
        own = encode(benchmark, config, tiny_backbone, cache=FeatureCache(tmp_path / "frozen"), progress=False)
        turned = own.arrays[0][..., ::-1] / np.linalg.norm(own.arrays[0], axis=-1, keepdims=True)
        np.testing.assert_allclose(gallery.vectors, turned, atol=1e-6)
        place = benchmark.gallery.index(benchmark.queries[0].reference)
        np.testing.assert_allclose(queries.vectors[0], gallery.vectors[place], atol=1e-6)
        assert len(list((tmp_path / "cache").glob("*"))) == kept  # nothing is kept of weights in training
