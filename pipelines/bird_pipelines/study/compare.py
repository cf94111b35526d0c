"""`bird compare`: several methods on one cache with the same seeds, and what each does beside one of them.

Adapters train in stacks. The differences are paired by seed and by row (bird.measuring.paired); p is corrected over the
methods (Holm 1979) where every one of them has a p. The folders are ordinary runs: `bird report OUT/*` draws them, and the
same command goes on where it stopped.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bird.errors import UsageError
from bird.measuring.paired import Predicted
from bird_pipelines.config import RunConfig, resolve
from bird_pipelines.distilling.data import cache_dataset
from bird_pipelines.distilling.side_by_side import distill_many
from bird_pipelines.marks import trivial_seeds
from bird_pipelines.predictions import load_predictions
from bird_pipelines.reporting.effects import differences
from bird_pipelines.reporting.report import write_report

__all__ = ["compare_methods", "differences", "refuse_taken", "require_seeds", "scores_of"]

TAKEN = {
    "method": "name the methods with --methods",
    "seed": "--seeds says how many: 0, 1, ...",
    "out": "give --out",
    "cache": "give the cache as the argument",
}
SCORES = ("auroc", "f1_macro", "accuracy", "mean_deo", "max_deo")


def compare_methods(
    cache: str,
    out: Path,
    methods: Sequence[str],
    *,
    seeds: int = 8,
    against: str | None = None,
    flags: Mapping[str, Any] | None = None,
    file: Path | None = None,
) -> dict[str, Any]:
    """Train every method with each of the seeds 0..seeds-1 into OUT/METHOD-SEED, write OUT/report.html, and return scores on
    the test split, x100, and each method less `against` (default: the first). `flags` are other options of `bird distill`,
    the same for all methods. Raises UsageError for methods that repeat, or a reference that is not among them, and what
    `distill_many` raises.
    """
    refuse_taken(flags or {}, TAKEN)
    reference = against or next(iter(methods), "")
    if len({*methods}) != len(methods) or len(methods) < 2 or reference not in methods:
        raise UsageError(
            where="--methods" if against is None or against in methods else "--against",
            found=", ".join(methods) or "none" if against is None or against in methods else repr(against),
            wanted="two or more methods, each once, and --against one of them",
            fix="see `bird list methods`",
        )
    require_seeds(seeds)
    base = {"student": "adapter", "dataset": cache_dataset(cache)}
    given = {**(flags or {}), "cache": cache}
    plans: dict[str, list[RunConfig]] = {
        method: [
            resolve({**given, "method": method, "seed": seed, "out": out / f"{_folder(method)}-{seed}"}, file, base)
            for seed in range(seeds)
        ]
        for method in methods
    }
    done = iter(
        distill_many([config for configs in plans.values() for config in configs])
    )  # all looked at, then trained
    finished = {method: [next(done) for _ in configs] for method, configs in plans.items()}
    first = finished[methods[0]][0]
    sizes = len(first["class_names"]), len(first["group_names"])
    predicted = {method: _predicted(configs) for method, configs in plans.items()}
    report = write_report(
        [config.place.out for configs in plans.values() for config in configs],
        out / "report.html",
        against=plans[reference][0].method,
    )
    return {
        "cache": cache,
        "against": reference,
        "seeds": seeds,
        "methods": {method: scores_of(runs) for method, runs in finished.items()},
        "differences": differences(predicted, reference, *sizes),
        "report": str(report),
    }


def require_seeds(seeds: int) -> None:
    """Raise UsageError for a number of seeds that is none."""
    if seeds < 1:
        raise UsageError(where="--seeds", found=str(seeds), wanted="1 or more", fix="eight give p-values")


def refuse_taken(flags: Mapping[str, Any], taken: Mapping[str, str]) -> None:
    """Raise UsageError for options of a run that the command sets itself; `taken` says what to do instead."""
    for name in taken.keys() & flags.keys():
        raise UsageError(
            where=f"--set {name}={flags[name]}",
            found="an option that this command sets for each run",
            wanted="other options of `bird distill`",
            fix=taken[name],
        )


def _folder(method: str) -> str:
    """The method's name without what a path of somebody's own code has in it."""
    return re.sub(r"[^\w.+-]+", "_", method)


def _predicted(configs: Sequence[RunConfig]) -> dict[int, Predicted]:
    found = {config.training.seed: load_predictions(config.place.out, "test") for config in configs}
    return {seed: each for seed, each in found.items() if each is not None}


def scores_of(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation over the seeds of each score that exists, the floor of the mean-DEO, and the mark."""
    metrics = {run["config"]["seed"]: run["metrics"]["test"] for run in runs}
    values = {name: [each[name] for each in metrics.values() if each.get(name) is not None] for name in SCORES}
    floors = [each["deo_floor"]["mean"] for each in metrics.values() if each.get("mean_deo") is not None]
    return {
        **{
            name: {"mean": statistics.fmean(found), "std": statistics.stdev(found) if len(found) > 1 else None}
            for name, found in values.items()
            if found
        },
        "deo_floor": statistics.fmean(floors) if floors else None,
        "trivial": trivial_seeds(metrics),
        "seconds": statistics.fmean(run["seconds"] for run in runs),
    }
