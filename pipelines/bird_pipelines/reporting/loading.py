"""Run folders as the report reads them: finished runs, by configuration."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np

from bird.errors import RunError, WrongRunError
from bird.measuring.shared_rows import Predicted
from bird_cache.manifest import flatten
from bird_pipelines.marks import with_caveats
from bird_pipelines.predictions import load_predictions
from bird_pipelines.reporting.settings import plain

__all__ = ["SPLITS", "Configuration", "Run", "folders_of_runs", "group", "marginals", "read_run"]

SPLITS = ("test", "meta")
# What a configuration is called by, beside its method, where it differs between configurations.
SOURCE = ("dataset", "teacher", "student")


@final
@dataclass(frozen=True)
class Run:
    """A finished run: what run.json, curve.jsonl and metrics-SPLIT.json hold; `settings` is its flat config."""

    folder: Path
    name: str
    settings: dict[str, Any]
    info: dict[str, Any]
    curve: list[dict[str, Any]]
    metrics: dict[str, dict[str, Any]]
    codes: tuple[int, ...] | None = None
    """which group each stored group is part of, where the run is looked at by one of several group columns"""

    def predictions(self, split: str) -> Predicted | None:
        """What it predicts; None where it did not keep that."""
        found = load_predictions(self.folder, split)
        if found is None or self.codes is None:
            return found
        return dataclasses.replace(found, groups=np.asarray(self.codes, np.int64)[found.groups])

    def by(self, factor: str) -> Run:
        """The same run, looked at by one of the group columns that its groups are crossed from."""
        told = self.info["factors"][factor]
        metrics = {split: each.get("marginals", {}).get(factor, {}) for split, each in self.metrics.items()}
        info = {**self.info, "group_names": told["names"]}
        return dataclasses.replace(self, info=info, metrics=metrics, codes=tuple(told["codes"]))


@final
@dataclass(frozen=True)
class Configuration:
    """Runs that differ in their seed only, by seed."""

    label: str
    runs: list[Run]

    def setting(self, name: str) -> Any:
        """A setting, which all its runs share."""
        return self.runs[0].settings.get(name)

    def evaluated(self, split: str) -> list[Run]:
        """The runs with metrics on `split`."""
        return [run for run in self.runs if "auroc" in run.metrics[split]]


def marginals(configurations: Sequence[Configuration]) -> dict[str, list[Configuration]]:
    """By each column that the groups of some are crossed from: these configurations, looked at by it."""
    found: dict[str, list[Configuration]] = {}
    for each in configurations:
        for factor in each.runs[0].info.get("factors") or {}:
            found.setdefault(factor, []).append(Configuration(each.label, [run.by(factor) for run in each.runs]))
    return found


def folders_of_runs(paths: Sequence[Path]) -> list[Path]:
    """The run folders among `paths`, and those that lie in a folder among them or in its folders of seeds, by name; others
    stay as they are."""
    found: list[Path] = []
    for path in paths:
        below = [] if _is_run(path) or not path.is_dir() else [*path.iterdir(), *path.glob("*/seed-*")]
        found += sorted(each for each in below if _is_run(each)) or [path]
    return found


def _is_run(folder: Path) -> bool:
    return (folder / "run.json").exists() or (folder / "config.json").exists()


def read_run(folder: Path) -> Run | str:
    """The run in `folder`, or a sentence on an unfinished one. Raises WrongRunError for anything else, RunError for a
    damaged one."""
    name = "/".join(folder.resolve().parts[-2:])
    if not (folder / "run.json").exists() and not (folder / "config.json").exists():
        found = "no run.json" if folder.is_dir() else "no such folder"
        raise WrongRunError(
            where=str(folder), found=found, wanted="a run folder", fix="give the --out of `bird distill`"
        )
    info = _read(folder / "run.json") if (folder / "run.json").exists() else {}
    curve_file = folder / "curve.jsonl"
    curve = [_parse(curve_file, line) for line in curve_file.read_bytes().splitlines()] if curve_file.exists() else []
    if info.get("complete") is not True:
        return f"{name}: unfinished after {len(curve)} epochs"
    missing = [key for key in ("config", "class_names", "group_names", "rows") if key not in info]
    names = info.get("class_names")
    metrics = {split: with_caveats(_metrics(folder / f"metrics-{split}.json"), names) for split in SPLITS}
    if missing or "method" not in info["config"] or "seed" not in info["config"]:
        found = f"run.json without {', '.join(missing) or 'method and seed'}"
        raise RunError(
            where=str(folder), found=found, wanted="a run folder as `bird distill` writes it", fix="run it again"
        )
    settings = flatten(info["config"]) | {"fingerprint": info.get("fingerprint")}
    return Run(folder, name, settings, info, curve, metrics)


def group(runs: Sequence[Run]) -> tuple[list[Configuration], list[str]]:
    """Runs by configuration, in the order given, and a sentence on each run that repeats a seed (counted once)."""
    groups: dict[str, dict[Any, Run]] = {}
    repeated = []
    for run in runs:
        key = json.dumps({name: value for name, value in run.settings.items() if name != "seed"}, sort_keys=True)
        first = groups.setdefault(key, {}).setdefault(run.settings["seed"], run)
        if first is not run:
            repeated.append(f"{run.name}: the same configuration and seed as {first.name}, left out")
    together = [[seeds[seed] for seed in sorted(seeds)] for seeds in groups.values()]
    firsts = [each[0].settings for each in together]
    return [Configuration(_label(each[0].settings, firsts), each) for each in together], repeated


def _label(settings: dict[str, Any], every: Sequence[dict[str, Any]]) -> str:
    """The method, with what tells this configuration from the others: its source, and what differs within the method."""
    differing = [name for name in SOURCE if len({plain(each.get(name)) for each in every}) > 1]
    kin = [each for each in every if all(each.get(name) == settings.get(name) for name in ("method", *differing))]
    extra = [
        name
        for name in settings
        if name not in SOURCE and name != "seed" and len({plain(each.get(name)) for each in kin}) > 1
    ]
    parts = [plain(settings.get(name)) for name in differing] + [f"{name} {plain(settings[name])}" for name in extra]
    return " · ".join([plain(settings["method"]), *parts])


def _metrics(path: Path) -> dict[str, Any]:
    """A metrics file; {"error": why} where there is none or it says so. Raises RunError for a damaged one."""
    if not path.exists():
        return {"error": f"no {path.name}"}
    found = _read(path)
    wanted = (
        "auroc",
        "f1_macro",
        "accuracy",
        "mean_deo",
        "max_deo",
        "recalls",
        "deo_floor",
        "intervals",
        "confusion",
    )
    if "error" not in found and (missing := [name for name in wanted if name not in found]):
        raise _damaged(path, f"no {', '.join(missing)}")
    return found


def _read(path: Path) -> dict[str, Any]:
    try:
        return _parse(path, path.read_bytes())
    except OSError as error:
        raise _damaged(path, error.strerror or str(error)) from None


def _parse(path: Path, text: bytes) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise _damaged(path, str(error)) from None
    if not isinstance(value, dict):
        raise _damaged(path, f"a {type(value).__name__}")
    return value


def _damaged(path: Path, found: str) -> RunError:
    return RunError(
        where=str(path),
        found=found,
        wanted="a run folder as `bird distill` writes it",
        fix="run it or evaluate it again",
    )
