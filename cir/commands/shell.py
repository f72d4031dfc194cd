"""What every command shares: how it is registered, how its errors end, how its help shows an example."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import typer

from cir.errors import InputError, RunError

Command = TypeVar("Command", bound=Callable[..., Any])

SETTINGS: dict[str, Any] = {
    "add_completion": False,
    "no_args_is_help": True,
    "pretty_exceptions_enable": False,  # a traceback of ours should be copied from, not looked at
    "rich_markup_mode": None,  # plain help: half the CPU time of a drawn one
    "context_settings": {"help_option_names": ["-h", "--help"]},
}
AGAIN = {
    "train": "the same command resumes from the last checkpoint",
    "evaluate": "features encoded so far are cached; the same command goes on from there",
    "ablate": "the same command goes on with what is missing",
    "check": "files looked at so far are kept; the same command goes on from there",
    "demo": "the same command goes on with what is finished",
    "submit": "features encoded so far are cached; the same command goes on from there",
    "triplets": "what was written or answered is kept; the same command goes on from there",
    "pretrain": "the same command resumes from the last checkpoint",
    "mask": "the pictures written so far are kept; the same command goes on from there",
}
"""What a command that was interrupted says about starting it again."""


def command(parent: typer.Typer, name: str, *examples: str) -> Callable[[Command], Command]:
    """Register a command: its help ends with examples, its errors become one line on stderr and an exit code.

    2 for `InputError`, 1 for `RunError`, 130 for an interrupt; anything else is a bug and keeps its traceback.
    """

    def register(body: Command) -> Command:
        @functools.wraps(body)
        def guarded(*arguments: Any, **options: Any) -> Any:
            try:
                return body(*arguments, **options)
            except (InputError, RunError) as error:
                typer.echo(f"error: {error}", err=True)
                raise typer.Exit(2 if isinstance(error, InputError) else 1) from None
            except KeyboardInterrupt as stop:  # a training run that saved itself says where and how to go on
                typer.echo(str(stop) or f"interrupted; {AGAIN.get(name, 'no file was left half written')}", err=True)
                raise typer.Exit(130) from None

        parent.command(name, epilog=example(*examples))(guarded)
        return body

    return register


def example(*lines: str) -> str:
    """Set example command lines as the end of a help text."""
    title = "Example:" if len(lines) == 1 else "Examples:"
    return "\n".join(["\b", title, *(f"  {line}" for line in lines)])
