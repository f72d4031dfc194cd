"""From the official layouts to numbers: the real annotation files, the commands, and twins that sort everything.

Pictures are generated (a dozen, linked under every name), weights are random: what is checked is the path, and what
can be known about the numbers without a trained model. Skipped where the annotation files are absent.
"""

import json
import os
import shutil
import zlib
from itertools import pairwise
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from cir import data, methods, records
from cir.backbones import load
from cir.backbones.cache import CacheKey, FeatureCache
from cir.cli import app
from cir.methods import checkpoint

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
ANNOTATIONS = (
    "FashionIQ/captions",
    "FashionIQ/image_splits",
    "CIRR/cirr",
    "CIRCO/annotations",
    "CIRCO/COCO2017_unlabeled/annotations",
)
NAMES = ("fashioniq/dress/val", "fashioniq/shirt/val", "fashioniq/toptee/val", "cirr/val", "circo/val")
HIDDEN = ("cirr/test1", "circo/test")
PROTOCOLS = {"fashioniq": "fashioniq/original", "cirr": "cirr", "circo": "circo"}
SUBSET, PICTURES = 3, 5

pytestmark = pytest.mark.skipif(not SHARED.is_dir(), reason="needs the benchmarks' annotation files in ../shared/data")


@pytest.fixture(scope="module", autouse=True)
def unchecked():
    """At these sizes the shape checks around every call would take minutes; all other tests have them."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def cir(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def picture_of(name):
    """Say which of the pictures an image shows."""
    return zlib.crc32(name.encode()) % PICTURES


def lay_out(root):
    """Put the real annotations where the official layout has them; no images yet."""
    for place in ANNOTATIONS:
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        (root / place).symlink_to(SHARED / place, target_is_directory=True)
    return root


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    """The official tree with the images that the subsets of all benchmarks name."""
    root = lay_out(tmp_path_factory.mktemp("official"))
    for number in range(PICTURES):
        colours = np.random.default_rng(number).integers(0, 256, (4, 3, 3), dtype=np.uint8)
        drawn = Image.fromarray(colours).resize((96, 128), Image.Resampling.BICUBIC)
        for ending in ("jpg", "png"):
            drawn.save(root / f"{number}.{ending}")
    for name in (*NAMES, *HIDDEN):
        for image, path in data.subset(data.load(name, root), SUBSET).paths.items():
            place = root / {"fashioniq": "FashionIQ", "cirr": "CIRR", "circo": "CIRCO"}[name.split("/")[0]] / path
            place.parent.mkdir(parents=True, exist_ok=True)
            if not place.exists():
                os.link(root / f"{picture_of(image)}{place.suffix}", place)
    return root


@pytest.fixture
def vit(tmp_path, make_clip):
    """A folder with a random CLIP of the size of ViT-B/32; half a gigabyte, removed at once."""
    size = {"width": 512, "layers": 12, "heads": 8, "vision_width": 768, "size": 224, "patch": 32, "joint": 512}
    yield make_clip(tmp_path / "vit-b-32", **size)
    shutil.rmtree(tmp_path / "vit-b-32")


def check_record(record, name):
    dataset = name.split("/")[0]
    parts = len(data.expand(name))
    assert record.protocol.name == PROTOCOLS[dataset] and record.protocol.version >= 1
    assert record.benchmark.queries == SUBSET * parts and len(record.benchmark.parts) == (parts if parts > 1 else 0)
    assert any(f"subset of {SUBSET} queries" in stamp for stamp in record.benchmark.stamps)
    assert record.backbone.preprocess.startswith("clip") and record.means


def check_images_alone(path, record, root):
    """With equal pictures scoring alike, a target that shows the reference's picture stands before all that do not."""
    bench = data.subset(data.load(record.benchmark.name, root), SUBSET)
    ranks = records.read_values(path, record).ranks
    same = different = 0
    for query, row in zip(bench.queries, ranks, strict=True):
        left_out = {query.reference} if bench.protocol == "cirr" else set()
        alike = sum(picture_of(i) == picture_of(query.reference) for i in bench.gallery if i not in left_out)
        for target, rank in zip(query.targets, row[row > 0], strict=True):
            assert (rank <= alike) == (picture_of(target) == picture_of(query.reference)), (query.id, target)
            same, different = same + (rank <= alike), different + (rank > alike)
    return same, different


def test_three_benchmarks_with_a_clip_of_vit_b32_size(official, vit, tmp_path):
    backbone = load(str(vit), device="cpu")
    phi = checkpoint.save(tmp_path / "phi", methods.build("lincir", {}, backbone, seed=1), backbone)
    assert sum(p.numel() for p in backbone._model.parameters()) > 120e6 and backbone.word_width == 512
    groups = ("fashioniq/val", "cirr/val", "circo/val")
    common = [*groups, f"data.subset={SUBSET}", f"backbone.cache={tmp_path / 'cache'}", "backbone.device=cpu"]
    common += ["--data", official]
    found = {}
    for name in ("image_only", "sum", "lincir"):
        chosen = [phi] if name == "lincir" else ["--method", name, "--backbone", vit]
        pages = ["--report", tmp_path / "report"] if name == "lincir" else []
        result = cir("evaluate", *chosen, *common, "--out", tmp_path / name, *pages)
        assert result.exit_code == 0, result.output
        assert result.stdout.count(f"not comparable: subset of {SUBSET} queries") >= len(NAMES)
        found[name] = {r.benchmark.name: (p, r) for p in (tmp_path / name).glob("*.json") for r in [records.read(p)]}
        assert set(found[name]) == {*NAMES, "fashioniq/val"}
        for benchmark in groups:
            check_record(found[name][benchmark][1], benchmark)
    counts = [check_images_alone(*found["image_only"][name], official) for name in NAMES]
    assert all(sum(column) > 0 for column in zip(*counts, strict=True))  # both cases occurred
    ranks = [[records.read_values(*found[m][n]).ranks for n in NAMES] for m in found]
    assert all(any(not np.array_equal(x, y) for x, y in zip(*two, strict=True)) for two in pairwise(ranks))
    check_report(tmp_path / "report")


def check_report(folder):
    """One page per gallery, the pictures inside, linked from the index."""
    pages = {f"phi-{name.replace('/', '-')}.html" for name in NAMES}
    assert {path.name for path in folder.iterdir()} == {*pages, "index.html"}
    index = (folder / "index.html").read_text()
    assert all(f'href="{page}"' in index for page in pages)
    text = (folder / "phi-circo-val.html").read_text()
    assert text.count("data:image/webp;base64,") >= 10 and "image only" in text and "Not comparable" in text


@pytest.mark.parametrize("name", HIDDEN)
def test_hidden_labels_give_a_ranking_and_no_numbers(official, tiny_clip_folder, tmp_path, name):
    options = ["--method", "sum", "--backbone", tiny_clip_folder, "--data", official, "--out", tmp_path / "records"]
    options += [f"data.subset={SUBSET}", f"backbone.cache={tmp_path / 'cache'}", "--report", tmp_path / "report"]
    result = cir("evaluate", name, *options)
    assert result.exit_code == 0, result.output
    assert "labels are hidden: rankings only" in result.stdout
    (record,) = records.find([tmp_path / "records"]).values()
    assert record.means == {} and record.benchmark.name == name and record.protocol.name == name.split("/")[0]
    assert not list((tmp_path / "records").glob("*.npz"))
    page = (tmp_path / "report" / f"sum-{name.replace('/', '-')}.html").read_text()
    bench = data.subset(data.load(name, official), SUBSET)
    assert page.count("data:image/webp;base64,") >= 6
    assert all(json.dumps(query.id) in page for query in bench.queries)
    assert f"sum-{name.replace('/', '-')}.html" in (tmp_path / "report" / "index.html").read_text()


def test_a_gallery_without_images_is_one_line(tiny_clip_folder, tmp_path):
    root = lay_out(tmp_path / "bare")
    options = ["--method", "sum", "--backbone", tiny_clip_folder, "--data", root, "--out", tmp_path / "records"]
    result = cir("evaluate", "circo/val", *options, f"backbone.cache={tmp_path / 'cache'}")
    assert result.exit_code == 2 and result.stderr.count("\n") == 1
    named = [name for name in data.load("circo/val", root).paths.values() if name in result.stderr]
    assert len(named) == 10
    assert "123,403 images are missing" in result.stderr and "and 123,393 more" in result.stderr
    assert "data.allow_missing=true" in result.stderr and not (tmp_path / "records").exists()


# --- full size, from vectors -----------------------------------------------------------------------------------


def clustered(bench, width, seed=0):
    """Random gallery vectors, and query vectors near targets and reference: numbers far from 0 and 100."""
    generator = np.random.default_rng(seed)
    gallery = generator.standard_normal((len(bench.gallery), width), dtype=np.float32)
    row = {name: index for index, name in enumerate(bench.gallery)}
    named = [[*query.targets, query.reference] for query in bench.queries]
    near = np.stack([gallery[[row[name] for name in names]].mean(axis=0) for names in named])
    noise = generator.standard_normal(near.shape, dtype=np.float32) * generator.uniform(0.1, 2, (len(near), 1))
    return (near + noise).astype(np.float32), gallery


def by_sorting(bench, queries, gallery):
    """Every metric in percent, from a stable sort of every query's float32 scores over the whole gallery."""
    left, right = (v / np.linalg.norm(v.astype(np.float64), axis=1, keepdims=True) for v in (queries, gallery))
    left, right = (v.astype(np.float32).astype(np.float64) for v in (left, right))
    rows = []
    for query, vector in zip(bench.queries, left, strict=True):
        order = np.argsort(-(right @ vector).astype(np.float32), kind="stable")
        ranking = [bench.gallery[i] for i in order[:51]]
        group = [bench.gallery[i] for i in order if bench.gallery[i] in query.candidates] if query.candidates else []
        if bench.protocol == "cirr":
            ranking, group = ([i for i in listed if i != query.reference] for listed in (ranking, group))
        hit = {k: float(query.targets[0] in ranking[:k]) for k in (1, 5, 10, 25, 50)}
        right_ones = [place for place, image in enumerate(ranking[:50], 1) if image in query.targets]
        row = {f"R@{k}": value for k, value in hit.items()}
        row |= {f"Rs@{k}": float(query.targets[0] in group[:k]) for k in (1, 2, 3)}
        row["Avg"] = (row["R@5"] + row["Rs@1"]) / 2
        for k in (5, 10, 25, 50):
            gains = [number / place for number, place in enumerate(right_ones, 1) if place <= k]
            row[f"mAP@{k}"] = sum(gains) / min(len(query.targets), k)
        rows.append(row)
    return {metric: 100 * np.mean([row[metric] for row in rows]) for metric in rows[0]}


@pytest.mark.parametrize("name", ["fashioniq/dress/val", "cirr/val", "circo/val"])
def test_scores_of_vectors_equal_a_sort_at_full_size(tmp_path, name):
    bench = data.load(name, SHARED)
    queries, gallery = clustered(bench, 64)
    np.savez(tmp_path / "q.npz", ids=[query.id for query in bench.queries], vectors=queries)
    np.savez(tmp_path / "g.npz", ids=bench.gallery, vectors=gallery)
    files = ["--queries", tmp_path / "q.npz", "--gallery", tmp_path / "g.npz"]
    result = cir("score", name, "--data", SHARED, *files, "--json", tmp_path / "scores.json")
    assert result.exit_code == 0, result.output
    told = json.loads((tmp_path / "scores.json").read_text())
    assert (told["queries"], told["gallery"], told["stamps"]) == (len(bench.queries), len(bench.gallery), [])
    expected = by_sorting(bench, queries, gallery)
    assert 10 < expected["R@10"] < 90
    for metric, value in told["scores"].items():
        assert value["mean"] == pytest.approx(expected[metric], abs=1e-9), metric
        assert value["low"] < value["mean"] < value["high"]


def fill_cache(bench, backbone, features, folder, root):
    """Put features into the cache under the files' names, sizes and dates; the files themselves hold no picture."""
    blanks = []
    for number in range(4):  # a file system allows some ten thousand links to one file
        blanks.append(root / f"blank-{number}")
        blanks[-1].write_bytes(b"not a picture")
    stamps = []
    for index, image in enumerate(bench.gallery):
        place = bench.root / bench.paths[image]
        if not index:
            place.parent.mkdir(parents=True, exist_ok=True)
        os.link(blanks[index % 4], place)
    for index in range(len(bench.gallery)):
        stat = blanks[index % 4].stat()
        stamps.append(f"{stat.st_size}-{stat.st_mtime_ns}")
    key = CacheKey(backbone.fingerprint, backbone.preprocess_id, "float32", "image", bench.gallery, tuple(stamps))
    FeatureCache(folder).get(key, lambda start: (block for block in [features[start:, None]]))


@pytest.mark.parametrize("name", ["fashioniq/dress/val", "cirr/val", "circo/val"])
def test_evaluation_from_cached_features_equals_a_sort_at_full_size(tiny_backbone, tiny_clip_folder, tmp_path, name):
    root = lay_out(tmp_path / "data")
    bench = data.load(name, root)
    near, features = clustered(bench, tiny_backbone.width, seed=1)
    row = {image: index for index, image in enumerate(bench.gallery)}
    references = [row[query.reference] for query in bench.queries]
    features[references] = near  # the reference is the query: image-only finds its targets around it
    fill_cache(bench, tiny_backbone, features, tmp_path / "cache", root)
    try:
        options = ["--method", "image_only", "--backbone", tiny_clip_folder, "--data", root, "--out", tmp_path / "out"]
        result = cir("evaluate", name, *options, f"backbone.cache={tmp_path / 'cache'}", "backbone.device=cpu")
    finally:
        shutil.rmtree(root)  # many files
    assert result.exit_code == 0, result.output
    (record,) = records.find([tmp_path / "out"]).values()
    assert record.benchmark.stamps == [] and record.benchmark.gallery == len(bench.gallery)
    expected = by_sorting(bench, features[references], features)
    assert max(expected.values()) > 2
    for metric, mean in record.means.items():
        assert mean.mean == pytest.approx(expected[metric], abs=1e-9), metric


# --- wrong vectors, through the command --------------------------------------------------------------------------


def first_again(ids, vectors):
    return [ids[0], *ids], np.concatenate([vectors[:1], vectors])


def with_nan(ids, vectors):
    vectors = vectors.copy()
    vectors[7, 3] = np.nan
    return ids, vectors


BROKEN = {
    "missing": (lambda ids, vectors: (ids[:-2], vectors[:-2]), "2 ids are missing"),
    "unknown": (lambda ids, vectors: ([*ids, "never-seen"], np.concatenate([vectors, vectors[:1]])), "never-seen"),
    "duplicate": (first_again, "1 ids occur more than once"),
    "NaN": (with_nan, "not finite (NaN or infinite)"),
    "width": (lambda ids, vectors: (ids, vectors[:, :-1]), " 7"),
    "count": (lambda ids, vectors: (ids[:-1], vectors), "aligned"),
}


@pytest.mark.parametrize("side", ["queries", "gallery"])
@pytest.mark.parametrize("fault", BROKEN)
def test_wrong_vectors_are_one_line_and_write_nothing(tmp_path, side, fault):
    bench = data.load("cirr/val", SHARED)
    vectors = np.random.default_rng(0).standard_normal((len(bench.queries), 8)).astype(np.float32)
    given = {
        "queries": ([query.id for query in bench.queries], vectors),
        "gallery": (list(bench.gallery), vectors[: len(bench.gallery)]),
    }
    change, message = BROKEN[fault]
    given[side] = change(*given[side])
    for which, (ids, values) in given.items():
        np.savez(tmp_path / f"{which}.npz", ids=ids, vectors=values)
    files = [part for which in given for part in (f"--{which}", tmp_path / f"{which}.npz")]
    result = cir("score", "cirr/val", "--data", SHARED, *files, "--json", tmp_path / "out" / "scores.json")
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert message in result.stderr and result.stdout == ""
    assert not (tmp_path / "out").exists()
