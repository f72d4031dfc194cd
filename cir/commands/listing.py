"""`cir list`: what can be named on the command line and in a config."""

from collections.abc import Iterator

import typer


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
    from cir.data import BENCHMARKS, GROUPS

    for name, entry in BENCHMARKS.items():
        yield f"{name:<28} {', '.join(entry.protocols)}"
    for name, parts in GROUPS.items():
        yield f"{name:<28} the mean of {', '.join(parts)}"
    yield "world/...                    any of these names, on the bundled world (`cir world build`)"


def _protocols() -> Iterator[str]:
    from cir.protocols import PROTOCOLS

    for name, protocol in PROTOCOLS.items():
        yield f"{name} v{protocol.version}: {', '.join(protocol.metrics)}"
        yield f"    {protocol.definition}"


def _backbones() -> Iterator[str]:
    from cir.backbones import BACKBONES

    for family in BACKBONES:
        yield f"{family:<10} any checkpoint whose config.json says model_type {family!r}: a folder or a hub id"
    yield "checkpoints/tiny-clip          bundled, trained on the world only"
    yield "openai/clip-vit-base-patch32   openai/clip-vit-large-patch14   laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
