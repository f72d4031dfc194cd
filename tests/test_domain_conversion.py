"""Domain conversion from lists and pictures to numbers: the real lists, generated pictures, a tiny CLIP."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cir import config as configs
from cir import runs
from cir.data import images, load
from cir.evaluate import evaluate
from cir.retrieval import load_benchmark

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
REAL = pytest.mark.skipif(not SHARED.is_dir(), reason="needs the benchmarks' annotation files in ../shared/data")


def draw(root, paths):
    """Small pictures whose colours say which folder they lie in."""
    for number, path in enumerate(paths):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng([sum(map(ord, str(Path(path).parent))), number])
        pixels = np.clip(rng.integers(0, 255, 3) + rng.integers(-40, 40, (4, 4, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).resize((36, 34)).save(root / path)


def copy(tmp_path, *files):
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(SHARED / file, tmp_path / file)


def configured(tmp_path, tiny_clip_folder, *options):
    places = [f"data.root={tmp_path}", f"backbone.cache={tmp_path / 'cache'}", f"backbone.name={tiny_clip_folder}"]
    return configs.load(None, [*places, "name=image", "method.name=sum", "backbone.device=cpu", *options])


def ranked(searched, count):
    """The first images of every query."""
    return [searched.ranking.row(i)[:count] for i in range(len(searched.benchmark.queries))]


@REAL
def test_ltll_from_pictures_to_the_set_s_mean(tmp_path, tiny_clip_folder, tiny_backbone):
    copy(tmp_path, "freedom/ltll/full_files.csv")
    bench = load("freedom/ltll/New-Old", tmp_path)
    draw(bench.root, bench.paths.values())
    assert images.check(bench) is bench
    config = configured(tmp_path, tiny_clip_folder)
    method = runs.build(config, tiny_backbone)
    *parts, group = evaluate(config, tiny_backbone, method, ["freedom/ltll"], progress=False)
    assert [p.record.benchmark.name for p in parts] == ["freedom/ltll/New-Old", "freedom/ltll/Old-New"]
    assert group.record.benchmark.name == "freedom/ltll" and group.record.benchmark.queries == 488
    for part in parts:
        searched = part.searched[0]
        own = [set(query.targets) for query in searched.benchmark.queries]
        shares = [
            len(right & {*row}) / (len(right) + 1e-5) for right, row in zip(own, ranked(searched, 10), strict=True)
        ]
        assert part.record.means["R@10"].mean == pytest.approx(100 * np.mean(shares))
    mean = np.mean([part.record.means["mAP"].mean for part in parts])
    assert group.record.means["mAP"].mean == pytest.approx(mean) and 0 < mean < 100
    assert "prompt: a {text} of $" in parts[0].searched[0].benchmark.notes


@REAL
def test_references_outside_the_database_are_encoded_and_never_ranked(tmp_path, tiny_clip_folder, tiny_backbone):
    copy(tmp_path, "freedom/minidn/query_files.csv")
    listed = (SHARED / "freedom/minidn/query_files.csv").read_text()
    (tmp_path / "freedom/minidn/database_files.csv").write_text(listed.replace(".jpg", "_d.jpg"))  # made up
    config = configured(tmp_path, tiny_clip_folder, "data.subset=20")
    bench = load_benchmark(config, "freedom/minidn/real-sketch")
    draw(bench.root, bench.paths.values())
    searched = evaluate(
        config, tiny_backbone, runs.build(config, tiny_backbone), ["freedom/minidn/real-sketch"], progress=False
    )[0].searched[0]
    references = {query.reference for query in bench.queries}
    assert len(references) == 20 and not references & set(bench.gallery) and references < set(bench.paths)
    assert all(not references & {*row} for row in ranked(searched, 50))
    precision = [len({*q.targets} & {*row}) for q, row in zip(bench.queries, ranked(searched, 5), strict=True)]
    assert searched.scores.values["P@5"].tolist() == pytest.approx([n / (5 + 1e-5) for n in precision])


@REAL
def test_a_subset_of_imagenet_r_under_both_protocols(tmp_path, tiny_clip_folder, tiny_backbone):
    copy(tmp_path, "imgnet/imgnet_targets.txt", "imgnet/imgnet_real_query.txt")
    options = ["data.subset=60"]
    config = configured(tmp_path, tiny_clip_folder, *options)
    bench = load_benchmark(config, "imagenet_r/cartoon")
    draw(bench.root, bench.paths.values())
    method = runs.build(config, tiny_backbone)
    share = evaluate(config, tiny_backbone, method, ["imagenet_r/cartoon"], progress=False)[0]
    config = configured(tmp_path, tiny_clip_folder, *options, "data.protocols.imagenet_r=imagenet_r/hit")
    hit = evaluate(config, tiny_backbone, method, ["imagenet_r/cartoon"], progress=False)[0]
    queries, rows = share.searched[0].benchmark.queries, ranked(share.searched[0], 50)
    assert rows == ranked(hit.searched[0], 50) and len(queries) == 60
    assert any(query.reference in row for query, row in zip(queries, rows, strict=True))  # it competes
    found = [len({*query.targets} & {*row}) for query, row in zip(queries, rows, strict=True)]
    shares = [n / (len(query.targets) + 1e-5) for n, query in zip(found, queries, strict=True)]
    assert share.record.means["R@50"].mean == pytest.approx(100 * np.mean(shares))
    assert hit.record.means["Hit@50"].mean == pytest.approx(100 * np.mean([n > 0 for n in found]))
    assert share.record.means["R@50"].mean < hit.record.means["Hit@50"].mean
    assert "subset" in share.searched[0].benchmark.stamps[0]
