"""`bird tune`, the command: it parses, calls one function, prints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bird_pipelines.cli import show
from bird_pipelines.cli.options import DataRoot, Json, Out, TrainLimit, output

__all__ = ["tune"]


def tune(
    cache: Annotated[str, typer.Option(help="The cache that `bird precompute` wrote: a folder or URL.")],
    out: Out,
    method: Annotated[
        str | None, typer.Option(help="The method whose weights are chosen (`bird list methods`). Default bird.")
    ] = None,
    trials: Annotated[int, typer.Option(min=1, help="Candidate settings.")] = 24,
    per_round: Annotated[
        int, typer.Option(min=1, help="Candidates that train together before the next are drawn.")
    ] = 6,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of each candidate.")] = 3,
    final_seeds: Annotated[int, typer.Option(min=1, help="Seeds of the chosen setting, scored on test.")] = 8,
    auroc_drop: Annotated[
        float, typer.Option(min=0, help="Points of AUROC that a candidate may lose against the baseline.")
    ] = 1.0,
    auroc_floor: Annotated[float | None, typer.Option(help="The floor itself, x100, in place of that.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the search, and of how meta is halved.")] = 0,
    student: Annotated[
        str | None, typer.Option(help="adapter (default), whose candidates train together, or an image student.")
    ] = None,
    data_root: DataRoot = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Default 10.")] = None,
    warmup: Annotated[int | None, typer.Option(min=0, help="Default half.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=2, help="Default 128.")] = None,
    limit: TrainLimit = None,
    config: Annotated[Path | None, typer.Option(help="TOML file of `bird distill` options; flags win.")] = None,
    json_: Json = False,
) -> None:
    """Choose lambda, alpha, mu2 ... on half of the meta split: lowest mean-DEO above an AUROC floor. Test is opened once."""
    from bird_pipelines.config import resolve
    from bird_pipelines.distilling.data import cache_dataset
    from bird_pipelines.study.tune import Search
    from bird_pipelines.study.tune import tune as run

    flags = {"cache": cache, "out": out, "method": method, "student": student, "data_root": data_root}
    flags |= {"epochs": epochs, "warmup": warmup, "batch_size": batch_size, "limit": limit}
    base = resolve(flags, config, {"dataset": cache_dataset(cache), "method": "bird", "student": "adapter"})
    search = Search(
        trials=trials,
        per_round=per_round,
        seeds=seeds,
        final_seeds=final_seeds,
        auroc_drop=auroc_drop,
        auroc_floor=auroc_floor,
        seed=seed,
    )
    output(run(base, search), json_, show.tuned)
