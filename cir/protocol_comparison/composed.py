"""Vectors from a method: images are read through the feature cache, queries composed once where they are the same."""

from collections.abc import Hashable

from cir import retrieval
from cir.backbones.base import Backbone
from cir.config import RunConfig
from cir.methods.base import Method
from cir.schema import Benchmark, Embeddings


class Composed:
    """Encodes and composes; protocols that share a gallery, or queries, share their vectors."""

    def __init__(self, config: RunConfig, backbone: Backbone, method: Method, *, progress: bool = True) -> None:
        self.config, self.backbone, self.method, self.progress = config, backbone, method, progress
        self._galleries: dict[Hashable, Embeddings] = {}
        self._queries: dict[Hashable, Embeddings] = {}

    def load(self, name: str, protocol: str) -> Benchmark:
        """Load a benchmark as the configuration says, but under this protocol."""
        return retrieval.load_benchmark(self.config, name, protocol)

    def __call__(self, benchmark: Benchmark) -> tuple[Embeddings, Embeddings]:
        """Give the vectors of a benchmark, as an evaluation of it would."""
        shown, asked = _shown(benchmark), self._asked(benchmark)
        if shown not in self._galleries:
            self._galleries[shown] = retrieval.gallery_of(benchmark, self._features(benchmark, "image"))
        if asked not in self._queries:
            features = self._features(benchmark, "patches" if self.method.reads == "patches" else "image")
            self._queries[asked] = retrieval.compose(
                benchmark, features, self.config, self.backbone, self.method, progress=self.progress
            )
        return self._queries[asked], self._galleries[shown]

    def _features(self, benchmark: Benchmark, kind: retrieval.Kind) -> retrieval.Features:
        side = self.backbone if kind == "patches" else self.method.image_side(self.backbone)
        return retrieval.encode(benchmark, self.config, side, progress=self.progress, kind=kind)

    def _asked(self, benchmark: Benchmark) -> Hashable:
        """Tell queries apart by all that composing reads."""
        rows = [
            (q.id, q.reference, benchmark.paths[q.reference], benchmark.views.get(q.reference), q.texts, q.concept)
            for q in benchmark.queries
        ]
        return benchmark.root, retrieval.template(self.config, benchmark), tuple(rows)


def _shown(benchmark: Benchmark) -> Hashable:
    """Tell galleries apart by their files and the parts of them."""
    places = tuple((name, benchmark.paths[name], benchmark.views.get(name)) for name in benchmark.gallery)
    return benchmark.root, places
