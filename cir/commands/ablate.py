"""`cir ablate`: expand a question into runs, run what has no record, write the answer."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from cir.ablation import naming, plan
from cir.ablation.plan import Ablation, Cell
from cir.errors import InputError, RunError, nearest
from cir.progress import clock

if TYPE_CHECKING:  # they bring torch, which takes seconds
    from cir.ablation.jobs import Job
    from cir.ablation.kept import Kept


def main(
    path: Path,
    dry_run: bool,
    jobs: int,
    launcher: str,
    slurm: Sequence[str],
    only: Sequence[str],
    smoke: bool,
    out: Path | None,
) -> None:
    """Run an ablation, or say what running it would mean."""
    if jobs < 0:
        raise InputError(f"--jobs {jobs}: expected a number of runs at a time")
    ablation = plan.read(path, smoke=smoke)
    cells = plan.expand(ablation)
    chosen = select(cells, only)
    from cir.ablation import jobs as work  # after the file is known to be right: torch takes seconds
    from cir.ablation.kept import Kept

    work.check(ablation, chosen)
    kept = Kept(ablation.benchmarks)
    todo = work.needed(chosen, kept)
    if dry_run:
        _say_plan(ablation, chosen, todo, kept, jobs or 1)
        return
    from cir.ablation import launch
    from cir.ablation.run import keep_settings, run

    if launcher == "local" and slurm:
        raise InputError("--slurm: only with --launcher slurm")
    if todo:
        started = launch.Local(jobs or 1) if launcher == "local" else launch.Cluster(ablation.folder, slurm, jobs)
        run(todo, kept, started)
    keep_settings(ablation, cells, kept)
    _write(ablation, cells, kept, out)
    failed = [job for job in todo if job.state == "failed"]
    if failed:
        told = "; ".join(f"{job}: {job.why}, see {job.log}" for job in failed)
        raise RunError(f"{len(failed)} of {len(todo)} runs failed: {told}")


def select(cells: Sequence[Cell], only: Sequence[str]) -> list[Cell]:
    """Keep the cells that are named, as printed or as their folders are; all where none is."""
    names = {cell.name: cell.name for cell in cells} | {naming.slug(cell.name): cell.name for cell in cells}
    for wanted in only:
        if wanted not in names:
            raise InputError(f"--only {wanted!r}: no such cell; {nearest(wanted, {cell.name for cell in cells})}")
    chosen = {names[wanted] for wanted in only}
    return [cell for cell in cells if not chosen or cell.name in chosen]


def _say_plan(ablation: Ablation, cells: Sequence[Cell], todo: "Sequence[Job]", kept: "Kept", lanes: int) -> None:
    """Print what there is, what would run, and what that will cost as far as earlier records say."""
    from cir.ablation.estimate import seconds

    typer.echo(f"{ablation.question}\n{_counted(ablation, cells, todo)}")
    known, total, unknown = list(kept.records.values()), 0.0, 0
    waiting = {job.folder: job for job in todo}
    there = [cell for cell in cells if cell.folder not in waiting]
    for cell in there:
        places = sorted({str(path.parent) for path, _ in kept.of(cell).values()})
        typer.echo(f"  {cell.name}, seed {cell.seed}: has its records, in {', '.join(places)}")
    for job in todo:
        cost = seconds(job, known)
        total, unknown = total + (cost or 0.0), unknown + (cost is None)
        done, steps = job.steps_done()[0], job.config.train.steps
        resumed = f" from step {done:,} of {steps:,}" if job.learns and done else ""
        typer.echo(f"  {job}: would run{resumed}, {'cost unknown' if cost is None else f'about {clock(cost)}'}")
    if todo:
        left_out = f", without {unknown} of unknown cost" if unknown else ""
        share = f", {clock(total / lanes)} with {lanes} at a time" if lanes > 1 else ""
        typer.echo(f"estimated: {clock(total)}{share}{left_out}; nothing was run or written")


def _counted(ablation: Ablation, cells: Sequence[Cell], todo: "Sequence[Job]") -> str:
    """Sum the plan up in a line."""
    bases = sum(job.cell is None for job in todo)
    under = f", and {bases} that they stand on" if bases else ""
    runs = len(todo) - bases
    names = len({cell.name for cell in cells})
    return (
        f"{names} cells, {len(ablation.seeds)} seeds: {len(cells)} runs, {len(cells) - runs} have their records, "
        f"{runs} would run{under}"
    )


def _write(ablation: Ablation, cells: Sequence[Cell], kept: "Kept", out: Path | None) -> None:
    """Write the answer from the records there are, and print it."""
    from cir.ablation.write import write

    files = write(ablation, cells, kept.current(cells), out if out is not None else ablation.folder)
    shown = next(file for file in files if file.name == "answer.md")
    typer.echo(shown.read_text(encoding="utf-8"))
    typer.echo(f"written: {', '.join(map(str, files))}", err=True)
