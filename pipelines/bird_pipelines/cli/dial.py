"""`bird dial`, the command: it parses, calls one function, prints."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from bird_pipelines.cli import show
from bird_pipelines.cli.options import CacheArgument, Config, Json, SetOptions, options_of, output, takes
from bird_pipelines.config.run import options_of_a_run

__all__ = ["dial"]


@takes(options_of_a_run(), ("out", "student", "data_root", "epochs", "limit"), need=("out",))
def dial(
    flags: dict[str, Any],
    cache: CacheArgument,
    balances: Annotated[
        str,
        typer.Option(help="Shares of the balanced CE in the feedback, separated by commas, in the order of the path."),
    ] = "1,0.75,0.5,0.25,0",
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds: each trains its own path.")] = 8,
    epochs_each: Annotated[int, typer.Option(min=1, help="Epochs of each point after the first.")] = 3,
    set_: SetOptions = None,
    config: Config = None,
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
    out, flags = flags.pop("out"), {**flags, **options_of(set_)}
    output(turn(cache, out, path, seeds=seeds, epochs_each=epochs_each, flags=flags, file=config), json_, show.dialled)
