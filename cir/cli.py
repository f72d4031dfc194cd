"""The `cir` command: the sole parser of argv. What a command needs is imported when it runs.

Exit codes: 0 done, 1 the run failed, 2 the input is at fault (one line on stderr), 130 interrupted.
"""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from cir.commands import data as data_commands
from cir.commands import records as records_commands
from cir.commands import world as world_commands
from cir.commands.shell import SETTINGS, command, example

app = typer.Typer(**SETTINGS)
app.add_typer(world_commands.app, name="world")
app.add_typer(data_commands.app, name="data")
app.add_typer(records_commands.app, name="records")

START = (
    "cir demo",
    "cir list methods",
    "cir evaluate --method sum --backbone openai/clip-vit-base-patch32 --data datasets cirr/val",
)


@app.callback(invoke_without_command=True, epilog=example(*START))
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)] = False,
) -> None:
    """Composed image retrieval: train adapters, evaluate them, trust the numbers."""
    if version:
        import cir

        typer.echo(cir.__version__)
        raise typer.Exit


@command(app, "demo", "cir demo --out runs/demo")
def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything the demo makes.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(help="Seed of the training runs.")] = 0,
    smoke: Annotated[
        bool, typer.Option("--smoke", help="Shrink everything to seconds; the numbers mean nothing.")
    ] = False,
) -> None:
    """Build the world, train two adapters on text, evaluate them against the baselines, draw the report."""
    from cir.demo import run

    run(out, seed=seed, smoke=smoke)


@command(app, "train", "cir train experiments/forkme.yaml train.lr=3e-4 seed=1")
def train(
    config: Annotated[Path, typer.Argument(help="YAML of the run; experiments/forkme.yaml is the one to copy.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, dotted: train.steps=100")] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; default runs/NAME/seed-SEED.")] = None,
    smoke: Annotated[bool, typer.Option("--smoke", help="A few small steps and queries; stamps the records.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over instead of resuming.")] = False,
) -> None:
    """Train a method, then evaluate it on the benchmarks its config lists; resumes by itself."""
    from cir.commands.train import main

    main(config, overrides or [], out, smoke, fresh)


@command(
    app,
    "evaluate",
    "cir evaluate experiments/forkme.yaml circo/val --report report",
    "cir evaluate runs/lincir/seed-0/checkpoint cirr/val data.root=/data",
    "cir evaluate --method sum --backbone openai/clip-vit-large-patch14 --data /data circo/val",
)
def evaluate(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[CONFIG|CHECKPOINT] [BENCHMARK]... [KEY=VALUE]...",
            help="A run's YAML or a checkpoint folder, benchmarks such as cirr/val, overrides.",
        ),
    ] = None,
    method: Annotated[str, typer.Option(help="A method without training, in place of a config.")] = "",
    backbone: Annotated[str, typer.Option(help="Hub id or folder of the encoders.")] = "",
    data: Annotated[Path | None, typer.Option(help="Folder that holds the datasets.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the records; default runs/NAME/seed-SEED/records.")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Folder for HTML pages of the rankings.")] = None,
    smoke: Annotated[bool, typer.Option("--smoke", help="A few queries only; stamps the records.")] = False,
    rankings: Annotated[bool, typer.Option("--rankings", help="Keep each query's first 50 images too.")] = False,
) -> None:
    """Evaluate a run, a checkpoint or a baseline, and write a record per benchmark."""
    from cir.commands.evaluate import main

    main(arguments or [], method, backbone, data, out, report, smoke, rankings)


@command(app, "score", "cir score circo/val --data /data --queries q.npz --gallery g.npz --json scores.json")
def score(
    benchmark: Annotated[str, typer.Argument(help="For example cirr/val, circo/val, fashioniq/dress/val.")],
    queries: Annotated[Path, typer.Option(help="npz with arrays `ids` (query ids) and `vectors`.")],
    gallery: Annotated[Path, typer.Option(help="npz with arrays `ids` (image ids) and `vectors`.")],
    data: Path = Path("datasets"),
    json: Annotated[Path | None, typer.Option(help="Write scores with intervals here.")] = None,
    protocol: Annotated[
        str, typer.Option(help="One of the benchmark's (`cir list protocols`); default the papers'.")
    ] = "",
    fashioniq_gallery: Annotated[
        str, typer.Option(help="Short for --protocol fashioniq/...: original or val-union.")
    ] = "",
    allow_missing: Annotated[bool, typer.Option("--allow-missing", help="Go on with partial data; stamps.")] = False,
) -> None:
    """Score vectors made by anybody, with anything."""
    from cir.commands.score import main

    rule = protocol or (f"fashioniq/{fashioniq_gallery}" if fashioniq_gallery else "")
    main(benchmark, data, queries, gallery, json, rule, allow_missing)


@command(app, "export", "cir export runs/clip_finetune_world/seed-0 checkpoints/tiny-clip-cirr")
def export(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint or run folder of clip_finetune, or the run's YAML.")],
    out: Annotated[Path, typer.Argument(help="Folder to make.")],
    backbone: Annotated[str, typer.Option(help="Where the backbone it was trained on lies, if elsewhere now.")] = "",
) -> None:
    """Write a fine-tuned CLIP as a Hugging Face folder, for every other method and for plain transformers."""
    from cir.commands.export import main

    main(checkpoint, out, backbone)


@command(
    app,
    "submit",
    "cir submit cirr runs/lincir/seed-0 --data /data",
    "cir submit circo --method sum --backbone openai/clip-vit-large-patch14 --data /data",
    "cir submit circo --queries q.npz --gallery g.npz --data /data",
    "cir submit --validate circo_test.json --data /data",
)
def submit(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[cirr|circo] [CONFIG|CHECKPOINT] [KEY=VALUE]...",
            help="Whose server, then as for `cir evaluate`: a run's YAML or a checkpoint folder, overrides.",
        ),
    ] = None,
    method: Annotated[str, typer.Option(help="A method without training, in place of a config.")] = "",
    backbone: Annotated[str, typer.Option(help="Hub id or folder of the encoders.")] = "",
    data: Annotated[Path | None, typer.Option(help="Folder that holds the datasets.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the files; default runs/NAME/seed-SEED/submissions, or submissions.")
    ] = None,
    split: Annotated[str, typer.Option(help="test or val; a file to check tells by itself.")] = "",
    queries: Annotated[Path | None, typer.Option(help="npz of query vectors, in place of a method.")] = None,
    gallery: Annotated[Path | None, typer.Option(help="npz of image vectors.")] = None,
    validate: Annotated[Path | None, typer.Option(help="Check this file instead, whoever wrote it.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the check as JSON.")] = False,
) -> None:
    """Write the files that CIRR's and CIRCO's test servers take, or say what is wrong with one."""
    from cir.commands.submit import main, validated

    if validate is not None:
        validated(validate, arguments or [], data, split, json)
    else:
        main(arguments or [], method, backbone, data, out, split, queries, gallery, json)


@command(
    app,
    "import",
    "cir import auto SEARLE_ViT-B32.pt --out checkpoints/searle-b32",
    "cir import rtd text_encoder_best.pt --base checkpoints/lincir-l14 --out checkpoints/rtd-l14",
    "cir import clip4cir tuned_clip_best.pt --out checkpoints/clip4cir-rn50x4",
    "cir import lavis blip2_pretrained.pth --vision eva_vit_g.pth --out checkpoints/blip2-g",
    "cir import sprc sprc_cirr.pt --out checkpoints/sprc-cirr",
)
def import_(
    format: Annotated[
        str,
        typer.Argument(
            help="auto, searle, lincir, phi, pic2word, context-i2w, rtd, clip4cir, clip, lavis, sprc, spn, oti, phrases"
        ),
    ],
    file: Annotated[Path, typer.Argument(help="The published file; for oti, the folder.")],
    out: Annotated[Path, typer.Option(help="Folder to make.")],
    backbone: Annotated[str, typer.Option(help="Hub id or folder of the encoders, where it cannot be told.")] = "",
    preprocess: Annotated[str, typer.Option(help="clip or targetpad; default: what the authors used.")] = "",
    base: Annotated[Path | None, typer.Option(help="For rtd: folder of the projector the tower goes with.")] = None,
    tokenizer: Annotated[
        str, typer.Option(help="For encoders: folder or hub id of their tokenizer; default: OpenAI's, or BERT's.")
    ] = "",
    vision: Annotated[
        Path | None, typer.Option(help="For lavis: file of the vision tower, where FILE holds none.")
    ] = None,
) -> None:
    """Import a published checkpoint, without running anything in it; `cir.load` and `cir evaluate` take the result."""
    from cir.commands.import_ import main

    main(format, file, out, backbone, preprocess, base, tokenizer, vision)


@command(
    app,
    "table",
    "cir table runs --metric R@10 --metric circo/val:mAP@5 --format latex",
    "cir table world --check",
    "cir table experiments/tables/lincir_fashioniq.yaml --records runs",
)
def table(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="[FOLDER|RECORD]... | TABLE...",
            help="Record files or folders of them; or tables of papers: YAML files, or names in experiments/tables.",
        ),
    ],
    format: Annotated[Literal["md", "latex", "csv"], typer.Option(help="What to write.")] = "md",
    metric: Annotated[list[str] | None, typer.Option(help="Columns, R@10 or cirr/val:R@10; repeatable.")] = None,
    cost: Annotated[bool, typer.Option("--cost", help="Add training time, memory and parameters.")] = False,
    intervals: Annotated[bool, typer.Option(help="Show 95 % intervals.")] = True,
    out: Annotated[Path | None, typer.Option(help="Write here instead of to the terminal.")] = None,
    check: Annotated[
        bool, typer.Option("--check", help="For a paper's table: exit 1 where a number of ours differs.")
    ] = False,
    records: Annotated[
        list[Path] | None, typer.Option(help="For a paper's table: folders of our records; repeatable.")
    ] = None,
) -> None:
    """Tabulate records, best in bold, footnotes below; or ours beside a paper's table, with a verdict per cell."""
    from cir.commands.table import main

    main(paths, format, metric or [], intervals, out, cost, check, records or [])


@command(app, "compare", "cir compare runs/rtd/seed-0/records runs/sum/seed-0/records --metric R@10")
def compare(
    ours: Annotated[Path, typer.Argument(help="Record, or folder of records, of one run.")],
    theirs: Annotated[Path, typer.Argument(help="Record, or folder of records, of the other.")],
    metric: Annotated[list[str] | None, typer.Option(help="Metrics to compare; default: each headline.")] = None,
) -> None:
    """Compare two runs query by query: difference with interval, won, tied, lost, and a paired test."""
    from cir.commands.table import compare

    compare(ours, theirs, metric or [])


@command(
    app,
    "ablate",
    "cir ablate experiments/ablations/QUESTION.yaml --dry-run",
    "cir ablate experiments/ablations/QUESTION.yaml --jobs 2",
    "cir ablate experiments/ablations/QUESTION.yaml --launcher slurm --slurm partition=gpu --slurm gpus=1",
)
def ablate(
    file: Annotated[Path, typer.Argument(help="The question: a base, what varies, seeds, what to show.")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would run and what it costs; run nothing.")
    ] = False,
    jobs: Annotated[
        int,
        typer.Option(help="Runs at a time, which share the cores; default 1, on a cluster all.", show_default=False),
    ] = 0,
    launcher: Annotated[
        Literal["local", "slurm"], typer.Option(help="Processes here, or jobs of a cluster.")
    ] = "local",
    slurm: Annotated[
        list[str] | None,
        typer.Option(
            help="key=value: partition, gpus, cpus, mem_gb, time (minutes), account, qos, constraint; repeatable."
        ),
    ] = None,
    only: Annotated[list[str] | None, typer.Option(help="Run this cell only, by name; repeatable.")] = None,
    smoke: Annotated[bool, typer.Option("--smoke", help="Shrink every run to seconds; stamps the records.")] = False,
    out: Annotated[Path | None, typer.Option(help="Folder for the answer; default runs/ablations/NAME.")] = None,
) -> None:
    """Ask a question: run the cells that have no record yet, write tables, plot and statistics; resumes by itself."""
    from cir.commands.ablate import main

    main(file, dry_run, jobs, launcher, slurm or [], only or [], smoke, out)


@command(
    app,
    "compare-protocols",
    "cir compare-protocols runs/lincir/seed-0 cirr/val",
    "cir compare-protocols --method sum --backbone openai/clip-vit-base-patch32 --data /data fashioniq/val",
    "cir compare-protocols cirr/val --data /data --queries q.npz --gallery g.npz --json protocols.json",
)
def compare_protocols(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[CONFIG|CHECKPOINT] [BENCHMARK]... [KEY=VALUE]...",
            help="As for `cir evaluate`; without a benchmark, those of the config.",
        ),
    ] = None,
    method: Annotated[str, typer.Option(help="A method without training, in place of a config.")] = "",
    backbone: Annotated[str, typer.Option(help="Hub id or folder of the encoders.")] = "",
    data: Annotated[Path | None, typer.Option(help="Folder that holds the datasets.")] = None,
    queries: Annotated[Path | None, typer.Option(help="npz of query vectors, in place of a method.")] = None,
    gallery: Annotated[Path | None, typer.Option(help="npz of image vectors; may hold more than one gallery.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write the comparison here.")] = None,
) -> None:
    """Score one model under every protocol of a benchmark: how far the rule alone moves the number."""
    from cir.commands.compare_protocols import main

    main(arguments or [], method, backbone, data, queries, gallery, json)


@command(app, "list", "cir list methods")
def listing(
    what: Annotated[
        Literal["all", "methods", "benchmarks", "protocols", "backbones"], typer.Argument(help="What to list.")
    ] = "all",
) -> None:
    """List methods, benchmarks, protocols and backbones."""
    from cir.commands.listing import main

    main(what)


def main() -> None:
    """Run the command line."""
    sys.exit(app())
