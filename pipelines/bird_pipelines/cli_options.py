"""Options that several commands share, or that need many words, and how a command says what it found."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = [
    "CacheArgument",
    "DataRoot",
    "Device",
    "Json",
    "Limit",
    "MemoryGb",
    "OnError",
    "Out",
    "OutUrl",
    "Setting",
    "Slice",
    "TeacherWorkers",
    "TrainLimit",
    "Workers",
    "machine",
    "output",
    "service",
    "settings_of",
    "stored",
    "training",
    "unusable",
    "weight",
]

# An option of the heading under which --help lists it: one that most runs leave as it is.
weight = partial(typer.Option, rich_help_panel="The method's weights")
training = partial(typer.Option, rich_help_panel="Training")
machine = partial(typer.Option, rich_help_panel="Speed and memory")
stored = partial(typer.Option, rich_help_panel="What is stored")
unusable = partial(typer.Option, rich_help_panel="Unusable images")
service = partial(typer.Option, rich_help_panel="If the teacher is a service")

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
OutUrl = Annotated[
    str, typer.Option(help="Folder or s3://, gs://, az:// URL to write; the same command resumes what is there.")
]
Setting = Annotated[
    list[str] | None,
    typer.Option(help="A setting of the data set, NAME=VALUE (`bird list datasets`); repeat for more."),
]
TeacherWorkers = Annotated[
    int | None,
    machine(min=1, help="Threads that decode, and run a teacher on the CPU; else one a core, 2 to 16."),
]
OnError = Annotated[
    str,
    unusable(help="skip: up to --max-failed unusable images are counted and left out; fail: stop at the first."),
]
Slice = Annotated[
    str, typer.Option("--slice", help="I/N: compute every Nth shard, from the Ith; join with `bird cache merge`.")
]
TrainLimit = Annotated[
    int | None,
    typer.Option(min=1, help="Train and meta rows of a fixed subset of N of all rows; the test split stays whole."),
]
MemoryGb = Annotated[
    float | None, machine(min=0, help="Hold the vectors in memory up to so many GiB, else map them. Default 4.")
]


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
        utf8 = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
        print(json.dumps(value, ensure_ascii=not utf8))
    else:
        show(value)
