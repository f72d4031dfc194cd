"""`cir evaluate`: a run, a checkpoint or a baseline on benchmarks."""

from collections.abc import Sequence
from pathlib import Path

import typer

from cir import config as configs
from cir import runs
from cir.backbones.base import Backbone
from cir.commands.show import show
from cir.config import RunConfig
from cir.errors import InputError
from cir.methods import METHODS, checkpoint
from cir.methods.base import Method
from cir.records import MethodInfo


def main(
    arguments: Sequence[str],
    method: str,
    backbone: str,
    data: Path | None,
    out: Path | None,
    report: Path | None,
    smoke: bool,
    rankings: bool = False,
) -> None:
    """Evaluate what the arguments name, write records, print the numbers."""
    config, trained, names = asked(arguments, method, backbone, data)
    config = configs.smoke(config) if smoke else config
    loaded, built, info = model(config, trained)
    found = runs.evaluate(config, loaded, built, names or None, info=info, out=out, rankings=rankings)
    show([one.record for one in found])
    if report is not None:
        typer.echo(f"rankings: {runs.report(found, report, config, loaded)}", err=True)


def asked(
    arguments: Sequence[str], method: str, backbone: str, data: Path | None
) -> tuple[RunConfig, Path | None, list[str]]:
    """Find the configuration, the checkpoint if it is of a trained method, and the benchmarks that are named."""
    target, names, overrides = sort_out(arguments)
    options = [f"backbone.name={backbone}"] if backbone else []
    options += [f"data.root={data}"] if data is not None else []
    config, trained = configured(target, method, [*options, *overrides])
    return config, trained, names


def model(config: RunConfig, trained: Path | None) -> tuple[Backbone, Method, MethodInfo | None]:
    """Load the encoders, and build the method or load its checkpoint with what its record says."""
    loaded = runs.load_backbone(config)
    if trained is None:
        return loaded, runs.build(config, loaded), None
    return loaded, *runs.load_trained(trained, loaded)


def sort_out(arguments: Sequence[str]) -> tuple[Path | None, list[str], list[str]]:
    """Tell apart a config or checkpoint (at most one, first), benchmarks, and overrides.

    >>> sort_out(["run.yaml", "cirr/val", "seed=1"])
    (PosixPath('run.yaml'), ['cirr/val'], ['seed=1'])
    """
    overrides = [item for item in arguments if "=" in item]
    rest = [item for item in arguments if "=" not in item]
    if rest and (Path(rest[0]).suffix in (".yaml", ".yml") or Path(rest[0]).is_dir()):
        return Path(rest[0]), rest[1:], overrides
    return None, rest, overrides


def configured(target: Path | None, method: str, overrides: Sequence[str]) -> tuple[RunConfig, Path | None]:
    """Find the configuration, and the checkpoint to load where the method is a trained one."""
    if target is None:
        if not method:
            raise InputError("name a config, a checkpoint folder, or --method (see `cir list methods`)")
        return _checked(configs.load(None, [f"name={method}", f"method.name={method}", *overrides])), None
    if method:
        raise InputError(f"{target} says which method; leave --method out")
    if target.is_dir():
        trained = runs.find_checkpoint(target)
        return _of_checkpoint(trained, overrides), trained
    config = configs.load(target, overrides)
    if _learns(config):
        return config, runs.find_checkpoint(_place(config, target))
    return config, None


def _checked(config: RunConfig) -> RunConfig:
    if _learns(config):
        name = config.method["name"]
        raise InputError(f"{name} is trained; name its checkpoint folder or its config instead of --method")
    return config


def _learns(config: RunConfig) -> bool:
    name = config.method["name"]
    return name in METHODS and bool(METHODS[name].learns_from)


def _place(config: RunConfig, target: Path) -> Path:
    place = runs.folder(config)
    if not place.is_dir():
        raise InputError(f"{place}: no such run; train it first: cir train {target}")
    return place


def _of_checkpoint(folder: Path, overrides: Sequence[str]) -> RunConfig:
    """Take the configuration kept beside a checkpoint; without one, the checkpoint's own word on its backbone."""
    kept = runs.config_file(folder)
    if kept is not None:
        return configs.load(kept, overrides)
    described = checkpoint.describe(folder)
    name = f"method.name={described['method']}"
    return configs.load(
        None, [f"name={folder.name}", name, f"backbone.name={described['backbone']['name']}", *overrides]
    )
