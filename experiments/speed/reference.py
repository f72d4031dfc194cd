"""The plain evaluation most codebases write: names, argsort, and comparisons of strings. Slow on purpose.

It is the other side of every ratio in `metrics.py`, and an independent check of the numbers: it shares no line with
`cir`.
"""

import numpy as np


def cirr(queries, gallery, names, references, targets, groups):
    """Sort all names for every query, delete the reference, look the target up; returns means by metric.

    `queries` q x d and `gallery` g x d are unit vectors, `groups` q x 6 names. The sort is stable: ties stand in
    gallery order, as in `cir`.
    """
    names, groups = np.array(names), np.array(groups)
    asked, images = len(queries), len(gallery)
    distances = 1 - queries @ gallery.T
    ranked = names[np.argsort(distances, axis=-1, kind="stable")]
    kept = ranked != np.repeat(np.array(references), images).reshape(asked, images)
    ranked = ranked[kept].reshape(asked, images - 1)
    hits = ranked == np.repeat(np.array(targets), images - 1).reshape(asked, images - 1)
    in_group = (ranked[:, :, None] == groups[:, None, :]).sum(axis=-1) > 0
    group_hits = hits[in_group].reshape(asked, -1)
    means = {f"R@{k}": hits[:, :k].sum() / asked for k in (1, 5, 10, 50)}
    return means | {f"Rs@{k}": group_hits[:, :k].sum() / asked for k in (1, 2, 3)}


def circo(queries, gallery, names, targets):
    """One matrix-vector product and one sort per query; `targets` are lists of names, the single target first."""
    names, cuts = np.array(names), (5, 10, 25, 50)
    values = {f"{metric}@{k}": [] for metric in ("mAP", "R") for k in cuts}
    for query, wanted in zip(queries, targets, strict=True):
        ranked = names[np.argsort(1 - gallery @ query, kind="stable")][:50]
        hits = np.isin(ranked, wanted)
        precision = hits * np.cumsum(hits) / np.arange(1, 51)
        for k in cuts:
            values[f"mAP@{k}"].append(precision[:k].sum() / min(len(wanted), k))
            values[f"R@{k}"].append(wanted[0] in ranked[:k])
    return {name: float(np.mean(value)) for name, value in values.items()}
