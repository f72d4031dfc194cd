"""`cir train`: train, evaluate, record."""

from collections.abc import Sequence
from pathlib import Path

import typer

from cir import config as configs


def main(path: Path, overrides: Sequence[str], out: Path | None, smoke: bool, fresh: bool) -> None:
    """Train a run and evaluate it on the benchmarks it lists."""
    config = configs.load(path, overrides)
    config = configs.smoke(config) if smoke else config
    from cir import runs  # after the config is known to be right: torch takes seconds
    from cir.commands.show import show

    place = out if out is not None else runs.folder(config)
    backbone = runs.load_backbone(config)
    method, info = runs.train(config, backbone, place, resume=not fresh)
    if not runs.first_process():
        return
    if info.training is not None:
        typer.echo(f"trained {info.trained_count:,} parameters for {info.training.steps:,} steps, in {place}", err=True)
    if config.evaluate:
        found = runs.evaluate(config, backbone, method, info=info, out=place / "records")
        show([one.record for one in found])
