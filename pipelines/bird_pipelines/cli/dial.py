"""`bird dial`, the command: it parses, calls one function, prints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bird_pipelines.cli import show
from bird_pipelines.cli.options import DataRoot, Json, Out, TrainLimit, options_of, output

__all__ = ["dial"]


def dial(
    cache: Annotated[str, typer.Argument(help="The cache that `bird precompute` wrote: a folder or URL.")],
    out: Out,
    balances: Annotated[
        str, typer.Option(help="Weights of the balanced CE in the feedback, by commas, in the order of the path.")
    ] = "1,0.75,0.5,0.25,0",
    seeds: Annotated[int, typer.Option(min=1, help="Paths, each from its own seed.")] = 8,
    epochs_each: Annotated[int, typer.Option(min=1, help="Epochs of each point after the first.")] = 3,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="NAME=VALUE, an option of `bird distill`. Repeat it.")
    ] = None,
    student: Annotated[
        str | None, typer.Option(help="adapter (default), whose seeds train together, or an image student.")
    ] = None,
    data_root: DataRoot = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Of the first point. Default 10.")] = None,
    limit: TrainLimit = None,
    config: Annotated[Path | None, typer.Option(help="TOML file of `bird distill` options; flags win.")] = None,
    json_: Json = False,
) -> None:
    """Train bird-offsets along a path from the balanced CE to L_o, and draw accuracy against gap with intervals."""
    from bird.errors import UsageError
    from bird_pipelines.study.dial import turn

    try:
        path = [float(each) for each in balances.split(",")]
    except ValueError:
        raise UsageError(
            where="--balances", found=repr(balances), wanted="numbers from 0 to 1, by commas", fix="such as 1,0.5,0"
        ) from None
    flags = {**options_of(set_), "student": student, "data_root": data_root, "epochs": epochs, "limit": limit}
    output(turn(cache, out, path, seeds=seeds, epochs_each=epochs_each, flags=flags, file=config), json_, show.dialled)
