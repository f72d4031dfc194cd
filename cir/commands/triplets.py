"""`cir data triplets`: text triplets made of captions, by rules or by a language model."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import typer
from jaxtyping import Int64

from cir.errors import InputError
from cir.language import llm, templates, vocabulary
from cir.language.answers import Answers
from cir.language.client import Client
from cir.language.rules import Rules
from cir.language.writing import Outcome, Report, Target, finish, write


@dataclass(frozen=True)
class Model:
    """What `--llm` needs to know; the key comes from the environment alone."""

    endpoint: str
    name: str
    prompt: Path | None = None
    cache: Path | None = None
    concurrency: int = 8
    limit: int = 0
    temperature: float | None = None


@dataclass(frozen=True)
class Job:
    """Captions in the order they are taken, and what the file shall hold."""

    captions: Sequence[str]
    order: Int64[np.ndarray, " n"]
    fingerprint: str
    out: Path
    count: int
    seed: int
    per_caption: int
    overwrite: bool

    def target(self, **identity: Any) -> Target:
        """Describe the file, with what else its contents depend on."""
        known = {"captions": self.fingerprint, "seed": self.seed, "per_caption": self.per_caption, **identity}
        return Target(self.out, known, self.count, every=50 if "model" in identity else 2000)


def job(
    captions: str,
    out: Path,
    *,
    column: str = "",
    allow_bad: float = 0.0,
    count: int = 0,
    seed: int = 0,
    per_caption: int = 1,
    overwrite: bool = False,
) -> Job:
    """Open the captions and shuffle them by the seed."""
    from cir.data import captions as source

    if count < 0 or per_caption < 1:
        raise InputError(f"--count {count}, --per-caption {per_caption}: expected at least 0 and 1")
    if out.suffix.lower() not in (".jsonl", ".ndjson"):
        raise InputError(f"--out {out}: triplets are written as JSON Lines; name it {out.stem}.jsonl")
    if out.exists() and not overwrite:
        raise InputError(f"{out}: is there already; choose another name, or --overwrite")
    found = source.load(captions, column=column, allow_bad=allow_bad)
    order = np.random.default_rng(seed).permutation(len(found))
    return Job(found, order, found.fingerprint, out, count, seed, per_caption, overwrite)


def by_rules(job: Job, sentences: Path | None, words: Path | None, tagger: str) -> None:
    """Make triplets by rules and say what became of the captions."""
    from cir import keywords
    from cir.progress import track

    said, tags = templates.load(sentences), keywords.tagger(tagger)
    if words is None:
        most = min(len(job.captions), vocabulary.SAMPLE)
        read = (job.captions[int(number)] for number in islice(job.order, most))
        found = vocabulary.build(track(read, most, "reading words"), tags)
    else:
        found = vocabulary.load(words)
    rules = Rules(said, found, tags, job.seed)

    def made(report: Report) -> Iterator[Outcome]:
        for number in map(int, islice(job.order, report.captions, None)):
            yield number, *rules.rows(number, job.captions[number], job.per_caption)

    known = {"templates": _digest(said), "vocabulary": _digest(found.words), "tagger": tagger}
    target = job.target(**known, tagger_version=keywords.version(tags))
    report = write(target, len(job.captions), made, job.overwrite)
    finish(target, report)
    _tell(job.out, report)


def by_model(job: Job, model: Model) -> None:
    """Ask a language model for triplets and say what became of the captions."""
    prompt = llm.load_prompt(model.prompt)
    parameters = {} if model.temperature is None else {"temperature": model.temperature}
    if model.concurrency < 1 or model.limit < 0:
        raise InputError(f"--concurrency {model.concurrency}, --limit {model.limit}: expected at least 1 and 0")
    client = Client(model.endpoint, model.name, parameters, limit=model.limit)
    answers = Answers(model.cache or job.out.with_name(f"{job.out.name}.answers"))
    asker = llm.Asker(client, answers, prompt, job.captions, job.order, job.per_caption, model.concurrency)
    target = job.target(model=model.name, prompt=_digest(prompt), parameters=parameters)

    def made(report: Report) -> Iterator[Outcome]:
        return asker.outcomes(report.captions, max(0, job.count - report.triplets))

    try:
        report = write(target, len(job.captions), made, job.overwrite)
    finally:
        answers.close()
        client.close()
    finish(target, report, requests=client.sent, limited=asker.limited, damaged_answers=answers.damaged)
    _tell(job.out, report)
    typer.echo(f"  requests  {client.sent:,} sent; answers are kept in {answers.path}")
    if asker.limited:
        typer.echo(f"  limit     reached: {len(job.captions) - report.captions:,} captions were not asked about; "
                   "a higher --limit with --overwrite goes on from the answers")  # fmt: skip


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=list).encode()).hexdigest()[:16]


def _tell(out: Path, report: Report) -> None:
    """Say how many triplets there are, of which forms, and why captions gave none."""
    typer.echo(f"{out}: {report.triplets:,} triplets from {report.captions:,} captions")
    for form, count in sorted(report.forms.items()):
        typer.echo(f"  {form:<9} {count:,}")
    for why, count in report.none.most_common():
        typer.echo(f"  none      {count:,} captions: {why}")
