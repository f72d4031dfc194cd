"""RTD's ablations ask what they say, their triplets are what they are called, the page has the records' numbers."""

import importlib
import json
import random
import re
import sys
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
import torch

from cir import config as configs
from cir import records
from cir.ablation import jobs, plan
from cir.data import triplets as text_triplets
from cir.methods.noise import perturb
from cir.randomness import StepRandom
from cir.report import comparison
from cir.world import grammar, lexicon, scenes

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "experiments" / "ablations"
FILES = sorted(FOLDER.glob("rtd_*_world.yaml"))
WORLD = ROOT / "experiments" / "results" / "world"


@pytest.fixture(autouse=True, scope="module")
def at_home():
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.syspath_prepend(str(FOLDER))
        yield
    for name in ("page", "triplets"):
        sys.modules.pop(name, None)


@cache
def expanded(path):
    ablation = plan.read(path)
    return ablation, plan.expand(ablation)


def cells(name):
    return {cell.name: cell for cell in expanded(FOLDER / f"rtd_{name}_world.yaml")[1] if cell.seed == 0}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_cell_is_a_run_its_method_knows(path):
    ablation, found = expanded(path)
    jobs.check(ablation, found)
    assert all(column.startswith("world/") for column in ablation.show) and ablation.seeds == (0, 1, 2)
    trained = {cell.fingerprint: cell.name for cell in found}
    assert len(trained) == len(found), "two cells of a file are one run"


def test_files_share_the_cell_that_changes_nothing():
    names = [path.stem.removeprefix("rtd_").removesuffix("_world") for path in FILES]
    same = {name: cells(name)[expanded(path)[0].baseline] for name, path in zip(names, FILES, strict=True)}
    count = same.pop("triplet_count")  # says that it takes all rows, so that a line can be drawn
    assert len({cell.fingerprint for cell in same.values()}) == 1 and len(same) == 8
    assert count.fingerprint != same["tau"].fingerprint and count.config.train.limit == 16_000


@pytest.mark.parametrize("method", ["LinCIR", "Pic2Word", "SEARLE"])
def test_cells_without_rtd_are_the_runs_of_the_worlds_table(method):
    """Else they would be trained again, and might drift from what the world's table shows."""
    run = configs.load(ROOT / "experiments" / "runs" / f"{method.lower()}_world.yaml")
    for name in ("base", "components", "triplets", "trainable"):
        found = cells(name)
        if name == "base" or method == "LinCIR":
            assert found[method].fingerprint == configs.fingerprint(run)


def test_noises_have_one_strength():
    strengths = {}
    for name, cell in cells("noise").items():
        options = {"noise": "uniform_gaussian", **cell.config.method}
        drawn = perturb(
            torch.zeros(4096, 64), options["noise"], options["noise_scale"], StepRandom(0, 0, 0, 4096, 4096)
        )
        strengths[name] = float(drawn.square().mean().sqrt())
    assert strengths.pop("none") == 0
    assert all(strength == pytest.approx(0.5 / 3**0.5, rel=0.05) for strength in strengths.values())


@pytest.fixture
def world(tmp_path):
    """A world's texts, in little."""
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    lines = ["a small red star on a white background", "two big blue moons with a green heart", "a plain teal square"]
    (corpus / "captions.txt").write_text("\n".join(f"{line} and a {n}th cross" for n in range(20) for line in lines))
    rows = [{"reference_caption": f"r {n}", "conditioning_caption": f"c {n}", "target_caption": f"t {n}"}
            for n in range(40)]  # fmt: skip
    (corpus / "triplets.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_triplets_are_what_their_files_are_called(world):
    written = importlib.import_module("triplets").write(world, count=30)
    found = {path.stem: text_triplets.load(path) for path in written}
    assert {name: len(rows) for name, rows in found.items()} == dict.fromkeys(found, 30) and len(found) == 5
    sources = [Path(cell.config.train.source).stem for cell in cells("triplets").values()]
    assert set(found) == set(sources) - {"captions", "triplets"}
    shuffled = list(found["shuffled-targets"])
    assert [(row.reference, row.text) for row in shuffled] == [(f"r {n}", f"c {n}") for n in range(30)]
    assert Counter(row.target for row in shuffled) == Counter(f"t {n}" for n in range(30))
    assert sum(row.target == f"t {n}" for n, row in enumerate(shuffled)) < 10
    forms = {name: [json.loads(line)["form"] for line in path.read_text().splitlines()] for name, path in
             ((path.stem, path) for path in written) if name != "shuffled-targets"}  # fmt: skip
    assert set(forms["replace-only"]) == {"replace"} < set(forms["rules"])
    starts = {
        (form, row.text.split()[0]) for form, row in zip(forms["one-sentence"], found["one-sentence"], strict=True)
    }
    assert Counter(form for form, _ in starts if form in ("add", "remove", "replace")).most_common(1)[0][1] == 1
    before = [path.read_bytes() for path in written]
    assert [path.read_bytes() for path in importlib.import_module("triplets").write(world, count=30)] == before


def test_foreign_words_are_foreign(world):
    """No world says them: neither its captions nor what the tiny CLIP was trained on."""
    foreign = {word for words in importlib.import_module("triplets").FOREIGN.values() for word in words.split()}
    lists = [
        value for name, value in vars(lexicon).items() if not name.startswith("_") and isinstance(value, (dict, tuple))
    ]
    said = set(re.findall(r"\w+", str(lists).lower()))
    rng = random.Random(0)
    for _ in range(500):
        said |= set(grammar.caption(scenes.sample_scene(rng), rng, grammar.ALL).split())
    assert {"star", "crescent", "scarlet"} <= said and len(foreign) == 28
    assert not foreign & said


ABLATION = """
question: Does RTD help LinCIR?
base: {root}/experiments/runs/rtd_world.yaml
cells:
  - {{name: LinCIR + RTD, set: {{base: runs/world/lincir/seed-0}}}}
  - {{name: not there, set: {{method.tau: 0.5, base: runs/world/lincir/seed-0}}}}
  - name: LinCIR
    set: {{method.name: lincir, method.dropout: 0.1, method.noise_scale: 0.5, base: "",
          train.source: datasets/world/corpus/captions.txt, train.steps: 1200, train.lr: 5e-3}}
seeds: [0]
show: ["world/circo/val:mAP@5"]
answer: "Yes."
"""
PAGE = """# Title

<!-- answer: helped -->
old words
<!-- end -->

Between.

<!-- answer: waiting -->
<!-- end -->
"""


@pytest.fixture(scope="module")
def filled(at_home, tmp_path_factory):
    """A page filled from the committed records, and what filling it said."""
    pytest.importorskip("matplotlib")
    tmp_path = tmp_path_factory.mktemp("page")
    (tmp_path / "helped.yaml").write_text(ABLATION.format(root=ROOT))
    (tmp_path / "waiting.yaml").write_text(
        ABLATION.format(root=ROOT).replace("seeds: [0]", "seeds: [7]").replace('answer: "Yes."', "")
    )
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    told = importlib.import_module("page").fill(page, tmp_path)
    return page, told


def test_a_page_takes_the_committed_records_numbers_and_keeps_its_own_words(filled):
    page, told = filled
    text = page.read_text()
    assert told == [("helped", 2, 3), ("waiting", 0, 3)]
    assert "old words" not in text and "Between." in text and "**Answer.** Yes." in text
    assert "Not run yet: `cir ablate experiments/ablations/waiting.yaml`." in text
    for name, cell in (("lincir", "LinCIR"), ("lincir+rtd", "LinCIR + RTD (baseline)")):
        found = records.find([WORLD / name / "seed-0"]).values()
        (record,) = [record for record in found if record.benchmark.name == "world/circo/val"]
        row = next(line for line in text.splitlines() if line.startswith(f"| {cell} |"))
        assert f"{record.means['mAP@5'].mean:.2f}" in row
    assert page.with_name("helped.png").read_bytes().startswith(b"\x89PNG")
    assert not page.with_name("waiting.png").exists()


def test_what_rtd_adds_is_the_paired_comparison_of_the_two_runs(filled):
    pair = [records.find([WORLD / name / "seed-0"]) for name in ("lincir+rtd", "lincir")]
    (expected,) = [row for row in comparison.compare(*pair) if row.benchmark == "world/circo/val"]
    line = next(line for line in filled[0].read_text().splitlines() if line.startswith("| LinCIR | +"))
    assert expected.metric == "mAP@5" and f"| {expected.difference:+.2f} [{expected.low:+.1f}, " in line


def test_filling_a_page_again_changes_nothing(filled):
    page, told = filled
    before = page.read_bytes()
    assert importlib.import_module("page").fill(page, page.parent) == told
    assert page.read_bytes() == before


def test_the_page_asks_every_file_once():
    text = (ROOT / "docs" / "ablations" / "rtd_world.md").read_text()
    asked = [match[2] for match in importlib.import_module("page").BLOCK.finditer(text)]
    assert sorted(asked) == [path.stem for path in FILES]
    script = (FOLDER / "rtd_world.sh").read_text()
    listed = next(line for line in script.splitlines() if line.startswith("all=")).split('"')[1].split()
    assert sorted(f"rtd_{name}_world" for name in listed) == sorted(asked)
