"""The two phases and what surrounds them: data set -> precompute -> cache -> distill -> run -> evaluate -> report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = ["distill", "precompute"]


def precompute(
    *, teacher: str, dataset: str, out: str | Path, config: str | Path | None = None, **options: Any
) -> dict[str, Any]:
    """`bird precompute` from Python: write (or finish) the cache of `teacher`'s features of `dataset` in `out`, and return
    what it holds, as `bird cache info` says it.

    `options` are the command's, with underscores (`slice_` for slice, `range_` for range); `config` is a TOML file of
    them; `settings` are the data set's, by name. None means the default. Raises what the command reports: BirdError of
    bird.errors or CacheError of bird_cache.

        info = bird_pipelines.precompute(teacher="onnx:model.onnx", dataset="digits-s", out="out/cache")
    """
    from bird_pipelines.config import resolve_precompute
    from bird_pipelines.precomputing.extraction import precompute_command

    flags = {"teacher": teacher, "dataset": dataset, "out": out, **options}
    return precompute_command(resolve_precompute(flags, None if config is None else Path(config)))


def distill(*, cache: str | Path, out: str | Path, config: str | Path | None = None, **options: Any) -> dict[str, Any]:
    """`bird distill` from Python: train (or finish) the run in `out` on the features of `cache`, and return run.json with
    `metrics`, by split.

    `options` are the command's, with underscores (`lambda_` for lambda): `bird distill --help` lists them; `config` is a
    TOML file of them. None means the default. Raises what the command reports: UsageError for options that are unknown
    or out of range, RunError if `out` holds another run, and the errors of the cache and the data set (all
    BirdError of bird.errors or CacheError of bird_cache).

        info = bird_pipelines.distill(cache="out/cache", out="out/run", method="bird", lambda_=0.1)
        info["metrics"]["test"]["mean_deo"]
    """
    from bird_pipelines.config import resolve
    from bird_pipelines.distilling.data import cache_dataset
    from bird_pipelines.distilling.training import distill as train

    defaults = {"student": "adapter", "method": "bird", "dataset": cache_dataset(str(cache))}
    flags = {"cache": str(cache), "out": Path(out), **options}
    return train(resolve(flags, None if config is None else Path(config), defaults))
