"""A whole run, as the commands and the demo need it: build or load, train, evaluate, write records and pages.

A run folder (`runs/NAME/seed-SEED`) holds `config.yaml`, what training leaves there, and `records/`.
"""

import dataclasses
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from PIL.Image import Image

from cir import backbones, methods, records
from cir import config as configs
from cir import evaluate as evaluation
from cir.backbones.base import Backbone
from cir.backbones.encoded import EncodedImages
from cir.backbones.encoded_triplets import EncodedTriplets
from cir.backbones.kept import KeptRows
from cir.backbones.store import FeatureCache
from cir.config import RunConfig
from cir.data import views
from cir.errors import InputError
from cir.evaluate import Evaluation
from cir.methods import checkpoint
from cir.methods.base import Method
from cir.protocols import PROTOCOLS
from cir.records import MethodInfo, TrainingInfo
from cir.report import gallery, index, ranked
from cir.report.comparison import Row
from cir.schema import TargetRanks

logger = logging.getLogger(__name__)

CONFIG = "config.yaml"


def folder(config: RunConfig) -> Path:
    """Say where a run of this configuration lives."""
    return Path("runs") / config.name / f"seed-{config.seed}"


def load_backbone(config: RunConfig) -> Backbone:
    """Load the frozen encoders a configuration names."""
    return backbones.load(
        config.backbone.name,
        device=config.backbone.device,
        dtype=config.backbone.dtype,
        preprocess=config.backbone.preprocess,
        text_tower=config.backbone.text_tower,
        attention=config.backbone.attention,
    )


def build(config: RunConfig, backbone: Backbone) -> Method:
    """Build the configured method, untrained; a wrapper's base is loaded from the run that trained it."""
    options = {key: value for key, value in config.method.items() if key != "name"}
    base = _base(Path(config.base), backbone) if config.base else None
    return methods.build(config.method["name"], options, backbone, base, seed=config.seed)


def _base(path: Path, backbone: Backbone) -> Method:
    """Load what a wrapper wraps from the run that trained it; what needs no training is built as its YAML says."""
    if path.suffix in (".yaml", ".yml"):
        wrapped = configs.load(path)
        kind = methods.METHODS.get(wrapped.method["name"])
        if kind is not None and not kind.learns_from:
            return build(wrapped, backbone)
    return load_trained(find_checkpoint(path), backbone)[0]


def find_checkpoint(path: Path) -> Path:
    """Find the checkpoint in a checkpoint folder, a run folder, or of the run that a YAML describes."""
    if path.suffix in (".yaml", ".yml"):
        config = configs.load(path)
        run = folder(config)
        hint = f"train it first: cir train {path}"
    else:
        run, hint = path, "expected a checkpoint, a run folder, or the YAML of a run"
    if (run / checkpoint.CONFIG).is_file():
        return run
    for name in ("best", "last"):
        if (run / name / checkpoint.CONFIG).is_file():
            return run / name
    raise InputError(f"{run}: no checkpoint here; {hint}")


def config_file(path: Path) -> Path | None:
    """Find the configuration kept with a checkpoint or in its run folder, if there is one."""
    for place in (path, path.parent):
        if (place / CONFIG).is_file():
            return place / CONFIG
    return None


def load_trained(path: Path, backbone: Backbone) -> tuple[Method, MethodInfo]:
    """Load a checkpoint and say what its record will say about it."""
    method = checkpoint.load(path, backbone)
    weights = checkpoint.describe(path)["weights"]
    return method, evaluation.describe(method, weights, training_info(path), _base_training(path, method))


def load_reranker(
    config: RunConfig, backbone: Backbone, info: MethodInfo | None
) -> tuple[Method | None, MethodInfo | None]:
    """Load the method that looks again at what was found, where one is named; its weights join those of the record."""
    if not (config.rerank.top and config.rerank.method):
        return None, info
    method, own = load_trained(find_checkpoint(Path(config.rerank.method)), backbone)
    if info is not None:
        info = dataclasses.replace(info, checkpoint=f"{info.checkpoint} + {own.checkpoint}".removeprefix(" + "))
    return method, info


def training_info(path: Path) -> TrainingInfo | None:
    """Say how a checkpoint was trained, and what the whole run cost, also where it is not the last one of its run."""
    details: Mapping[str, Any] = checkpoint.describe(path).get("details", {})
    if "run" not in details:
        return None
    cost: Mapping[str, Any] = details.get("cost", {})
    if path.name == "best" and (path.parent / "last" / checkpoint.CONFIG).is_file():
        last: Mapping[str, Any] = checkpoint.describe(path.parent / "last").get("details", {})
        cost = last.get("cost", cost) if last.get("run") == details["run"] else cost
    known = {field.name for field in dataclasses.fields(TrainingInfo)} - {"steps", "seconds", "source", "config"}
    return TrainingInfo(
        steps=int(details.get("steps", 0)),
        seconds=cost["seconds"] if "seconds" in cost else _seconds(path.parent),
        source=str(details["run"].get("source", "")),
        config=records.fingerprint(details["run"]),
        **{name: value for name, value in cost.items() if name in known},
    )


def _base_training(path: Path, method: Method) -> TrainingInfo | None:
    """Say how the base of a wrapper was trained, where the run that its configuration names still lies there."""
    kept = config_file(path) if method.wraps else None
    try:
        base = configs.load(kept).base if kept is not None else ""
        return training_info(find_checkpoint(Path(base))) if base else None
    except InputError:
        return None


def train(config: RunConfig, backbone: Backbone, out: Path, *, resume: bool = True) -> tuple[Method, MethodInfo]:
    """Train the configured method in `out`, or resume what was interrupted there; a finished run is only loaded."""
    from cir import train as training

    method = build(config, backbone)
    source = _source(config, method, backbone)
    out.mkdir(parents=True, exist_ok=True)
    records.replace_file(out / CONFIG, yaml.safe_dump(configs.resolved(config), sort_keys=False).encode())

    watched = _watched(config, backbone) if config.train.evaluate_every and config.evaluate else (None, None)
    result = training.train(
        method,
        backbone,
        source,
        config.train,
        out,
        seed=config.seed,
        evaluate=watched[0],
        resume=resume,
        store=KeptRows(FeatureCache(Path(config.backbone.cache)), backbone),
        pictures=watched[1],
    )
    return load_trained(result.checkpoint, backbone)


def _watched(
    config: RunConfig, backbone: Backbone
) -> tuple[Callable[[Method, int], dict[str, float]], Callable[[], dict[str, Image]]]:
    """Make what training asks for during a run: scores, and the ranked images behind the last of them."""
    found: list[Evaluation] = []
    once = dataclasses.replace(config, rerank=configs.RerankConfig())  # a second look is for the end

    def scores(current: Method, step: int) -> dict[str, float]:
        found[:] = evaluation.evaluate(once, backbone, current, progress=False)
        return {f"{e.record.benchmark.name}:{metric}": m.mean for e in found for metric, m in e.record.means.items()}

    def pictures() -> dict[str, Image]:
        searched = [one.searched[0] for one in found if len(one.searched) == 1]
        return {
            one.benchmark.name: ranked.draw(one.benchmark, one.ranking, ranks=one.ranks, part=views.seen)
            for one in searched
        }

    return scores, pictures


def _seconds(run: Path) -> float | None:
    """Read how long training took from the last line of its history, where the checkpoint still lies in its run."""
    try:
        lines = (run / "history.jsonl").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    logged = [row["seconds"] for row in map(json.loads, lines) if "seconds" in row]
    return float(logged[-1]) if logged else None


def first_process() -> bool:
    """Tell whether this process is the one that evaluates and writes, under torchrun or alone."""
    return os.environ.get("RANK", "0") == "0"


def evaluate(
    config: RunConfig,
    backbone: Backbone,
    method: Method,
    names: Sequence[str] | None = None,
    *,
    info: MethodInfo | None = None,
    out: Path | None = None,
    progress: bool = True,
    rankings: bool = False,
) -> list[Evaluation]:
    """Evaluate and write each record, as soon as it is there, into `out` (none: the run's `records/`).

    `rankings` keeps the first images of every query beside it (`cir.retrieval.KEPT` of them).
    """
    found: list[Evaluation] = []
    reranker, info = load_reranker(config, backbone, info or evaluation.describe(method))
    for name in list(names or config.evaluate) or [""]:
        given = [name] if name else []  # nothing named is for `evaluate` to refuse
        for one in evaluation.evaluate(
            config, backbone, method, given, trained=info, reranker=reranker, progress=progress
        ):
            one.write(out if out is not None else folder(config) / "records", rankings=rankings)
            found.append(one)
    return found


def report(
    evaluations: Sequence[Evaluation],
    out: Path,
    config: RunConfig,
    backbone: Backbone,
    *,
    others: Sequence[records.Record] = (),
    comparisons: Sequence[Row] = (),
    limit: int = 400,
) -> Path:
    """Write a page of rankings per benchmark, and `index.html` over them and the `others`; returns the index.

    Each page shows the ranks that image-only and text-only queries give the same targets; these are searched once per
    benchmark, from the cached features.
    """
    pages: dict[str, str] = {}
    beside: dict[str, dict[str, TargetRanks]] = {}
    for one in evaluations:
        if len(one.searched) > 1:
            continue
        searched = one.searched[0]
        bench = searched.benchmark
        if bench.name not in beside:
            beside |= evaluation.baseline_ranks([searched], config, backbone)
        name = f"{one.record.run.replace('/', '-')}-{bench.name.replace('/', '-')}.html"
        gallery.write(
            out / name,
            one.record,
            bench,
            searched.ranking,
            searched.ranks,
            beside[bench.name],
            index="index.html",
            aspect_metric=PROTOCOLS[bench.protocol].aspect_metric,
            part=views.seen,
            limit=limit,
        )
        pages[one.record.fingerprint] = name
    shown = {record.fingerprint: record for record in [*others, *(one.record for one in evaluations)]}
    return index.write(out / "index.html", list(shown.values()), pages, comparisons)


def _source(config: RunConfig, method: Method, backbone: Backbone) -> Any:
    """Open the training source of the kind the method learns from, and say what it leaves out."""
    name, settings = config.method["name"], config.train
    if not method.learns_from:
        raise InputError(f"method {name} has nothing to train; use `cir evaluate --method {name}`")
    if not settings.source:
        raise InputError(f"train.source: method {name} learns from {method.learns_from}; name a file of them")
    from cir.data import source

    cache = Path(config.backbone.cache)
    found = source.load(
        method.learns_from,
        settings.source,
        images=settings.images,
        column=settings.column,
        limit=settings.limit,
        allow_bad=settings.allow_bad,
        keep=cache / "sources",
        progress=first_process(),
        root=config.data.root,
        roots=config.data.roots,
        allow_missing=config.data.allow_missing,
    )
    if found.bad and first_process():
        logger.warning("%s", source.left_out(settings.source, found))
    if method.learns_from == "image_triplets":
        return EncodedTriplets(backbone, found, FeatureCache(cache))
    if method.learns_from != "images":
        return found
    return EncodedImages(backbone, found, FeatureCache(cache))
