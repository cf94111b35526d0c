"""The two phases and what surrounds them: data set -> precompute -> cache -> distill -> run -> evaluate -> report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["audit", "distill", "evaluate", "precompute", "report"]


def precompute(
    *, teacher: str, dataset: str, out: str | Path, config: str | Path | None = None, **options: Any
) -> dict[str, Any]:
    """`bird precompute` from Python: write, or finish, the cache of `teacher` over `dataset` in `out`. Returns what
    `bird cache info` shows.

    `options` are the command's, with underscores (`slice_` for slice, `range_` for range); `config` is a TOML file of
    them; `settings` are the data set's, by name. None means the default. Raises the errors that the command reports:
    BirdError of bird.errors or CacheError of bird_cache.

        info = bird_pipelines.precompute(teacher="onnx:model.onnx", dataset="digits-s", out="out/cache")
    """
    from bird_pipelines.config import resolve_precompute
    from bird_pipelines.precomputing.command import precompute_command

    flags = {"teacher": teacher, "dataset": dataset, "out": out, **options}
    return precompute_command(resolve_precompute(flags, None if config is None else Path(config)))


def distill(*, cache: str | Path, out: str | Path, config: str | Path | None = None, **options: Any) -> dict[str, Any]:
    """`bird distill` from Python: train (or finish) the run in `out` on the features of `cache`, and return run.json with
    `metrics`, by split.

    `options` are the command's, with underscores (`lambda_` for lambda): `bird distill --help` lists them; `config` is a
    TOML file of them. None means the default. Raises the errors that the command reports: UsageError for options that
    are unknown or out of range, RunError if `out` holds another run, and the errors of the cache and the data set (all
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


def evaluate(
    run: str | Path, split: str = "test", *, data_root: str | Path | None = None, cache: str | None = None
) -> dict[str, Any]:
    """`bird evaluate` from Python: the metrics of a finished run on one split, also written into its folder.

    `data_root` and `cache` say where its data and its cache are now, if they moved. Raises the errors that the command
    reports.

        bird_pipelines.evaluate("out/run", "meta")["mean_deo"]
    """
    from bird_pipelines.distilling.evaluate import evaluate as score

    return score(Path(run), split, data_root=None if data_root is None else Path(data_root), cache=cache)


def report(
    runs: str | Path | Sequence[str | Path], out: str | Path = "report.html", *, against: str | None = None
) -> Path:
    """`bird report` from Python: one page about run folders, or about folders that hold them. Returns where it is.

    `against` is the method that the others are compared with: by default the baseline, else the first.

        bird_pipelines.report("out/runs", "out/report.html")
    """
    from bird_pipelines.reporting.report import write_report

    paths = [runs] if isinstance(runs, str | Path) else runs
    return write_report([Path(each) for each in paths], Path(out), against=against)


def audit(
    file: str | Path,
    out: str | Path = "report.html",
    *,
    label: str = "label",
    group: str | Sequence[str] = "group",
    prediction: str | None = None,
    scores: Sequence[str] = (),
    baseline: str | Path | None = None,
) -> dict[str, Any]:
    """`bird audit` from Python: a page about the predictions in a CSV or Parquet file, and its numbers, by grouping.

    `label`, `group`, `prediction` and `scores` name columns. Several groups are crossed, and shown one by one. A value that
    does not exist is None, with its reason. Raises DataError for a file that does not fit, UsageError for a column that it
    does not have.

        found = bird_pipelines.audit("predictions.csv", group=["sex", "age"], scores=["p_no", "p_yes"])
        found["groups"]["sex"]["by_group"]["accuracy"]
    """
    from bird_pipelines.reporting.audit import audit as write_audit

    groups = [group] if isinstance(group, str) else [*group]
    columns: dict[str, Any] = {"label": label, "group": groups, "prediction": prediction, "scores": [*scores]}
    return write_audit(Path(file), Path(out), baseline=None if baseline is None else Path(baseline), **columns)
