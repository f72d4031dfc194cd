"""Our numbers for the cells of a paper's table: from the records of a row's run over its seeds, or why there is none.

Only a whole, current number counts: not stale, not stamped (a subset, missing images), under the protocol that the
papers use or the run asks for, on the data the values were measured on where the table knows it.
"""

import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from cir import data, records
from cir.archive.check import examined
from cir.archive.match import matching, outdated
from cir.config import RunConfig
from cir.data import layout
from cir.errors import InputError
from cir.papers.table import ONLY_THERE, Column, Row, Table, protocols
from cir.records import Record

Found = Mapping[Path, Record]


class Ours(NamedTuple):
    """A mean in percent, over seeds where there are several; `deviation` is their standard deviation."""

    mean: float
    deviation: float | None
    seeds: int


def gather(folders: Iterable[Path]) -> dict[Path, Record]:
    """Read all records in the folders that exist."""
    return records.find([folder for folder in folders if folder.exists()])


def of_row(table: Table, row: Row, found: Found) -> dict[Column, Ours]:
    """Look up or average a row's numbers; each record used is first checked: raises InputError for an altered one."""
    numbers: dict[Column, Ours] = {}
    checked: set[Path] = set()
    valid = _by_benchmark(row, found, table)
    for column in table.columns:
        chosen = [one for one in valid.get(column.benchmark, ()) if column.metric in one[1].means]
        for path, record in chosen:
            if path not in checked:
                _refuse_altered(path, record)
                checked.add(path)
        if chosen:
            means = [record.means[column.metric].mean for _, record in chosen]
            deviation = statistics.stdev(means) if len(means) > 1 else None
            numbers[column] = Ours(statistics.fmean(means), deviation, len(means))
    return numbers


def why_none(column: Column, row: Row) -> tuple[bool, str]:
    """Say why a row has no number in a column: whether it could be made here at all, and what stands in the way."""
    if row.missing:
        return False, row.missing
    if column.benchmark == ONLY_THERE:
        return False, "a quantity that only the paper defines"
    if any(data.find(part).counts.get("targets") == 0 for part in data.expand(column.benchmark)):
        return False, f"the labels of {column.benchmark} are on its server; `cir submit` writes the files"
    if row.config is not None:
        absent = _no_data(row.config, column.benchmark) or _no_weights(row.config.backbone.name)
        if absent:
            return False, absent
    return True, f"no record of {row.run.name if row.run else row.named}"


def _refuse_altered(path: Path, record: Record) -> None:
    """Stop at a record whose content is not what was written, or not what its per-query values say."""
    wrong = [text for kind, text in examined(path, record) if kind == "altered"]
    if wrong:
        raise InputError(f"{path}: altered record: {wrong[0]}; evaluate again, or restore the file")


def _by_benchmark(row: Row, found: Found, table: Table) -> dict[str, list[tuple[Path, Record]]]:
    """Collect a row's records by benchmark, the newest of each seed."""
    if row.config is not None:
        valid = matching(row.config, found, seeds=True, data=table.data)
    else:
        valid = {}
        for path, record in sorted(found.items(), key=lambda one: one[1].created, reverse=True):
            if record.run == row.named and not record.stale and not outdated(record):
                valid.setdefault(record.benchmark.name, []).append((path, record))
    chosen: dict[str, list[tuple[Path, Record]]] = {}
    for benchmark, newest_first in valid.items():
        by_seed: dict[int, tuple[Path, Record]] = {}
        for path, record in newest_first:
            if _counts(record, row, table):
                by_seed.setdefault(record.seed, (path, record))
        chosen[benchmark] = [by_seed[seed] for seed in sorted(by_seed)]
    return chosen


def _counts(record: Record, row: Row, table: Table) -> bool:
    """Whether a record's number may stand beside a printed one."""
    name = record.benchmark.name
    meant = record.protocol.name == protocols(name)[0] or (row.config is not None and _asks(row.config, name))
    same = table.data.get(name, record.benchmark.fingerprint) == record.benchmark.fingerprint
    return meant and same and table.stamps.issuperset(record.benchmark.stamps)


def _asks(config: RunConfig, benchmark: str) -> bool:
    """Whether a run itself asks for another protocol than the papers'."""
    dataset = data.dataset(benchmark)
    return dataset in config.data.protocols or (dataset == "fashioniq" and config.data.fashioniq_gallery != "original")


def _no_data(config: RunConfig, benchmark: str) -> str:
    """Say that a benchmark's annotations are not here; empty where they are."""
    dataset = data.dataset(benchmark)
    root = Path(config.data.roots.get(dataset, config.data.root))
    source = data.origin(benchmark)
    for part in data.expand(benchmark):
        for places in data.find(part).files[:1]:  # others may be replaced by the images themselves
            try:
                layout.find(root, source.folders, places)
            except InputError:
                return f"no {source.title} data here"
    return ""


def _no_weights(name: str) -> str:
    """Say that an encoder's weights are neither a folder nor in the hub's cache; empty where they are."""
    from huggingface_hub import try_to_load_from_cache

    if Path(name).expanduser().is_dir():
        return ""
    try:
        cached = isinstance(try_to_load_from_cache(name, "config.json"), str)
    except ValueError:  # not a hub id
        cached = False
    return "" if cached else f"no weights of {name} here"
