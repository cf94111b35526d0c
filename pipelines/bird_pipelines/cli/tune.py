"""`bird tune`, the command: it parses, calls one function, prints."""

from __future__ import annotations

from typing import Annotated, Any

import typer

import bird_pipelines
from bird_pipelines.cli import show
from bird_pipelines.cli.options import Address, Config, Engine, Json, output, takes
from bird_pipelines.config.run import options_of_a_run

__all__ = ["tune"]


@takes(
    options_of_a_run(),
    ("cache", "out", "method", "student", "data_root", "epochs", "warmup", "batch_size", "limit"),
    need=("cache", "out"),
)
def tune(
    flags: dict[str, Any],
    trials: Annotated[int, typer.Option(min=1, help="Candidate settings.")] = 24,
    per_round: Annotated[
        int, typer.Option(min=1, help="Candidates that train together before the next are drawn.")
    ] = 6,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of each candidate.")] = 3,
    final_seeds: Annotated[int, typer.Option(min=1, help="Seeds of the chosen setting, scored on test.")] = 8,
    floor_on: Annotated[
        str,
        typer.Option(
            help="The score with a floor: balanced_accuracy (all cells weigh the same), accuracy, auroc or f1_macro."
        ),
    ] = "balanced_accuracy",
    drop: Annotated[
        float,
        typer.Option(min=0, help="Points that a candidate may lose against the baseline with its default settings."),
    ] = 1.0,
    floor: Annotated[float | None, typer.Option(help="Lowest allowed value, x100. It replaces --drop.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the search and of the halves of the meta split.")] = 0,
    engine: Engine = "local",
    address: Address = None,
    config: Config = None,
    json_: Json = False,
) -> None:
    """Choose the weights of a method and of the baseline on half of the meta split. Among the candidates at or above
    a floor of accuracy, the lowest mean-DEO wins. The test split is read once, at the end."""
    found = bird_pipelines.tune(
        **flags,
        config=config,
        trials=trials,
        per_round=per_round,
        seeds=seeds,
        final_seeds=final_seeds,
        floor_on=floor_on,
        drop=drop,
        floor=floor,
        seed=seed,
        engine=engine,
        address=address,
    )
    output(found, json_, show.tuned)
