"""Options that several commands share, or that need many words, and how a command says what it found."""

from __future__ import annotations

import dataclasses
import inspect
import json
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal

import typer

from bird.launch import launched
from bird_pipelines.config.option import Declared

__all__ = [
    "Address",
    "CacheArgument",
    "Config",
    "Engine",
    "Json",
    "OwnDataset",
    "OwnStudent",
    "SetOptions",
    "Setting",
    "SlurmOptions",
    "options_of",
    "output",
    "settings_of",
    "takes",
]

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else there.")]
Config = Annotated[Path | None, typer.Option(help="TOML file of these options; flags win.")]
OwnStudent = Annotated[
    str | None,
    typer.Option(
        help="The module of a student of your own, as it was trained: package.module:attribute, file.py:attribute."
    ),
]
OwnDataset = Annotated[
    str | None,
    typer.Option(
        "--dataset",
        help="A data set of your own, as the cache was made from: package.module:attribute, file.py:attribute.",
    ),
]
SetOptions = Annotated[
    list[str] | None,
    typer.Option("--set", help="NAME=VALUE: an option of `bird distill`, for every run. It can be repeated."),
]
CacheArgument = Annotated[str, typer.Argument(help="The cache: a folder, or file://, s3://, gs://, az://.")]
Setting = Annotated[
    list[str] | None,
    typer.Option(help="A setting of the data set, NAME=VALUE (`bird list datasets`). It can be repeated."),
]
SlurmOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="slurm: an option of sbatch, NAME=VALUE, such as partition=gpu. It can be repeated.",
        rich_help_panel="Several processes or machines",
    ),
]
Engine = Annotated[str, typer.Option(help="Where the runs are made: local or ray.")]
Address = Annotated[
    str | None,
    typer.Option(help="ray: HOST:PORT of a cluster, or auto. Default: RAY_ADDRESS, else a Ray on this machine."),
]
Command = Callable[..., None]


def takes(
    declared: Sequence[Declared],
    only: Sequence[str] = (),
    *,
    need: Sequence[str] = (),
    usual: Mapping[str, str] | None = None,
) -> Callable[[Command], Command]:
    """A decorator: the command takes the declared options, and is given those that were said as `flags`, by their names
    inside. With `only` it takes these alone; it cannot do without those in `need`; `usual` says the default in words where
    this command has another."""
    by_name = {each.field: each for each in declared}
    chosen = [by_name[name] for name in only] or [each for each in declared if not each.option.hidden]

    def decorate(command: Command) -> Command:
        signature = inspect.signature(command, eval_str=True)
        own = [each for name, each in signature.parameters.items() if name != "flags"]
        made = [_parameter(each, (usual or {}).get(each.field), needed=each.field in need) for each in chosen]

        def called(**values: Any) -> None:
            said = {each.field: values.pop(each.field) for each in chosen}
            command(flags={name: value for name, value in said.items() if value is not None}, **values)

        called.__name__, called.__doc__ = command.__name__, command.__doc__
        parameters = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in (*made, *own)]
        parameters.sort(key=lambda each: each.default is not inspect.Parameter.empty)
        called.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]  # typer reads it
        called.__annotations__ = {each.name: each.annotation for each in parameters}
        return called

    return decorate


def _parameter(option: Declared, usual: str | None, *, needed: bool) -> inspect.Parameter:
    """One option as typer reads it."""
    told, kinds = option.option, [each for each in typing.get_args(option.type) if each is not type(None)]
    kind = kinds[0] if typing.get_origin(option.type) is UnionType else option.type
    if typing.get_origin(kind) is Literal or typing.get_origin(kind) is tuple:
        kind = str  # checked, with what was probably meant, where the record is made
    default = usual or told.default or _said(option.default)
    text = told.help if needed or not default else f"{told.help.removesuffix('.')}. Default {default}."
    names = [told.flag or f"--{option.name.replace('_', '-')}"] if told.flag or option.name != option.field else []
    number, is_share = kind in (int, float), (told.ge, told.le) == (0, 1)
    info: Any = typer.Option(
        *names,
        help=text,
        rich_help_panel=None if needed else option.panel,
        show_default=False,
        min=told.ge if number and not is_share and (told.ge or 0) >= 0 else None,  # below 0: "as usual"
        max=told.le if number and not is_share else None,
        callback=share if is_share else None,
    )
    return inspect.Parameter(
        option.field,
        inspect.Parameter.KEYWORD_ONLY,
        default=inspect.Parameter.empty if needed else None,
        annotation=Annotated[kind if needed else kind | None, info],
    )


def _said(default: object) -> str:
    """A default in words; "" where there is none."""
    if default is None or default is dataclasses.MISSING or isinstance(default, Mapping):
        return ""
    if isinstance(default, bool):
        return "yes" if default else ""
    return f"{default:g}" if isinstance(default, float) else str(default)


def share(param: typer.CallbackParam, value: float | None) -> float | None:
    """A share from 0 to 1, as a callback of an option. Raises UsageError; for a percentage with the share that it is."""
    from bird.errors import UsageError

    if value is None or 0 <= value <= 1:
        return value
    raise UsageError(
        where=max(param.opts, key=len),
        found=f"{value:g}",
        wanted="a share, from 0 to 1",
        fix=f"did you mean {value / 100:g}?" if 1 < value <= 100 else "correct it",
    )


def settings_of(pairs: list[str] | None, where: str = "--setting", see: str = "`bird list datasets`") -> dict[str, Any]:
    """["skew=0.9"] -> {"skew": 0.9}. Values are read as TOML where they can be, else as text. Raises UsageError."""
    import tomllib

    from bird.errors import UsageError

    settings: dict[str, Any] = {}
    for pair in pairs or []:
        name, equals, value = pair.partition("=")
        if not equals:
            raise UsageError(where=where, found=repr(pair), wanted="NAME=VALUE", fix=f"see {see}")
        try:
            settings[name] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            settings[name] = value
    return settings


def options_of(pairs: list[str] | None) -> dict[str, Any]:
    """Options of `bird distill`: ["meta-per-cell=4"] -> {"meta_per_cell": "4"}. Raises UsageError."""
    from bird.errors import UsageError

    options = {}
    for pair in pairs or []:
        name, equals, value = pair.partition("=")
        if not equals:
            raise UsageError(where="--set", found=repr(pair), wanted="NAME=VALUE, such as alpha=0.5", fix="write it so")
        options[name.replace("-", "_")] = value
    return options


def output(value: dict[str, Any], as_json: bool, show: Any) -> None:
    """What a command found: one JSON object, or as `show` lays it out. Of the processes of one run the first says it."""
    if launched().rank:
        return
    if as_json:
        utf8 = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
        print(json.dumps(value, ensure_ascii=not utf8))
    else:
        show(value)
