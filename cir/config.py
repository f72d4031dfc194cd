"""What a run is: YAML merged over dataclasses, checked key by key; unknown keys and wrong types are errors.

A file may say `inherit: other.yaml` (relative to itself, once, never twice); `key=value` overrides are dotted
and win. Interpolations name other keys (`${seed}`); resolvers, which could read the environment or run code,
are refused. Relative folders in a config are relative to the working folder.
"""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from cir import layers
from cir.errors import InputError


@dataclass
class BackboneConfig:
    """Which frozen encoders, and how they compute."""

    name: str = "checkpoints/tiny-clip"
    """A hub id (`openai/clip-vit-large-patch14`) or a local folder."""
    device: str = "auto"
    dtype: str = "float32"
    preprocess: str = "clip"
    """Name of the preprocessing: `clip`, `targetpad` (ratio 1.25) or `squarepad`; with `-fast`, nearly the same pixels
    in a third of the time, not for numbers that stand beside others."""
    attention: str = "sdpa"
    text_tower: str = "auto"
    """How the text tower runs: `auto` (`packed` for CLIP, `whole` for SigLIP), `packed_flex`, or plainly `padded`."""
    cache: str = ".cache/features"
    """Folder of the feature cache."""


@dataclass
class PromptConfig:
    """How a query becomes a sentence: `$` is a pseudo-word's slot, `{text}` the joined modification texts."""

    template: str = "a photo of $ that {text}"
    join: str = "both_orders"
    templates: dict[str, str] = field(default_factory=dict)
    """Templates per dataset; without one, a benchmark whose published numbers have a sentence of their own keeps it."""
    overflow: str = "error"
    """What becomes of a prompt longer than the text tower takes: `error`, or `cut`, which stamps every number."""


@dataclass
class DataConfig:
    """Where benchmarks lie and which variant is read."""

    root: str = "datasets"
    """One folder that holds them all; `roots` overrides it per dataset (`roots: {cirr: /data/CIRR}`)."""
    roots: dict[str, str] = field(default_factory=dict)
    allow_missing: bool = False
    """Go on when images or annotations are missing; stamps every number."""
    fashioniq_gallery: str = "original"
    """`original` (the split's image list) or `val-union` (references and targets of the annotations)."""
    protocols: dict[str, str] = field(default_factory=dict)
    """Protocols per dataset (`protocols: {cirr: cirr/soft}`), where not the papers'; `cir list protocols` has them."""
    subset: int = 0
    """Evaluate on this many queries only, 0 for all; stamps every number."""


@dataclass
class RerankConfig:
    """A second look at the first images of every ranking, by a method that sees query and image together."""

    top: int = 0
    """How many images are scored again, 0 for none; recall@k is that of the whole re-ranked gallery for k up to it."""
    method: str = ""
    """Who scores: a checkpoint folder or the YAML of a run; empty: the method itself (docs/blip2.md)."""


@dataclass
class TrainConfig:
    """The training loop's settings; `steps: 0` says that the method is not trained."""

    source: str = ""
    """What the method learns from: captions, text triplets or images, as a file, a folder, shards or `hf:NAME`
    (docs/training-data.md)."""
    column: str = ""
    """Name of the captions' column or key, or its number (from 1) in a table without header; empty: found by name."""
    images: str = ""
    """Folder that the image paths of a table are relative to; empty: the table's own."""
    limit: int = 0
    """Learn from the first rows of the source only, 0 for all."""
    allow_bad: float = 0.0
    """Share of the source that may be unusable (corrupt, missing, no text); above it the run stops."""
    steps: int = 0
    batch: int = 128
    accumulate: int = 1
    """Micro-batches per step; `batch` counts all of them."""
    lr: float = 1e-4
    weight_decay: float = 0.01
    undecayed: list[str] = field(default_factory=list)
    """Name patterns, matched in full, of parameters without weight decay."""
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    eps: float = 1e-8
    schedule: str = "constant"
    warmup: int = 0
    """Steps over which the rate rises."""
    schedule_steps: int = 0
    """Steps the schedule is made for where a run ends before it does, 0 for the run's own."""
    div: float = 25.0
    """By what `onecycle` divides the rate it begins with."""
    precision: str = "float32"
    clip_norm: float = 0.0
    """Gradient norm above which gradients are scaled down, 0 for never."""
    ema: float = 0.0
    """Decay of the moving average of the weights, 0 for none."""
    log_every: int = 10
    save_every: int = 500
    evaluate_every: int = 0
    select: str = "last"
    """`last`, or `benchmark:metric` to keep the best checkpoint by."""
    workers: int = 0


@dataclass
class RunConfig:
    """One run: a method on a backbone, optionally trained, evaluated on benchmarks."""

    name: str = "run"
    seed: int = 0
    method: dict[str, Any] = field(default_factory=lambda: {"name": "sum"})
    """`name`, and the options that the method declares."""
    base: str = ""
    """The wrapped method of a wrapper (`rtd`): a checkpoint folder, or the YAML of the run that trains it."""
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    prompt: PromptConfig = field(default_factory=PromptConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluate: list[str] = field(default_factory=list)
    rerank: RerankConfig = field(default_factory=RerankConfig)
    smoke: bool = False
    """Whether `--smoke` shrank the run; stamps every number."""


CHOICES: dict[str, tuple[str, ...]] = {
    "backbone.dtype": ("float32", "bfloat16", "float16"),
    "data.fashioniq_gallery": ("original", "val-union"),
    "prompt.overflow": ("error", "cut"),
    "train.precision": ("float32", "bfloat16", "float16"),
    "train.schedule": ("constant", "linear", "cosine", "onecycle"),
}
LEAST: dict[str, float] = {
    "train.steps": 0,
    "train.batch": 1,
    "train.accumulate": 1,
    "train.lr": 0,
    "train.warmup": 0,
    "train.schedule_steps": 0,
    "train.limit": 0,
    "train.allow_bad": 0,
    "train.workers": 0,
    "train.log_every": 1,
    "train.save_every": 1,
    "data.subset": 0,
    "rerank.top": 0,
}
NOT_NUMBERS = (
    "name",
    "evaluate",
    "backbone.device",
    "backbone.cache",
    "data.root",
    "data.roots",
    "train.images",
    "train.log_every",
    "train.save_every",
    "train.workers",
)
"""Keys that change where or how fast a run goes, not its numbers; the data has a fingerprint of its own."""
LATER: dict[str, Any] = {
    "prompt.templates": {},
    "data.protocols": {},
    "rerank": {"top": 0, "method": ""},
    "train.schedule_steps": 0,
    "train.div": 25.0,
}
"""Keys that came after records had been written, with the value that says nothing: fingerprints leave them out then."""


def load(path: str | Path | None = None, overrides: Sequence[str] = (), more: Sequence[layers.Layer] = ()) -> RunConfig:
    """Read a run from YAML (none: the defaults), lay `more` over it, apply `key=value` overrides, check everything.

    Raises `InputError`, one line with file, dotted key and the nearest known key.
    """
    found = [] if path is None else layers.inherited(Path(path))
    found += more
    found += [(f"override {item!r}", layers.override(item)) for item in overrides]
    origin = str(path) if path is not None else "configuration"
    config = layers.build(RunConfig, found, origin, _adapted)
    _check(config, origin)
    return config


def resolved(config: RunConfig) -> dict[str, Any]:
    """Return the whole configuration as plain dictionaries, lists, numbers and strings."""
    return dataclasses.asdict(config)


def fingerprint(config: RunConfig) -> str:
    """Sixteen hex digits over the keys that determine numbers: not names, devices, folders or log intervals."""
    return fingerprint_of(resolved(config))


def fingerprint_of(plain: dict[str, Any]) -> str:
    """Compute the fingerprint of a configuration as a record keeps it, of exactly the keys that are there."""
    plain = deepcopy(plain)
    for key in (*NOT_NUMBERS, *LATER):
        section, _, last = key.rpartition(".")
        holder: dict[str, Any] = plain.get(section, {}) if section else plain
        if key in NOT_NUMBERS or holder.get(last) == LATER[key]:
            holder.pop(last, None)
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]


def smoke(config: RunConfig) -> RunConfig:
    """Shrink a run to seconds: a few small steps, a few queries. Its records are stamped."""
    small = deepcopy(config)
    small.smoke = True
    small.name = f"{config.name}-smoke"
    small.data.subset = min(config.data.subset or 16, 16)
    small.train.steps = min(config.train.steps, 4)
    small.train.batch = min(config.train.batch, 8)
    small.train.accumulate = 1
    small.train.warmup = min(config.train.warmup, 1)
    small.train.schedule_steps = 0
    small.train.log_every = small.train.save_every = 2
    small.train.evaluate_every = 0
    small.train.select = "last"
    return small


def _adapted(merged: DictConfig, layer: dict[str, Any]) -> dict[str, Any]:
    """Let `evaluate=circo/val` mean a list of one; a layer that names another method drops the options before it."""
    method = layer.get("method")
    if isinstance(method, dict) and method.get("name", merged.get("method", {}).get("name")) != merged.method.name:
        merged.method = {}
    return {**layer, "evaluate": [layer["evaluate"]]} if isinstance(layer.get("evaluate"), str) else layer


def _check(config: RunConfig, origin: str) -> None:
    """Check what types cannot say: choices, least values, that the method is named."""
    if not isinstance(config.method.get("name"), str):
        raise InputError(f"{origin}: method.name: expected the name of a method, got {config.method.get('name')!r}")
    plain = resolved(config)
    for key, allowed in CHOICES.items():
        section, _, last = key.partition(".")
        if plain[section][last] not in allowed:
            raise InputError(f"{origin}: {key}: got {plain[section][last]!r}, expected one of {', '.join(allowed)}")
    for key, least in LEAST.items():
        section, _, last = key.partition(".")
        if plain[section][last] < least:
            raise InputError(f"{origin}: {key}: got {plain[section][last]}, expected at least {least:g}")
    if config.train.batch % config.train.accumulate:
        raise InputError(
            f"{origin}: train.accumulate: {config.train.accumulate} micro-batches do not divide train.batch "
            f"{config.train.batch}"
        )
