"""`bird compare`, the command: it parses, calls one function, prints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bird_pipelines.cli import show
from bird_pipelines.cli.options import DataRoot, Json, Out, TrainLimit, output

__all__ = ["compare"]


def compare(
    cache: Annotated[str, typer.Argument(help="The cache that `bird precompute` wrote: a folder or URL.")],
    methods: Annotated[str, typer.Option(help="Two or more names, by commas (`bird list methods`).")],
    out: Out,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each method. p needs eight.")] = 8,
    against: Annotated[
        str | None, typer.Option(help="The method that the others are compared with. Default the first.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="NAME=VALUE, an option of `bird distill` for every method. Repeat it."),
    ] = None,
    student: Annotated[
        str | None, typer.Option(help="adapter (default), whose runs train together, or an image student.")
    ] = None,
    data_root: DataRoot = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Default 10.")] = None,
    limit: TrainLimit = None,
    config: Annotated[Path | None, typer.Option(help="TOML file of `bird distill` options; flags win.")] = None,
    json_: Json = False,
) -> None:
    """Train several methods with the same seeds, and say how each differs from one of them, with intervals."""
    from bird.errors import UsageError
    from bird_pipelines.study.compare import compare_methods

    flags: dict[str, object] = {"student": student, "data_root": data_root, "epochs": epochs, "limit": limit}
    for each in set_ or []:
        name, equals, value = each.partition("=")
        if not equals:
            raise UsageError(where="--set", found=repr(each), wanted="NAME=VALUE, such as alpha=0.5", fix="write it so")
        flags[name.replace("-", "_")] = value
    names = [name.strip() for name in methods.split(",") if name.strip()]
    found = compare_methods(cache, out, names, seeds=seeds, against=against, flags=flags, file=config)
    output(found, json_, show.compared)
