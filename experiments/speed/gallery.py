"""Measure a large gallery through the whole image path: decode, encode, cache, search.

    python experiments/speed/gallery.py FOLDER [--images N] [--data ROOT] [--preprocess NAME] [--json OUT]

FOLDER takes the pictures (4.5 GB for all 123,403), which are made once and used again; `--data` has CIRCO's
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
from measuring import resident
from pixels import path, pixels, require

from cir import methods
from cir.backbones import load
from cir.backbones.cache import encode_gallery
from cir.backbones.store import FeatureCache
from cir.config import BackboneConfig, RunConfig
from cir.files import replace_file
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
    Path("/proc/self/clear_refs").write_text("5")  # the highest starts again here
    before, seen, start = resident("VmRSS"), 0, time.perf_counter()
    features = encode_gallery(backbone, benchmark.gallery, files, store, batch_size=batch)
    encoded = time.perf_counter()
    config = RunConfig(backbone=BackboneConfig(str(folder / "tower"), "cpu", preprocess=preprocess, cache=str(cache)))
    encoded_once = store.counters.encoded
    found = run_search(benchmark, config, backbone, method)
    result = {
        "rows": hashlib.sha256(np.ascontiguousarray(features).tobytes()).hexdigest(),
        "ranking": hashlib.sha256(found.ranking.order.tobytes() + found.ranking.scores.tobytes()).hexdigest(),
        "queries": len(benchmark.queries), "decoded": store.counters.decoded, "encoded": encoded_once,
        "resumed_rows": store.counters.resumed_rows, "again_in_search": seen - encoded_once,
        "encode_seconds": encoded - start, "search_seconds": time.perf_counter() - encoded,
        "extra_mib": resident("VmHWM") - before, "all_mib": resident("VmHWM"),
    }  # fmt: skip
    out.write_text(json.dumps(result))


def child(options: argparse.Namespace, images: int, cache: Path, die: int = 0) -> dict:
    """Do that in a fresh process; an empty answer is one that was killed, as asked."""
    out = options.folder / "child.json"
    out.unlink(missing_ok=True)
    arguments = [str(options.folder), "--images", str(images), "--preprocess", options.preprocess]
    arguments += ["--data", str(options.data)] if options.data else []
    done = subprocess.run(
        [sys.executable, __file__, *arguments, "--child", str(cache), str(die), str(out)], check=False
    )
    if die and done.returncode == -signal.SIGKILL and not out.exists():
        return {}
    if done.returncode or die:
        raise SystemExit(f"a child ended with {done.returncode}, expected {-signal.SIGKILL if die else 0}")
    return json.loads(out.read_text())


def killed(options: argparse.Namespace, images: int, cache: Path) -> dict:
    """Kill a run in the middle and go on: what was kept is not computed again, and the search decodes nothing."""
    shutil.rmtree(cache, ignore_errors=True)
    child(options, images, cache, die=images // 2)
    resumed = child(options, images, cache)
    kept = resumed["resumed_rows"]
    require(0 < kept <= images // 2, f"{kept} rows were kept of a killed run")
    require(resumed["decoded"] == resumed["encoded"] == images - kept, "kept rows were computed again")
    require(resumed["again_in_search"] == 0, "the search decoded pictures")
    return resumed


def same(one: dict, other: dict) -> bool:
    """Say whether features and rankings are equal, bit for bit."""
    return all(one[part] == other[part] for part in ("rows", "ranking"))


def run(options: argparse.Namespace) -> dict:
    """Run part of the gallery left alone and interrupted, then all of it, then all of it from the cache."""
    part, images = min(options.images, PART), options.images
    caches = {name: options.folder / f"cache-{name}" for name in ("alone", "killed", "all")}
    shutil.rmtree(caches["alone"], ignore_errors=True)
    alone = child(options, part, caches["alone"])
    first = killed(options, part, caches["killed"])
    require(same(alone, first), "an interrupted run gave other bits")
    last = "killed"
    if part < images:
        last, first = "all", killed(options, images, caches["all"])
    second = child(options, images, caches[last])
    require(second["decoded"] == second["encoded"] == second["again_in_search"] == 0, "a second run decoded pictures")
    require(same(first, second), "a second run gave other bits")
    extra = max(one["extra_mib"] for one in (alone, first, second))
    require(extra <= MOST_MIB, f"{extra:.0f} MiB above the tower, expected {MOST_MIB} at most")
    return {
        "images": images,
        "queries": first["queries"],
        "bit_equal_when_interrupted": part,
        "resumed_rows": first["resumed_rows"],
        "images_per_second": first["encoded"] / first["encode_seconds"],
        "extra_mib": extra,
        "all_mib": first["all_mib"],
        "pixels_mib": images * PIXELS_MIB,
        "search_seconds": first["search_seconds"],
        "second_run": {name: second[name] for name in ("decoded", "encode_seconds", "search_seconds")},
    }


def show(results: dict) -> None:
    """Print what was found."""
    whole, pixel, way = results["gallery"], results["pixels"], results["path"]
    cpu, ratio, rate = pixel["cpu_milliseconds"], pixel["ratio"], way["images_per_second"]
    second = whole["second_run"]
    lines = [
        f"JPEG of {pixel['kilobytes']:.0f} KB to pixels, CPU ms: CLIPImageProcessorPil {cpu['plain']:.2f}, "
        f"clip {cpu['exact']:.2f} ({ratio['exact']:.2f} times, equal), clip-fast {cpu['fast']:.2f} "
        f"({ratio['fast']:.2f} times, {100 * pixel['fast_share_off']:.2f} % off), decoding alone {cpu['decode']:.2f}",
        f"JPEG to features, images/s: one by one {rate['plain']:.0f}, clip {rate['exact']:.0f} "
        f"({way['ratio']['exact']:.2f} times), clip-fast {rate['fast']:.0f} ({way['ratio']['fast']:.2f} times)",
        f"{whole['images']:,} images: {whole['images_per_second']:.0f} images/s, {whole['extra_mib']:.0f} MiB above "
        f"the tower (all pixels: {whole['pixels_mib']:,.0f})",
        f"killed and continued: {whole['resumed_rows']:,} rows kept, none computed twice; bits equal on "
        f"{whole['bit_equal_when_interrupted']:,}",
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
    tower = made.tower(options.folder / "tower")
    names = made.benchmark(options.folder / "images", options.images, options.data).gallery
    made.fill(options.folder / "images", [int(name) for name in names])
    files = [options.folder / "images" / made.name(int(name)) for name in names[:SAMPLE]]
    torch.set_num_threads(1)  # here; the children have all cores
    results = {"pixels": pixels(files, tower, options.pairs), "path": path(files, tower, options.pairs)}
    results["gallery"] = run(options)
    results["machine"] = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    show(results)
    replace_file(options.json, (json.dumps(results, indent=2) + "\n").encode())


if __name__ == "__main__":
    main()
