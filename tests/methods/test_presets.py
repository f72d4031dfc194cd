"""The committed runs of the trained methods say what their methods understand."""

from pathlib import Path

import pytest

from cir import config
from cir.methods import METHODS, _options

ROOT = Path(__file__).parents[2]
RUNS = sorted(path for name in ("lincir", "rtd") for path in (ROOT / "experiments" / "runs").glob(f"{name}_*.yaml"))


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_a_preset_loads_and_its_options_are_known(path):
    run = config.load(path)
    name = run.method["name"]
    assert path.stem == run.name and path.stem.startswith(name)
    assert isinstance(_options(name, METHODS[name].Options, run.method), METHODS[name].Options)
    assert run.train.steps > 0 and run.evaluate and run.train.source
    assert METHODS[name].wraps == bool(run.base)
    if run.base:
        base = config.load(ROOT / run.base)
        assert base.backbone.name == run.backbone.name and base.backbone.preprocess == run.backbone.preprocess


def test_presets_of_the_papers_carry_the_released_settings():
    lincir = config.load(ROOT / "experiments/runs/lincir_clip_vitl14.yaml")
    assert (lincir.train.lr, lincir.train.batch, lincir.train.steps) == (1e-4, 512, 20000)
    rtd = config.load(ROOT / "experiments/runs/rtd_clip_vitl14.yaml")
    assert (rtd.train.lr, rtd.train.batch, rtd.train.steps, rtd.method["tau"]) == (1e-5, 128, 2000, 0.07)
