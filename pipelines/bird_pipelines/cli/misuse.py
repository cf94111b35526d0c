"""What the parser of the command line refuses, as an error of ours: an unknown command or option, no value, no number."""

from __future__ import annotations

from typing import Any, final

import typer
from typer.core import TyperGroup

from bird.errors import UsageError, unknown_name
from bird_pipelines.config.option import wanted_in_words

__all__ = ["MISUSE", "Commands", "as_ours"]

MISUSE: type[Exception] = typer.BadParameter.__mro__[1]
"""the parser's own UsageError, which typer does not export"""


@final
class Commands(TyperGroup):
    """A group of commands. An unknown one is an error of ours."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """See TyperGroup. Raises UsageError."""
        if self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            raise unknown_name(ctx.command_path, args[0], self.list_commands(ctx), f"see `{ctx.command_path} --help`")
        return super().resolve_command(ctx, args)


def as_ours(error: Any) -> UsageError:
    """A `MISUSE` in the words of this project."""
    from pydantic import ValidationError

    command = "bird" if error.ctx is None else error.ctx.command_path
    kind, see, said = type(error).__name__, f"see `{command} --help`", str(error.message).rstrip(".")
    parameter = getattr(error, "param", None)
    name = "" if parameter is None else _name(parameter)
    wanted = str(getattr(parameter, "help", None) or f"what `{command} --help` shows").split(". ")[0].rstrip(".")
    if kind == "NoSuchOption":
        known = [name for each in error.ctx.command.params for name in each.opts if name.startswith("--")]
        return unknown_name(command, error.option_name, known, see, wanted=f"an option of `{command}`")
    if kind == "MissingParameter":
        return UsageError(where=command, found=f"no {name}", wanted=wanted, fix=f"give {name}; {see}")
    where = name or getattr(error, "option_name", None) or command
    if isinstance(error.__cause__, ValidationError):  # the value, and what its type and range ask for
        (first, *_) = error.__cause__.errors()
        return UsageError(where=where, found=repr(first["input"]), wanted=wanted_in_words(first), fix=see)
    return UsageError(where=where, found=said[:1].lower() + said[1:], wanted=wanted, fix=f"correct it; {see}")


def _name(parameter: Any) -> str:
    """An option as it is typed, or an argument as the help shows it."""
    options = [each for each in parameter.opts if each.startswith("-")]
    return max(options, key=len) if options else str(parameter.name).upper()
