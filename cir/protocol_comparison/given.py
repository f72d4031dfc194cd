"""Vectors from files: two `.npz` as `cir score` takes them, which may hold the images of the largest gallery."""

from pathlib import Path

from cir.errors import InputError
from cir.schema import Benchmark, Embeddings
from cir.score import aligned, read_vectors


class Given:
    """Picks each benchmark's queries and gallery out of two files; what is missing is an InputError."""

    def __init__(self, queries: Path, gallery: Path) -> None:
        self.places = queries, gallery
        self.queries, self.gallery = read_vectors(queries), read_vectors(gallery)
        self._asked: dict[str, dict[str, tuple[str, ...]]] = {}

    def __call__(self, benchmark: Benchmark) -> tuple[Embeddings, Embeddings]:
        """Take the vectors of a benchmark; one set of them cannot stand for two protocols that ask in other words."""
        texts = {query.id: query.texts for query in benchmark.queries}
        first = self._asked.setdefault(benchmark.name, texts)
        if any(first.get(name, told) != told for name, told in texts.items()):
            raise InputError(
                f"{benchmark.name} under {benchmark.protocol}: the queries' texts are others than before, so vectors "
                "made of them are needed; compare a config or checkpoint in place of --queries"
            )
        asked = [query.id for query in benchmark.queries]
        return (
            aligned(*self.queries, asked, f"{self.places[0]}: query", spare=True),
            aligned(*self.gallery, benchmark.gallery, f"{self.places[1]}: gallery", spare=True),
        )
