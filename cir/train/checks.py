"""What a run depends on: settings that can be met, and the identity a resumed run must share."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from cir.backbones.base import BackboneLike
from cir.config import LATER, TrainConfig
from cir.errors import InputError, nearest
from cir.methods import checkpoint
from cir.methods.base import Images, ImageTriplets, Method

FREE = ("log_every", "save_every", "workers")
"""Settings a resumed run may change: they do not reach the weights."""
SOURCE = ("source", "column", "images", "limit", "allow_bad")
"""Settings that say which rows are learnt from: the source's fingerprint stands for them."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def check(method: Method, source: Sequence[Any] | Images | ImageTriplets, config: TrainConfig, evaluated: bool) -> None:
    """Refuse what cannot be trained before anything is loaded."""
    if not method.learns_from:
        raise InputError(f"{type(method).__name__} is not trained; evaluate it as it is")
    if config.steps < 1:
        raise InputError(f"train.steps: got {config.steps}, expected at least 1")
    if 0 < config.schedule_steps < config.steps:
        raise InputError(
            f"train.schedule_steps: {config.schedule_steps} ends before train.steps {config.steps}; expected at least "
            "as many, or 0 for the run's own"
        )
    if not len(source):
        raise InputError("train.source: holds no rows; expected captions or triplets to learn from")
    if config.precision not in DTYPES:
        raise InputError(f"train.precision: {config.precision!r}; {nearest(config.precision, DTYPES)}")
    if config.select != "last" and (not evaluated or not config.evaluate_every):
        raise InputError(
            f"train.select: keeping the best by {config.select!r} needs evaluations; set train.evaluate_every and "
            "benchmarks, or select: last"
        )


def left_out(source: Any) -> dict[str, Any]:
    """Describe what a source leaves out, for the checkpoint; nothing where it leaves out nothing."""
    bad = getattr(source, "bad", None)
    counts = getattr(bad, "counts", None)
    if not bad or counts is None:
        return {}
    return {"left_out": {"counts": dict(counts), "first": list(bad.first)}}


def identity(method: Method, backbone: BackboneLike, source: str, config: TrainConfig, seed: int) -> dict[str, Any]:
    """Collect what determines the numbers of a run; `source` is the training source's fingerprint."""
    settings = {
        key: value
        for key, value in asdict(config).items()
        if key not in (*FREE, *SOURCE) and LATER.get(f"train.{key}") != value
    }
    return {
        "train": settings,
        "seed": seed,
        "source": source,
        "method": checkpoint.recipe(method),
        "initial_weights": digest(method.state_dict()),
        "backbone": {"fingerprint": backbone.fingerprint, "dtype": str(backbone.dtype)},
    }


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Sixteen hex digits over named tensors."""
    total = hashlib.sha256()
    for name, tensor in tensors.items():
        total.update(name.encode())
        total.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()[:16]
