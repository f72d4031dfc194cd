"""Small CIRR and CIRCO trees whose splits all have their own counts, and right files for them."""

import functools
import json

import numpy as np
import pytest

from cir import data
from cir.data import circo, cirr
from cir.schema import Embeddings

LOAD = functools.lru_cache(data.load)  # the real files are read once: type checks make that slow here
SIZES = {"val": 4, "test1": 5}


def put(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def write_cirr(root, split):
    """120 images, groups of six; the reference of query i is image 6 i, its target image 6 i + 1."""
    folder = {"val": "dev", "test1": "test1"}[split]
    names = [f"{folder}-{i}-0-img{i % 2}" for i in range(120)]
    rows = []
    for i in range(SIZES[split]):
        members = names[6 * i : 6 * i + 6]
        row = {"pairid": {"val": 12060, "test1": 12100}[split] + 3 * i, "reference": members[0], "caption": f"is {i}",
               "img_set": {"id": i, "members": members}}  # fmt: skip
        rows.append(row | ({"target_hard": members[1]} if split == "val" else {}))
    put(root / f"CIRR/cirr/captions/cap.rc2.{split}.json", rows)
    put(root / f"CIRR/cirr/image_splits/split.rc2.{split}.json", {name: f"./{folder}/{name}.png" for name in names})


def write_circo(root):
    """90 images 1000, 1007, ...; val has 3 queries, test 6; the reference of query i is image i."""
    images = [1000 + 7 * i for i in range(90)]
    for split, count in (("val", 3), ("test", 6)):
        rows = []
        for i in range(count):
            row = {"reference_img_id": images[i], "relative_caption": f"is {i}", "shared_concept": "a cat", "id": i}
            truths = images[20 + 5 * i : 22 + 6 * i]
            labels = {"target_img_id": truths[0], "gt_img_ids": truths, "semantic_aspects": ["addition"]}
            rows.append(row | (labels if split == "val" else {}))
        put(root / f"CIRCO/annotations/{split}.json", rows)
    listed = root / "CIRCO/COCO2017_unlabeled/annotations/unlabeled2017_image_ids.txt"
    listed.parent.mkdir(parents=True)
    listed.write_text("\n".join(map(str, images)))


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A folder with both datasets, loadable without a stamp."""
    for split in SIZES:
        write_cirr(tmp_path / "data", split)
        monkeypatch.setitem(cirr.COUNTS, f"cirr/{split}", {"queries": SIZES[split], "gallery": 120})
    write_circo(tmp_path / "data")
    for split, count in (("val", 3), ("test", 6)):
        monkeypatch.setitem(circo.COUNTS, f"circo/{split}", {"queries": count, "gallery": 90})
    return tmp_path / "data"


@pytest.fixture
def right(root):
    """The content of a right file, by benchmark and metric: plain loops, no search."""

    def make(name, metric=""):
        bench = data.load(name, root)
        if name.startswith("circo"):
            return {q.id: [int(image) for image in bench.gallery[:50]] for q in bench.queries}
        lists = {
            q.id: [i for i in (bench.gallery if metric == "recall" else q.candidates) if i != q.reference]
            for q in bench.queries
        }
        cut = {"recall": 50, "recall_subset": 3}[metric]
        return {"version": "rc2", "metric": metric, **{key: names[:cut] for key, names in lists.items()}}

    return make


@pytest.fixture
def kept(monkeypatch):
    """Loads of benchmarks are kept from test to test; for files that no test changes."""
    monkeypatch.setattr(data, "load", LOAD)


def unit(ids, seed, width=16):
    vectors = np.random.default_rng(seed).standard_normal((len(ids), 1, width)).astype(np.float32)
    return Embeddings(tuple(ids), vectors / np.linalg.norm(vectors, axis=-1, keepdims=True))


@pytest.fixture
def seeded():
    """Vectors of a benchmark's queries and gallery, drawn by a seed."""

    def make(bench, seed=0):
        return unit([q.id for q in bench.queries], seed), unit(bench.gallery, seed + 1)

    return make
