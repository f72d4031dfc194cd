"""Retrieval on one benchmark: load, encode, compose, search, score.

References are gallery images, so every image is encoded once, into the feature cache; from then on retrieval
reads features, never pixels. A method that reads patch tokens gets those of the references alone, from the same cache.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float32

from cir import data, prompts
from cir.backbones.base import Backbone
from cir.backbones.cache import FeatureCache, Kind, encode_gallery
from cir.config import RunConfig
from cir.data import images
from cir.errors import InputError, nearest
from cir.methods.base import Method
from cir.progress import track
from cir.prompts import Joiner, Template
from cir.protocols import PROTOCOLS, Protocol
from cir.schema import Benchmark, Embeddings, Ranking, Scores, TargetRanks
from cir.search import search, target_ranks

KEPT = 50
"""Ranks kept of every query: what submission files and pages show."""
BATCH = 128
"""Queries composed at a time."""
STORAGE: dict[Kind, str] = {"image": "float32", "patches": "float16"}
"""How features lie in the cache. Patch tokens are two to three orders of magnitude more (L/14: half a megabyte an
image) and are kept in half precision; the arithmetic on them is float32."""


@dataclass(frozen=True)
class Searched:
    """What a search found on one benchmark; ranks and scores are absent where labels are hidden."""

    benchmark: Benchmark
    ranking: Ranking
    ranks: TargetRanks | None
    scores: Scores | None


def load_benchmark(config: RunConfig, name: str) -> Benchmark:
    """Load one benchmark as the config says: where it lies, which variant, which subset.

    With `data.allow_missing`, missing and unreadable images leave it here; without, `encode` stops at them, having
    seen each file's size and date only where the features are cached already.
    """
    settings = config.data
    plain = name.removeprefix("world/")
    dataset = plain.split("/")[0]
    root = Path(settings.roots.get(dataset, settings.root))
    gallery = {"gallery": settings.fashioniq_gallery} if dataset == "fashioniq" else {}
    benchmark = data.load(name, root, allow_missing=settings.allow_missing, **gallery)
    if settings.subset:
        benchmark = data.subset(benchmark, settings.subset)
    if settings.allow_missing:
        benchmark = images.check(benchmark, allow_missing=True)
    if config.prompt.overflow == "cut":
        cut = "prompts longer than the text tower takes are cut"
        benchmark = dataclasses.replace(benchmark, stamps=(*benchmark.stamps, cut))
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
    reference = features
    if method.reads == "patches":
        reference = encode(benchmark, config, backbone, progress=progress, kind="patches")
    queries = compose(benchmark, reference, config, backbone, method, progress=progress)
    exclude = {query.id: protocol.excluded(query) for query in benchmark.queries}
    ranking = search(queries, gallery, min(KEPT, len(benchmark.gallery)), exclude)
    if not benchmark.labelled:
        return Searched(benchmark, ranking, None, None)
    ranks, scores = _score(benchmark, protocol, queries, gallery, exclude)
    return Searched(benchmark, ranking, ranks, scores)


def encode(
    benchmark: Benchmark,
    config: RunConfig,
    backbone: Backbone,
    *,
    cache: FeatureCache | None = None,
    progress: bool = True,
    kind: Kind = "image",
) -> Float[np.ndarray, "n t d"]:
    """Read raw features of the gallery, and behind it of references that are not in it, through the cache.

    With `kind="patches"`, read patch tokens "n p v" of the distinct references only, float16 and memory-mapped (without
    a cache, in memory). `cache` stands in for the one the config names, for callers that read its counters.
    """
    names = _names(benchmark, kind)
    paths = [benchmark.root / benchmark.paths[name] for name in names]
    if cache is None and config.backbone.cache:
        cache = FeatureCache(Path(config.backbone.cache), STORAGE[kind])
    workers = config.train.workers or None
    try:
        return encode_gallery(backbone, names, paths, cache, workers=workers, progress=progress, kind=kind)
    except InputError as error:
        raise InputError(
            f"{benchmark.name}: {error}; complete the folder, or go on with data.allow_missing=true, which stamps"
        ) from None


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
    """Compose the query vectors in batches; rows follow the queries.

    `features` are what `encode` gives for the kind that the method reads: of all images, or the references' patches.
    """
    template = Template(config.prompt.template, config.prompt.overflow)  # type: ignore[arg-type]  # config checks it
    join = joiner(config)
    names = _names(benchmark, "patches" if method.reads == "patches" else "image")
    rows = {name: row for row, name in enumerate(names)}
    vectors = []
    starts = range(0, len(benchmark.queries), BATCH)
    method.eval()
    for start in track(starts, description=f"composing {benchmark.name}", enabled=progress and len(starts) > 8):
        queries = benchmark.queries[start : start + BATCH]
        reference = np.asarray(features[[rows[query.reference] for query in queries]], dtype=np.float32)
        given = torch.from_numpy(reference).to(backbone.device)
        vectors.append(method.compose(backbone, given, queries, template, join).float().cpu().numpy())
    ids = tuple(query.id for query in benchmark.queries)
    return Embeddings(ids, _unit(np.concatenate(vectors)), method.fusion)


def joiner(config: RunConfig) -> Joiner:
    """Look up how a query's texts are joined."""
    name = config.prompt.join
    if name not in prompts.JOINERS:
        raise InputError(f"prompt.join: {name!r} is unknown; {nearest(name, prompts.JOINERS)}")
    return prompts.JOINERS[name]


def _names(benchmark: Benchmark, kind: Kind) -> list[str]:
    """List the gallery, then the references outside it, each once; for patches the references only."""
    gallery = benchmark.gallery if kind == "image" else ()
    return list(dict.fromkeys([*gallery, *(query.reference for query in benchmark.queries)]))


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
