"""Options that several commands share, and how a command says what it found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["CacheArgument", "DataRoot", "Device", "Json", "Limit", "Out", "Workers", "output", "settings_of"]

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else there.")]
DataRoot = Annotated[Path | None, typer.Option(help="Folder of the data set (`bird list datasets` tells the layout).")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Workers = Annotated[int, typer.Option(min=1, help="Threads that read and decode images.")]
Limit = Annotated[
    int | None,
    typer.Option(min=1, help="Keep N samples: a fixed subset with the proportions of split, class and group."),
]
CacheArgument = Annotated[str, typer.Argument(help="The cache: a folder, or file://, s3://, gs://, az://.")]
Out = Annotated[Path, typer.Option(help="Folder to write; the same command resumes what is there.")]


def settings_of(pairs: list[str] | None) -> dict[str, Any]:
    """["skew=0.9"] -> {"skew": 0.9}. Values are read as TOML where they can be, else as text."""
    import tomllib

    from bird.errors import UsageError

    settings: dict[str, Any] = {}
    for pair in pairs or []:
        name, equals, value = pair.partition("=")
        if not equals:
            raise UsageError(where="--setting", found=repr(pair), wanted="NAME=VALUE", fix="see `bird list datasets`")
        try:
            settings[name] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            settings[name] = value
    return settings


def output(value: dict[str, Any], as_json: bool, show: Any) -> None:
    """What a command found: one JSON object, or as `show` lays it out."""
    if as_json:
        print(json.dumps(value, ensure_ascii=False))
    else:
        show(value)
