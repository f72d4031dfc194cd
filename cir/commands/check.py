"""`cir data check`: the data doctor at the command line."""

import json
from pathlib import Path

import typer

from cir.errors import InputError


def main(
    name: str, root: Path, protocol: str, pixels: bool, report: str, layout: Path | None, cache: Path, fresh: bool
) -> None:
    """Check, print the report or write it as JSON, and end with an InputError where something is not well."""
    from cir import doctor
    from cir.doctor import text

    rule = protocol or None
    if layout is None:
        found, extra = doctor.check(name, root, protocol=rule, pixels=pixels, cache=cache, fresh=fresh), {}
    else:
        fixed = doctor.fix(name, root, layout, protocol=rule, pixels=pixels, cache=cache, fresh=fresh)
        found, extra = fixed.report, {"links": fixed.links, "new_links": fixed.new, "of": str(root)}
    if report == "-":
        typer.echo(json.dumps({**found.plain(), **extra}, indent=1))
    else:
        for line in text.lines(found):
            typer.echo(line)
        if layout is not None:
            new = f"{extra['new_links']:,} of them new"
            typer.echo(f"{extra['links']:,} links in {layout}, {new}; use data.root={layout}")
    if report not in ("", "-"):
        _write(Path(report), {**found.plain(), **extra})
    if not found.well:
        raise InputError(f"{text.summary(found)}; the report says what to do")


def _write(file: Path, report: dict[str, object]) -> None:
    """Write the report as JSON."""
    from cir.records import replace_file

    file.parent.mkdir(parents=True, exist_ok=True)
    replace_file(file, (json.dumps(report, indent=1) + "\n").encode())
