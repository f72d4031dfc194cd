"""Reading and expanding ablation files: grids, zips, named cells, and errors of one line."""

import itertools

import pytest

from cir import config as configs
from cir.ablation import naming, plan
from cir.errors import InputError

RUN = """
name: lincir
method: {name: lincir}
data: {root: world}
train: {source: captions.txt, steps: 12, batch: 8}
evaluate: [world/cirr/val]
"""
QUESTION = {
    "question": "does it matter?",
    "base": "../runs/lincir.yaml",
    "show": '["world/circo/val:mAP@5", "world/fashioniq/val:R@10", "world/circo/val:mAP@10"]',
}


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write an ablation file beside its base: keys with YAML texts, None leaves one out."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "ablations").mkdir()
    (tmp_path / "runs" / "lincir.yaml").write_text(RUN)

    def write(**changes):
        lines = {**QUESTION, **changes}
        path = tmp_path / "ablations" / "noise.yaml"
        path.write_text("\n".join(f"{key}: {value}" for key, value in lines.items() if value is not None))
        return path

    return write


def cells(path, **options):
    return plan.expand(plan.read(path, **options))


def test_a_grid_is_the_product_with_each_seed(write):
    found = cells(write(vary="{method.noise_scale: [0.0, 0.5], train.batch: [4, 8]}", seeds="[3, 1]"))
    wanted = list(itertools.product((0.0, 0.5), (4, 8), (3, 1)))
    assert [(c.config.method["noise_scale"], c.config.train.batch, c.seed) for c in found] == wanted
    assert [c.config.seed for c in found] == [c.seed for c in found]
    assert found[0].name == "method.noise_scale=0.0, train.batch=4"
    assert found[0].settings == {"method.noise_scale": 0.0, "train.batch": 4}
    assert str(found[0].folder) == "runs/ablations/noise/method.noise_scale-0.0_train.batch-4/seed-3"
    assert len({c.folder for c in found}) == len({c.fingerprint for c in found}) == len(found)


def test_a_cell_is_the_run_that_the_command_line_would_make(write, tmp_path):
    (cell, _) = cells(write(set="{train.steps: 6}", vary="{train.lr: [0.01, 0.1]}", seeds="[2]"))
    overrides = ["train.steps=6", "train.lr=0.01", "seed=2"]
    by_hand = configs.load(tmp_path / "runs" / "lincir.yaml", overrides)
    assert configs.fingerprint(by_hand) == cell.fingerprint
    assert cell.config.name == "train.lr=0.01"
    assert cell.config.evaluate == ["world/circo/val", "world/fashioniq/val"], "what is shown, each once"


def test_zipped_lists_go_together_inside_the_grid(write):
    path = write(vary="{train.steps: [4, 8]}", zip="{train.batch: [2, 4], train.lr: [0.1, 0.2]}")
    found = [(c.config.train.steps, c.config.train.batch, c.config.train.lr) for c in cells(path)]
    assert found == [(4, 2, 0.1), (4, 4, 0.2), (8, 2, 0.1), (8, 4, 0.2)]


def test_named_cells_stand_alone_or_behind_the_grid(write):
    named = '[{name: "as it is"}, {name: short, set: {train.steps: 2}}]'
    ablation = plan.read(write(cells=named, baseline="short"))
    assert [point.name for point in ablation.points] == ["as it is", "short"]
    assert ablation.baseline == "short"
    found = plan.expand(ablation)
    assert [c.config.train.steps for c in found] == [12, 2]
    assert [c.varied for c in found] == [{"train.steps": 12}, {"train.steps": 2}], "every cell has every varied key"
    both = plan.read(write(cells=named, vary="{train.batch: [4]}"))
    assert [point.name for point in both.points] == ["train.batch=4", "as it is", "short"]
    assert both.baseline == "train.batch=4", "the first, unless said"


def test_settings_name_keys_of_the_run(write):
    (one, two) = cells(write(set='{method.seed: "${seed}"}', cells="[{name: one}]", seeds="[4, 7]"))
    assert (one.config.method["seed"], two.config.method["seed"]) == (4, 7)


def test_another_method_leaves_the_options_of_the_first_behind(write):
    path = write(set="{method.dropout: 0.1}", cells="[{name: sum, set: {method.name: sum}}, {name: lincir}]")
    assert [c.config.method for c in cells(path)] == [{"name": "sum"}, {"name": "lincir", "dropout": 0.1}]


def test_what_training_selects_by_is_evaluated_too(write):
    settings = "{train.evaluate_every: 2, train.select: 'world/cirr/val:R@1'}"
    (cell,) = cells(write(set=settings, cells="[{name: selected}]"))
    assert cell.config.evaluate == ["world/circo/val", "world/fashioniq/val", "world/cirr/val"]


def test_a_wrappers_base_is_a_run_of_its_own_with_the_same_seed_and_encoders(write, tmp_path):
    (tmp_path / "rtd.yaml").write_text("name: rtd\nmethod: {name: rtd}\nbase: runs/lincir.yaml\n")
    path = write(
        base="../rtd.yaml",
        set="{backbone.name: other-clip}",
        vary="{method.tau: [0.1, 0.2]}",
        seeds="[0, 1]",
    )
    found = cells(path)
    assert {c.needs.folder for c in found} == {found[0].needs.folder, found[1].needs.folder}, "shared by the cells"
    first, second = found[0].needs, found[1].needs
    assert [first.config.seed, second.config.seed] == [0, 1]
    assert first.config.backbone.name == "other-clip" and first.config.method == {"name": "lincir"}
    assert first.folder.parent == second.folder.parent and first.folder.name == "seed-0"
    assert [c.config.base for c in found[:2]] == [str(first.folder), str(second.folder)]
    other = cells(write(base="../rtd.yaml", set="{backbone.name: third-clip}", cells="[{name: one}]"))
    assert other[0].needs.folder.parent != first.folder.parent, "another base is another folder"
    moved = cells(write(base="../rtd.yaml", set="{base: runs/ready}", cells="[{name: one}]"))
    assert moved[0].needs is None and moved[0].config.base == "runs/ready", "a checkpoint is there already"


def test_shrunk_runs_have_places_and_fingerprints_of_their_own(write):
    path = write(cells="[{name: one}]")
    (large,), (small,) = cells(path), cells(path, smoke=True)
    assert small.config.smoke and small.config.train.steps == 4 and small.config.name == "one"
    assert str(small.folder) == "runs/ablations/noise-smoke/one/seed-0"
    assert small.fingerprint != large.fingerprint


ONE = {"cells": "[{name: one}]"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"quest": "x", **ONE}, "quest: unknown key; did you mean 'question'"),
        ({"question": None, **ONE}, "question: missing"),
        ({"question": "it matters", **ONE}, "ends in '?'"),
        ({"base": None, **ONE}, "base: missing"),
        ({"base": "../runs/linclr.yaml", **ONE}, "cell 'one'.*no such file; did you mean 'lincir.yaml'"),
        ({"show": "[]", **ONE}, "show: missing"),
        ({"show": "[mAP@5]", **ONE}, "show: 'mAP@5': expected benchmark:metric"),
        ({"show": "['circo/val:mAP@7']", **ONE}, "circo/val has no metric 'mAP@7'; did you mean 'mAP@"),
        ({"show": "['circus/val:mAP@5']", **ONE}, "unknown benchmark 'circus/val'"),
        ({"show": "['circo/val:mAP@5', 'circo/val:mAP@5']", **ONE}, "a column stands there twice"),
        ({}, "nothing varies; give vary, zip or cells"),
        ({"vary": "[1, 2]"}, "vary: expected keys with values"),
        ({"vary": "{train.lr: 0.1}"}, "vary: train.lr: expected a list of values, got 0.1"),
        ({"vary": "{train.lr: []}"}, "vary: train.lr: expected a list"),
        ({"vary": "{train.lr: [0.1, 0.1]}"}, "cell 'train.lr=0.1' stands there twice"),
        ({"vary": "{seed: [0, 1]}"}, "vary: seed: leave it out; the ablation's `seeds`"),
        ({"set": "{evaluate: [circo/val]}", **ONE}, "set: evaluate: leave it out; the ablation's `show`"),
        ({"zip": "{train.lr: [1, 2], train.batch: [4]}"}, "train.lr has 2, train.batch has 1"),
        ({"vary": "{train.lr: [1]}", "zip": "{train.lr: [1]}"}, "train.lr: stands in vary and in zip"),
        ({"cells": "{name: one}"}, "cells: expected a list of cells"),
        ({"cells": "[one]"}, "cells: number 1: expected {name"),
        ({"cells": "[{name: one, sets: {}}]"}, "cell 'one': sets: unknown key; did you mean 'set'"),
        ({"cells": "[{name: one, set: [1]}]"}, "cell 'one': set: expected keys with values"),
        ({"cells": "[{name: one, set: {name: x}}]"}, "cell 'one': set: name: leave it out"),
        ({"cells": "[{name: one}, {name: one}]"}, "cell 'one' stands there twice"),
        ({"cells": "[{name: a b}, {name: a-b}]"}, "cells 'a b' and 'a-b' would share a folder"),
        ({"baseline": "two", **ONE}, "baseline: no cell is called 'two'; known: one"),
        ({"seeds": "[]", **ONE}, "seeds: expected distinct numbers"),
        ({"seeds": "[1, 1]", **ONE}, "seeds: expected distinct numbers"),
        ({"set": "{train.step: 6}", **ONE}, "cell 'one': set: train.step: unknown key; did you mean 'steps'"),
        ({"vary": "{train.step: [6]}"}, "cell 'train.step=6': cell: train.step: unknown key"),
        ({"vary": "{train.steps: [many]}"}, "cell 'train.steps=many': cell: train.steps: .*Integer"),
        ({"vary": "{train.steps: [-1]}"}, "cell 'train.steps=-1': .*train.steps: got -1, expected at least 0"),
        ({"set": "{train: {steps: 6}, train.steps: 7}", **ONE}, "cell 'one': train.steps: stands there twice"),
        ({"vary": '{method.x: ["${oc.env:HOME}"]}'}, "resolvers are not allowed"),
        ({"set": "{base: runs/absent.yaml}", **ONE}, "cell 'one': base: runs/absent.yaml: no such file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else None,
)
def test_mistakes_are_one_line_with_file_key_and_cell(write, changes, said):
    path = write(**changes)
    with pytest.raises(InputError, match=said) as caught:
        cells(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_the_folder_of_bases_is_no_ablations_name(write, tmp_path):
    path = write(**ONE).rename(tmp_path / "ablations" / "bases.yaml")
    with pytest.raises(InputError, match="call the file otherwise"):
        plan.read(path)


@pytest.mark.parametrize("name", ["x" * 300, "é", "..", "a/b", "=" * 3, "q?*:"])
def test_folders_are_names_any_file_system_takes(name):
    slug = naming.slug(name)
    assert 0 < len(slug) <= naming.LONGEST and slug.isascii() and slug.strip(".")
    assert not set(slug) & set('/\\:*?"<>|= ')


def test_different_long_names_have_different_folders():
    assert naming.slug("x" * 300) != naming.slug("x" * 301) and naming.slug("é") != naming.slug("è")
