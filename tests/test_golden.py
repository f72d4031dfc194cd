"""Small committed outputs: what a change moves is seen in the diff, and a release cannot move a number unseen.

The world's annotations and training texts by digest, and the numbers, rankings and table that a toy embedding gets
on it. The embedding is integer arithmetic with one correctly rounded root and division, so that no BLAS or processor
can move it. `make golden` rewrites the files; the diff belongs into the CHANGELOG under *Numbers that moved*.
"""

import hashlib
import json
import math
import re
import zlib
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cir import data
from cir.evaluate import means
from cir.protocols import PROTOCOLS
from cir.records import BackboneInfo, BenchmarkInfo, CodeInfo, MethodInfo, ProtocolInfo, Record
from cir.report import tables
from cir.schema import Embeddings
from cir.score import rank_and_score
from cir.search import search
from cir.world import corpus

GOLDEN = Path(__file__).parent / "golden"
NAMES = ("fashioniq/dress/val", "fashioniq/shirt/val", "fashioniq/toptee/val", "cirr/val", "circo/val")
SHOWN = ("R@10", "R@1", "Rs@1", "mAP@5")
WIDTH = 64


# --- a toy embedding: colours and words, counted -------------------------------------------------------------------


def colours(path):
    """Count pixels in 4 x 4 x 4 boxes of colour."""
    with Image.open(path) as image:
        boxes = np.asarray(image.convert("RGB")).astype(np.int64) >> 6
    return np.bincount((boxes @ [16, 4, 1]).ravel(), minlength=WIDTH)


def words(texts):
    """Count words in as many boxes, by a checksum."""
    found = re.findall("[a-z]+", " ".join(texts).lower())
    return np.bincount([zlib.crc32(word.encode()) % WIDTH for word in found], minlength=WIDTH)


def length(counts):
    return math.sqrt(int((counts * counts).sum()))


def level(counts):
    """Scale to a length of about a thousand, in integers."""
    return np.rint(1000 * counts / length(counts)).astype(np.int64)


def embeddings(ids, rows):
    return Embeddings(tuple(ids), np.stack([row / length(row) for row in rows]).astype(np.float32)[:, None])


METHODS = {
    "image_only": lambda image, text: image,
    "text_only": lambda image, text: text,
    "sum": lambda image, text: level(image) + level(text),
}


def outcome(bench, compose, images):
    """Score a way to compose, and name the ten best of the first queries."""
    protocol = PROTOCOLS[bench.protocol]
    gallery = embeddings(bench.gallery, [images[name] for name in bench.gallery])
    composed = [compose(images[query.reference], words(query.texts)) for query in bench.queries]
    queries = embeddings([query.id for query in bench.queries], composed)
    found = rank_and_score(bench, protocol, queries, gallery)
    ranking = search(queries, gallery, 10, {query.id: protocol.excluded(query) for query in bench.queries})
    return found, {query.id: ranking.row(row) for row, query in enumerate(bench.queries[:4])}


# --- what is compared --------------------------------------------------------------------------------------------


def digest(text):
    return hashlib.sha256(text.encode()).hexdigest()


def text_of(value):
    return json.dumps(value, indent=1) + "\n"


def world_digests(root):
    """Digest the annotation files, and the first rows of what the demo trains on."""
    annotations = sorted(path for path in root.rglob("*.json"))
    captions = "\n".join(islice(corpus.captions(200, 0), 200))
    triplets = "\n".join(json.dumps(row, sort_keys=True) for row in islice(corpus.triplets(200, 0), 200))
    return {
        **{str(path.relative_to(root)): digest(path.read_text(encoding="utf-8")) for path in annotations},
        "first 200 captions": digest(captions),
        "first 200 triplets": digest(triplets),
    }


def record(bench, method, found):
    """Write the outcome down as an evaluation would, without what differs from machine to machine."""
    protocol = PROTOCOLS[bench.protocol]
    return Record(
        run=method,
        fingerprint=digest(method + bench.name)[:16],
        config={},
        seed=0,
        protocol=ProtocolInfo(protocol.id, protocol.version, protocol.definition),
        benchmark=BenchmarkInfo(
            bench.name, bench.version, bench.split, bench.fingerprint, len(bench.queries), len(bench.gallery)
        ),
        backbone=BackboneInfo("counts", "0" * 16, "none", "int64", "cpu"),
        method=MethodInfo(method, "baseline"),
        code=CodeInfo("0", "", False),
        packages={},
        seconds=0.0,
        peak_mb=0.0,
        means=means(found.scores.values),
        tied=len(found.tied),
        created="2024-01-01T00:00:00+00:00",
    )


@pytest.fixture(scope="module")
def outputs(small_world):
    """Every golden file as it is now."""
    told, written = {}, []
    for name in NAMES:
        bench = data.load(f"world/{name}", small_world)
        images = {image: colours(bench.root / bench.paths[image]) for image in bench.gallery}
        for method, compose in METHODS.items():
            found, top = outcome(bench, compose, images)
            shown = {metric: round(100 * float(value.mean()), 6) for metric, value in found.scores.values.items()}
            told.setdefault(name, {})[method] = {"percent": shown, "tied": len(found.tied), "top": top}
            written.append(record(bench, method, found))
    return {
        "world.json": text_of(world_digests(small_world)),
        "toy.json": text_of(told),
        "table.md": tables.markdown(tables.build(written, SHOWN)),
    }


@pytest.mark.parametrize("name", ["world.json", "toy.json", "table.md"])
def test_outputs_are_as_committed(outputs, name, request):
    path = GOLDEN / name
    if request.config.getoption("--regenerate", default=False):
        path.write_text(outputs[name], encoding="utf-8")
        pytest.skip("rewritten; review the diff")
    lines = list(zip(path.read_text(encoding="utf-8").splitlines(), outputs[name].splitlines(), strict=False))
    moved = [f"was {old.strip()!r}, is {new.strip()!r}" for old, new in lines if old != new]
    same = path.read_text(encoding="utf-8") == outputs[name]
    assert same, f"{len(moved)} lines of {name} moved, first {moved[:3]}; if meant, `make golden` and the CHANGELOG"


def test_the_files_are_these(outputs):
    assert {path.name for path in GOLDEN.iterdir()} == set(outputs)


def test_the_toy_reads_pictures_and_words(outputs):
    """Otherwise the golden numbers would stand still whatever happened."""
    told = json.loads(outputs["toy.json"])
    for name in NAMES:
        tops = [told[name][method]["top"] for method in METHODS]
        assert tops[0] != tops[1] != tops[2] != tops[0]
        assert told[name]["image_only"]["percent"] != told[name]["text_only"]["percent"]
