"""Evaluation: benchmark, backbone, method and protocol in; rankings, scores and the record out.

References are gallery images, so every image is encoded once, into the feature cache; from then on evaluation
reads features, never pixels.
"""

import dataclasses
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32

from cir import config as configs
from cir import data, methods, prompts, provenance, records, stats
from cir.backbones.base import Backbone
from cir.backbones.cache import FeatureCache, encode_gallery
from cir.config import RunConfig
from cir.data import images
from cir.errors import InputError, nearest
from cir.methods.base import Method
from cir.progress import track
from cir.prompts import Joiner, Template
from cir.protocols import PROTOCOLS, Protocol, pooled
from cir.records import Mean, MethodInfo, PerQuery, Record
from cir.schema import Benchmark, Embeddings, Ranking, Scores, TargetRanks
from cir.search import search, target_ranks

KEPT = 50
"""Ranks kept of every query: what submission files and pages show."""
BATCH = 128
"""Queries composed at a time."""


@dataclass(frozen=True)
class Searched:
    """What a search found on one benchmark; ranks and scores are absent where labels are hidden."""

    benchmark: Benchmark
    ranking: Ranking
    ranks: TargetRanks | None
    scores: Scores | None


@dataclass(frozen=True)
class Evaluation:
    """One record with the values behind it; a group (`fashioniq/val`) has the searches of its parts."""

    record: Record
    values: PerQuery | None
    searched: tuple[Searched, ...]

    def write(self, folder: Path) -> Path:
        """Write record and values into `folder`; returns the record's path."""
        return records.write(folder, self.record, self.values)


def evaluate(
    config: RunConfig,
    backbone: Backbone,
    method: Method,
    names: Sequence[str] | None = None,
    *,
    trained: MethodInfo | None = None,
    progress: bool = True,
) -> list[Evaluation]:
    """Evaluate a method on benchmarks (`names`, or those the config lists), in order, groups behind their parts.

    `trained` is what the record says about the method (none: `describe(method)`). Raises `InputError` for unknown
    names, missing or corrupt images, and queries that the prompt cannot hold.
    """
    info = trained or describe(method)
    names = list(names if names is not None else config.evaluate)
    if not names:
        raise InputError("evaluate: no benchmark named; for example `cir evaluate CONFIG circo/val`")
    evaluations = []
    for name in names:
        started = time.perf_counter()
        parts = []
        for part in data.expand(name):
            begun = time.perf_counter()
            searched = run_search(load_benchmark(config, part), config, backbone, method, progress=progress)
            parts.append(searched)
            evaluations.append(_single(searched, config, backbone, info, time.perf_counter() - begun))
        if len(parts) > 1:
            evaluations.append(_group(name, parts, config, backbone, info, time.perf_counter() - started))
    return evaluations


def load_benchmark(config: RunConfig, name: str) -> Benchmark:
    """Load one benchmark as the config says: where it lies, which variant, which subset; images are checked."""
    settings = config.data
    plain = name.removeprefix("world/")
    dataset = plain.split("/")[0]
    root = Path(settings.roots.get(dataset, settings.root))
    gallery = {"gallery": settings.fashioniq_gallery} if dataset == "fashioniq" else {}
    benchmark = data.load(name, root, allow_missing=settings.allow_missing, **gallery)
    if settings.subset:
        benchmark = data.subset(benchmark, settings.subset)
    benchmark = images.check(benchmark, allow_missing=settings.allow_missing)
    if config.smoke:
        benchmark = dataclasses.replace(benchmark, stamps=(*benchmark.stamps, "smoke run"))
    return benchmark


def run_search(
    benchmark: Benchmark, config: RunConfig, backbone: Backbone, method: Method, *, progress: bool = True
) -> Searched:
    """Encode, compose, search and score one benchmark."""
    protocol = PROTOCOLS[benchmark.protocol]
    features = encode(benchmark, config, backbone, progress=progress)
    gallery = Embeddings(benchmark.gallery, _unit(features[: len(benchmark.gallery)]))
    queries = compose(benchmark, features, config, backbone, method, progress=progress)
    exclude = {query.id: protocol.excluded(query) for query in benchmark.queries}
    ranking = search(queries, gallery, min(KEPT, len(benchmark.gallery)), exclude)
    if not benchmark.labelled:
        return Searched(benchmark, ranking, None, None)
    ranks, scores = _score(benchmark, protocol, queries, gallery, exclude)
    return Searched(benchmark, ranking, ranks, scores)


def encode(
    benchmark: Benchmark, config: RunConfig, backbone: Backbone, *, progress: bool = True
) -> Float[np.ndarray, "n t d"]:
    """Read raw features of the gallery, and behind it of references that are not in it, through the cache."""
    names = _names(benchmark)
    paths = [benchmark.root / benchmark.paths[name] for name in names]
    cache = FeatureCache(Path(config.backbone.cache)) if config.backbone.cache else None
    return encode_gallery(backbone, names, paths, cache, workers=config.train.workers or None, progress=progress)


@torch.inference_mode()
def compose(
    benchmark: Benchmark,
    features: Float[np.ndarray, "n t d"],
    config: RunConfig,
    backbone: Backbone,
    method: Method,
    *,
    progress: bool = True,
) -> Embeddings:
    """Compose the query vectors in batches from the references' raw features; rows follow the queries."""
    template, join = Template(config.prompt.template), joiner(config)
    rows = {name: row for row, name in enumerate(_names(benchmark))}
    vectors = []
    starts = range(0, len(benchmark.queries), BATCH)
    method.eval()
    for start in track(starts, description=f"composing {benchmark.name}", enabled=progress and len(starts) > 8):
        queries = benchmark.queries[start : start + BATCH]
        reference = np.asarray(features[[rows[query.reference] for query in queries]], dtype=np.float32)
        given = torch.from_numpy(reference).to(backbone.device)
        vectors.append(method.compose(backbone, given, queries, template, join).float().cpu().numpy())
    return Embeddings(tuple(query.id for query in benchmark.queries), _unit(np.concatenate(vectors)))


def joiner(config: RunConfig) -> Joiner:
    """Look up how a query's texts are joined."""
    name = config.prompt.join
    if name not in prompts.JOINERS:
        raise InputError(f"prompt.join: {name!r} is unknown; {nearest(name, prompts.JOINERS)}")
    return prompts.JOINERS[name]


def baseline_ranks(
    searched: Sequence[Searched],
    config: RunConfig,
    backbone: Backbone,
    names: Sequence[str] = ("image_only", "text_only"),
) -> dict[str, dict[str, TargetRanks]]:
    """Rank the same queries by each input alone, for the report: by benchmark, then by name as printed."""
    beside: dict[str, dict[str, TargetRanks]] = {}
    for one in searched:
        found = {
            name: run_search(one.benchmark, config, backbone, methods.build(name, {}, backbone), progress=False).ranks
            for name in names
        }
        beside[one.benchmark.name] = {
            name.replace("_", " "): ranks for name, ranks in found.items() if ranks is not None
        }
    return beside


def describe(method: Method, checkpoint: str = "", training: records.TrainingInfo | None = None) -> MethodInfo:
    """Say what a record says about a method: name, paper, and which of its parameters were trained."""
    named = {
        name: parameter.numel()
        for name, parameter in method.named_parameters()
        if any(re.fullmatch(pattern, name) for pattern in method.trains)
    }
    return MethodInfo(methods.name_of(method), method.paper, sorted(named), sum(named.values()), checkpoint, training)


def means(values: Mapping[str, Float[np.ndarray, " q"]], strata: Sequence[str] = ()) -> dict[str, Mean]:
    """Average per-query fractions to percent with 95 % intervals; strata weigh the same, whatever their size."""
    if not values:
        return {}
    intervals = stats.bootstrap(values, strata=strata or None)
    count = len(next(iter(values.values())))
    return {name: Mean(100 * one.mean, 100 * one.low, 100 * one.high, count) for name, one in intervals.items()}


def _names(benchmark: Benchmark) -> list[str]:
    """List the gallery, then the references outside it, each once."""
    return list(dict.fromkeys([*benchmark.gallery, *(query.reference for query in benchmark.queries)]))


def _unit(vectors: Float[np.ndarray, "n t d"]) -> Float32[np.ndarray, "n t d"]:
    """Normalise raw features; a zero vector has no direction and is named by `Embeddings`."""
    unit = np.array(vectors, dtype=np.float32)
    unit /= np.linalg.norm(unit, axis=-1, keepdims=True)
    return unit


def _score(
    benchmark: Benchmark,
    protocol: Protocol,
    queries: Embeddings,
    gallery: Embeddings,
    exclude: Mapping[str, Sequence[str]],
) -> tuple[TargetRanks, Scores]:
    targets = [query.targets for query in benchmark.queries]
    ranks = target_ranks(queries, gallery, targets, exclude)
    within = None
    if protocol.subset:
        candidates = [query.candidates for query in benchmark.queries]
        within = target_ranks(queries, gallery, targets, exclude, within=candidates)
    return ranks, protocol.score(benchmark, ranks, within)


def _single(searched: Searched, config: RunConfig, backbone: Backbone, info: MethodInfo, seconds: float) -> Evaluation:
    """Record one benchmark."""
    bench, protocol = searched.benchmark, PROTOCOLS[searched.benchmark.protocol]
    described = records.BenchmarkInfo(
        bench.name,
        bench.version,
        bench.split,
        bench.fingerprint,
        len(bench.queries),
        len(bench.gallery),
        list(bench.notes),
        list(bench.stamps),
    )
    values, scores, ranks = None, searched.scores, searched.ranks
    if scores is not None and ranks is not None:
        values = PerQuery(scores.query_ids, dict(scores.values), ranks.ranks)
    record = _record(config, backbone, info, described, protocol, values, seconds)
    if scores is not None and ranks is not None:
        chosen = protocol.aspects(bench, scores)
        metric = scores.values[protocol.aspect_metric]
        aspects = {tag: means({tag: metric[rows]})[tag] for tag, rows in chosen.items()}
        record = dataclasses.replace(record, aspects=aspects, tied=int(ranks.tied.sum()))
    return Evaluation(record, values, (searched,))


def _group(
    name: str,
    parts: Sequence[Searched],
    config: RunConfig,
    backbone: Backbone,
    info: MethodInfo,
    seconds: float,
) -> Evaluation:
    """Record the unweighted mean over several benchmarks."""
    benches = [part.benchmark for part in parts]
    world = "world/" if benches[0].name.startswith("world/") and not name.startswith("world/") else ""
    described = records.BenchmarkInfo(
        world + name,
        benches[0].version,
        benches[0].split,
        records.fingerprint([bench.fingerprint for bench in benches]),
        sum(len(bench.queries) for bench in benches),
        sum(len(bench.gallery) for bench in benches),
        [f"{bench.name}: {note}" for bench in benches for note in bench.notes],
        list(dict.fromkeys(stamp for bench in benches for stamp in bench.stamps)),
        [bench.name for bench in benches],
    )
    values, tied = None, 0
    scored = {part.benchmark.name: part.scores for part in parts if part.scores is not None}
    if len(scored) == len(parts):
        scores, strata = pooled(scored)
        ranks = [part.ranks for part in parts if part.ranks is not None]
        tied = sum(int(rank.tied.sum()) for rank in ranks)
        values = PerQuery(scores.query_ids, dict(scores.values), _stack([rank.ranks for rank in ranks]), strata)
    record = _record(config, backbone, info, described, PROTOCOLS[benches[0].protocol], values, seconds)
    return Evaluation(dataclasses.replace(record, tied=tied), values, tuple(parts))


def _stack(ranks: Sequence[np.ndarray]) -> np.ndarray:
    """Put rank tables of different widths behind one another; 0 fills."""
    width = max(table.shape[1] for table in ranks)
    return np.concatenate([np.pad(table, ((0, 0), (0, width - table.shape[1]))) for table in ranks])


def _record(
    config: RunConfig,
    backbone: Backbone,
    info: MethodInfo,
    bench: records.BenchmarkInfo,
    protocol: Protocol,
    values: PerQuery | None,
    seconds: float,
) -> Record:
    """Fill a record with everything the number rests on."""
    dtype = str(backbone.dtype).removeprefix("torch.")
    model = records.BackboneInfo(
        backbone.name, backbone.fingerprint, backbone.preprocess_id, dtype, str(backbone.device)
    )
    described: dict[str, Any] = configs.resolved(config)
    identity = [configs.fingerprint(config), bench.name, bench.fingerprint, protocol.id, protocol.version]
    return Record(
        run=config.name,
        fingerprint=records.fingerprint(*identity, model.weights, model.preprocess, info.checkpoint),
        config=described,
        seed=config.seed,
        protocol=records.ProtocolInfo(protocol.id, protocol.version, protocol.definition),
        benchmark=bench,
        backbone=model,
        method=info,
        code=records.CodeInfo(*provenance.code()),
        packages=provenance.packages(),
        seconds=seconds,
        peak_mb=provenance.peak_mb(),
        means=means(values.values, values.strata) if values else {},
        tied=0,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )
