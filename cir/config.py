"""What a run is: YAML merged over dataclasses, checked key by key; unknown keys and wrong types are errors.

A file may say `inherit: other.yaml` (relative to itself, once, never twice); `key=value` overrides are dotted
and win. Interpolations name other keys (`${seed}`); resolvers, which could read the environment or run code,
are refused. Relative folders in a config are relative to the working folder.
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cir.errors import InputError, nearest


@dataclass
class BackboneConfig:
    """Which frozen encoders, and how they compute."""

    name: str = "checkpoints/tiny-clip"
    """A hub id (`openai/clip-vit-large-patch14`) or a local folder."""
    device: str = "auto"
    dtype: str = "float32"
    preprocess: str = "clip"
    """Name of the preprocessing: `clip` or `targetpad` (ratio 1.25)."""
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
    """Steps of linear warm-up."""
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
    smoke: bool = False
    """Whether `--smoke` shrank the run; stamps every number."""


CHOICES: dict[str, tuple[str, ...]] = {
    "backbone.dtype": ("float32", "bfloat16", "float16"),
    "data.fashioniq_gallery": ("original", "val-union"),
    "prompt.overflow": ("error", "cut"),
    "train.precision": ("float32", "bfloat16", "float16"),
    "train.schedule": ("constant", "linear", "cosine"),
}
LEAST: dict[str, float] = {
    "train.steps": 0,
    "train.batch": 1,
    "train.accumulate": 1,
    "train.lr": 0,
    "train.warmup": 0,
    "train.limit": 0,
    "train.allow_bad": 0,
    "train.workers": 0,
    "train.log_every": 1,
    "train.save_every": 1,
    "data.subset": 0,
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
LATER: dict[str, Any] = {"prompt.templates": {}, "data.protocols": {}}
"""Keys that came after records had been written, with the value that says nothing: fingerprints leave them out then."""


def load(path: str | Path | None = None, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a run from YAML (none: the defaults), apply `key=value` overrides, check everything.

    Raises `InputError`, one line with file, dotted key and the nearest known key.
    """
    layers: list[tuple[str, dict[str, Any]]] = []
    if path is not None:
        layers += _inherited(Path(path))
    layers += [(f"override {item!r}", _override(item)) for item in overrides]
    merged = OmegaConf.structured(RunConfig)
    for origin, layer in layers:
        _refuse_unknown(layer, RunConfig, origin)
        _refuse_resolvers(layer, origin)
        merged = _merge(merged, layer, origin)
    origin = str(path) if path is not None else "configuration"
    try:
        OmegaConf.resolve(merged)
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise InputError(_line(error, origin)) from None
    assert isinstance(config, RunConfig)
    _check(config, origin)
    return config


def resolved(config: RunConfig) -> dict[str, Any]:
    """Return the whole configuration as plain dictionaries, lists, numbers and strings."""
    return dataclasses.asdict(config)


def fingerprint(config: RunConfig) -> str:
    """Sixteen hex digits over the keys that determine numbers: not names, devices, folders or log intervals."""
    plain = resolved(config)
    for key in NOT_NUMBERS:
        section, _, last = key.rpartition(".")
        del (plain[section] if section else plain)[last]
    for key, unset in LATER.items():
        section, _, last = key.rpartition(".")
        if plain[section][last] == unset:
            del plain[section][last]
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
    small.train.log_every = small.train.save_every = 2
    small.train.evaluate_every = 0
    small.train.select = "last"
    return small


def _inherited(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Read a file and the one it inherits, oldest first."""
    own = _read(path)
    if "inherit" not in own:
        return [(str(path), own)]
    parent = own.pop("inherit")
    if not isinstance(parent, str):
        raise InputError(f"{path}: inherit: expected the path of one YAML file, got {parent!r}")
    inherited = _read(path.parent / parent)
    if "inherit" in inherited:
        raise InputError(f"{path}: inherits {parent}, which inherits itself; inherit once, never twice")
    return [(str(path.parent / parent), inherited), (str(path), own)]


def _read(path: Path) -> dict[str, Any]:
    """Read one YAML file as a plain mapping; interpolations stay as text."""
    try:
        content = OmegaConf.load(path)
    except FileNotFoundError:
        folder = path.parent if path.parent.is_dir() else Path()
        known = [str(other.relative_to(folder)) for other in folder.glob("*.y*ml")]
        hint = f"; {nearest(path.name, known)}" if known else ""
        raise InputError(f"{path}: no such file{hint}") from None
    except IsADirectoryError:
        raise InputError(f"{path}: expected a YAML file, found a folder") from None
    except (yaml.YAMLError, UnicodeDecodeError, OmegaConfBaseException) as error:
        raise InputError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    except OSError as error:
        if isinstance(error, PermissionError):
            raise InputError(f"{path}: cannot be read: {error.strerror}") from None
        raise InputError(f"{path}: not a mapping of keys: {error}") from None
    if not isinstance(content, DictConfig):
        raise InputError(f"{path}: expected a mapping of keys such as `method:`, found a list")
    plain = OmegaConf.to_container(content, resolve=False)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _override(item: str) -> dict[str, Any]:
    """Parse one `dotted.key=value`, the value as YAML."""
    key, equals, text = item.partition("=")
    if not equals or not all(key.split(".")):
        raise InputError(f"override {item!r}: expected key=value, for example train.steps=100")
    try:
        value = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]), resolve=False)
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise InputError(f"override {item!r}: value is not valid YAML: {' '.join(str(error).split())}") from None
    assert isinstance(value, dict)
    nested = value["value"]
    for part in reversed(key.split(".")):
        nested = {part: nested}
    return nested


def _merge(merged: DictConfig, layer: dict[str, Any], origin: str) -> DictConfig:
    """Lay one layer over another; a layer that names another method drops the options of the one before."""
    if isinstance(layer.get("evaluate"), str):  # `evaluate=circo/val` means a list of one
        layer = {**layer, "evaluate": [layer["evaluate"]]}
    method = layer.get("method")
    if isinstance(method, dict) and method.get("name", merged.get("method", {}).get("name")) != merged.method.name:
        merged.method = {}
    try:
        return OmegaConf.merge(merged, layer)  # type: ignore[return-value]
    except (OmegaConfBaseException, ValueError, TypeError) as error:
        raise InputError(_line(error, origin)) from None


def _fields(kind: Any) -> dict[str, Any]:
    return {item.name: item for item in dataclasses.fields(kind)}


def _refuse_unknown(layer: Any, kind: Any, origin: str, prefix: str = "") -> None:
    """Name the first key no dataclass declares; free-form sections (`method`, `data.roots`) are not looked into."""
    known = _fields(kind)
    for key, value in layer.items():
        if key not in known:
            raise InputError(f"{origin}: {prefix}{key}: unknown key; {nearest(str(key), known)}")
        inner = known[key].type
        if not dataclasses.is_dataclass(inner):
            continue
        if not isinstance(value, Mapping):
            raise InputError(f"{origin}: {prefix}{key}: expected a section of keys, got {value!r}")
        _refuse_unknown(value, inner, origin, f"{prefix}{key}.")


def _strings(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield every string of a nested container with its dotted key."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _strings(inner, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for index, inner in enumerate(value):
            yield from _strings(inner, f"{prefix}.{index}")
    elif isinstance(value, str):
        yield prefix, value


def _refuse_resolvers(layer: Mapping[str, Any], origin: str) -> None:
    """Allow `${seed}`, refuse `${oc.env:HOME}`: a config from a stranger must not read the machine."""
    for key, text in _strings(layer):
        if re.search(r"\$\{[^}]*:", text):
            raise InputError(f"{origin}: {key}: resolvers are not allowed, got {text!r}; write the value itself")


def _line(error: Exception, origin: str) -> str:
    """Turn OmegaConf's many-line message into one line with the dotted key."""
    key = getattr(error, "full_key", None)
    reason = str(error).strip().split("\n")[0]
    return f"{origin}: {key}: {reason}" if key else f"{origin}: {reason}"


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
