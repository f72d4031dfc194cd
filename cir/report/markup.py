"""The two languages that tables are written in: rows and escapes of Markdown and of LaTeX."""

from collections.abc import Iterable

SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "≤": r"$\le$",
    "\N{MINUS SIGN}": "$-$",
    "≥": r"$\ge$",
    "\N{MULTIPLICATION SIGN}": r"$\times$",
    "τ": r"$\tau$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    **{character: "\\" + character for character in "_%&#${}"},
}
"""What TeX reads as a command, or a font of 8 bits does not hold, and how it is written."""


def pipes(cells: Iterable[str]) -> str:
    """Set cells as one row of a Markdown table."""
    return "| " + " | ".join(cells) + " |"


def escape_pipes(text: str) -> str:
    r"""Keep a text within its cell of a Markdown table.

    >>> escape_pipes("a|b")
    'a\\|b'
    """
    return text.replace("|", r"\|")


def tex(text: str) -> str:
    r"""Escape what TeX reads as commands.

    >>> tex("a_b: 95 % & {x}")
    'a\\_b: 95 \\% \\& \\{x\\}'
    """
    return "".join(SPECIAL.get(character, character) for character in text)


def p_text(p_value: float) -> str:
    """Print a p-value with the digits it deserves.

    >>> p_text(0.00004), p_text(0.0312)
    ('< 0.001', '0.031')
    """
    return "< 0.001" if p_value < 0.001 else f"{p_value:.3f}"
