"""Plain data from a pickle file, without unpickling: an interpreter that has no word for running code.

A pickle is a program for a stack machine. The one here knows lists, dictionaries, tuples, sets, strings, bytes and
numbers; an instruction that looks up a class or calls something is refused, so that nothing in the file can act.
"""

import pickletools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cir.errors import InputError
from cir.progress import bar

EVERY = 1 << 16
"""Instructions between two steps of the progress bar."""


class _Mark:
    """Where a run of items on the stack begins."""


class Machine:
    """The stack and the memo of one pickle; `step` carries out an instruction."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        """Carry out one instruction; KeyError for one that is not known here."""
        if name in CONSTANTS:
            self.stack.append(CONSTANTS[name]())
        elif name in LITERALS:
            self.stack.append(argument)
        else:
            ACTIONS[name](self, argument)

    def since_mark(self) -> list[Any]:
        """Take everything above the last mark, and the mark."""
        index = len(self.stack) - 1
        while self.stack[index] is not _Mark:
            index -= 1
            if index < 0:
                raise IndexError("no mark")
        items = self.stack[index + 1 :]
        del self.stack[index:]
        return items

    def last(self, kind: type) -> Any:
        """Look at the container on top, which must be of the kind the instruction is for."""
        if type(self.stack[-1]) is not kind:
            raise TypeError(f"{type(self.stack[-1]).__name__} in place of {kind.__name__}")
        return self.stack[-1]

    def many(self, count: int) -> list[Any]:
        """Take the last items."""
        if len(self.stack) < count:
            raise IndexError("empty stack")
        items = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return items

    def pairs(self, items: list[Any]) -> dict[Any, Any]:
        """Read keys and values in turn."""
        if len(items) % 2:
            raise ValueError("a key without a value")
        return dict(zip(items[::2], items[1::2], strict=True))


CONSTANTS: dict[str, Callable[[], Any]] = {
    "MARK": lambda: _Mark, "NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False,
    "EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_TUPLE": tuple, "EMPTY_SET": set,
}  # fmt: skip
LITERALS = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING",
    "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "SHORT_BINBYTES", "BINBYTES",
    "BINBYTES8",
}  # fmt: skip
ACTIONS: dict[str, Callable[[Machine, Any], Any]] = {
    "PROTO": lambda m, a: None,
    "FRAME": lambda m, a: None,
    "POP": lambda m, a: m.stack.pop(),
    "POP_MARK": lambda m, a: m.since_mark(),
    "DUP": lambda m, a: m.stack.append(m.stack[-1]),
    "PUT": lambda m, a: m.memo.__setitem__(a, m.stack[-1]),
    "BINPUT": lambda m, a: m.memo.__setitem__(a, m.stack[-1]),
    "LONG_BINPUT": lambda m, a: m.memo.__setitem__(a, m.stack[-1]),
    "MEMOIZE": lambda m, a: m.memo.__setitem__(len(m.memo), m.stack[-1]),
    "GET": lambda m, a: m.stack.append(m.memo[a]),
    "BINGET": lambda m, a: m.stack.append(m.memo[a]),
    "LONG_BINGET": lambda m, a: m.stack.append(m.memo[a]),
    "LIST": lambda m, a: m.stack.append(m.since_mark()),
    "TUPLE": lambda m, a: m.stack.append(tuple(m.since_mark())),
    "TUPLE1": lambda m, a: m.stack.append(tuple(m.many(1))),
    "TUPLE2": lambda m, a: m.stack.append(tuple(m.many(2))),
    "TUPLE3": lambda m, a: m.stack.append(tuple(m.many(3))),
    "DICT": lambda m, a: m.stack.append(m.pairs(m.since_mark())),
    "APPEND": lambda m, a: (item := m.stack.pop(), m.last(list).append(item)),
    "APPENDS": lambda m, a: (items := m.since_mark(), m.last(list).extend(items)),
    "ADDITEMS": lambda m, a: (items := m.since_mark(), m.last(set).update(items)),
    "SETITEM": lambda m, a: (pair := m.many(2), m.last(dict).update(m.pairs(pair))),
    "SETITEMS": lambda m, a: (items := m.since_mark(), m.last(dict).update(m.pairs(items))),
}
"""What each instruction does; those that import, build or call are not here on purpose."""


def read_plain(path: Path) -> Any:
    """Read containers, strings and numbers from a pickle file; nothing in it is imported or called.

    Raises `InputError` for a file that is no pickle, is cut off, or asks for anything else, naming the instruction.
    """
    machine = Machine()
    try:
        with (
            open(path, "rb") as file,
            bar(path.stat().st_size, f"reading {path.name}", path.stat().st_size > 1 << 24) as b,
        ):
            for number, (code, argument, position) in enumerate(pickletools.genops(file)):
                if code.name == "STOP":
                    (found,) = machine.stack
                    return found
                if code.name not in CONSTANTS and code.name not in LITERALS and code.name not in ACTIONS:
                    raise InputError(_refusal(path, code.name, argument))
                machine.step(code.name, argument)
                if number % EVERY == 0:
                    b.advance((position or 0) - b.done)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    except InputError:
        raise
    except (ValueError, IndexError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not a whole pickle file ({type(error).__name__}: {error})") from None
    raise InputError(f"{path}: not a whole pickle file (it has no end)")


def _refusal(path: Path, name: str, argument: Any) -> str:
    """Say what a file asked for beyond plain data, and what to do."""
    what = f"{name} {argument!r:.80}" if argument is not None else name
    return (
        f"{path}: holds more than lists, dictionaries, strings and numbers ({what}), and loading that would run code "
        "from the file; write the plain data again, for example as JSON, where it was made"
    )
