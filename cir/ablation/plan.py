"""What an ablation runs: the list of its cells, each with each seed, and the runs they stand on."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from cir import config as configs
from cir.ablation import naming
from cir.ablation.question import BASES, ROOT, Ablation, NamedCell, read
from cir.archive.match import seedless
from cir.config import RunConfig
from cir.errors import InputError

__all__ = ["BASES", "ROOT", "Ablation", "Base", "Cell", "NamedCell", "expand", "read"]


@dataclass(frozen=True)
class Base:
    """The run a wrapper's cell stands on: trained first, with the cell's seed, shared by all that need it."""

    config: RunConfig
    folder: Path
    needs: "Base | None"


@dataclass(frozen=True)
class Cell:
    """One cell with one seed: the run it is, and where that lies."""

    name: str
    settings: dict[str, Any]
    """Dotted keys in which it departs from what all cells share; never the seed."""
    seed: int
    config: RunConfig
    folder: Path
    needs: Base | None
    varied: dict[str, Any] = field(default_factory=dict)
    """Its value of every dotted key in which any cell departs: the same keys for all cells of an ablation."""

    @cached_property
    def fingerprint(self) -> str:
        """What a record of this cell has been made with (`cir.config.fingerprint`)."""
        return configs.fingerprint(self.config)


def expand(ablation: Ablation) -> list[Cell]:
    """Make the runs of an ablation: each cell with each seed, a cell's seeds behind one another.

    Raises `InputError`, one line with file, cell and dotted key, for settings that no run could have.
    """
    keys = list(dict.fromkeys(key for point in ablation.points for key in point.set))
    return [_cell(ablation, point, seed, keys) for point in ablation.points for seed in ablation.seeds]


def _cell(ablation: Ablation, point: NamedCell, seed: int, keys: Sequence[str]) -> Cell:
    said = f"{ablation.path}: cell {point.name!r}"
    config = _config(said, ablation, point, seed)
    varied = {key: point.set.get(key, naming.lookup(configs.resolved(config), key)) for key in keys}
    needs = _base(said, config)
    if needs is not None:
        config.base = str(needs.folder)
    folder = ablation.folder / naming.slug(point.name) / _seed(seed)
    return Cell(point.name, dict(point.set), seed, config, folder, needs, varied)


def _config(said: str, ablation: Ablation, point: NamedCell, seed: int) -> RunConfig:
    """Lay the file's settings over its base; a run is called after its cell and evaluates what is shown."""
    try:
        more = [("set", naming.nested(ablation.set)), ("cell", naming.nested(point.set)), ("seeds", {"seed": seed})]
        config = configs.load(ablation.base, more=more)
    except InputError as error:
        raise InputError(f"{said}: {error}") from None
    chosen = config.train.select.rpartition(":")[0] if config.train.evaluate_every else ""
    config.evaluate = list(dict.fromkeys([*ablation.benchmarks, *([chosen] if chosen else [])]))
    config = configs.smoke(config) if ablation.smoke else config
    config.name = point.name  # also where it is shrunk: its records are stamped
    return config


def _base(said: str, config: RunConfig) -> Base | None:
    """Read the run that trains a wrapper's base, if the config names one: on the cell's encoders, with its seed."""
    path = Path(config.base)
    if path.suffix not in (".yaml", ".yml"):
        return None
    try:
        own = configs.load(path, more=[("seeds", {"seed": config.seed})])
    except InputError as error:
        raise InputError(f"{said}: base: {error} (relative to the working folder)") from None
    own.backbone, own.evaluate = config.backbone, []
    name = own.name
    if config.smoke:
        own = configs.smoke(own)
    needs = _base(said, own)
    if needs is not None:
        own.base = str(needs.folder)
    group = f"{naming.slug(name)}-{configs.fingerprint(seedless(own))}"
    return Base(own, ROOT / BASES / group / _seed(config.seed), needs)


def _seed(seed: int) -> str:
    return f"seed-{seed}"
