"""Features through files: a job written here, encoded by LAVIS's half with a model of LAVIS's face, scored here."""

import ast
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from cir import config as configs
from cir import data, score
from cir import evaluate as evaluation
from cir.backbones import lavis, load
from cir.backbones.tokens import blip_caption
from cir.errors import InputError
from cir.methods import build
from cir.prompts import JOINERS, tokenize
from cir.protocols import PROTOCOLS
from cir.schema import View
from tests.backbones.blip2_folder import tiny_blip2

SOURCE = Path(lavis.__file__)


class Face:
    """What `serve` asks of a LAVIS model, answered by a backbone of ours."""

    max_txt_len = 32
    device = torch.device("cpu")

    def __init__(self, backbone):
        self.backbone = backbone
        self.tokenizer = backbone.tokenizer._tokenizer

    def extract_features(self, sample, mode):
        assert mode == "image"
        vectors = F.normalize(self.backbone.encode_images(sample["image"]), dim=-1)
        return type("Output", (), {"image_embeds_proj": vectors})

    def forward_text(self, tokens):
        parts = self.backbone.parts
        return parts.text(parts.embed(tokens.input_ids), tokens.attention_mask)[:, 0]

    def text_proj(self, states):
        return self.backbone.parts.text_projection(states)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return load(str(tiny_blip2(tmp_path_factory.mktemp("blip2"))), device="cpu")


@pytest.mark.parametrize(
    ("name", "join", "compose", "method"),
    [
        ("cirr/val", "first_and_second", "text", "text_only"),
        ("cirr/val", "first_and_second", "image", "image_only"),
        ("fashioniq/dress/val", "both_orders", "sum", "sum"),
    ],
)
def test_files_score_as_the_model_does(backbone, small_world, tmp_path, name, join, compose, method):
    benchmark = data.load(name, small_world)
    lavis.write_job(tmp_path / "job.json", benchmark, JOINERS[join])
    job = lavis.read_job(tmp_path / "job.json")
    lavis.serve(Face(backbone), job, tmp_path, compose=compose, pixels=backbone.preprocess, clean=blip_caption, batch=7)
    served = [tmp_path / f"{side}.npz" for side in ("queries", "gallery")]
    theirs = score.score(name, small_world, *served, resamples=10)
    settings = [f"method.name={method}", f"data.root={small_world}", f"prompt.join={join}", "prompt.overflow=cut"]
    config = configs.load(None, ["name=x", *settings])
    config.backbone.cache = ""
    means = evaluation.evaluate(config, backbone, build(method, {}, backbone), [name])[0].record.means
    for metric in PROTOCOLS[benchmark.protocol].metrics:
        assert theirs["scores"][metric]["mean"] == means[metric].mean, metric


def test_vectors_are_those_of_the_model(backbone, small_world, tmp_path):
    benchmark = data.load("cirr/val", small_world)
    lavis.write_job(tmp_path / "job.json", benchmark, JOINERS["first_and_second"])
    job = lavis.read_job(tmp_path / "job.json")
    job["gallery"], job["queries"] = job["gallery"][3:8], job["queries"][:4]
    lavis.serve(Face(backbone), job, tmp_path, compose="sum", pixels=backbone.preprocess, clean=blip_caption)
    ids, gallery = score.read_vectors(tmp_path / "gallery.npz")
    assert ids == list(benchmark.gallery[3:8]) and gallery.shape == (5, 32, 24)
    names, queries = score.read_vectors(tmp_path / "queries.npz")
    assert names == [query.id for query in benchmark.queries[:4]]
    for row, name in enumerate(ids):
        with Image.open(benchmark.root / benchmark.paths[name]) as picture:
            alone = F.normalize(backbone.encode_images(backbone.preprocess(picture)[None])[0], dim=-1)
        np.testing.assert_allclose(gallery[row], alone, atol=1e-5)
    for row, query in enumerate(benchmark.queries[:4]):
        with Image.open(benchmark.root / benchmark.paths[query.reference]) as picture:
            image = F.normalize(backbone.encode_images(backbone.preprocess(picture)[None])[0], dim=-1)
        text = F.normalize(backbone.encode_text(tokenize(backbone.tokenizer, [[query.texts[0]]], "cut")), dim=-1)
        np.testing.assert_allclose(queries[row], F.normalize(image + text, dim=-1), atol=1e-5)


def test_half_precision_files(backbone, small_world, tmp_path):
    lavis.write_job(tmp_path / "job.json", data.load("cirr/val", small_world), JOINERS["first_and_second"])
    job = lavis.read_job(tmp_path / "job.json")
    job["gallery"], job["queries"] = job["gallery"][:3], []
    for dtype in ("float32", "float16"):
        (tmp_path / dtype).mkdir()
        face = Face(backbone)
        lavis.serve(face, job, tmp_path / dtype, compose="image", pixels=backbone.preprocess, clean=str, dtype=dtype)
    full, half = (np.load(tmp_path / dtype / "gallery.npz")["vectors"] for dtype in ("float32", "float16"))
    assert half.dtype == np.float16 and np.array_equal(half, full.astype(np.float16))


def test_jobs_that_cannot_be_are_refused(backbone, small_world, tmp_path):
    benchmark = data.load("cirr/val", small_world)
    first = benchmark.gallery[0]
    crop = dataclasses.replace(benchmark, views={first: View("dilated_square", (0.0, 0.0, 1.0, 1.0))})
    with pytest.raises(InputError, match="parts of files"):
        lavis.write_job(tmp_path / "job.json", crop, JOINERS["first_and_second"])
    fewer = dataclasses.replace(benchmark, paths={name: p for name, p in benchmark.paths.items() if name != first})
    with pytest.raises(InputError, match="1 images have no file"):
        lavis.write_job(tmp_path / "job.json", fewer, JOINERS["first_and_second"])
    assert not (tmp_path / "job.json").exists()
    (tmp_path / "job.json").write_text(json.dumps({"format": 2}))
    with pytest.raises(SystemExit, match="not a job of format 1"):
        lavis.read_job(tmp_path / "job.json")
    with pytest.raises(ValueError, match="compose 'both'"):
        lavis.serve(Face(backbone), {}, tmp_path, compose="both", pixels=backbone.preprocess, clean=str)


def test_the_script_needs_nothing_of_ours_and_no_newer_python():
    tree = ast.parse(SOURCE.read_text(), feature_version=(3, 8))
    for node in tree.body:  # what runs on import; `write_job` alone is for our side
        if isinstance(node, ast.Import):
            assert not any(name.name.startswith("cir") for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not (node.module or "").startswith("cir")
    code = (
        "import sys, runpy; sys.modules['cir'] = None\n"
        f"print(sorted(runpy.run_path({str(SOURCE)!r})['COMPOSE'])); assert 'transformers' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['image', 'sum', 'text']"
