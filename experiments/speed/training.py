"""Measure training steps against the released scripts' arithmetic (`reference_training.py`), at ViT-L/14's text size.

    python experiments/speed/training.py [--items lincir,rtd] [--pairs N] [--json OUT] [--small]
    python experiments/speed/training.py --device cuda --batch 512 [--compile] [--size vitg14] [--json OUT]

Equality of loss and gradients is asserted before anything is timed. Times are CPU seconds of one thread, both sides
and the bare matrix products alternating in one process; a ratio is the median over rounds. Memory is the peak above
what was built, each side in a fresh process. Weights are random: speed and equality are real, retrieval quality is
not. On a GPU the methods alone are measured, in bfloat16: samples per second, and the share of the peak arithmetic.
"""

import argparse
import gc
import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from fixture import REAL_CAPTIONS, SIZES
from items import ITEMS
from measuring import LONG, Bare, deviation, peak, products, ratio, refuse_difference, rounds, seconds
from sides import BF16, CACHED, EXACT, Setting, passes

from cir.files import replace_file

VARIANTS = {
    "lincir": (EXACT, CACHED, BF16),
    "rtd": (EXACT, CACHED, BF16),
    "pic2word": (EXACT, replace(BF16, name="bf16")),
    "oti": (EXACT, CACHED, BF16),
    "searle": (EXACT, CACHED, BF16),
    "lincir_cirr": (EXACT, CACHED, BF16),
    "rtd_cirr": (EXACT, CACHED, BF16),
}
"""Pic2Word has no text whose frozen features could be kept."""


def measure(name: str, setting: Setting, pairs: int) -> dict:
    """Compare both sides of one item."""
    item = ITEMS[name](setting)
    ours = {variant.name: item.ours(variant) for variant in VARIANTS[name]}
    plain = item.plain(ours["exact"])
    rows = {}
    for variant in VARIANTS[name]:
        found = deviation(ours[variant.name], plain)
        if not variant.bf16:
            refuse_difference(f"{name}, {variant.name}", found)
        rows[variant.name] = {"deviation": found, "passes": _per_sample(ours[variant.name], setting.batch)}
    for side in (plain, *ours.values()):
        side.update()  # the optimiser's state is made in its first step
    bare = {label: Bare(products(side)) for label, side in ours.items()}
    pairs = pairs or (3 if seconds(plain.gradients) > LONG else 7)
    timed = rounds(plain, ours, bare, pairs)
    for label, row in rows.items():
        row["step"] = ratio(timed, label, update=False)
        row["with_update"] = ratio(timed, label, update=True)
        row["share_of_products"] = ratio(timed, label, False)["ratio"] / ratio(timed, f"bare {label}", False)["ratio"]
    return {"batch": setting.batch, "texts": item.texts, "pairs": pairs, "rows": rows}


def _per_sample(side, batch: int) -> dict[str, float]:
    return {name: round(value / batch, 3) for name, value in passes(side).items()}


def memory(name: str, setting: Setting, side: str) -> float:
    """Measure one side's peak in this process."""
    item = ITEMS[name](setting)
    ours = item.ours(EXACT)
    if side == "ours":
        return peak(ours)
    plain = item.plain(ours)
    del ours
    gc.collect()
    return peak(plain)


def fresh(task: str, *arguments: str) -> dict:
    """Do one task in a fresh process of one thread."""
    limits = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    command = [sys.executable, __file__, "--child", task, *arguments]
    done = subprocess.run(command, env=os.environ | limits, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def child(task: str, name: str, options: argparse.Namespace) -> None:
    """Do one task here and print what came out."""
    torch.set_num_threads(1)
    setting = _setting(name, options)
    result = measure(name, setting, options.pairs) if task == "measure" else {"extra": memory(name, setting, task)}
    sys.stdout.write(json.dumps(result) + "\n")


def _setting(name: str, options: argparse.Namespace) -> Setting:
    batch = options.batch or ITEMS[name].batch
    return Setting(SIZES[options.size], batch, options.device, options.compile)


def on_gpu(name: str, options: argparse.Namespace, repeats: int = 20) -> dict:
    """Measure samples per second and the share of the GPU's peak arithmetic, with kept features, in bfloat16."""
    side = ITEMS[name](replace(_setting(name, options), compiled=False)).ours(BF16)
    work = passes(side)["total"] * 2 * _layer_weights(side.towers()[0])
    if options.compile:
        side = ITEMS[name](_setting(name, options)).ours(BF16)
    for _ in range(3):
        side.gradients()
        side.update()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        side.gradients()
        side.update()
    torch.cuda.synchronize()
    step = (time.perf_counter() - start) / repeats
    share = work / step / (options.peak_tflops * 1e12)
    memory_gib = torch.cuda.max_memory_allocated() / 2**30
    return {"batch": options.batch, "step_ms": 1000 * step, "samples_per_second": options.batch / step,
            "model_flop_utilisation": share, "tflop_per_step": work / 1e12, "memory_gib": memory_gib}  # fmt: skip


def _layer_weights(tower) -> int:
    """Count the weights of the layers' linears: a token pass is one multiply-add with each."""
    linears = [m for m in tower.text_model.encoder.layers.modules() if isinstance(m, torch.nn.Linear)]
    return sum(linear.weight.numel() for linear in linears)


def show(results: dict) -> None:
    """Print the table."""
    head = (
        "",
        "plain s",
        "ours s",
        "ratio",
        "range",
        "with AdamW",
        "products",
        "passes",
        "loss dev",
        "grad dev",
        "MiB",
    )
    widths = (24, 8, 8, 7, 13, 11, 9, 8, 9, 9, 16)
    lines = ["".join(f"{text:>{width}}" for text, width in zip(head, widths, strict=True))]
    for name, item in results["items"].items():
        for label, row in item["rows"].items():
            step, dev = row["step"], row["deviation"]
            extra = "{plain:.0f} / {ours:.0f}".format(**item["extra_mib"]) if label == "exact" else ""
            cells = (
                f"{name}, {label}", f"{step['plain_seconds']:.2f}", f"{step['seconds']:.3f}", f"{step['ratio']:.1f}",
                f"{step['lowest']:.1f}-{step['highest']:.1f}", f"{row['with_update']['ratio']:.1f}",
                f"{row['share_of_products']:.2f}", f"{row['passes']['total']:.1f}", f"{dev['loss']:.0e}",
                f"{dev['gradient']:.0e}", extra,
            )  # fmt: skip
            lines.append("".join(f"{text:>{width}}" for text, width in zip(cells, widths, strict=True)))
    sys.stdout.write("\n".join(lines) + "\n")


def show_gpu(results: dict) -> None:
    """Print the table of a GPU."""
    lines = [f"{'':12}{'batch':>8}{'ms':>9}{'samples/s':>12}{'MFU':>7}{'GiB':>7}"]
    for name, row in results["items"].items():
        lines.append(
            f"{name:12}{row['batch']:8}{row['step_ms']:9.2f}{row['samples_per_second']:12,.0f}"
            f"{row['model_flop_utilisation']:7.2f}{row['memory_gib']:7.1f}"
        )
    sys.stdout.write("\n".join(lines) + "\n")


def on_cpu(name: str, options: argparse.Namespace) -> dict:
    """Measure one item, its sides' memory included, in processes of its own."""
    passed_on = ["--pairs", str(options.pairs), "--batch", str(options.batch), "--size", options.size]
    extra = {side: fresh(side, name, *passed_on)["extra"] for side in ("plain", "ours")}
    return fresh("measure", name, *passed_on) | {"extra_mib": extra}


def machine(options: argparse.Namespace) -> dict:
    """Say what the figures were measured on."""
    found = {"cpu": platform.processor() or platform.machine(), "torch": torch.__version__, "text_tower": options.size}
    if options.device == "cuda":
        gpu = torch.cuda.get_device_name()
        found |= {"gpu": gpu, "peak_tflops": options.peak_tflops, "compiled": options.compile}
    return found


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="default: training.json, or training-cuda.json, beside this file")
    parser.add_argument("--items", default="", help=f"of {', '.join(ITEMS)}; default all")
    parser.add_argument("--pairs", type=int, default=0, help="default: 7, or 3 where a step takes over 5 s")
    parser.add_argument("--batch", type=int, default=0, help="default: the item's own; 512 on a GPU")
    parser.add_argument("--size", default="vitl14", choices=SIZES, help="of the text tower")
    parser.add_argument("--small", dest="size", action="store_const", const="small", help="see that it runs")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--compile", action="store_true", help="torch.compile the MLPs and norms (GPU)")
    parser.add_argument("--peak-tflops", type=float, default=989.0, help="the GPU's dense bfloat16 peak (H100, H200)")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.device == "cuda":
        options.batch = options.batch or 512
    return options


def main() -> None:
    options = arguments()
    if options.child:
        child(*options.child, options)
        return
    known = [name for name in ITEMS if REAL_CAPTIONS.is_file() or not name.endswith("_cirr")]
    names = options.items.split(",") if options.items else known
    if unknown := set(names) - set(known):
        raise SystemExit(f"unknown items {sorted(unknown)}; known here: {', '.join(known)}")
    default = "training.json" if options.device == "cpu" else "training-cuda.json"
    path = options.json or Path(__file__).with_name(default)
    results: dict = {"items": {}, "machine": machine(options)}
    for name in names:
        results["items"][name] = on_gpu(name, options) if options.device == "cuda" else on_cpu(name, options)
        replace_file(
            path, (json.dumps(results, indent=2) + "\n").encode()
        )  # after every item: nothing measured is lost
    (show_gpu if options.device == "cuda" else show)(results)


if __name__ == "__main__":
    main()
