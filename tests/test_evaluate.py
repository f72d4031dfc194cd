import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from cir import config as configs
from cir import data, methods, records, runs
from cir.errors import InputError
from cir.evaluate import describe, evaluate, means
from cir.prompts import JOINERS, Template
from cir.report.comparison import compare
from cir.retrieval import compose, encode, load_benchmark

CATEGORIES = ("dress", "shirt", "toptee")
TEXTS = ["is blue", "has two dogs", "is more red", "with shorter sleeves", "holding an umbrella", "on grass"]


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def picture(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 255, (6, 6, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((40, 36), Image.Resampling.BICUBIC).save(path)


def write_fashioniq(root):
    counts = {}
    for offset, category in enumerate(CATEGORIES):
        names = [f"{category}{index}" for index in range(14)]
        rows = [
            {"candidate": names[i], "target": names[i + 5], "captions": [TEXTS[i % 6], TEXTS[(i + 1) % 6]]}
            for i in range(4 + offset)
        ]
        write_json(root / f"captions/cap.{category}.val.json", rows)
        write_json(root / f"image_splits/split.{category}.val.json", names)
        for index, name in enumerate(names):
            picture(root / f"images/{name}.png", 100 * offset + index)
        counts[category] = {"val": {"queries": len(rows), "gallery": 14, "targets": len(rows)}}
    return counts


def write_cirr(root):
    names = [f"dev-{index}" for index in range(20)]
    rows = []
    for index in range(8):
        members = [names[(index + step) % 20] for step in range(6)]
        row = {"pairid": index, "reference": members[0], "target_hard": members[1 + index % 5]}
        rows.append({**row, "caption": TEXTS[index % 6], "img_set": {"members": members}, "tags": [f"t{index % 2}"]})
    write_json(root / "cirr/captions/cap.rc2.val.json", rows)
    hidden = [{key: value for key, value in row.items() if key != "target_hard"} for row in rows]
    write_json(root / "cirr/captions/cap.rc2.test1.json", hidden)
    for split in ("val", "test1"):
        write_json(root / f"cirr/image_splits/split.rc2.{split}.json", {name: f"./dev/{name}.png" for name in names})
    for index, name in enumerate(names):
        picture(root / f"dev/{name}.png", 500 + index)
    counts = {"queries": 8, "gallery": 20}
    return {"val": {**counts, "targets": 8}, "test1": {**counts, "targets": 0}}


def write_circo(root):
    rows = [
        {
            "id": index,
            "reference_img_id": index,
            "target_img_id": index + 3,
            "gt_img_ids": [index + 3, *range(10, 10 + index % 3)],
            "relative_caption": TEXTS[index],
            "shared_concept": "a dog",
            "semantic_aspects": ["cardinality"] if index % 2 else ["addition", "negation"],
        }
        for index in range(6)
    ]
    write_json(root / "annotations/val.json", rows)
    images = [{"id": index, "file_name": f"{index:012d}.png"} for index in range(25)]
    write_json(root / "COCO2017_unlabeled/annotations/image_info_unlabeled2017.json", {"images": images})
    for index in range(25):
        picture(root / f"COCO2017_unlabeled/unlabeled2017/{index:012d}.png", 900 + index)
    return {"val": {"queries": 6, "gallery": 25, "targets": sum(len(row["gt_img_ids"]) for row in rows)}}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Three small benchmarks in the official layouts, marked as a world so that their own counts hold."""
    root = tmp_path_factory.mktemp("data")
    counts = {
        "fashioniq": write_fashioniq(root / "FashionIQ"),
        "cirr": write_cirr(root / "CIRR"),
        "circo": write_circo(root / "CIRCO"),
    }
    write_json(root / "world.json", {"counts": counts})
    return root


@pytest.fixture
def config(root, tmp_path, tiny_clip_folder):
    overrides = [f"data.root={root}", f"backbone.cache={tmp_path / 'cache'}", "name=sum", "backbone.device=cpu"]
    return configs.load(None, [*overrides, f"backbone.name={tiny_clip_folder}"])


@pytest.fixture
def method(config, tiny_backbone):
    return runs.build(config, tiny_backbone)


def ranked_by_hand(benchmark, backbone, method, join):
    """Every query by itself, every image by itself, a plain sort: the ranking as lists of ids."""

    def unit(vector):
        return (vector / np.linalg.norm(vector)).astype(np.float64)

    def raw(name):
        with Image.open(benchmark.root / benchmark.paths[name]) as image:
            return backbone.encode_images(backbone.preprocess(image)[None])

    gallery = [unit(raw(name).numpy()[0, 0]) for name in benchmark.gallery]
    rows = []
    for query in benchmark.queries:
        template = Template("a photo of $ that {text}")
        composed = method.compose(backbone, raw(query.reference), [query], template, JOINERS[join])
        vector = unit(composed.numpy()[0, 0])
        left_out = {query.reference} if benchmark.protocol == "cirr" else set()
        scored = [(-float(vector @ g), i) for i, g in enumerate(gallery) if benchmark.gallery[i] not in left_out]
        rows.append([benchmark.gallery[i] for _, i in sorted(scored)])
    return rows


def test_circo_equals_the_definition_written_out(config, tiny_backbone, method):
    evaluation = evaluate(config, tiny_backbone, method, ["circo/val"], progress=False)[0]
    benchmark = evaluation.searched[0].benchmark
    rows = ranked_by_hand(benchmark, tiny_backbone, method, "both_orders")
    assert [evaluation.searched[0].ranking.row(i) for i in range(6)] == rows
    total = 0.0
    for query, row in zip(benchmark.queries, rows, strict=True):
        hits = [int(name in query.targets) for name in row[:10]]
        precisions = [sum(hits[: i + 1]) / (i + 1) for i, hit in enumerate(hits) if hit]
        total += sum(precisions) / min(len(query.targets), 10)
    assert evaluation.record.means["mAP@10"].mean == pytest.approx(100 * total / 6)
    aspects = evaluation.record.aspects
    assert {name: mean.queries for name, mean in aspects.items()} == {"addition": 3, "cardinality": 3, "negation": 3}
    both = (aspects["addition"].mean + aspects["cardinality"].mean) / 2  # halves of the same size
    assert both == pytest.approx(evaluation.record.means["mAP@10"].mean)


def test_cirr_deletes_the_reference_and_ranks_the_subset(config, tiny_backbone, method):
    evaluation = evaluate(config, tiny_backbone, method, ["cirr/val"], progress=False)[0]
    benchmark = evaluation.searched[0].benchmark
    rows = ranked_by_hand(benchmark, tiny_backbone, method, "both_orders")
    subset_hits, hits = [], []
    for query, row in zip(benchmark.queries, rows, strict=True):
        hits.append(query.targets[0] in row[:5])
        subset_hits.append(query.targets[0] in [name for name in row if name in query.candidates][:2])
    assert evaluation.record.means["R@5"].mean == pytest.approx(100 * np.mean(hits))
    assert evaluation.record.means["Rs@2"].mean == pytest.approx(100 * np.mean(subset_hits))


def test_a_group_is_the_unweighted_mean_of_its_parts(config, tiny_backbone, method):
    *parts, group = evaluate(config, tiny_backbone, method, ["fashioniq/val"], progress=False)
    assert [part.record.benchmark.name for part in parts] == [f"world/fashioniq/{c}/val" for c in CATEGORIES]
    assert group.record.benchmark.name == "world/fashioniq/val"
    assert group.record.benchmark.parts == [part.record.benchmark.name for part in parts]
    for metric in ("R@10", "R@50"):
        mean = np.mean([part.record.means[metric].mean for part in parts])
        assert group.record.means[metric].mean == pytest.approx(mean)
    assert group.values.ids == tuple(name for part in parts for name in part.values.ids)
    assert [group.values.strata.count(part.record.benchmark.name) for part in parts] == [4, 5, 6]
    assert group.record.benchmark.queries == 15


def test_batches_equal_single_queries_and_the_second_run_decodes_nothing(config, tiny_backbone, method, monkeypatch):
    benchmark = load_benchmark(config, "cirr/val")
    features = encode(benchmark, config, tiny_backbone, progress=False)
    whole = compose(benchmark, features, config, tiny_backbone, method, progress=False)
    monkeypatch.setattr("cir.retrieval.BATCH", 1)
    single = compose(benchmark, features, config, tiny_backbone, method, progress=False)
    np.testing.assert_allclose(whole.vectors, single.vectors, atol=1e-6)
    opened = []
    monkeypatch.setattr(type(tiny_backbone), "encode_images", lambda *args: opened.append(args))
    np.testing.assert_array_equal(
        encode(benchmark, config, tiny_backbone, progress=False).arrays[0], features.arrays[0]
    )
    assert not opened


def test_the_same_inputs_give_the_same_record(config, tiny_backbone, method, tmp_path):
    first = evaluate(config, tiny_backbone, method, ["circo/val"], progress=False)[0]
    fresh = replace(config, backbone=replace(config.backbone, cache=str(tmp_path / "another")))
    second = evaluate(fresh, tiny_backbone, method, ["circo/val"], progress=False)[0]
    assert first.record.fingerprint == second.record.fingerprint
    assert first.record.means == second.record.means
    other = evaluate(
        config, tiny_backbone, methods.build("text_only", {}, tiny_backbone), ["circo/val"], progress=False
    )
    assert other[0].record.means != first.record.means


def test_records_survive_the_disk_and_say_where_they_come_from(config, tiny_backbone, method, tmp_path):
    evaluation = evaluate(config, tiny_backbone, method, ["cirr/val"], progress=False)[0]
    path = evaluation.write(tmp_path / "records")
    record = records.read(path)
    assert record.benchmark.name == "world/cirr/val"
    assert record.protocol.name == "cirr"
    assert record.backbone.weights == tiny_backbone.fingerprint
    assert record.config["prompt"]["join"] == "both_orders"
    assert {"python", "numpy", "torch"} <= set(record.packages)
    assert record.seconds > 0 and record.peak_mb > 10
    values = records.read_values(path, record)
    assert 100 * values.values["R@1"].mean() == pytest.approx(record.means["R@1"].mean)
    assert values.ids == tuple(query.id for query in evaluation.searched[0].benchmark.queries)


def test_hidden_labels_give_a_ranking_and_no_numbers(config, tiny_backbone, method, tmp_path):
    evaluation = evaluate(config, tiny_backbone, method, ["cirr/test1"], progress=False)[0]
    assert evaluation.record.means == {}
    assert evaluation.values is None
    assert len(evaluation.searched[0].ranking.row(0)) == 19  # twenty images but the reference
    assert records.read(evaluation.write(tmp_path)).means == {}


def test_a_subset_and_a_smoke_run_are_stamped(config, tiny_backbone, method):
    config.data.subset = 3
    record = evaluate(configs.smoke(config), tiny_backbone, method, ["circo/val"], progress=False)[0].record
    assert record.benchmark.queries == 3
    assert any("subset" in stamp for stamp in record.benchmark.stamps)
    assert "smoke run" in record.benchmark.stamps
    assert record.run == "sum-smoke"


def test_missing_images_stop_the_run_unless_asked_and_then_stamp(root, config, tiny_backbone, method, tmp_path):
    path = root / "CIRR/dev/dev-19.png"
    content = path.read_bytes()
    path.unlink()
    try:
        with pytest.raises(InputError, match="dev-19"):
            evaluate(config, tiny_backbone, method, ["cirr/val"], progress=False)
        config.data.allow_missing = True
        record = evaluate(config, tiny_backbone, method, ["cirr/val"], progress=False)[0].record
        assert record.benchmark.gallery == 19
        assert any("missing" in stamp for stamp in record.benchmark.stamps)
    finally:
        path.write_bytes(content)


@pytest.mark.parametrize("names", [[], ["cirr/vall"]])
def test_no_and_unknown_benchmarks_are_refused(config, tiny_backbone, method, names):
    with pytest.raises(InputError, match=r"no benchmark named|did you mean 'cirr/val'"):
        evaluate(config, tiny_backbone, method, names, progress=False)


def test_a_prompt_longer_than_the_tower_is_an_error_unless_cut_and_then_stamps(config, tiny_backbone):
    method = methods.build("lincir", {}, tiny_backbone)
    config.prompt.template = "a photo of $ that " + "very " * 100 + "{text}"
    with pytest.raises(InputError, match=r"prompt\.overflow=cut"):
        evaluate(config, tiny_backbone, method, ["circo/val"], progress=False)
    config.prompt.overflow = "cut"
    (found,) = evaluate(config, tiny_backbone, method, ["circo/val"], progress=False)
    assert any("cut" in stamp for stamp in found.record.benchmark.stamps)


def test_unknown_joiners_are_refused(config, tiny_backbone, method):
    config.prompt.join = "both_order"
    with pytest.raises(InputError, match="did you mean 'both_orders'"):
        evaluate(config, tiny_backbone, method, ["circo/val"], progress=False)


def test_means_weigh_strata_alike_and_lie_in_their_intervals():
    values = {"R@1": np.array([1.0, 1.0, 1.0, 0.0])}
    assert means(values)["R@1"].mean == pytest.approx(75.0)
    weighed = means(values, ["a", "a", "a", "b"])["R@1"]
    assert weighed.mean == pytest.approx(50.0)
    assert weighed.low <= weighed.mean <= weighed.high
    assert weighed.queries == 4


def test_reports_and_comparisons_of_whole_runs(config, tiny_backbone, tmp_path):
    found, folders = [], {}
    for name in ("sum", "text_only"):
        config.name, config.method = name, {"name": name}
        method = runs.build(config, tiny_backbone)
        folders[name] = tmp_path / name
        one = runs.evaluate(config, tiny_backbone, method, ["fashioniq/val"], out=folders[name], progress=False)
        found += one
    rows = compare(*(records.find([folders[name]]) for name in ("sum", "text_only")))
    assert [row.benchmark for row in rows][-1] == "world/fashioniq/val"
    assert all(row.won + row.tied + row.lost in (4, 5, 6, 15) for row in rows)
    index = runs.report(found, tmp_path / "report", config, tiny_backbone, comparisons=rows)
    pages = sorted(path.name for path in index.parent.glob("*.html"))
    assert pages == sorted(["index.html", *(f"{n}-world-fashioniq-{c}-val.html" for n in folders for c in CATEGORIES)])
    text = index.read_text()
    assert all(f'href="{page}"' in text for page in pages if page != "index.html")
    assert "sum against text_only" in text


def test_the_default_layout_names_are_those_of_the_benchmarks(config):
    for name in ("cirr/val", "circo/val", *data.expand("fashioniq/val")):
        assert load_benchmark(config, name).name == f"world/{name}"


def test_composing_leaves_no_gradient_and_no_training_mode(config, tiny_backbone, method):
    method.train()
    benchmark = load_benchmark(config, "circo/val")
    features = encode(benchmark, config, tiny_backbone, progress=False)
    compose(benchmark, features, config, tiny_backbone, method, progress=False)
    assert not method.training
    assert torch.is_grad_enabled()


def test_methods_outside_the_list_bring_their_name_and_never_share_a_record(config, tiny_backbone, method):
    class Outsider(type(method)):
        name = "oracle"

    outsider = Outsider(method.options, tiny_backbone)
    assert describe(outsider).name == "oracle"
    ours, theirs = (
        evaluate(config, tiny_backbone, one, ["circo/val"], progress=False)[0].record for one in (method, outsider)
    )
    assert ours.fingerprint != theirs.fingerprint
