"""From JPEG to pixels, and on through a tower: ours against the plain loop, on a few pictures in one process."""

import time
from pathlib import Path

import numpy as np
import torch
from measuring import seconds
from PIL import Image
from transformers import CLIPImageProcessorPil

from cir.backbones import load
from cir.backbones.cache import encode_gallery
from cir.backbones.preprocess import from_folder


def require(claim: bool, what: str) -> None:
    """Stop where a claim does not hold."""
    if not claim:
        raise SystemExit(f"{what}; nothing is reported")


def pixels(files: list[Path], tower: Path, pairs: int) -> dict:
    """Compare JPEG to pixels: Hugging Face's processor one by one, ours, and the fast twin; CPU seconds of a thread."""
    processor = CLIPImageProcessorPil.from_pretrained(tower)
    exact, fast = (from_folder(tower, name) for name in ("clip", "clip-fast"))
    sides = {
        "plain": lambda image: processor(image, return_tensors="pt")["pixel_values"][0],
        "exact": exact,
        "fast": fast,
        "decode": lambda image: image.load(),
    }
    share, most, step = [], 0, float(np.diff(exact._levels()[0]).mean())
    for file in files:
        with Image.open(file) as image:
            a, b, c = (sides[side](image) for side in ("plain", "exact", "fast"))
        require(torch.equal(a, b), f"{file}: pixels differ from CLIPImageProcessorPil's")
        apart = ((b - c).abs() / step).round()
        share.append(float((apart > 0).float().mean()))
        most = max(most, int(apart.max()))
    require(np.mean(share) <= 0.006 and most <= 2, f"clip-fast is {np.mean(share):.4f} of pixels off, by {most} levels")

    def each(side):
        for file in files:
            with Image.open(file) as image:
                sides[side](image)

    found = [{side: seconds(lambda side=side: each(side)) / len(files) for side in sides} for _ in range(pairs)]
    ratios = {side: float(np.median([one["plain"] / one[side] for one in found])) for side in sides if side != "plain"}
    return {
        "cpu_milliseconds": {side: 1e3 * float(np.median([one[side] for one in found])) for side in sides},
        "ratio": ratios,
        "fast_share_off": float(np.mean(share)),
        "fast_most_levels_off": most,
        "kilobytes": float(np.mean([file.stat().st_size for file in files]) / 1024),
    }


def path(files: list[Path], tower: Path, pairs: int) -> dict:
    """Compare JPEG to features: one picture after the other through processor and tower, and `encode_gallery`.

    Seconds on the clock, the tower on one thread, ours decoding on all cores; the features must agree first.
    """
    processor = CLIPImageProcessorPil.from_pretrained(tower)
    backbones = {name: load(str(tower), device="cpu", preprocess=name) for name in ("clip", "clip-fast")}
    ids = [file.stem for file in files]

    def plain():
        rows = []
        for file in files:
            with Image.open(file) as image:
                pixels = processor(image, return_tensors="pt")["pixel_values"]
            rows.append(backbones["clip"].encode_images(pixels).numpy())
        return np.concatenate(rows)

    def ours(name):
        return encode_gallery(backbones[name], ids, files, None, progress=False)

    expected, found = plain(), ours("clip")
    apart = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    require(apart < 1e-5, f"features are {apart:.1e} apart")
    runs = {"plain": plain, "exact": lambda: ours("clip"), "fast": lambda: ours("clip-fast")}
    rates: dict[str, list[float]] = {side: [] for side in runs}
    for _ in range(pairs):
        for side, run in runs.items():
            start = time.perf_counter()
            run()
            rates[side].append(len(files) / (time.perf_counter() - start))
    ratio = {side: float(np.median(np.divide(rates[side], rates["plain"]))) for side in ("exact", "fast")}
    return {"images_per_second": {side: float(np.median(rate)) for side, rate in rates.items()}, "ratio": ratio}
