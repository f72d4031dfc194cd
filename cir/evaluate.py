"""Evaluation: benchmark, backbone, method and protocol in; rankings, scores and the record out."""

import dataclasses
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from cir import config as configs
from cir import data, methods, provenance, records
from cir.backbones.base import Backbone
from cir.config import RunConfig
from cir.errors import InputError
from cir.methods.base import Method
from cir.protocols import PROTOCOLS, Protocol, pooled
from cir.record_values import means
from cir.records import MethodInfo, PerQuery, Record
from cir.retrieval import Searched, load_benchmark, run_search
from cir.schema import Benchmark, TargetRanks


@dataclass(frozen=True)
class Evaluation:
    """One record with the values behind it; a group (`fashioniq/val`) has the searches of its parts."""

    record: Record
    values: PerQuery | None
    searched: tuple[Searched, ...]

    def write(self, folder: Path, *, rankings: bool = False) -> Path:
        """Write record and values into `folder`, on request the rankings of a single benchmark; returns the path."""
        ranking = self.searched[0].ranking if rankings and len(self.searched) == 1 else None
        return records.write(folder, self.record, self.values, ranking)


def evaluate(
    config: RunConfig,
    backbone: Backbone,
    method: Method,
    names: Sequence[str] | None = None,
    *,
    trained: MethodInfo | None = None,
    reranker: Method | None = None,
    progress: bool = True,
) -> list[Evaluation]:
    """Evaluate a method on benchmarks (`names`, or those the config lists), in order, groups behind their parts.

    `trained` is what the record says about the method (none: `describe(method)`), `reranker` looks again at the first
    `rerank.top` images of every ranking (none: the method itself). Raises `InputError` for unknown
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
            searched = run_search(
                load_benchmark(config, part), config, backbone, method, reranker=reranker or method, progress=progress
            )
            parts.append(searched)
            evaluations.append(_single(searched, config, backbone, info, time.perf_counter() - begun))
        if len(parts) > 1:
            evaluations.append(_group(name, parts, config, backbone, info, time.perf_counter() - started))
    return evaluations


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


def describe(
    method: Method,
    checkpoint: str = "",
    training: records.TrainingInfo | None = None,
    base: records.TrainingInfo | None = None,
) -> MethodInfo:
    """Say what a record says about a method: name, paper, which of its parameters were trained, and how."""
    named = {
        name: parameter.numel()
        for name, parameter in method.named_parameters()
        if any(re.fullmatch(pattern, name) for pattern in method.trains)
    }
    name = getattr(method, "name", None) or methods.name_of(method)  # bounds and other outsiders bring their own
    return MethodInfo(name, method.paper, sorted(named), sum(named.values()), checkpoint, training, base)


def unscored(
    benchmark: Benchmark, config: RunConfig, backbone: Backbone, info: MethodInfo, seconds: float = 0.0
) -> Record:
    """Record what a benchmark is searched with, without a number: the fingerprint is that of an evaluation."""
    return _record(config, backbone, info, _described(benchmark), PROTOCOLS[benchmark.protocol], None, seconds)


def _described(bench: Benchmark) -> records.BenchmarkInfo:
    """Say what is searched."""
    return records.BenchmarkInfo(
        bench.name,
        bench.version,
        bench.split,
        bench.fingerprint,
        len(bench.queries),
        len(bench.gallery),
        list(bench.notes),
        list(bench.stamps),
    )


def _single(searched: Searched, config: RunConfig, backbone: Backbone, info: MethodInfo, seconds: float) -> Evaluation:
    """Record one benchmark."""
    bench, protocol = searched.benchmark, PROTOCOLS[searched.benchmark.protocol]
    values, scores, ranks = None, searched.scores, searched.ranks
    if scores is not None and ranks is not None:
        values = PerQuery(scores.query_ids, dict(scores.values), ranks.ranks)
    record = _record(config, backbone, info, _described(bench), protocol, values, seconds)
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
    rules = records.ProtocolInfo(protocol.id, protocol.version, protocol.definition)
    described: dict[str, Any] = configs.resolved(config)
    return Record(
        run=config.name,
        fingerprint=records.identity(configs.fingerprint(config), bench, rules, model, info),
        config=described,
        seed=config.seed,
        protocol=rules,
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
