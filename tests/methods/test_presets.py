"""The committed runs of the trained methods say what their methods understand."""

import re
from pathlib import Path

import pytest

from cir import config
from cir.methods import METHODS, _options

ROOT = Path(__file__).parents[2]
NAMES = ("clip_finetune", "combiner", "context_i2w", "lincir", "oti", "pic2word", "rtd", "searle", "spn", "sprc")
RUNS = sorted(path for name in NAMES for path in (ROOT / "experiments" / "runs").glob(f"{name}_*.yaml"))


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_a_preset_loads_and_its_options_are_known(path):
    run = config.load(path)
    name = run.method["name"]
    assert path.stem == run.name and path.stem.startswith(name)
    assert isinstance(_options(name, METHODS[name].Options, run.method), METHODS[name].Options)
    assert bool(run.evaluate) == (name != "sprc_rerank")  # which searches nothing by itself
    assert (run.train.steps > 0) == bool(run.train.source) == bool(METHODS[name].learns_from)
    assert METHODS[name].wraps == bool(run.base)
    if run.base:
        base = config.load(ROOT / run.base)
        assert base.backbone.name == run.backbone.name and base.backbone.preprocess == run.backbone.preprocess


def test_presets_of_the_papers_carry_the_released_settings():
    lincir = config.load(ROOT / "experiments/runs/lincir_clip_vitl14.yaml")
    assert (lincir.train.lr, lincir.train.batch, lincir.train.steps) == (1e-4, 512, 20000)
    rtd = config.load(ROOT / "experiments/runs/rtd_clip_vitl14.yaml")
    assert (rtd.train.lr, rtd.train.batch, rtd.train.steps, rtd.method["tau"]) == (1e-5, 128, 2000, 0.07)


def test_searle_carries_the_released_settings():
    for run in (config.load(ROOT / f"experiments/runs/searle_clip_{size}.yaml") for size in ("vitl14", "vitb32")):
        assert (run.train.lr, run.train.batch, run.train.steps) == (1e-4, 256, 39000)
        assert (run.method["tau"], run.method["text_weight"], run.method["top_k"]) == (0.25, 0.75, 150)
        assert run.backbone.preprocess == "targetpad" and run.prompt.join == "both_orders"


def test_sprc_carries_the_released_settings():
    expected = {"cirr": (1e-5, 11000, 17600, 352, 25.0, 0.4), "fashioniq": (2e-5, 4200, 0, 210, 100.0, 1.0)}
    for name, (lr, *schedule, weight) in expected.items():
        run = config.load(ROOT / f"experiments/runs/sprc_{name}.yaml")
        assert (run.train.lr, run.train.batch, run.train.weight_decay, run.train.eps) == (lr, 128, 0.05, 1e-7)
        assert [run.train.steps, run.train.schedule_steps, run.train.warmup, run.train.div] == schedule
        assert (run.train.schedule, run.train.betas, run.backbone.preprocess) == ("onecycle", [0.9, 0.98], "targetpad")
        assert run.method["rtc"] == run.method["align"] == weight


def test_image_methods_carry_pic2words_settings_and_prompts():
    for name in ("pic2word", "context_i2w"):
        run = config.load(ROOT / f"experiments/runs/{name}_clip_vitl14.yaml")
        assert (run.train.lr, run.train.batch, run.train.weight_decay, run.train.warmup) == (1e-4, 1024, 0.1, 10000)
        assert (run.train.betas, run.train.eps, run.train.schedule) == ([0.9, 0.98], 1e-6, "cosine")
        assert (run.prompt.template, run.prompt.join) == ("a photo of $ , {text}", "second_and_first")
        spared = [name for name in PARAMETERS if any(re.fullmatch(pattern, name) for pattern in run.train.undecayed)]
        assert spared == ["im2text.layers.0.0.bias", "im2text.ln_post.weight"]


PARAMETERS = (
    "im2text.layers.0.0.weight", "im2text.layers.0.0.bias", "im2text.ln_post.weight", "im2text.W_R.weight_g",
    "im2text.VT_Extractor.layers.0.0.norm_latents.weight", "im2text.VT_Extractor.latents",
)  # fmt: skip
