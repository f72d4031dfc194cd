"""How far the rule alone moves a number: seeded vectors over the real annotation files, under every protocol.

    python experiments/protocol_differences.py DATA_ROOT [--seed 0]

Prints the Markdown tables of docs/protocol-differences.md. No model is behind the vectors: an image is a random
direction, a query lies between its target, its reference and noise, so that rates are far from 0 and 100. What the
tables show is the mechanism, and which difference is large; a model's own are what `cir compare-protocols` prints.
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from cir import data, metrics
from cir.errors import InputError
from cir.protocol_comparison import Change, Row, compare
from cir.protocols import PROTOCOLS
from cir.protocols.cirr import CIRR
from cir.schema import Benchmark, Embeddings
from cir.score import rank_and_score

FOLDER = 8102
"""Images in CIRR's val folder; those that are not in the split file are made up."""
EVERY = 10
"""Of domain conversion, one query in ten."""


FASHIONIQ = {"width": 64, "lean": 1.0, "noise": 2.5}


class Seeded:
    """Vectors by id, drawn once: protocols that share images or queries share their vectors."""

    def __init__(self, seed: int, width: int, lean: float, noise: float) -> None:
        self.generator, self.width, self.lean, self.noise = np.random.default_rng(seed), width, lean, noise
        self.images: dict[str, np.ndarray] = {}
        self.queries: dict[str, np.ndarray] = {}

    def draw(self, benchmark: Benchmark) -> None:
        """Draw what was not seen before."""
        new = [name for name in benchmark.gallery if name not in self.images]
        self.images.update(zip(new, self.normal(len(new)), strict=True))

    def normal(self, count: int) -> np.ndarray:
        return self.generator.standard_normal((count, self.width), dtype=np.float32)

    def query(self, query) -> np.ndarray:
        """Compose: all targets, some of the reference, noise."""
        target = np.sum([self.images[name] for name in query.targets], axis=0) / np.sqrt(len(query.targets))
        return target + self.lean * self.images[query.reference] + self.noise * self.normal(1)[0]

    def __call__(self, benchmark: Benchmark) -> tuple[Embeddings, Embeddings]:
        self.draw(benchmark)
        for query in benchmark.queries:
            if query.id not in self.queries:
                self.queries[query.id] = self.query(query)
        ids = tuple(query.id for query in benchmark.queries)
        return embedded(ids, [self.queries[name] for name in ids]), embedded(
            benchmark.gallery, [self.images[name] for name in benchmark.gallery]
        )


class Domains(Seeded):
    """For domain conversion: an image is its class and its domain, a query its class and the domain asked for."""

    def draw(self, benchmark: Benchmark) -> None:
        kinds = {name: kind(name) for name in benchmark.gallery if name not in self.images}
        self.parts = getattr(self, "parts", {})
        for part in sorted({part for both in kinds.values() for part in both} - self.parts.keys()):
            self.parts[part] = self.normal(1)[0]
        for name, (label, domain) in kinds.items():
            self.images[name] = self.parts[label] + self.lean * self.parts[domain] + self.noise * self.normal(1)[0]

    def query(self, query) -> np.ndarray:
        domain = self.parts.get(query.texts[0], np.zeros(self.width, dtype=np.float32))
        return self.images[query.reference] + self.lean * domain + self.noise * self.normal(1)[0]


def kind(name: str) -> tuple[str, str]:
    """Read class and domain off a path, `imgnet/imagenet-r/n01443537/cartoon_1.jpg` or `.../real/n01443537/...`."""
    folder, file = name.split("/")[-2:]
    return folder, "photo" if file.startswith("ILSVRC") else file.split("_")[0]


def embedded(ids: tuple[str, ...], vectors: list[np.ndarray]) -> Embeddings:
    table = np.stack(vectors)
    table /= np.linalg.norm(table, axis=-1, keepdims=True)
    return Embeddings(ids, table[:, None])


class ReferenceKept(CIRR):
    """What nobody does on purpose: the reference competes."""

    id = "cirr, reference kept"

    def excluded(self, query) -> tuple[str, ...]:
        return ()


def with_folder(root: Path, place: Path) -> Path:
    """Lay CIRR out with an image folder of the published size: the split's names and made-up ones, all files empty."""
    annotations = data.load("cirr/val", root).root
    (place / "dev").mkdir()
    (place / "cirr").symlink_to((annotations / "cirr").resolve(), target_is_directory=True)
    names = json.loads((place / "cirr/image_splits/split.rc2.val.json").read_text())
    made_up = (f"dev-{90000 + n}-0-img0" for n in range(FOLDER - len(names)))
    for name in (*names, *made_up):
        (place / "dev" / f"{name}.png").touch()
    return place


def table(rows: list[Row], shown: tuple[str, ...]) -> Iterator[str]:
    yield f"| protocol | gallery | {' | '.join(shown)} |"
    yield f"|---|--:|{'--:|' * len(shown)}"
    for row in rows:
        cells = [cell(row.means[metric], row.changes.get(metric)) for metric in shown]
        yield f"| `{row.protocol}` | {row.gallery:,} | {' | '.join(cells)} |"


def cell(value: float, change: Change | None) -> str:
    return f"{value:.2f}" + (f" ({change.difference:+.2f} [{change.low:+.2f}, {change.high:+.2f}])" if change else "")


def fashioniq(root: Path, seed: int) -> Iterator[str]:
    for name in (*data.expand("fashioniq/val"), "fashioniq/val"):
        source = Seeded(seed, **FASHIONIQ)
        found = compare(name, lambda part, protocol: data.load(part, root, protocol=protocol), source)
        yield f"\n**{name}**\n"
        yield from table(list(found.rows), ("R@10", "R@50"))
    bench = data.load("fashioniq/dress/val", root)
    yield "\n" + halved(bench, *Seeded(seed, **FASHIONIQ)(bench))


def halved(bench: Benchmark, queries: Embeddings, gallery: Embeddings) -> str:
    """Multiply in half precision: how many targets tie, and between what R@10 then lies."""
    scores = queries.vectors[:, 0].astype(np.float16) @ gallery.vectors[:, 0].astype(np.float16).T
    row = {name: index for index, name in enumerate(gallery.ids)}
    own = scores[np.arange(len(scores)), [row[query.targets[0]] for query in bench.queries]][:, None]
    above, equal = (scores > own).sum(axis=1), (scores == own).sum(axis=1) - 1
    best, worst = 100 * (above < 10).mean(), 100 * (above + equal < 10).mean()
    return f"Products in half precision: {(equal > 0).sum():,} targets tie, R@10 between {worst:.2f} and {best:.2f}."


def cirr(root: Path, seed: int) -> Iterator[str]:
    source = Seeded(seed, width=64, lean=0.9, noise=2.8)
    with tempfile.TemporaryDirectory() as place:
        laid = with_folder(root, Path(place))
        found = compare("cirr/val", lambda part, protocol: data.load(part, laid, protocol=protocol), source)
        bench = data.load("cirr/val", laid)
    yield "\n**cirr/val**\n"
    yield from table(list(found.rows), ("R@1", "R@5", "R@10", "R@50", "Rs@1", "Avg"))
    kept = rank_and_score(bench, ReferenceKept(), *source(bench)).scores.values
    yield "\nWith the reference left in: " + ", ".join(
        f"{m} {100 * kept[m].mean():.2f}" for m in ("R@1", "R@5", "Rs@1")
    )
    hits = round(len(bench.queries) * found.rows[0].means["R@1"] / 100)
    rule, plain = 100 * hits / (len(bench.queries) + 2), 100 * hits / len(bench.queries)
    yield f"By the server's rule, two more in the denominator, {hits:,} hits print as {rule:.3f}, not as {plain:.3f}."


def circo(root: Path, seed: int) -> Iterator[str]:
    source = Seeded(seed, width=128, lean=0.6, noise=1.3)
    found = compare("circo/val", lambda part, protocol: data.load(part, root, protocol=protocol), source)
    yield "\n**circo/val**\n"
    yield from table(list(found.rows), ("mAP@5", "mAP@10", "mAP@50", "R@5"))
    bench = data.load("circo/val", root)
    ranks = rank_and_score(bench, PROTOCOLS["circo"], *source(bench)).ranks.ranks
    hits = metrics.hits_at(ranks, 5).sum(axis=1)
    gains = metrics.average_precision_at(ranks, 5) * np.minimum((ranks > 0).sum(axis=1), 5)
    by_all, by_found = gains / (ranks > 0).sum(axis=1), gains / np.maximum(hits, 1)
    yield f"\nmAP@5 over all ground truths {100 * by_all.mean():.2f}, over those found {100 * by_found.mean():.2f}."


def domains(root: Path, seed: int) -> Iterator[str]:
    source = Domains(seed, width=64, lean=0.8, noise=1.0)
    rows = [conversion(name, root, source) for name in data.expand("imagenet_r")]
    yield "\n**imagenet_r, one query in ten**\n"
    yield "| domain | share R@10 | hit R@10 | share R@50 | hit R@50 | mAP, mean of precisions | mAP, trapezoid |"
    yield "|---|--:|--:|--:|--:|--:|--:|"
    yield from rows


def conversion(name: str, root: Path, source: Domains) -> str:
    """Score one domain by both protocols, and its ranks by both average precisions."""
    found = []
    for protocol, metric in (("imagenet_r/share", "R"), ("imagenet_r/hit", "Hit")):
        whole = data.load(name, root, protocol=protocol)
        bench = replace(whole, queries=whole.queries[::EVERY])
        outcome = rank_and_score(bench, PROTOCOLS[protocol], *source(bench))
        found.append([100 * outcome.scores.values[f"{metric}@{k}"].mean() for k in (10, 50)])
    ranks = outcome.ranks.ranks[(outcome.ranks.ranks > 0).any(axis=1)]
    average = [100 * rule(ranks).mean() for rule in (metrics.average_precision, metrics.average_precision_trapezoid)]
    (share10, share50), (hit10, hit50) = found
    cells = (share10, hit10, share50, hit50, *average)
    return f"| {name.split('/')[1]} | {' | '.join(f'{value:.1f}' for value in cells)} |"


def collapsed(root: Path, seed: int) -> Iterator[str]:
    bench = data.load("genecis/change_object", root)
    one = np.ones((1, 1, 4), dtype=np.float32) / 2
    asked = Embeddings(tuple(q.id for q in bench.queries), np.repeat(one, len(bench.queries), axis=0))
    images = Embeddings(bench.gallery, np.repeat(one, len(bench.gallery), axis=0))
    outcome = rank_and_score(bench, PROTOCOLS["genecis"], asked, images)
    yield "\n**genecis/change_object, all vectors equal**\n"
    found = 100 * outcome.scores.values["R@1"].mean()
    yield f"R@1 {found:.2f}, {len(outcome.tied):,} queries tied (the released code gives 100)."


PARTS: tuple[Callable[[Path, int], Iterator[str]], ...] = (fashioniq, cirr, circo, domains, collapsed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=[part.__name__ for part in PARTS])
    options = parser.parse_args()
    for part in PARTS:
        if options.only in (None, part.__name__):
            try:
                for line in part(options.root, options.seed):
                    print(line, flush=True)
            except InputError as error:
                print(f"\n{part.__name__}: not here ({error})")


if __name__ == "__main__":
    main()
