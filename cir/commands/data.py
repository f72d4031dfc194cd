"""`cir data`: benchmarks on disk, what was found and what is missing."""

from pathlib import Path
from typing import Annotated

import typer

from cir.commands.shell import SETTINGS, command

app = typer.Typer(help="Benchmarks on disk: what was found, what is missing.", **SETTINGS)

Name = Annotated[str, typer.Argument(help="For example cirr/val or fashioniq/val.")]
Root = Annotated[Path, typer.Option(help="Folder that holds the datasets, or the dataset itself.")]


@command(app, "show", "cir data show cirr/val --root /data")
def show(
    benchmark: Name,
    root: Root = Path("datasets"),
    allow_missing: Annotated[bool, typer.Option("--allow-missing", help="Show partial data too.")] = False,
) -> None:
    """Show what a benchmark holds and where it lies; no image is opened."""
    from cir import data

    for name in data.expand(benchmark):
        found = data.load(name, root, allow_missing=allow_missing)
        labels = "" if found.labelled else ", labels hidden"
        typer.echo(f"{found.name}  {len(found.queries):,} queries{labels}, gallery of {len(found.gallery):,} images")
        typer.echo(f"  root      {found.root}")
        typer.echo(f"  version   {found.version}, fingerprint {found.fingerprint}")
        others = [rule for rule in data.find(name).protocols if rule != found.protocol]
        typer.echo(f"  protocol  {found.protocol}" + (f" (also: {', '.join(others)})" if others else ""))
        for query in found.queries[:1]:
            where = found.paths.get(query.reference, "no file known")
            typer.echo(f"  first     {query.id}: {query.reference} ({where}), {' | '.join(query.texts)!r}")
        for note in found.notes:
            typer.echo(f"  note      {note}")
        for stamp in found.stamps:
            typer.echo(f"  stamp     {stamp}")
        typer.echo(f"  manual    {data.origin(name).page}")


@command(
    app,
    "check",
    "cir data check circo/val --root /data",
    "cir data check fashioniq --root /data --json report.json",
    "cir data check cirr/val --root /downloads --fix-layout /data",
)
def check(
    benchmark: Annotated[str, typer.Argument(help="A benchmark, group or dataset: cirr/val, fashioniq/val, cirr.")],
    root: Root = Path("datasets"),
    protocol: Annotated[str, typer.Option(help="One of the benchmark's (`cir list benchmarks`).")] = "",
    decode: Annotated[bool, typer.Option("--decode", help="Decode every pixel, not only header and end.")] = False,
    json: Annotated[str, typer.Option(help="Write the report as JSON to this file; - for the terminal.")] = "",
    fix_layout: Annotated[
        Path | None, typer.Option(help="New folder for links in the official layout; nothing is moved.")
    ] = None,
    cache: Annotated[Path, typer.Option(help="Where looks at files are kept.")] = Path(".cache/doctor"),
    fresh: Annotated[bool, typer.Option("--fresh", help="Look at every file again.")] = False,
) -> None:
    """Say what of a benchmark is here, missing, corrupt or misplaced, and what to do; exit code 2 if anything is."""
    from cir.commands.check import main

    main(benchmark, root, protocol, decode, json, fix_layout, cache, fresh)


@command(app, "ids", "cir data ids circo/val --root /data --out ids.json")
def ids(
    benchmark: Annotated[str, typer.Argument(help="For example cirr/val; one of a group such as fashioniq/val.")],
    root: Root = Path("datasets"),
    protocol: Annotated[str, typer.Option(help="One of the benchmark's (`cir list benchmarks`).")] = "",
    out: Annotated[Path | None, typer.Option(help="File to write; default the terminal.")] = None,
    allow_missing: Annotated[bool, typer.Option("--allow-missing", help="Go on with partial data; stamps.")] = False,
) -> None:
    """Write the ids, texts and files that vectors for `cir score` are made of, as JSON."""
    from cir.commands.ids import main

    main(benchmark, root, protocol, out, allow_missing)


@command(app, "mask", "cir data mask coco --root /data")
def mask(
    dataset: Annotated[str, typer.Argument(help="coco.")],
    root: Root = Path("datasets"),
    workers: Annotated[int, typer.Option(min=0, help="Pictures at once, 0 for one per core.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Write pictures anew that are there.")] = False,
) -> None:
    """Write the object pictures of COCO composition from COCO's own annotations; an interrupted run goes on."""
    from cir.commands.mask import main

    main(dataset, root, workers, overwrite)


@command(
    app,
    "new",
    "cir data new holiday --queries queries.jsonl --images photos",
    "cir data new holiday --queries queries.jsonl --images photos --gallery pictures.txt --overwrite",
)
def new(
    name: Annotated[str, typer.Argument(help="What to call it; the benchmark is custom/NAME.")],
    queries: Annotated[Path, typer.Option(help="JSON lines with reference, text, targets; docs/benchmarks/custom.md.")],
    images: Annotated[Path, typer.Option(help="Folder of the pictures; they stay there.")],
    gallery: Annotated[Path | None, typer.Option(help="Pictures that compete, one a line; default: all.")] = None,
    root: Root = Path("datasets"),
    remove_reference: Annotated[bool, typer.Option("--remove-reference", help="References do not compete.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a benchmark that is there.")] = False,
) -> None:
    """Make a benchmark of your own pictures and queries; every line is checked first."""
    from cir.commands.custom import main

    main(name, queries, images, gallery, root, remove_reference, overwrite)


@command(
    app,
    "triplets",
    "cir data triplets captions.txt --out triplets.jsonl --per-caption 2",
    "cir data triplets captions.txt --out triplets.jsonl --llm --endpoint http://localhost:8000/v1 --model NAME",
)
def triplets(
    captions: Annotated[str, typer.Argument(help="Captions: a file or folder of .txt, .jsonl, .tsv, .csv, .parquet.")],
    out: Annotated[Path, typer.Option(help="File to write, .jsonl.")],
    column: Annotated[str, typer.Option(help="Key or column of the captions.")] = "",
    allow_bad: Annotated[float, typer.Option(help="Share of lines that may hold no caption.")] = 0.0,
    count: Annotated[int, typer.Option(help="Triplets wanted, 0 for all that the captions give.")] = 0,
    seed: Annotated[int, typer.Option(help="Seed of the captions' order and of the edits.")] = 0,
    per_caption: Annotated[int, typer.Option(help="Most triplets of one caption.")] = 1,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")] = False,
    sentences: Annotated[Path | None, typer.Option("--templates", help="Sentences, as 'form: sentence'.")] = None,
    words: Annotated[Path | None, typer.Option("--vocabulary", help="Words to put in, as 'kind: word'.")] = None,
    tagger: Annotated[str, typer.Option(help="Finds noun phrases: builtin or spacy.")] = "builtin",
    llm: Annotated[bool, typer.Option("--llm", help="Ask a language model instead of applying rules.")] = False,
    endpoint: Annotated[str, typer.Option(help="Base address of a chat-completions endpoint.")] = "",
    model: Annotated[str, typer.Option(help="Model to ask; the key is read from OPENAI_API_KEY.")] = "",
    prompt: Annotated[Path | None, typer.Option(help="Question with {caption} and {count}.")] = None,
    cache: Annotated[Path | None, typer.Option(help="File of raw answers; default OUT.answers.")] = None,
    concurrency: Annotated[int, typer.Option(help="Questions open at once.")] = 8,
    limit: Annotated[int, typer.Option(help="Most requests sent, retries included; 0 for no limit.")] = 0,
    temperature: Annotated[float | None, typer.Option(help="Sent along where given.")] = None,
) -> None:
    """Make text triplets of captions: by rules, or by a language model; an interrupted run goes on."""
    from cir.commands import triplets as made

    job = made.job(
        captions, out, column=column, allow_bad=allow_bad, count=count, seed=seed, per_caption=per_caption,
        overwrite=overwrite,
    )  # fmt: skip
    if llm:
        made.by_model(job, made.Model(endpoint, model, prompt, cache, concurrency, limit, temperature))
    else:
        made.by_rules(job, sentences, words, tagger)


@command(
    app,
    "source",
    "cir data source captions.jsonl",
    "cir data source 'cc3m/{00000..00331}.tar' --kind images",
    "cir data source train.tsv --kind images --images cc_data",
    "cir data source cirr/train --kind image_triplets --root /data",
)
def source(
    path: Annotated[
        str, typer.Argument(help="A file, a folder, shards, hf:NAME or a split; docs/training-data.md lists them.")
    ],
    kind: Annotated[str, typer.Option(help="captions, images, triplets or image_triplets.")] = "captions",
    root: Root = Path("datasets"),
    images: Annotated[str, typer.Option(help="Folder that a table's image paths are relative to.")] = "",
    column: Annotated[str, typer.Option(help="Column of the captions, or its number.")] = "",
    limit: Annotated[int, typer.Option(min=0, help="Take the first rows only, 0 for all.")] = 0,
    allow_bad: Annotated[
        float, typer.Option(min=0, max=1, help="Share that may be unusable; for images every picture is decoded.")
    ] = 1.0,
    cache: Annotated[Path, typer.Option(help="Feature cache, where indexes are kept.")] = Path(".cache/features"),
) -> None:
    """Show what a training source holds: format, count, what is bad or blank, fingerprint, first sample."""
    from cir.data import source as sources

    keep = cache / "sources"
    found = sources.load(
        kind, path, images=images, column=column, limit=limit, allow_bad=allow_bad, keep=keep, root=root
    )
    typer.echo(f"{path}  {len(found):,} {kind}")
    typer.echo(f"  format       {getattr(found, 'format', 'triplets')}")
    typer.echo(f"  bad          {sources.told(found.bad)}")
    if hasattr(found, "blank"):
        typer.echo(f"  blank        {found.blank:,}")
    if getattr(found, "blocks", ()):
        typer.echo(f"  blocks       {len(found.blocks):,}, of {min(found.blocks):,} to {max(found.blocks):,} rows")
    typer.echo(f"  fingerprint  {found.fingerprint}")
    typer.echo(f"  first        {sources.sample(kind, found)}")


@command(app, "plus", "cir data plus captions.json --layout cirr --out cap.rc2.train.extend_llava.json")
def plus(
    captions: Annotated[Path, typer.Argument(help="JSON object of captions by image id.")],
    out: Annotated[Path, typer.Option(help="Annotation file to write.")],
    layout: Annotated[str, typer.Option(help="cirr or fashioniq.")] = "cirr",
    features: Annotated[Path | None, typer.Option(help="npz of ids and vectors: draw partners by similarity.")] = None,
    first: Annotated[int, typer.Option(min=0, help="First place of the ranking to draw from.")] = 10_000,
    last: Annotated[int, typer.Option(min=0, help="Place behind the last one.")] = 15_000,
    count: Annotated[int, typer.Option(min=0, help="Keep so many at random, 0 for all.")] = 0,
    seed: int = 42,
) -> None:
    """Make further training triplets of captioned pictures (SPN's scaled positives)."""
    from cir.data import scaled_positives
    from cir.score import aligned, read_vectors

    said = scaled_positives.read_captions(captions)
    vectors = None if features is None else aligned(*read_vectors(features), list(said), str(features)).vectors[:, 0]
    rows = scaled_positives.make(said, layout, features=vectors, window=(first, last), count=count, seed=seed)
    scaled_positives.write(out, rows)
    typer.echo(f"wrote {out}: {len(rows):,} triplets")
