"""The two ways a command stops on purpose; both are one clear line, never a traceback."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """The user's input is at fault: what was expected, what came, the likely fix. Exit code 2."""


class RunError(RuntimeError):
    """The run itself failed (a NaN loss, a full disk): nothing the input alone explains. Exit code 1."""


def nearest(word: str, known: Iterable[str]) -> str:
    """Say which known words look like `word`, as the tail of an error message.

    >>> nearest("steps_", ["steps", "batch"])
    "did you mean 'steps'?"
    >>> nearest("zzz", ["steps", "batch"])
    'known: batch, steps'
    """
    names = sorted(set(known))
    close = difflib.get_close_matches(word, names, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(names)}"
