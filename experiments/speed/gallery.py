"""Measure a large gallery through the whole image path: decode, encode, cache, search.

    python experiments/speed/gallery.py FOLDER [--images N] [--data ROOT] [--preprocess NAME] [--json OUT]

FOLDER takes the pictures (4.4 GB for all 123,403), which are made once and used again; `--data` has CIRCO's
annotations, without them ids are made up. The tower is small and random: times are those of the way to it.

Four claims are checked, each in processes of their own, or the script stops: a run killed in the middle (SIGKILL) is
continued without computing a kept row again; what comes out is bit for bit what an uninterrupted run gives (on a part
of the gallery); memory stays far below that of the pixels; a second run decodes nothing. Then pixels: those of
`clip` must equal `CLIPImageProcessorPil`'s in every bit, those of `clip-fast` nearly, before CPU seconds of one thread
are compared in turn.
"""

import argparse
import hashlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import made_up_gallery as made
import numpy as np
import torch
from measuring import resident, seconds
from PIL import Image

from cir import methods
from cir.backbones import load
from cir.backbones.cache import encode_gallery
from cir.backbones.store import FeatureCache
from cir.config import BackboneConfig, RunConfig
from cir.retrieval import run_search

ALL = 123_403
PART = 1000
"""Images on which an interrupted run is compared with one that is not."""
MOST_MIB = 512
"""What encoding and search may take above the loaded tower, however large the gallery is."""
PIXELS_MIB = 3 * 224 * 224 * 4 / 2**20
"""Of one image, as the tower takes it."""
SAMPLE = 100
"""Pictures whose pixels are compared and timed."""


def work(folder: Path, images: int, root: Path | None, preprocess: str, cache: Path, die: int, out: Path) -> None:
    """Encode a gallery into a cache and search it, here; `die` is after how many images to kill this process."""
    benchmark = made.benchmark(folder / "images", images, root)
    backbone = load(str(folder / "tower"), device="cpu", preprocess=preprocess)
    method = methods.build("sum", {}, backbone)
    batch = max(1, min(64, images // 8))
    store = FeatureCache(cache, chunk=max(batch, min(2048, images // 4)))
    files = [benchmark.root / benchmark.paths[name] for name in benchmark.gallery]
    encode, seen = backbone.encode_images, 0

    def mortal(pixels):
        nonlocal seen
        seen += len(pixels)
        if die and seen > die:
            os.kill(os.getpid(), signal.SIGKILL)
        return encode(pixels)

    backbone.encode_images = mortal
    backbone.encode_images(torch.zeros(1, 3, 224, 224))  # torch takes its buffers
    before, seen, start = resident("VmRSS"), 0, time.perf_counter()
    features = encode_gallery(backbone, benchmark.gallery, files, store, batch_size=batch)
    encoded = time.perf_counter()
    config = RunConfig(backbone=BackboneConfig(str(folder / "tower"), "cpu", preprocess=preprocess, cache=str(cache)))
    decoded_once = store.counters.decoded
    found = run_search(benchmark, config, backbone, method)
    result = {
        "rows": hashlib.sha256(np.ascontiguousarray(features).tobytes()).hexdigest(),
        "ranking": hashlib.sha256(found.ranking.order.tobytes() + found.ranking.scores.tobytes()).hexdigest(),
        "queries": len(benchmark.queries), "decoded": decoded_once, "encoded": store.counters.encoded,
        "resumed_rows": store.counters.resumed_rows, "hits": store.counters.hits, "again_in_search": seen - decoded_once,
        "encode_seconds": encoded - start, "search_seconds": time.perf_counter() - encoded,
        "extra_mib": resident("VmHWM") - before, "all_mib": resident("VmHWM"),
    }  # fmt: skip
    out.write_text(json.dumps(result))


def child(options: argparse.Namespace, images: int, cache: str, die: int = 0) -> dict:
    """Do that in a fresh process; an empty answer is one that was killed, as asked."""
    out = options.folder / "child.json"
    out.unlink(missing_ok=True)
    arguments = [str(options.folder), "--images", str(images), "--preprocess", options.preprocess]
    arguments += ["--data", str(options.data)] if options.data else []
    done = subprocess.run([sys.executable, __file__, *arguments, "--child", cache, str(die), str(out)], check=False)
    if die and done.returncode == -signal.SIGKILL and not out.exists():
        return {}
    if done.returncode or die:
        raise SystemExit(f"a child ended with {done.returncode}, expected {-signal.SIGKILL if die else 0}")
    return json.loads(out.read_text())


def require(claim: bool, what: str) -> None:
    """Stop where a claim does not hold."""
    if not claim:
        raise SystemExit(f"{what}; nothing is reported")


def interrupted(options: argparse.Namespace) -> dict:
    """Kill a run over part of the gallery, go on, and compare with a run that was left alone."""
    images = min(options.images, PART)
    caches = [options.folder / f"cache-{name}" for name in ("alone", "killed")]
    for cache in caches:
        shutil.rmtree(cache, ignore_errors=True)
    alone = child(options, images, str(caches[0]))
    child(options, images, str(caches[1]), die=images // 2)
    resumed = child(options, images, str(caches[1]))
    require(0 < resumed["resumed_rows"] <= images // 2, f"{resumed['resumed_rows']} rows were kept of a killed run")
    require(resumed["encoded"] == images - resumed["resumed_rows"], "kept rows were computed again")
    same = all(alone[part] == resumed[part] for part in ("rows", "ranking"))
    require(same, "an interrupted run gave other bits")
    return {"images": images, "resumed_rows": resumed["resumed_rows"], "bit_equal": same}


def full(options: argparse.Namespace) -> dict:
    """Run the whole gallery: killed in the middle, continued, and once more from the cache."""
    images, cache = options.images, options.folder / "cache-full"
    shutil.rmtree(cache, ignore_errors=True)
    child(options, images, str(cache), die=images // 2)
    first = child(options, images, str(cache))
    second = child(options, images, str(cache))
    kept = first["resumed_rows"]
    require(kept > 0 and first["decoded"] == first["encoded"] == images - kept, "kept rows were computed again")
    require(second["decoded"] == second["encoded"] == second["again_in_search"] == 0, "a second run decoded pictures")
    require(first["again_in_search"] == 0, "the search decoded pictures")
    require(all(first[part] == second[part] for part in ("rows", "ranking")), "a second run gave other bits")
    extra, pixels = max(first["extra_mib"], second["extra_mib"]), images * PIXELS_MIB
    require(extra <= MOST_MIB, f"{extra:.0f} MiB above the tower, expected {MOST_MIB} at most")
    return {
        "images": images,
        "queries": first["queries"],
        "killed_and_resumed_rows": kept,
        "images_per_second": first["encoded"] / first["encode_seconds"],
        "extra_mib": extra,
        "all_mib": first["all_mib"],
        "pixels_mib": pixels,
        "search_seconds": first["search_seconds"],
        "second_run": {name: second[name] for name in ("decoded", "encode_seconds", "search_seconds")},
    }


def pixels(options: argparse.Namespace, pairs: int) -> dict:
    """Compare JPEG to pixels: Hugging Face's processor one by one, ours, and the fast twin."""
    from transformers import CLIPImageProcessorPil

    from cir.backbones.preprocess import from_folder

    files = sorted((options.folder / "images").iterdir())[: min(SAMPLE, options.images)]
    processor = CLIPImageProcessorPil.from_pretrained(options.folder / "tower")
    exact, fast = (from_folder(options.folder / "tower", name) for name in ("clip", "clip-fast"))
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
    ratios = {
        side: float(np.median([one["plain"] / one[side] for one in found])) for side in ("exact", "fast", "decode")
    }
    return {
        "cpu_milliseconds": {side: 1e3 * float(np.median([one[side] for one in found])) for side in sides},
        "ratio": ratios,
        "fast_share_off": float(np.mean(share)),
        "fast_most_levels_off": most,
        "kilobytes": float(np.mean([file.stat().st_size for file in files]) / 1024),
    }


def show(results: dict) -> None:
    """Print what was found."""
    whole, pixel = results["gallery"], results["pixels"]
    cpu, ratio = pixel["cpu_milliseconds"], pixel["ratio"]
    second = whole["second_run"]
    lines = [
        f"JPEG of {pixel['kilobytes']:.0f} KB to pixels, CPU ms: CLIPImageProcessorPil {cpu['plain']:.2f}, "
        f"clip {cpu['exact']:.2f} ({ratio['exact']:.2f} times, equal), clip-fast {cpu['fast']:.2f} "
        f"({ratio['fast']:.2f} times, {100 * pixel['fast_share_off']:.2f} % off), decoding alone {cpu['decode']:.2f}",
        f"{whole['images']:,} images: {whole['images_per_second']:.0f} images/s, one {results['machine']['plain']:.0f} "
        f"with the plain processor's pixels alone; {whole['extra_mib']:.0f} MiB above the tower "
        f"(all pixels: {whole['pixels_mib']:,.0f})",
        f"killed and continued: {whole['killed_and_resumed_rows']:,} rows kept, none computed twice; bits equal on "
        f"{results['interrupted']['images']:,}",
        f"second run: {second['decoded']} decoded, {second['encode_seconds']:.1f} s; search of {whole['queries']} "
        f"queries {second['search_seconds']:.1f} s",
    ]
    sys.stdout.write("\n".join(lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="takes the pictures, the tower and the caches")
    parser.add_argument("--images", type=int, default=ALL)
    parser.add_argument("--data", type=Path, help="where CIRCO's annotations are")
    parser.add_argument("--preprocess", default="clip")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--json", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        cache, die, out = options.child
        work(options.folder, options.images, options.data, options.preprocess, Path(cache), int(die), Path(out))
        return
    torch.set_num_threads(1)
    made.tower(options.folder / "tower")
    names = made.benchmark(options.folder / "images", options.images, options.data).gallery
    made.fill(options.folder / "images", [int(name) for name in names])
    pixel = pixels(options, options.pairs)
    results = {"pixels": pixel, "interrupted": interrupted(options), "gallery": full(options)}
    plain = 1e3 / pixel["cpu_milliseconds"]["plain"]
    results["machine"] = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(), "plain": plain}
    show(results)
    partial = options.json.with_suffix(".tmp")
    partial.write_text(json.dumps(results, indent=2) + "\n")
    os.replace(partial, options.json)


if __name__ == "__main__":
    main()
