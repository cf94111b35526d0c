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
    "ImageSize",
    "Json",
    "Kind",
    "Limit",
    "Mean",
    "MemoryGb",
    "OnError",
    "Out",
    "OutUrl",
    "Output",
    "Range",
    "Setting",
    "Slice",
    "Std",
    "TeacherWorkers",
    "TrainLimit",
    "Workers",
    "given",
    "machine",
    "output",
    "seen",
    "service",
    "settings_of",
    "share",
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
seen = partial(typer.Option, rich_help_panel="What the teacher takes and gives")
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
ImageSize = Annotated[int | None, seen(min=8, help="Input side in pixels, where the teacher leaves it open.")]
Kind = Annotated[
    str | None,
    seen(
        help="What its vectors are: penultimate, projection, projection_l2 or logits (for onnx: it chooses the output)."
    ),
]
Output = Annotated[str | None, seen("--output", help="onnx, http+kserve: the output that is the vector, by name.")]
Range = Annotated[str | None, seen("--range", help="onnx: what 0 and 255 become, LOW,HIGH. Default 0,1.")]
Mean = Annotated[str | None, seen(help="onnx: taken off each channel, R,G,B, in units of --range. Default 0,0,0.")]
Std = Annotated[str | None, seen(help="onnx: each channel is divided by it, R,G,B. Default 1,1,1.")]
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


def share(value: float) -> float:
    """A share from 0 to 1, as a callback of an option. Raises BadParameter; for a percentage with the share that it is."""
    if 0 <= value <= 1:
        return value
    meant = f": did you mean {value / 100:g}?" if 1 < value <= 100 else ""
    raise typer.BadParameter(f"{value:g} is no share from 0 to 1{meant}")


def given(context: typer.Context, values: dict[str, Any]) -> dict[str, Any]:
    """Those of a command's `values` that were given on the command line: a file may say the others."""
    default = ("DEFAULT", "DEFAULT_MAP")
    return {
        name: value
        for name, value in values.items()
        if name in context.params and getattr(context.get_parameter_source(name), "name", "DEFAULT") not in default
    }


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
