"""`bird compare`, the command: it parses, calls one function, prints."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from bird_pipelines.cli import show
from bird_pipelines.cli.options import CacheArgument, Config, Json, SetOptions, options_of, output, takes
from bird_pipelines.config.run import options_of_a_run

__all__ = ["compare"]


@takes(options_of_a_run(), ("out", "student", "data_root", "epochs", "limit"), need=("out",))
def compare(
    flags: dict[str, Any],
    cache: CacheArgument,
    methods: Annotated[str, typer.Option(help="Two or more names, separated by commas (`bird list methods`).")],
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds per method. A p-value needs eight or more.")] = 8,
    against: Annotated[
        str | None, typer.Option(help="The method that the others are compared with. Default: the first.")
    ] = None,
    set_: SetOptions = None,
    config: Config = None,
    json_: Json = False,
) -> None:
    """Train several methods with the same seeds and compare each with one of them, with intervals."""
    from bird_pipelines.study.compare import compare_methods

    out, flags = flags.pop("out"), {**flags, **options_of(set_)}
    names = [name.strip() for name in methods.split(",") if name.strip()]
    found = compare_methods(cache, out, names, seeds=seeds, against=against, flags=flags, file=config)
    output(found, json_, show.compared)
