"""One model under every protocol: from vectors on the real annotations, from a tiny CLIP on the small world."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from cir import config as configs
from cir import data, methods, retrieval, stats
from cir.cli import app
from cir.commands.compare_protocols import lines
from cir.data import circo
from cir.errors import InputError
from cir.protocol_comparison import Comparison, Row, compare, protocols
from cir.protocol_comparison.composed import Composed
from cir.protocol_comparison.given import Given
from cir.protocols import PROTOCOLS
from cir.score import score

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data"
REAL = pytest.mark.skipif(not SHARED.is_dir(), reason="needs the benchmarks' annotation files in ../shared/data")


def cir(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def vectors(folder, benches, width=24, seed=0):
    """Write random vectors: queries near target and reference, a gallery of all the images the benchmarks have."""
    generator = np.random.default_rng(seed)
    images = list(dict.fromkeys(name for bench in benches for name in bench.gallery))
    gallery = generator.standard_normal((len(images), width)).astype(np.float32)
    row = {name: index for index, name in enumerate(images)}
    queries = [query for bench in benches for query in bench.queries]
    target, reference = (
        gallery[[row[name] for name in names]]
        for names in ([q.targets[0] for q in queries], [q.reference for q in queries])
    )
    near = target + 0.9 * reference + generator.standard_normal(target.shape) * 1.2
    np.savez(folder / "q.npz", ids=[query.id for query in queries], vectors=near.astype(np.float32))
    np.savez(folder / "g.npz", ids=images, vectors=gallery)
    return "--queries", folder / "q.npz", "--gallery", folder / "g.npz"


# --- from vectors, on the real annotations ---------------------------------------------------------------------


@REAL
@pytest.mark.usefixtures("unchecked")
def test_one_benchmark_agrees_with_scoring_protocol_by_protocol(tmp_path):
    files = vectors(tmp_path, [data.load("cirr/val", SHARED)])
    result = cir("compare-protocols", "cirr/val", "--data", SHARED, *files, "--json", tmp_path / "out/all.json")
    assert result.exit_code == 0, result.output
    (told,) = json.loads((tmp_path / "out/all.json").read_text())["comparisons"]
    assert told["benchmark"] == "cirr/val" and told["unit"] == "percent"
    hard, soft, folder, covr = told["rows"]
    values = {}
    for row in (hard, soft):
        kept = tmp_path / "values.npz"
        alone = score("cirr/val", SHARED, files[1], files[3], protocol=row["protocol"], resamples=10, per_query=kept)
        assert row["means"] == pytest.approx({m: v["mean"] for m, v in alone["scores"].items()})
        assert (row["gallery"], row["queries"], row["reason"]) == (2297, 4181, "")
        with np.load(kept) as arrays:
            values[row["protocol"]] = {metric: arrays[metric] for metric in row["means"]}
    assert hard["changes"] == {} and list(soft["changes"]) == list(PROTOCOLS["cirr"].metrics)
    for metric, change in soft["changes"].items():
        assert soft["means"][metric] - hard["means"][metric] == pytest.approx(change["difference"])
    for metric in ("R@1", "Avg"):
        change, found = soft["changes"][metric], stats.paired(values["cirr/soft"][metric], values["cirr"][metric])
        assert change["difference"] == pytest.approx(100 * found.difference)
        assert (change["low"], change["high"]) == pytest.approx((100 * found.low, 100 * found.high))
    for row in (folder, covr):
        assert row["means"] == {} and row["changes"] == {} and "put the images there" in row["reason"]
    assert f"{soft['changes']['R@1']['difference']:+.2f}" in result.stdout and "not run" in result.stdout
    for name in ("cirr", "cirr/soft", "cirr/folder", "cirr/covr"):
        assert f"{name} v1: {PROTOCOLS[name].differs}" in result.stdout


@REAL
@pytest.mark.usefixtures("unchecked")
def test_a_group_is_the_unweighted_mean_of_its_parts(tmp_path):
    benches = [data.load(name, SHARED) for name in data.expand("fashioniq/val")]
    files = vectors(tmp_path, benches)
    result = cir("compare-protocols", "fashioniq/val", "--data", SHARED, *files, "--json", tmp_path / "all.json")
    assert result.exit_code == 0, result.output
    original, union, removed = json.loads((tmp_path / "all.json").read_text())["comparisons"][0]["rows"]
    assert [row["gallery"] for row in (original, union, removed)] == [15536, 8619, 15536]
    assert all(row["queries"] == 6016 for row in (original, union, removed))
    parts = [
        compare(bench.name, lambda name, protocol: data.load(name, SHARED, protocol=protocol), Given(*files[1::2]))
        for bench in benches
    ]
    for index, row in enumerate((original, union, removed)):
        means = [part.rows[index].means["R@10"] for part in parts]
        assert row["means"]["R@10"] == pytest.approx(np.mean(means))
    assert union["changes"]["R@10"]["low"] > 0 and removed["changes"]["R@10"]["difference"] > 0
    assert "fashioniq/val: 6,016 queries" in result.stdout and "15,536" in result.stdout


@REAL
@pytest.mark.usefixtures("unchecked")
def test_vectors_made_of_one_text_do_not_stand_for_another(tmp_path):
    bench, generator = data.load("genecis/focus_object", SHARED), np.random.default_rng(0)
    for file, ids in (("q.npz", [query.id for query in bench.queries]), ("g.npz", bench.gallery)):
        np.savez(tmp_path / file, ids=ids, vectors=generator.standard_normal((len(ids), 8)))
    files = tmp_path / "q.npz", tmp_path / "g.npz"
    found = compare(bench.name, lambda name, rule: data.load(name, SHARED, protocol=rule), Given(*files))
    assert set(found.rows[0].means) == {"R@1", "R@2", "R@3"} and not found.rows[0].reason
    assert not found.rows[1].means and "the queries' texts are others than before" in found.rows[1].reason


@REAL
@pytest.mark.usefixtures("unchecked")
def test_vectors_of_another_size_than_the_gallery_are_a_reason(tmp_path):
    """The vectors cover the union alone: the whole split cannot be ranked, and the default has no numbers."""
    union = data.load("fashioniq/dress/val", SHARED, protocol="fashioniq/val-union")
    files = vectors(tmp_path, [union])
    result = cir("compare-protocols", "fashioniq/dress/val", "--data", SHARED, *files)
    assert result.exit_code == 0, result.output
    assert result.stdout.count("not run: ") == 2 and "1,189 ids are missing" in result.stdout
    np.savez(tmp_path / "g.npz", ids=["a", "b"], vectors=np.eye(2, 24))
    result = cir("compare-protocols", "fashioniq/dress/val", "--data", SHARED, *files)
    assert result.exit_code == 2 and "ids are missing" in result.stderr and result.stderr.count("\n") == 1


@REAL
@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["circo/test"], "labels are hidden"),
        (["cirr/vall"], "did you mean 'cirr/val'"),
        ([], "name one benchmark"),
        (["cirr/val", "seed=1"], "name one benchmark"),
        (["cirr/val", "--method", "sum"], "name one benchmark"),
    ],
)
def test_what_vectors_cannot_do(tmp_path, arguments, message):
    np.savez(tmp_path / "v.npz", ids=["a"], vectors=np.ones((1, 4)))
    files = ["--queries", tmp_path / "v.npz", "--gallery", tmp_path / "v.npz"]
    result = cir("compare-protocols", *arguments, "--data", SHARED, *files)
    assert result.exit_code == 2 and message in result.stderr and result.stderr.count("\n") == 1


def test_one_file_of_vectors_is_not_enough(tmp_path):
    result = cir("compare-protocols", "cirr/val", "--queries", tmp_path / "q.npz")
    assert result.exit_code == 2 and "--queries and --gallery; one of them is missing" in result.stderr


# --- from a method, on the small world -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world_config(small_world, tiny_clip_folder, tmp_path_factory):
    options = [
        "prompt.overflow=cut",
        f"data.root={small_world}",
        f"backbone.name={tiny_clip_folder}",
        "name=sum",
        "method.name=sum",
    ]
    return configs.load(None, [*options, f"backbone.cache={tmp_path_factory.mktemp('cache')}", "backbone.device=cpu"])


def test_the_command_on_the_small_world(small_world, tiny_clip_folder, tmp_path):
    options = ["--method", "sum", "--backbone", tiny_clip_folder, "--data", small_world]
    options += [f"backbone.cache={tmp_path / 'cache'}", "prompt.overflow=cut", "--json", tmp_path / "all.json"]
    result = cir("compare-protocols", "cirr/val", "fashioniq/val", "circo/val", *options)
    assert result.exit_code == 0, result.output
    told = {one["benchmark"]: one["rows"] for one in json.loads((tmp_path / "all.json").read_text())["comparisons"]}
    assert list(told) == ["world/cirr/val", "world/fashioniq/val", "world/circo/val"]
    hard, *others = told["world/cirr/val"]
    for row in others:  # the world's folder holds the split alone, its labels are 1.0 for the target
        assert row["means"] == hard["means"] and row["gallery"] == hard["gallery"]
        assert all((c["difference"], c["low"], c["high"]) == (0, 0, 0) for c in row["changes"].values())
    original, union, removed = told["world/fashioniq/val"]
    assert union["gallery"] < original["gallery"] == removed["gallery"]
    assert removed["means"]["R@10"] >= original["means"]["R@10"]
    assert "world/circo/val: " in result.stdout


@REAL
@pytest.mark.usefixtures("unchecked")
def test_real_annotations_and_pictures(dev_folder, tiny_clip_folder, tmp_path):
    """Three queries under all four protocols of CIRR, from files: the folder's gallery holds more distractors."""
    root = tmp_path / "CIRR"
    (root / "dev").mkdir(parents=True)
    (root / "cirr").symlink_to(dev_folder / "cirr", target_is_directory=True)
    needed = [data.subset(data.load("cirr/val", dev_folder, protocol=name), 3) for name in protocols(["cirr/val"])]
    wanted = {path for bench in needed for path in bench.paths.values()}
    for number, file in enumerate((dev_folder / "dev").iterdir()):
        if f"dev/{file.name}" not in wanted:
            (root / "dev" / file.name).symlink_to(file)
            continue
        colours = np.random.default_rng(number).integers(0, 256, (4, 3, 3), dtype=np.uint8)
        Image.fromarray(colours).resize((30, 40)).save(root / "dev" / file.name)
    options = ["--method", "sum", "--backbone", tiny_clip_folder, "--data", root, "data.subset=3"]
    options += [f"backbone.cache={tmp_path / 'cache'}", "--json", tmp_path / "all.json", "prompt.overflow=cut"]
    result = cir("compare-protocols", "cirr/val", *options)
    assert result.exit_code == 0, result.output
    rows = json.loads((tmp_path / "all.json").read_text())["comparisons"][0]["rows"]
    assert [row["gallery"] for row in rows] == [len(bench.gallery) for bench in needed]
    assert all(row["queries"] == 3 and row["reason"] == "" and row["means"] for row in rows)
    assert all(row["stamps"][0].startswith("subset of 3 queries") for row in rows)


def test_numbers_are_those_of_an_evaluation(world_config, tiny_backbone):
    method = methods.build("sum", {}, tiny_backbone)
    source = Composed(world_config, tiny_backbone, method, progress=False)
    found = compare("circo/val", source.load, source)
    for row in found.rows:
        bench = retrieval.load_benchmark(world_config, "circo/val", row.protocol)
        searched = retrieval.run_search(bench, world_config, tiny_backbone, method, progress=False)
        assert row.means == {metric: 100 * v.mean() for metric, v in searched.scores.values.items()}
    assert len({row.gallery for row in found.rows}) == 1


def test_queries_are_composed_once_where_nothing_differs(world_config, tiny_backbone, monkeypatch):
    method, composed = methods.build("sum", {}, tiny_backbone), []
    compose_plainly = method.compose

    def counted(backbone, given, queries, sentence, join):
        composed.extend(query.id for query in queries)
        return compose_plainly(backbone, given, queries, sentence, join)

    monkeypatch.setattr(method, "compose", counted)
    source = Composed(world_config, tiny_backbone, method, progress=False)
    compare("fashioniq/dress/val", source.load, source)
    asked = [query.id for query in source.load("fashioniq/dress/val", "fashioniq/original").queries]
    assert composed == asked
    monkeypatch.setattr(PROTOCOLS["fashioniq/val-union"], "differs", "", raising=False)

    def load(name, protocol):  # a protocol with a sentence of its own
        bench = source.load(name, protocol)
        template = "a picture of $ that {text}" if protocol == "fashioniq/val-union" else ""
        return type(bench)(**{f: getattr(bench, f) for f in bench.__dataclass_fields__} | {"template": template})

    again = compare("fashioniq/dress/val", load, source)
    assert composed == [*asked, *asked]
    assert again.rows[1].differs == PROTOCOLS["fashioniq/val-union"].definition  # no shorter sentence: the definition


def test_images_that_are_missing_are_a_reason(tmp_path, world_config, tiny_backbone):
    config = configs.load(None, [f"data.root={tmp_path / 'nowhere'}", "method.name=sum"])
    source = Composed(config, tiny_backbone, methods.build("sum", {}, tiny_backbone), progress=False)
    with pytest.raises(InputError, match="no such folder"):
        compare("cirr/val", source.load, source)


# --- the comparison itself -------------------------------------------------------------------------------------


def test_protocols_that_parts_have_in_common_default_first():
    assert protocols(["cirr/val"]) == ["cirr", "cirr/soft", "cirr/folder", "cirr/covr"]
    assert protocols(["cirr/val", "cirr/test1"]) == ["cirr"]
    assert protocols(data.expand("fashioniq/val"))[0] == "fashioniq/original"


def test_without_the_default_there_are_numbers_and_no_changes(tmp_path, monkeypatch):
    monkeypatch.setitem(circo.COUNTS, "circo/val", {"queries": 1, "gallery": 3, "targets": 1})
    root = tmp_path / "CIRCO"
    (root / "annotations").mkdir(parents=True)
    row = {"reference_img_id": 1, "target_img_id": 2, "relative_caption": "x", "shared_concept": "y",
           "gt_img_ids": [2], "id": 0, "semantic_aspects": []}  # fmt: skip
    (root / "annotations/val.json").write_text(json.dumps([row]))
    (root / "COCO2017_unlabeled/annotations").mkdir(parents=True)
    (root / "COCO2017_unlabeled/annotations/unlabeled2017_image_ids.txt").write_text("1\n2\n3\n")
    np.savez(tmp_path / "q.npz", ids=["0"], vectors=np.eye(3)[:1])
    np.savez(tmp_path / "g.npz", ids=[1, 2, 3], vectors=np.eye(3))

    def load(name, protocol):
        if protocol == "circo":
            raise InputError("not today")
        return data.load(name, root, protocol=protocol)

    found = compare("circo/val", load, Given(tmp_path / "q.npz", tmp_path / "g.npz"))
    assert found.rows[0].reason == "not today" and found.rows[0].means == {}
    assert found.rows[1].means["R@5"] == 100 and found.rows[1].changes == {}
    text = "\n".join(lines(found))
    assert "not run: not today" in text and "1 queries" in text


def test_stamps_are_told():
    row = Row("cirr", 1, "as ever", 5, 2, {"R@1": 50.0}, {}, ("two images are missing",))
    assert "  not comparable: two images are missing" in lines(Comparison("cirr/val", (row,)))


def test_vectors_from_files_need_no_torch():
    code = "import sys, cir.protocol_comparison.given, cir.commands.compare_protocols; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert "cir.score" in done.stdout.split() and "torch" not in done.stdout.split()


# --- ids -------------------------------------------------------------------------------------------------------


@REAL
@pytest.mark.usefixtures("unchecked")
def test_ids_are_all_that_vectors_need(tmp_path):
    """From the file alone: vectors under its ids are what `cir score` takes."""
    result = cir("data", "ids", "fashioniq/dress/val", "--root", SHARED, "--out", tmp_path / "new/ids.json")
    assert result.exit_code == 0 and "2,017 queries, a gallery of 3,817 images" in result.stderr
    told = json.loads((tmp_path / "new/ids.json").read_text())
    assert told["protocol"] == "fashioniq/original" and told["references_outside"] == []
    assert told["queries"][42]["id"] == "dress/0042" and len(told["queries"][42]["texts"]) == 2
    assert set(told["images"]) == set(told["gallery"])
    assert told["images"][told["gallery"][0]] == {"file": f"images/{told['gallery'][0]}.jpg"}
    assert not {"targets", "candidates", "soft"} & set(told["queries"][0])
    generator = np.random.default_rng(0)
    for file, ids in (("q.npz", [q["id"] for q in told["queries"]]), ("g.npz", told["gallery"])):
        np.savez(tmp_path / file, ids=ids, vectors=generator.standard_normal((len(ids), 4)))
    scored = score("fashioniq/dress/val", SHARED, tmp_path / "q.npz", tmp_path / "g.npz", resamples=10)
    assert scored["fingerprint"] == told["fingerprint"] and scored["stamps"] == told["stamps"] == []


@REAL
@pytest.mark.usefixtures("unchecked")
def test_ids_under_another_protocol_and_on_the_terminal():
    result = cir("data", "ids", "fashioniq/dress/val", "--root", SHARED, "--protocol", "fashioniq/val-union")
    assert result.exit_code == 0 and len(json.loads(result.stdout)["gallery"]) == 2628
    concept = json.loads(cir("data", "ids", "circo/val", "--root", SHARED).stdout)["queries"][0]
    assert set(concept) == {"id", "reference", "texts", "concept"}
    group = cir("data", "ids", "fashioniq/val", "--root", SHARED)
    assert group.exit_code == 2 and "fashioniq/shirt/val" in group.stderr


@REAL
@pytest.mark.usefixtures("unchecked")
def test_ids_say_which_part_of_a_file_an_image_is():
    result = cir("data", "ids", "genecis/focus_attribute", "--root", SHARED)
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    crop = told["images"][told["gallery"][0]]
    assert crop["view"] == "dilated-square" and len(crop["box"]) == 4
    assert set(told["images"]) == {*told["gallery"], *told["references_outside"]}
