"""How two sides are compared: equality first, then CPU seconds in turn, the bare matrix products, and memory."""

import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

LOSS_TOLERANCE = 1e-6
GRADIENT_TOLERANCE = 1e-5
NO_GRADIENT = "k_proj.bias"
"""Its true gradient is zero (softmax does not see it): what is computed is rounding."""
WALKED = 12
"""Different matrices per shape, as there are layers: they do not all stay in the processor's cache."""
LONG = 5.0
"""Seconds from which on three pairs are enough."""


def deviation(ours, plain) -> dict[str, float]:
    """Compare loss and gradients of one batch: relative differences, and the cosine of the whole gradient."""
    loss, expected = float(ours.gradients()), float(plain.gradients())
    worst, inner, left, right = 0.0, 0.0, 0.0, 0.0
    for (name, mine), other in zip(ours.named.items(), plain.named.values(), strict=True):
        a, b = mine.grad.double(), other.grad.double()
        inner, left, right = inner + float((a * b).sum()), left + float((a * a).sum()), right + float((b * b).sum())
        if not name.endswith(NO_GRADIENT):
            worst = max(worst, float((a - b).norm() / b.norm().clamp(min=1e-30)))
    cosine = inner / (left * right) ** 0.5
    return {"loss": abs(loss - expected) / abs(expected), "gradient": worst, "gradient_cosine": cosine}


def refuse_difference(name: str, found: dict[str, float]) -> None:
    """Stop before anything is timed where the sides do not compute the same."""
    if not (found["loss"] <= LOSS_TOLERANCE and found["gradient"] <= GRADIENT_TOLERANCE):
        raise SystemExit(f"{name}: the sides differ ({found}); nothing is timed")


def seconds(run) -> float:
    """CPU seconds of one call."""
    start = time.process_time()
    run()
    return time.process_time() - start


class Products(TorchDispatchMode):
    """Records the matrix products of a step by shape."""

    def __init__(self):
        super().__init__()
        self.shapes: Counter = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in ("mm", "addmm"):
            left, right = args[-2:] if name == "addmm" else args[:2]
            turned = tuple(x.stride(0) < x.stride(1) for x in (left, right))
            self.shapes[(left.shape[0], left.shape[1], right.shape[1], turned, left.dtype)] += 1
        return func(*args, **(kwargs or {}))


def _matrix(rows: int, columns: int, turned: bool, dtype: torch.dtype) -> torch.Tensor:
    """Make a matrix, stored by columns where `turned`."""
    return torch.randn(columns, rows).to(dtype).t() if turned else torch.randn(rows, columns).to(dtype)


class Bare:
    """The same products and nothing else, each with the faster of torch and numpy; weights are walked through."""

    def __init__(self, shapes: Counter):
        self.runs = []
        for (m, k, n, turned, dtype), count in shapes.items():
            left = _matrix(m, k, turned[0], dtype)
            right = [_matrix(k, n, turned[1], dtype) for _ in range(min(count, WALKED))]
            ways = [lambda i, a=left, b=right: torch.mm(a, b[i % len(b)])]
            if dtype == torch.float32:
                arrays = left.numpy(), [b.numpy() for b in right]
                ways.append(lambda i, a=arrays[0], b=arrays[1]: np.matmul(a, b[i % len(b)]))
            for way in ways:
                way(0)
            fastest = min(ways, key=lambda way: min(seconds(lambda way=way: [way(i) for i in range(4)]) for _ in "12"))
            self.runs.append((fastest, count))

    def __call__(self):
        for way, count in self.runs:
            for index in range(count):
                way(index)


def products(side) -> Counter:
    """Record the products of one step."""
    with Products() as recorded:
        side.gradients()
    return recorded.shapes


def rounds(plain, ours: dict, bare: dict, pairs: int) -> list[dict]:
    """Time everything in turn: per round, seconds of gradients and updates of each side, and of bare products."""
    found = []
    for _ in range(pairs):
        one = {"plain": (seconds(plain.gradients), seconds(plain.update))}
        one |= {name: (seconds(side.gradients), seconds(side.update)) for name, side in ours.items()}
        one |= {f"bare {name}": (seconds(run), 0.0) for name, run in bare.items()}
        found.append(one)
    return found


def ratio(found: list[dict], name: str, update: bool) -> dict[str, float]:
    """Summarise paired ratios: the median, and the lowest and highest."""
    total = [{key: a + (b if update else 0.0) for key, (a, b) in one.items()} for one in found]
    each = sorted(one["plain"] / one[name] for one in total)
    return {
        "seconds": float(np.median([one[name] for one in total])),
        "plain_seconds": float(np.median([one["plain"] for one in total])),
        "ratio": float(np.median(each)),
        "lowest": each[0],
        "highest": each[-1],
    }


def resident(key: str) -> float:
    """Read this process's memory in MiB: `VmRSS` now, `VmHWM` at its highest."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) / 1024
    raise SystemExit("memory is measured on Linux only")


def peak(side) -> float:
    """Run one step with its update; say how much memory it took above what was built (MiB)."""
    Path("/proc/self/clear_refs").write_text("5")  # the highest starts again here
    before = resident("VmRSS")
    side.gradients()
    side.update()
    return resident("VmHWM") - before
