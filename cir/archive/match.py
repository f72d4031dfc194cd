"""Which records hold the numbers that a configuration asks for, and why others do not.

The configuration's fingerprint is computed again from what the record keeps, so records from before a key existed
still match where its default says what was done then.
"""

import json
import re
from collections.abc import Mapping
from copy import deepcopy
from functools import lru_cache
from pathlib import Path

from cir import config as configs
from cir import layers
from cir.archive.flat import differences, shown
from cir.config import RunConfig
from cir.errors import InputError
from cir.protocols import PROTOCOLS
from cir.records import Record
from cir.records import fingerprint as fingerprint_of

NAMED = 3
"""Differing keys that `why_not` names at most."""


def matching(
    config: RunConfig,
    records: Mapping[Path, Record],
    *,
    seeds: bool = False,
    data: Mapping[str, str] | None = None,
) -> dict[str, list[tuple[Path, Record]]]:
    """Find the valid records of a configuration by benchmark name, newest first; `evaluate` does not limit them.

    A valid record is not stale, has the configuration's fingerprint (`cir.config.fingerprint`, seed included), and the
    version its protocol has now. `seeds=True` ignores the seed (`seedless`). `data` gives the fingerprints that
    benchmarks have now, by name, where the caller knows them; a record of another state of its data is left out.
    """
    found: dict[str, list[tuple[Path, Record]]] = {}
    for path, record in records.items():
        if not why_not(config, record, seeds=seeds, data=data):
            found.setdefault(record.benchmark.name, []).append((path, record))
    return {
        name: sorted(pairs, key=lambda pair: (pair[1].created, str(pair[0])), reverse=True)
        for name, pairs in found.items()
    }


def why_not(config: RunConfig, record: Record, *, seeds: bool = False, data: Mapping[str, str] | None = None) -> str:
    """Say in one line why a record does not hold the configuration's numbers; empty where it does."""
    if record.stale:
        return f"stale: {record.stale}"
    try:
        kept = rebuilt(record)
    except InputError as error:
        return f"configuration of another version of cir ({error})"
    wanted, got = (seedless(config), seedless(kept)) if seeds else (config, kept)
    if configs.fingerprint(wanted) != configs.fingerprint(got):
        return f"another configuration: {_told(wanted, got)}"
    return outdated(record) or _moved(record, data or {})


def rebuilt(record: Record) -> RunConfig:
    """Build the configuration a record was made with; keys that came later have their defaults.

    Raises `InputError` for a key that this version of cir does not know.
    """
    return deepcopy(_rebuilt(json.dumps(record.config)))


def config_fingerprint(record: Record) -> str:
    """Compute the fingerprint of the configuration a record was made with; raises as `rebuilt` does."""
    return configs.fingerprint(_rebuilt(json.dumps(record.config)))


def seedless(config: RunConfig) -> RunConfig:
    """Return a configuration with everything that follows the seed set aside.

    That is `seed`, a method's own `seed` of the same value (OTI's), and the `seed-K` folder of the run that a wrapper
    stands on.
    """
    plain = deepcopy(config)
    plain.seed = 0
    if plain.method.get("seed") == config.seed:
        del plain.method["seed"]
    plain.base = re.sub(rf"(^|/)seed-{config.seed}(?=/|$)", r"\1seed-*", plain.base)
    return plain


def outdated(record: Record) -> str:
    """Say that the protocol moved on since; empty where it did not."""
    name, version = record.protocol.name, record.protocol.version
    if name not in PROTOCOLS:
        return f"protocol {name} does not exist any more"
    now = PROTOCOLS[name].version
    return "" if version == now else f"protocol {name} v{version}, now v{now}"


@lru_cache(maxsize=4096)
def _rebuilt(text: str) -> RunConfig:
    """Build a configuration from JSON; the cache makes looking through many records cheap."""
    return layers.build(RunConfig, [("record's config", json.loads(text))], "record's config")


def _told(wanted: RunConfig, got: RunConfig) -> str:
    """Name the first keys that differ, leaving out those that do not move numbers."""
    silent = configs.NOT_NUMBERS
    pairs = differences(configs.resolved(got), configs.resolved(wanted))
    told = [f"{d.key} is {shown(d.before)}, wanted {shown(d.after)}" for d in pairs if not d.key.startswith(silent)]
    more = f", and {len(told) - NAMED} more" if len(told) > NAMED else ""
    return "; ".join(told[:NAMED]) + more


def _moved(record: Record, data: Mapping[str, str]) -> str:
    """Say that the data is another one now, where that is known; a group's follows from its parts."""
    bench = record.benchmark
    now = data.get(bench.name)
    if now is None and bench.parts and all(part in data for part in bench.parts):
        now = fingerprint_of([data[part] for part in bench.parts])
    return "" if now in (None, bench.fingerprint) else f"data {bench.fingerprint}, now {now}"
