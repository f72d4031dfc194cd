"""Our half of `make test-lavis`: import what `small.py` wrote, run it, and compare tensor by tensor, score by score.

    .venv/bin/python experiments/lavis/compare.py OUT

prints every difference with what is allowed, and exits with 1 where one is larger.
"""

import contextlib
import io
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
import weights
from PIL import Image
from prepare import BENCHMARK
from torch.nn import functional as F

from cir import backbones
from cir.backbones.base import Matcher
from cir.cli import app
from cir.prompts import tokenize

ALLOWED = 2e-5
"""Largest difference in a tensor whose values are of order one: two orders of sums in float32."""
COMMITTED = Path(__file__).resolve().parents[2] / "tests" / "importers" / "lavis"
METHODS = {"text": "text_only", "image": "image_only", "sum": "sum"}


@torch.no_grad()
def ours(backbone, theirs):
    """What `small.run` gives, computed by the imported model from the same pixels and the raw texts."""
    assert isinstance(backbone, Matcher)
    prompt = tokenize(backbone.tokenizer, [[str(text)] for text in theirs["texts"]])
    side = backbone.preprocess(Image.new("RGB", (1, 1))).shape
    parts, pixels = backbone.parts, torch.from_numpy(weights.uniform("pixels", (len(prompt), *side)))
    ids = torch.from_numpy(prompt.ids)
    mask = torch.arange(ids.shape[1]) <= torch.from_numpy(prompt.ends)[:, None]
    patches = backbone.encode_patches(pixels)
    tokens = parts.normed(patches)
    states = parts.text(parts.embed(ids), mask)
    images = F.normalize(backbone.encode_images(pixels), dim=-1)
    words = F.normalize(backbone.encode_text(prompt), dim=-1)
    fused = parts.fuse(tokens, ids, mask)
    count = len(pixels)
    rolled = [pixels.roll(row, 0) for row in range(count)]
    return {
        "ids": ids,
        "mask": mask.long(),
        "patches": patches,
        "normed": tokens,
        "image_embeds": parts.image(tokens),
        "image_embeds_proj": images,
        "text_embeds": states,
        "text_embeds_proj": F.normalize(parts.text_projection(states), dim=-1),
        "[CLS] of text_embeds_proj": words,
        "multimodal_embeds": fused[:, : parts.vectors],
        "itm": torch.stack([parts.matching(parts.fuse(tokens.roll(row, 0), ids, mask)) for row in range(count)]),
        "probability of itm": torch.stack([backbone.match(backbone.encode_patches(p), prompt) for p in rolled]),
        "itc": torch.stack([(images.roll(row, 0) @ words[:, :, None]).amax(dim=(1, 2)) for row in range(count)]),
    }


def expected(theirs):
    """LAVIS's outputs under the names of `ours`."""
    given = ("texts", "words", "shapes")
    found = {name: torch.from_numpy(theirs[name]) for name in theirs.files if name not in given}
    found["[CLS] of text_embeds_proj"] = found["text_embeds_proj"][:, 0]
    found["probability of itm"] = found["itm"].softmax(dim=-1)[..., 1]
    return found


def differences(backbone, theirs):
    """Yield name, shape and the largest difference; padded text positions, which mean nothing, are left out."""
    mine, wanted = ours(backbone, theirs), expected(theirs)
    assert mine.keys() == wanted.keys()
    real = wanted["mask"].bool()
    for name, want in wanted.items():
        have = mine[name]
        if name in ("text_embeds", "text_embeds_proj"):
            have, want = have[real], want[real]
        assert have.shape == want.shape, f"{name}: {tuple(have.shape)} for {tuple(want.shape)}"
        yield name, tuple(want.shape), float((have - want).abs().max())


def committed(name, theirs):
    """The largest difference from the outputs of LAVIS that are kept for the tests, over all of them."""
    with np.load(COMMITTED / f"{name}.npz") as kept:
        assert kept.files == theirs.files and all(
            (kept[key] == theirs[key]).all() for key in ("texts", "words", "shapes")
        )
        worst = max(float(np.abs(kept[key] - theirs[key]).max()) for key in kept.files if kept[key].dtype.kind in "fi")
    yield "tests/importers/lavis", (), worst


def cir(*words):
    """Run a command of `cir` in this process; returns what it printed."""
    with contextlib.redirect_stdout(io.StringIO()) as told:
        app([str(word) for word in words], standalone_mode=False)
    return told.getvalue().rstrip()


def means(path, key):
    return {name: value["mean"] for name, value in json.loads(path.read_text())[key].items()}


def compare_scores(out, name, folder):
    """Score LAVIS's features through files, evaluate the imported model on the same benchmark: do they agree?"""
    agree, world = True, out / "world"
    print(f"\n  {BENCHMARK} of a small world: LAVIS's features in `cir score`, the imported model in `cir evaluate`")
    for compose, method in METHODS.items():
        files, records = out / name / compose, out / "records" / name / compose
        shutil.rmtree(records, ignore_errors=True)
        pair = ("--queries", files / "queries.npz", "--gallery", files / "gallery.npz")
        told = cir("score", BENCHMARK, "--data", world, *pair, "--json", files / "scores.json")
        cir("evaluate", "--method", method, "--backbone", folder, "--data", world, BENCHMARK, "--out", records)
        theirs, mine = means(files / "scores.json", "scores"), means(next(records.glob("*.json")), "means")
        agree &= theirs == mine
        shown = "  ".join(f"{metric} {value:.2f}" for metric, value in theirs.items())
        print(f"  {compose:<6} {shown}  {'equal' if theirs == mine else f'DIFFERENT: {mine}'}")
    print("  as cir score prints the last one:", *told.splitlines(), sep="\n    ")
    return agree


def pictures(backbone, out, name):
    """Differences on real pictures: of pixels, and of the vectors LAVIS served."""
    job = json.loads((out / "job.json").read_text())
    first = job["gallery"][:32]
    pixels = []
    for image in first:
        with Image.open(job["images"][image]) as picture:
            pixels.append(backbone.preprocess(picture))
    with np.load(out / name / "text" / "gallery.npz") as served:
        rows = [list(served["ids"]).index(image) for image in first]
        vectors = torch.from_numpy(served["vectors"][rows])
    mine = F.normalize(backbone.encode_images(torch.stack(pixels)), dim=-1)
    yield (
        "blip_image_eval",
        tuple(pixels[0].shape),
        float((pixels[0] - torch.from_numpy(np.load(out / "picture.npy"))).abs().max()),
    )
    yield "gallery.npz, 32 pictures", tuple(vectors.shape), float((mine - vectors).abs().max())


def main(out):
    failed = False
    for name in ("eva", "clip"):
        folder = out / "imported" / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(exist_ok=True)
        print(f"\n$ cir import lavis {name}.pth --out {folder.relative_to(out)} --tokenizer bert-base-uncased")
        print(cir("import", "lavis", out / f"{name}.pth", "--out", folder, "--tokenizer", out / "bert-base-uncased"))
        backbone = backbones.load(str(folder), device="cpu")
        with np.load(out / f"{name}.npz") as theirs:
            found = [*differences(backbone, theirs), *pictures(backbone, out, name), *committed(name, theirs)]
        print(f"\n  largest difference from LAVIS, {ALLOWED:.0e} is allowed")
        for key, shape, difference in found:
            fits = difference <= ALLOWED
            failed |= not fits
            print(f"  {key:<27} {shape!s:<18} {difference:.1e}{'' if fits else '  TOO MUCH'}")
        failed |= not compare_scores(out, name, folder)
    print("\nLAVIS and cir differ" if failed else "\nLAVIS and cir agree")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve()))
