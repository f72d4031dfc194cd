"""Retrieval on one benchmark: load, encode, compose, search, score.

References are gallery images as a rule, so every image is encoded once, into the feature cache; from then on retrieval
reads features, never pixels. References outside the gallery have an entry of their own, so that benchmarks that share
a gallery share its features. A method that reads patch tokens gets those of the references alone, from the same cache.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float32

from cir import data, prompts
from cir.backbones.base import Backbone, ImageSide
from cir.backbones.cache import FeatureCache, Kind, encode_gallery, input_size
from cir.config import RunConfig
from cir.data import images
from cir.data.views import Seen
from cir.errors import InputError, nearest
from cir.methods.base import Method
from cir.progress import track
from cir.prompts import Joiner, Template
from cir.protocols import PROTOCOLS
from cir.schema import Benchmark, Embeddings, Ranking, Scores, TargetRanks
from cir.score import rank_and_score
from cir.search import reorder, search

KEPT = 50
"""Ranks kept of every query: what submission files and pages show."""
BATCH = 128
"""Queries composed at a time."""
AGAIN = 4
"""Queries whose first images are looked at again at a time: 50 of ViT-g's are 72 MB a query."""
WHOLE = 20_000
"""Galleries up to this size have all their tokens kept for a second look: ViT-g's take 0.7 MB an image."""
_KINDS: dict[str, Kind] = {"features": "image", "patches": "patches"}
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


@dataclass(frozen=True)
class Features:
    """Raw features by image id, an array per cache entry: gallery, then outsiders; or the references' patches."""

    names: tuple[tuple[str, ...], ...]
    arrays: tuple[Float[np.ndarray, "..."], ...]

    def take(self, wanted: Sequence[str]) -> Float32[np.ndarray, "..."]:
        """Gather rows, as float32."""
        return np.stack([self.arrays[part][row] for part, row in map(self._places.__getitem__, wanted)]).astype(
            np.float32, copy=False
        )

    @cached_property
    def _places(self) -> dict[str, tuple[int, int]]:
        return {name: (part, row) for part, names in enumerate(self.names) for row, name in enumerate(names)}


def load_benchmark(config: RunConfig, name: str, protocol: str | None = None) -> Benchmark:
    """Load one benchmark as the config says: where it lies, under which protocol (`protocol` wins), which subset.

    With `data.allow_missing`, missing and unreadable images leave it here; without, `encode` stops at them, having
    seen each file's size and date only where the features are cached already.
    """
    settings = config.data
    root = Path(settings.roots.get(data.dataset(name), settings.root))
    benchmark = data.load(
        name, root, protocol=protocol or _protocol(config, name), allow_missing=settings.allow_missing
    )
    if settings.subset:
        benchmark = data.subset(benchmark, settings.subset)
    if settings.allow_missing:
        benchmark = images.check(benchmark, allow_missing=True)
    if config.prompt.overflow == "cut":
        cut = "prompts longer than the text tower takes are cut"
        benchmark = dataclasses.replace(benchmark, stamps=(*benchmark.stamps, cut))
    if config.smoke:
        benchmark = dataclasses.replace(benchmark, stamps=(*benchmark.stamps, "smoke run"))
    if config.rerank.top:
        by = config.rerank.method or "the method itself"
        looked = f"the first {config.rerank.top} images of every ranking are ranked again by {by}"
        benchmark = dataclasses.replace(benchmark, notes=(*benchmark.notes, looked))
    if template(config, benchmark) != config.prompt.template:
        sentence = f"prompt: {template(config, benchmark)}"
        benchmark = dataclasses.replace(benchmark, notes=(*benchmark.notes, sentence))
    return benchmark


def template(config: RunConfig, benchmark: Benchmark) -> str:
    """Choose the sentence: the config's for the dataset, or the benchmark's own, or the config's general one."""
    return config.prompt.templates.get(data.dataset(benchmark.name), benchmark.template) or config.prompt.template


def _protocol(config: RunConfig, name: str) -> str | None:
    """Read which protocol the config asks for; FashionIQ's gallery may be named by its own key."""
    dataset = data.dataset(name)
    chosen = config.data.protocols.get(dataset)
    if dataset != "fashioniq" or config.data.fashioniq_gallery == "original":
        return chosen
    named = f"fashioniq/{config.data.fashioniq_gallery}"
    if chosen not in (None, named):
        raise InputError(f"data.protocols.fashioniq: {chosen!r}, but data.fashioniq_gallery says {named}; keep one")
    return named


def run_search(
    benchmark: Benchmark,
    config: RunConfig,
    backbone: Backbone,
    method: Method,
    *,
    reranker: Method | None = None,
    progress: bool = True,
) -> Searched:
    """Encode, compose, search and score one benchmark; a `reranker` looks again at the first `rerank.top` images."""
    protocol = PROTOCOLS[benchmark.protocol]
    queries, gallery = embed(benchmark, config, backbone, method, progress=progress)
    exclude = {query.id: protocol.excluded(query) for query in benchmark.queries}
    within = [query.candidates for query in benchmark.queries] if protocol.competes == "candidates" else None
    kept = min(max(KEPT, config.rerank.top), len(benchmark.gallery))
    ranking, places = search(queries, gallery, kept, exclude, within), None
    if reranker is not None and config.rerank.top:
        scores = rescore(benchmark, ranking, config, backbone, reranker, progress=progress)
        ranking, places = reorder(ranking, scores)
    if not benchmark.labelled:
        return Searched(benchmark, ranking, None, None)
    outcome = rank_and_score(benchmark, protocol, queries, gallery, places)
    return Searched(benchmark, ranking, outcome.ranks, outcome.scores)


def embed(
    benchmark: Benchmark, config: RunConfig, backbone: Backbone, method: Method, *, progress: bool = True
) -> tuple[Embeddings, Embeddings]:
    """Encode and compose: the vectors of the queries, and those of the gallery, in the benchmark's order."""
    features = encode(benchmark, config, method.image_side(backbone), progress=progress)
    gallery = gallery_of(benchmark, features)
    if method.reads == "patches":
        features = encode(benchmark, config, backbone, progress=progress, kind="patches")
    return compose(benchmark, features, config, backbone, method, progress=progress), gallery


def encode(
    benchmark: Benchmark,
    config: RunConfig,
    backbone: ImageSide,
    *,
    cache: FeatureCache | None = None,
    progress: bool = True,
    kind: Kind = "image",
    of: Sequence[str] | None = None,
) -> Features:
    """Read raw features of the gallery, and of references that are not in it, through the cache.

    With `kind="patches"`, read patch tokens "n p v" of the distinct references only (or of the images named by `of`),
    float16 and memory-mapped (without a cache, in memory). `cache` stands in for the one the config names, for callers
    that read its counters. Nothing is kept of an image side in training.
    """
    if cache is None and config.backbone.cache and backbone.fingerprint:
        cache = FeatureCache(Path(config.backbone.cache), STORAGE[kind])
    workers = config.train.workers or None
    names = _names(benchmark, kind) if of is None else (tuple(of),)
    size = input_size(backbone) if benchmark.views else (0, 0)
    arrays = []
    for part in names:
        _require_pictures(benchmark, part)
        paths = [benchmark.root / benchmark.paths[name] for name in part]
        openers, marks = _views(benchmark, part, paths, size)
        try:
            arrays.append(
                encode_gallery(
                    backbone, part, paths, cache, workers=workers, progress=progress, kind=kind, openers=openers,
                    marks=marks,
                )
            )  # fmt: skip
        except InputError as error:
            raise InputError(
                f"{benchmark.name}: {error}; complete the folder, or go on with data.allow_missing=true, which stamps"
            ) from None
    return Features(names, tuple(arrays))


def _require_pictures(benchmark: Benchmark, names: Sequence[str]) -> None:
    """Refuse a gallery whose candidates are not all pictures: no image tower stands for them (M-BEIR's union pool)."""
    bare = sum(name not in benchmark.paths for name in names)
    if bare:
        rules = data.find(benchmark.name).protocols
        others = ", ".join(rule for rule in rules if rule != benchmark.protocol)
        raise InputError(
            f"{benchmark.name}: {bare:,} of {len(names):,} candidates under {benchmark.protocol} are no pictures and "
            f"cannot be encoded; score vectors made elsewhere with `cir score`, or choose another protocol: {others}"
        )


def gallery_of(benchmark: Benchmark, features: Features) -> Embeddings:
    """Take the gallery's vectors, at unit length, from what `encode` gave."""
    return Embeddings(benchmark.gallery, _unit(features.arrays[0]))


def _views(
    benchmark: Benchmark, names: Sequence[str], paths: Sequence[Path], size: tuple[int, int]
) -> tuple[Sequence[Path | Seen] | None, Sequence[str]]:
    """Say what to open where images are parts of pictures, and which parts."""
    if not any(name in benchmark.views for name in names):
        return None, ()
    views = [benchmark.views.get(name) for name in names]
    opened = [path if view is None else Seen(path, view, size) for path, view in zip(paths, views, strict=True)]
    return opened, [str(view or "") for view in views]


@torch.inference_mode()
def compose(
    benchmark: Benchmark,
    features: Features,
    config: RunConfig,
    backbone: Backbone,
    method: Method,
    *,
    progress: bool = True,
) -> Embeddings:
    """Compose the query vectors in batches; rows follow the queries.

    `features` are what `encode` gives for the kind that the method reads: of all images, or the references' patches.
    """
    sentence = Template(template(config, benchmark), config.prompt.overflow)  # type: ignore[arg-type]  # config checks it
    join = joiner(config)
    vectors = []
    starts = range(0, len(benchmark.queries), BATCH)
    method.eval()
    for start in track(starts, description=f"composing {benchmark.name}", enabled=progress and len(starts) > 8):
        queries = benchmark.queries[start : start + BATCH]
        given = torch.from_numpy(features.take([query.reference for query in queries])).to(backbone.device)
        vectors.append(method.compose(backbone, given, queries, sentence, join).float().cpu().numpy())
    ids = tuple(query.id for query in benchmark.queries)
    return Embeddings(ids, _unit(np.concatenate(vectors)), method.fusion)


@torch.inference_mode()
def rescore(
    benchmark: Benchmark,
    ranking: Ranking,
    config: RunConfig,
    backbone: Backbone,
    method: Method,
    *,
    progress: bool = True,
) -> Float32[np.ndarray, "q r"]:
    """Let a method look at the first `rerank.top` images of every ranking: scores in [0, 1], 0 for unfilled places.

    It reads the vision tower's tokens, kept for the whole gallery where that is small (`WHOLE`), otherwise for the
    images that any query has among its first.
    """
    if not method.matches:
        raise InputError(
            f"rerank.top: {type(method).__name__} on {backbone.name} has no way to look at a query and an image "
            "together; name a re-ranker with rerank.method (pseudo-word methods and text_only on BLIP-2 are their own: "
            "docs/blip2.md)"
        )
    top = ranking.order[:, : config.rerank.top]
    wanted = benchmark.gallery
    if len(wanted) > WHOLE:
        wanted = tuple(benchmark.gallery[i] for i in np.unique(top[top >= 0]))
    patches = encode(benchmark, config, backbone, progress=progress, kind="patches", of=wanted)
    side = backbone if method.reads == "patches" else method.image_side(backbone)
    references = encode(benchmark, config, side, progress=progress, kind=_KINDS[method.reads])
    sentence = Template(template(config, benchmark), config.prompt.overflow)  # type: ignore[arg-type]  # config checks it
    join = joiner(config)
    scores = np.zeros(top.shape, dtype=np.float32)
    starts = range(0, len(benchmark.queries), AGAIN)
    method.eval()
    for start in track(starts, description=f"looking again at {benchmark.name}", enabled=progress and len(starts) > 8):
        rows = slice(start, start + AGAIN)
        queries = benchmark.queries[rows]
        names = [benchmark.gallery[i] for i in top[rows].ravel() if i >= 0]
        if not names:
            continue
        seen = patches.take(names)
        candidates = np.zeros((*top[rows].shape, *seen.shape[1:]), dtype=np.float32)
        candidates[top[rows] >= 0] = seen
        given = torch.from_numpy(references.take([query.reference for query in queries])).to(backbone.device)
        again = torch.from_numpy(candidates).to(backbone.device)
        scores[rows] = method.match(backbone, given, queries, sentence, join, again).float().cpu().numpy()
    return np.where(top >= 0, scores, np.float32(0))


def joiner(config: RunConfig) -> Joiner:
    """Look up how a query's texts are joined."""
    name = config.prompt.join
    if name not in prompts.JOINERS:
        raise InputError(f"prompt.join: {name!r} is unknown; {nearest(name, prompts.JOINERS)}")
    return prompts.JOINERS[name]


def _names(benchmark: Benchmark, kind: Kind) -> tuple[tuple[str, ...], ...]:
    """List the gallery, and by themselves the references outside it, each once; for patches the references only."""
    references = dict.fromkeys(query.reference for query in benchmark.queries)
    if kind == "patches":
        return (tuple(references),)
    known = set(benchmark.gallery)
    outside = tuple(name for name in references if name not in known)
    return (benchmark.gallery, outside) if outside else (benchmark.gallery,)


def _unit(vectors: Float[np.ndarray, "n t d"]) -> Float32[np.ndarray, "n t d"]:
    """Normalise raw features; a zero vector has no direction and is named by `Embeddings`."""
    unit = np.array(vectors, dtype=np.float32)
    unit /= np.linalg.norm(unit, axis=-1, keepdims=True)
    return unit
