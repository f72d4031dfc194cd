"""`cir score`: vectors from two npz files, a benchmark's numbers out."""

from pathlib import Path

import typer


def main(
    benchmark: str, data: Path, queries: Path, gallery: Path, json: Path | None, rule: str, allow_missing: bool
) -> None:
    """Score, print the means, and write everything as JSON where asked for."""
    from cir.score import score, write_json

    result = score(benchmark, data, queries, gallery, protocol=rule or None, allow_missing=allow_missing)
    protocol = result["protocol"]
    typer.echo(f"{result['benchmark']}  protocol {protocol['name']} v{protocol['version']}  {result['unit']}")
    for metric, value in result["scores"].items():
        typer.echo(f"  {metric:<8} {value['mean']:6.2f}  [{value['low']:.2f}, {value['high']:.2f}]")
    for stamp in result["stamps"]:
        typer.echo(f"  not comparable: {stamp}")
    if json is not None:
        json.parent.mkdir(parents=True, exist_ok=True)
        write_json(json, result)
