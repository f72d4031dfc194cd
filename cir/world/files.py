"""Atomic writes for the world's files."""

from pathlib import Path

from cir.files import replace_file


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all, and its folder where there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, text.encode())
