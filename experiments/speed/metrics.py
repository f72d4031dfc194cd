"""Measure metrics from ready vectors against the plain evaluation in `reference.py`, at the size of CIRR and CIRCO.

    python experiments/speed/metrics.py [--json OUT] [--pairs N] [--small]

Equality of all metrics is asserted before anything is timed. Times are CPU seconds of one thread, ours and the
reference alternating in one process of their own; a ratio is the median over pairs. Memory is the peak above the
loaded vectors, each side in a fresh process. Vectors are random around the targets: sizes are real, retrieval quality
is not.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import reference

from cir.files import replace_file
from cir.protocols import PROTOCOLS
from cir.schema import Benchmark, Embeddings, Query
from cir.score import rank_and_score
from cir.search import search

WIDTH = 768
SIZES = {"cirr": (4181, 2297), "circo": (220, 123_403)}
SMALL = {"cirr": (200, 150), "circo": (20, 400)}


@dataclass
class Case:
    """One benchmark's size with made-up vectors; both sides read the same arrays."""

    benchmark: Benchmark
    queries: Embeddings
    gallery: Embeddings

    def ours(self):
        protocol = PROTOCOLS[self.benchmark.protocol]
        scores = rank_and_score(self.benchmark, protocol, self.queries, self.gallery).scores
        return {name: value.mean() for name, value in scores.values.items() if name != "Avg"}

    def plain(self):
        asked = self.benchmark.queries
        q, g, names = self.queries.vectors[:, 0], self.gallery.vectors[:, 0], self.gallery.ids
        if self.benchmark.protocol == "circo":
            return reference.circo(q, g, names, [query.targets for query in asked])
        references, targets = [query.reference for query in asked], [query.targets[0] for query in asked]
        return reference.cirr(q, g, names, references, targets, [query.candidates for query in asked])

    def product(self):
        return self.queries.vectors[:, 0] @ self.gallery.vectors[:, 0].T


def build(protocol, q, g, seed=0):
    """Make queries that lie near their targets, so that no metric is trivial."""
    random = np.random.default_rng(seed)
    gallery = random.standard_normal((g, WIDTH), dtype=np.float32)
    name = (lambda i: f"dev-{i}-{i % 3}-img{i % 2}") if protocol == "cirr" else str
    images, asked = tuple(name(i) for i in range(g)), []
    vectors = random.standard_normal((q, WIDTH), dtype=np.float32)
    for i in range(q):
        chosen = random.choice(g, size=6, replace=False)
        six = tuple(images[j] for j in chosen)
        targets = (six[1],) if protocol == "cirr" else six[1 : 2 + i % 5]
        candidates = six if protocol == "cirr" else ()
        asked.append(Query(str(i), six[0], ("text",), targets, candidates))
        vectors[i] = vectors[i] * random.uniform(2, 12) + gallery[chosen[1]] + gallery[chosen[2]] / 2
    for side in (gallery, vectors):
        side /= np.linalg.norm(side, axis=1, keepdims=True)
    paths = dict.fromkeys(images, "none.png")
    bench = Benchmark(f"{protocol}/made-up", "1", "val", protocol, tuple(asked), images, Path("."), paths)
    return Case(bench, Embeddings(tuple(map(str, range(q))), vectors[:, None]), Embeddings(images, gallery[:, None]))


def seconds(run):
    """CPU seconds of one call."""
    start = time.process_time()
    run()
    return time.process_time() - start


def resident(key):
    """Read this process's memory in MiB: `VmRSS` now, `VmHWM` at its highest."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) / 1024
    raise SystemExit("memory is measured on Linux only")


def highest(case, side):
    """Run one side; say how much memory it took above the loaded vectors, and in all (MiB), and wall seconds."""
    case.queries.vectors[:8, 0] @ case.gallery.vectors[:8, 0].T  # BLAS takes its buffers
    runs = {"ours": case.ours, "plain": case.plain, "top50": lambda: search(case.queries, case.gallery, 50)}
    Path("/proc/self/clear_refs").write_text("5")  # the highest starts again here
    before, start = resident("VmRSS"), time.perf_counter()
    runs[side]()
    wall = time.perf_counter() - start
    return {"extra": resident("VmHWM") - before, "all": resident("VmHWM"), "wall": wall}


def compare(case, pairs):
    """Assert that both sides compute the same numbers, then time them in turn."""
    ours, plain = case.ours(), case.plain()
    wrong = [name for name in plain if abs(plain[name] - ours[name]) > 1e-12]
    if wrong or set(ours) != set(plain):
        raise SystemExit(f"{case.benchmark.name}: {wrong} differ: {ours} against {plain}; nothing is timed")
    times = [(seconds(case.plain), seconds(case.ours), seconds(case.product)) for _ in range(pairs)]
    ratios = sorted(a / b for a, b, _ in times)
    return {
        "metrics": {name: round(float(value), 6) for name, value in ours.items()},
        "cpu_seconds": dict(zip(("plain", "ours", "product"), map(float, np.median(times, axis=0)), strict=True)),
        "ratio": float(np.median(ratios)),
        "ratio_range": [ratios[0], ratios[-1]],
        "share_of_product": float(np.median([c / b for _, b, c in times])),
    }


def fresh(task, protocol, q, g, threads="1"):
    """Do one task (`plain`, `ours`, `top50`, or a number of pairs) in a fresh process; BLAS reads its threads there."""
    command = [sys.executable, __file__, "--child", task, protocol, str(q), str(g)]
    limits = {name: threads for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    done = subprocess.run(command, env=os.environ | limits, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def child(task, protocol, q, g):
    """Do one task here and print what came out."""
    case = build(protocol, int(q), int(g))
    result = compare(case, int(task)) if task.isdigit() else highest(case, task)
    sys.stdout.write(json.dumps(result))


def measure(protocol, q, g, pairs):
    """Compare both sides on one size."""
    result = fresh(str(pairs), protocol, q, g)
    extra = {side: fresh(side, protocol, q, g)["extra"] for side in ("plain", "ours")}
    ratio = extra["plain"] / max(extra["ours"], 1e-3)
    return {"queries": q, "gallery": g, **result, "extra_mib": extra, "memory_ratio": ratio}


def show(results):
    """Print the table."""
    lines = [
        f"{'':8}{'plain s':>10}{'ours s':>10}{'ratio':>8}{'GEMM/ours':>11}{'plain MiB':>11}{'ours MiB':>10}{'ratio':>8}"
    ]
    for name in SIZES:
        r = results[name]
        cpu, extra = r["cpu_seconds"], r["extra_mib"]
        # one query at a time needs no more than a row either: only a whole table of names has something to save
        saved = f"{r['memory_ratio']:8.0f}" if extra["plain"] > extra["ours"] else f"{'-':>8}"
        lines.append(
            f"{name:8}{cpu['plain']:10.2f}{cpu['ours']:10.3f}{r['ratio']:8.1f}{r['share_of_product']:11.2f}"
            f"{extra['plain']:11.1f}{extra['ours']:10.1f}{saved}"
        )
    top = results["top50"]
    size = f"{top['queries']} x {top['gallery']:,} x {WIDTH}"
    lines.append(f"top 50, {size}: {top['wall']:.1f} s, {top['all']:.0f} MiB in all, {top['extra']:.0f} MiB extra")
    sys.stdout.write("\n".join(lines) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--small", action="store_true", help="a few hundred images, to see that it runs")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(*options.child)
        return
    sizes, rows = (SMALL, 40) if options.small else (SIZES, 800)
    results = {name: measure(name, *size, options.pairs) for name, size in sizes.items()}
    images = sizes["circo"][1]
    threads = str(os.cpu_count() or 1)
    results["top50"] = {"queries": rows, "gallery": images, "threads": threads}
    results["top50"] |= fresh("top50", "circo", rows, images, threads)
    results["machine"] = {"cpu": platform.processor() or platform.machine(), "numpy": np.__version__, "width": WIDTH}
    show(results)
    replace_file(options.json, (json.dumps(results, indent=2) + "\n").encode())


if __name__ == "__main__":
    main()
