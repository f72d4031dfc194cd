from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageDraw

from cir.records import (
    BackboneInfo,
    BenchmarkInfo,
    CodeInfo,
    Mean,
    MethodInfo,
    PerQuery,
    ProtocolInfo,
    Record,
)
from cir.schema import Benchmark, Query, Ranking, TargetRanks

COLOURS = ["crimson", "teal", "goldenrod", "slateblue", "olive", "sienna"]
KINDS = ["attribute", "add", "remove", "count"]


def make_record(run="sum", benchmark="circo/val", means=None, seed=0, **changes):
    """A valid record; `means` maps a metric to a number in percent, its interval is one point to each side."""
    means = means or {"mAP@5": 28.11, "mAP@10": 29.95}
    record = Record(
        run=run,
        fingerprint=f"{abs(hash((run, benchmark, seed))):016x}"[:16],
        config={"method": {"name": run}},
        seed=seed,
        protocol=ProtocolInfo("circo", 1, "AP@k over min(targets, k); arXiv:2303.15247, section 4."),
        benchmark=BenchmarkInfo(benchmark, "1.0", "val", "00ff00ff00ff00ff", 4, 30),
        backbone=BackboneInfo("tiny", "1" * 16, "clip:2222", "float32", "cpu"),
        method=MethodInfo(run, "Somebody et al. 2024"),
        code=CodeInfo("0.1.0", "abcdef", False),
        packages={"python": "3.11"},
        seconds=1.5,
        peak_mb=500.0,
        means={name: Mean(value, value - 1, value + 1, 4) for name, value in means.items()},
        tied=0,
        created="2024-01-01T00:00:00+00:00",
    )
    return replace(record, **changes)


@pytest.fixture
def record():
    return make_record


def _picture(path, index):
    image = Image.new("RGB", (160, 120 + 20 * (index % 3)), (236, 233, 226))
    draw = ImageDraw.Draw(image)
    for shape in range(1 + index % 4):
        x, y = 14 + 36 * shape, 24 + (index * 13 + shape * 29) % 60
        box = (x, y, x + 30, y + 30)
        (draw.ellipse if (index + shape) % 2 else draw.rectangle)(box, fill=COLOURS[(index + shape) % 6])
    image.save(path)


@pytest.fixture
def searched(tmp_path):
    """A searched benchmark of 30 drawn images and 24 queries, with several targets each: benchmark, ranking, ranks."""
    root = tmp_path / "images"
    root.mkdir()
    generator = np.random.default_rng(0)
    gallery = tuple(f"{index:04d}" for index in range(30))
    for index, name in enumerate(gallery):
        _picture(root / f"{name}.png", index)
    queries, order = [], []
    for number in range(24):
        picks = [int(pick) for pick in generator.permutation(30)]
        targets = tuple(gallery[pick] for pick in picks[1 : 2 + number % 4])
        text = ["is blue and has two squares", 'has one more <b>circle</b> & a "star" </script>'][number % 2]
        texts = (text,) if number % 3 else (text, "is on a darker background")
        queries.append(Query(f"q{number}", gallery[picks[0]], texts, targets, tags=(KINDS[number % 4],)))
        order.append([int(pick) for pick in generator.permutation(30)])
    benchmark = Benchmark(
        "circo/val", "1.0", "val", "circo", tuple(queries), gallery, root, {name: f"{name}.png" for name in gallery}
    )
    ids = tuple(query.id for query in queries)
    scores = np.tile(np.linspace(1, 0, 30, dtype=np.float32), (24, 1))
    ranking = Ranking(ids, gallery, np.array(order, dtype=np.int64), scores)
    return benchmark, ranking, ranks_of(benchmark, order)


def ranks_of(benchmark, order):
    ranks = np.zeros((len(order), 4), dtype=np.int64)
    for row, (query, images) in enumerate(zip(benchmark.queries, order, strict=True)):
        for column, target in enumerate(query.targets):
            ranks[row, column] = images.index(benchmark.gallery.index(target)) + 1
    return TargetRanks(tuple(q.id for q in benchmark.queries), ranks, np.zeros(len(order), dtype=bool))


@pytest.fixture
def values():
    def make(count=24, seed=0, strata=()):
        generator = np.random.default_rng(seed)
        ids = tuple(f"q{index}" for index in range(count))
        hits = (generator.random(count) < 0.5).astype(np.float64)
        return PerQuery(ids, {"mAP@5": generator.random(count), "R@5": hits}, np.ones((count, 1), np.int64), strata)

    return make
