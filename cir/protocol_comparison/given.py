"""Vectors from files: two `.npz` as `cir score` takes them, which may hold the images of the largest gallery."""

from pathlib import Path

from cir.schema import Benchmark, Embeddings
from cir.score import aligned, read_vectors


class Given:
    """Picks each benchmark's queries and gallery out of two files; what is missing is an InputError."""

    def __init__(self, queries: Path, gallery: Path) -> None:
        self.places = queries, gallery
        self.queries, self.gallery = read_vectors(queries), read_vectors(gallery)

    def __call__(self, benchmark: Benchmark) -> tuple[Embeddings, Embeddings]:
        """Take the vectors of a benchmark."""
        asked = [query.id for query in benchmark.queries]
        return (
            aligned(*self.queries, asked, f"{self.places[0]}: query", spare=True),
            aligned(*self.gallery, benchmark.gallery, f"{self.places[1]}: gallery", spare=True),
        )
