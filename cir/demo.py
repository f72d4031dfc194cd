"""`cir demo`: the bundled world, two adapters trained on text, the baselines and bounds beside them, the report.

Everything it makes is kept and used again: the world, features, checkpoints and records whose settings, weights and
data are unchanged.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import typer

from cir import config as configs
from cir import data, evaluate, methods, records, retrieval, runs
from cir.backbones.base import Backbone
from cir.backbones.cache import FeatureCache
from cir.config import RunConfig
from cir.errors import InputError
from cir.evaluate import Evaluation
from cir.methods.base import Method
from cir.records import MethodInfo, Record
from cir.report import comparison, tables
from cir.train.folder import Folder
from cir.world import commands, oracles

HOME = Path(__file__).parents[1]
if HOME == Path.cwd():
    HOME = Path()  # records then name places relative to the clone, not this machine's folders
BASELINES = ("image_only", "text_only", "sum", "product", "slerp")
TRAINED = ("lincir", "rtd")
LABELS = {"lincir": "lincir", "rtd": "lincir+rtd"}
SHOWN = (
    "world/fashioniq/val:R@10", "world/fashioniq/val:R@50", "world/cirr/val:R@1", "world/cirr/val:R@5",
    "world/cirr/val:Rs@1", "world/circo/val:mAP@5", "world/circo/val:mAP@10",
)  # fmt: skip
HEADLINES = {"world/fashioniq/val": "R@10", "world/cirr/val": "R@1", "world/circo/val": "mAP@5"}


@dataclass(frozen=True)
class Row:
    """One row of the demo's table."""

    config: RunConfig
    method: Method
    info: MethodInfo | None


def run(out: Path, seed: int = 0, smoke: bool = False) -> None:
    """Do everything `make demo` promises; `out` receives checkpoints, records, tables and the report."""
    started = time.perf_counter()
    world = out / "world" if smoke else HOME / "datasets" / "world"
    commands.build(world, seed=0, size="small" if smoke else "full", train=False)
    settings = {name: _config(name, out, world, seed, smoke) for name in TRAINED}
    backbone = runs.load_backbone(settings["lincir"])
    _encode(settings["lincir"], backbone)
    rows = [_baseline(name, settings["lincir"], backbone) for name in BASELINES]
    rows += [_trained(name, settings[name], backbone, out) for name in TRAINED]
    found: list[Evaluation] = []
    for row in rows:
        found += _evaluate(row.config, row.method, row.info, backbone, out)
    found += _bounds(settings["lincir"], backbone, out)
    listed = [one.record for one in found]
    _write_tables(listed, out)
    page = _report(found, settings["rtd"], backbone, out)
    typer.echo(f"report: {page}\ntables: {out / 'table.md'} (.tex, .csv)")
    typer.echo(f"{time.perf_counter() - started:.0f} s")


def _config(name: str, out: Path, world: Path, seed: int, smoke: bool) -> RunConfig:
    """Read a run of the demo, moved to its folders."""
    path = HOME / "experiments" / "runs" / f"{name}_world.yaml"
    if not path.exists():
        raise InputError(f"{path}: not found; the demo runs from a clone of the project, not from an installed package")
    source = world / "corpus" / ("captions.txt" if name == "lincir" else "triplets.jsonl")
    base = [f"base={out / 'lincir' / f'seed-{seed}'}"] if name == "rtd" else []
    config = configs.load(
        path,
        [
            f"name={LABELS[name]}", f"seed={seed}", f"data.root={world}", f"train.source={source}",
            f"backbone.name={HOME / 'checkpoints' / 'tiny-clip'}", *base,
        ],
    )  # fmt: skip
    if smoke:
        config = configs.smoke(config)
        config.name = LABELS[name]  # its records are stamped; the rows keep their names
    return config


def _baseline(name: str, like: RunConfig, backbone: Backbone) -> Row:
    """Set up a row that needs no training."""
    config = configs.load(
        None,
        [
            f"name={name}", f"method.name={name}", f"backbone.name={like.backbone.name}", f"data.root={like.data.root}",
            f"backbone.attention={like.backbone.attention}", f"data.subset={like.data.subset}",
        ],
    )  # fmt: skip
    config.smoke, config.evaluate = like.smoke, list(like.evaluate)
    return Row(config, methods.build(name, {}, backbone), None)


def _trained(name: str, config: RunConfig, backbone: Backbone, out: Path) -> Row:
    """Train a row, or load what an earlier demo trained with the same settings."""
    place = out / name / f"seed-{config.seed}"
    snapshots = Folder(place).steps()
    kept = bool(snapshots) and snapshots[-1].name == f"step-{config.train.steps:08d}"
    method, info = runs.train(config, backbone, place)
    steps = info.training.steps if info.training else 0
    typer.echo(f"{'kept' if kept else 'trained'} {config.name}: {info.trained_count:,} parameters, {steps:,} steps")
    return Row(config, method, info)


def _encode(like: RunConfig, backbone: Backbone) -> None:
    """Encode every picture once, or find it in the cache, and say which."""
    cache = FeatureCache(Path(like.backbone.cache))
    pictures = 0
    for group in like.evaluate:
        for name in data.expand(group):
            benchmark = retrieval.load_benchmark(like, name)
            retrieval.encode(benchmark, like, backbone, cache=cache)
            pictures += len(benchmark.paths)
    typer.echo(f"features of {pictures:,} pictures: {cache.counters.decoded:,} pictures decoded, the rest was cached")


def _evaluate(
    config: RunConfig, method: Method, info: MethodInfo | None, backbone: Backbone, out: Path
) -> list[Evaluation]:
    """Evaluate one row on the three benchmarks and write its records."""
    return runs.evaluate(config, backbone, method, info=info, out=out / "records" / config.name, progress=True)


def _bounds(like: RunConfig, backbone: Backbone, out: Path) -> list[Evaluation]:
    """Evaluate the rows that know the right caption; they bound the table and are no methods."""
    found: list[Evaluation] = []
    for name in oracles.ORACLES:
        for group in like.evaluate:
            parts = [data.load(part, Path(like.data.root)).root for part in data.expand(group)]
            row = _baseline("text_only", like, backbone)
            row.config.name = name
            oracle = oracles.Oracle(backbone, name, oracles.read(parts[0]))
            info = evaluate.describe(oracle)
            found += runs.evaluate(row.config, backbone, oracle, [group], info=info, out=out / "records" / name)
    return found


def _write_tables(listed: Sequence[Record], out: Path) -> None:
    """Print the table, and write it as Markdown, LaTeX and CSV."""
    table = tables.build(listed, SHOWN)
    records.replace_file(out / "table.md", tables.markdown(table).encode())
    records.replace_file(out / "table.tex", tables.latex(table).encode())
    records.replace_file(out / "table.csv", tables.csv_text(table).encode())
    typer.echo(tables.markdown(table))


def _report(found: Sequence[Evaluation], config: RunConfig, backbone: Backbone, out: Path) -> Path:
    """Draw pages of the trained rows, and the overview with paired tests against every other row."""
    current = {one.record.fingerprint for one in found}  # an earlier demo's records may lie beside them
    kept = {path: record for path, record in records.find([out / "records"]).items() if record.fingerprint in current}
    ours = {path: record for path, record in kept.items() if record.run == LABELS["rtd"]}
    compared: list[comparison.Row] = []
    for other in (*BASELINES, LABELS["lincir"]):
        theirs = {path: record for path, record in kept.items() if record.run == other}
        for path, record in ours.items():
            if record.benchmark.name in HEADLINES:
                metric = [HEADLINES[record.benchmark.name]]
                compared += comparison.compare({path: record}, theirs, metric)
    pages = [one for one in found if one.record.run in LABELS.values()]
    every = [one.record for one in found]  # in the table's order
    return runs.report(pages, out / "report", config, backbone, others=every, comparisons=compared, limit=500)
