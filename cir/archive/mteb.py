"""Records as results in the form of MTEB (Muennighoff et al., EACL 2023, arXiv:2210.07316): `TaskResult` as JSON.

What is theirs: the file's keys, `scores` by split as a list of subsets, fractions in [0, 1], and the standard metrics
by their names and definitions, which are those of trec_eval. What is ours: the task, and metrics such as `R@10`.
Gallery and protocol are not those of MTEB's tasks on the same datasets (they take M-BEIR's), so names begin with `cir/`
and `mteb_version` is null: nothing here was run by MTEB, and nothing should stand in a column of its leaderboard.
"""

import json
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from cir.errors import InputError
from cir.metrics import any_at, average_precision_at, hits_at, ndcg_at, precision_at
from cir.protocols import PROTOCOLS
from cir.protocols.base import Protocol
from cir.records import Record, read_values, replace_file

CUTS = (1, 3, 5, 10, 20, 100, 1000)
"""Where MTEB's retrieval tasks cut."""


def write(path: Path, record: Record, folder: Path) -> Path:
    """Write `folder/<run>-seed-<seed>/<data fingerprint>/<task>.json`, the layout of MTEB's results; returns its path.

    Raises `InputError` for a record without values per query, and for a group, whose parts are tasks of their own.
    """
    content = result(path, record)
    run = f"{record.run}-seed-{record.seed}".replace("/", "__")
    place = folder / run / record.benchmark.fingerprint / f"{content['task_name'].replace('/', '-')}.json"
    place.parent.mkdir(parents=True, exist_ok=True)
    replace_file(place, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())
    return place


def result(path: Path, record: Record) -> dict[str, Any]:
    """Describe a record as a `TaskResult`: the headline as `main_score`, MTEB's metrics, then ours by our names."""
    if record.benchmark.parts:
        raise InputError(f"{path}: a mean over {', '.join(record.benchmark.parts)}; export those records")
    values = read_values(path, record)
    ours = {name: float(value.mean()) for name, value in values.values.items()}
    protocol = PROTOCOLS.get(record.protocol.name)
    main = protocol.headline if protocol is not None and protocol.headline in ours else next(iter(ours))
    graded = protocol is None or type(protocol).relevant is not Protocol.relevant
    scores = {
        "main_score": ours[main],
        **({} if graded else standard(values.ranks)),
        **ours,
        "hf_subset": "default",
        "languages": ["eng-Latn"],
    }
    return {
        "dataset_revision": record.benchmark.fingerprint,
        "task_name": f"cir/{record.benchmark.name}/{record.protocol.name.replace('/', '-')}-v{record.protocol.version}",
        "mteb_version": None,
        "scores": {record.benchmark.split: [scores]},
        "evaluation_time": record.seconds,
        "kg_co2_emissions": None,
        "date": datetime.fromisoformat(record.created).timestamp(),
    }


def standard(ranks: Int64[np.ndarray, "q m"]) -> dict[str, float]:
    """Compute MTEB's retrieval metrics from the targets' exact ranks, as means over the queries that have a target.

    `map_at_k` divides by all targets, `recall_at_k` is the share of them found; the field's `mAP@K` and `R@K` are not.
    """
    ranks = ranks[(ranks > 0).any(axis=1)]
    if not len(ranks):
        return {}
    ranks = -np.sort(-ranks, axis=1)  # 0 fills the end; the metrics below do not ask which target is the first
    count = (ranks > 0).sum(axis=1)
    best = np.where(ranks > 0, ranks, np.iinfo(np.int64).max).min(axis=1)
    found: dict[str, float] = {}
    for name, values in _by_name(ranks, count, best).items():
        found |= {f"{name}_at_{k}": float(value.mean()) for k, value in zip(CUTS, values, strict=True)}
    return found


def _by_name(
    ranks: Int64[np.ndarray, "q m"], count: Int64[np.ndarray, " q"], best: Int64[np.ndarray, " q"]
) -> Mapping[str, list[Float64[np.ndarray, " q"]]]:
    return {
        "ndcg": [ndcg_at(ranks, k) for k in CUTS],
        "map": [average_precision_at(ranks, k) * np.minimum(count, k) / count for k in CUTS],
        "recall": [hits_at(ranks, k).sum(axis=1) / count for k in CUTS],
        "precision": [precision_at(ranks, k) for k in CUTS],
        "mrr": [np.where(best <= k, 1 / best, 0.0) for k in CUTS],
        "hit_rate": [any_at(ranks, k) for k in CUTS],
    }
