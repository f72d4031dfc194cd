"""`cir list`: what can be named on the command line and in a config."""

from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from cir.data import Entry

WIDTH = 28
"""Of the column of names."""


def main(what: str) -> None:
    """Print the lists asked for."""
    lists = {"methods": _methods, "benchmarks": _benchmarks, "protocols": _protocols, "backbones": _backbones}
    for name in lists if what == "all" else [what]:
        typer.echo(f"{name}\n" + "\n".join(f"  {line}" for line in lists[name]()) + "\n")


def _methods() -> Iterator[str]:
    from cir.backbones import BACKBONES
    from cir.methods import METHODS

    for name, kind in METHODS.items():
        summary = (kind.__doc__ or "").strip().split("\n")[0]
        yield f"{name:<12} {summary}"
        learns = f"trains {', '.join(kind.trains)} on {kind.learns_from}" if kind.learns_from else "trains nothing"
        wraps = "; wraps another method (base:)" if kind.wraps else ""
        yield f"{'':<12} paper: {kind.paper}; {learns}{wraps}; backbones: {', '.join(BACKBONES)}"


def _benchmarks() -> Iterator[str]:
    from cir.data import DATASETS

    for dataset, file in DATASETS.items():
        yield f"{file.SOURCE.title}, {file.SOURCE.page}"
        yield from (f"  {line}" for line in _names(file.ENTRIES))
        if not file.ENTRIES:
            yield f"  {f'{dataset}/NAME':<{WIDTH}} {file.SOURCE.annotations}"
        for name, parts in getattr(file, "GROUPS", {}).items():
            listed = ", ".join(parts) if len(parts) < 4 else f"{len(parts)}, {parts[0]} to {parts[-1]}"
            yield f"  {name:<{WIDTH}} the mean of {listed}"
    yield "the bundled world, docs/world.md"
    yield f"  {'world/...':<{WIDTH}} names of FashionIQ, CIRR and CIRCO (`cir world build`)"


def _names(entries: Mapping[str, "Entry"]) -> Iterator[str]:
    """List benchmarks with their sizes, alike ones in one line, and below the last of them the protocols they share."""
    for protocols, shared in groupby(entries, lambda name: entries[name].protocols):
        for (stem, size), names in groupby(shared, lambda name: (name.rpartition("-")[0], _size(entries[name].counts))):
            alike = list(names)
            endings = ",".join(name.removeprefix(f"{stem}-") for name in alike)
            shown = f"{stem}-{{{endings}}}" if stem and len(alike) > 1 else alike[0]
            others = alike[1:] if shown == alike[0] else []
            yield from (f"{name:<{WIDTH}} {size}".rstrip() for name in [shown, *others])
        yield f"{'':<{WIDTH}} under {', '.join(protocols)}"


def _size(counts: Mapping[str, int]) -> str:
    """Say how large a benchmark is; the gallery is that of its default protocol."""
    known = [
        f"{counts[key]:,} {what}" for key, what in (("queries", "queries"), ("gallery", "images")) if key in counts
    ]
    return ", ".join([*known, *(["labels hidden"] if counts.get("targets") == 0 else [])])


def _protocols() -> Iterator[str]:
    from cir.protocols import PROTOCOLS

    for name, protocol in PROTOCOLS.items():
        among = {"gallery": "", "candidates": ", within each query's candidates", "both": ""}[protocol.competes]
        yield f"{name} v{protocol.version}: {', '.join(protocol.metrics)}{among}"
        yield f"    {protocol.definition}"


def _backbones() -> Iterator[str]:
    from cir.backbones import BACKBONES

    for family in BACKBONES:
        yield f"{family:<10} any checkpoint whose config.json says model_type {family!r}: a folder or a hub id"
    yield "checkpoints/tiny-clip          bundled, trained on the world only"
    yield "openai/clip-vit-base-patch32   openai/clip-vit-large-patch14   laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
