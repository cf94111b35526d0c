"""`bird report`: run folders in, one self-contained HTML page out. Loads nothing from the network, holds no date."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from bird.errors import RunError
from bird.measuring.metrics import gap_floors
from bird.measuring.seeds import two_level_intervals
from bird_cache.files import replace, storage_error
from bird_cache.manifest import flatten
from bird_pipelines.marks import MARK, WHAT_TRIVIAL_MEANS, few, lost_of_cells, reason_of, trivial_seeds, with_caveats
from bird_pipelines.predictions import load_predictions
from bird_pipelines.reporting import plots
from bird_pipelines.reporting.page import page

__all__ = ["write_report"]

SPLITS = ("test", "meta")
ENOUGH_SEEDS = 8
# Enough for the first decimal of an interval; 40 runs take two seconds.
REPLICATES = 2000
# What a configuration is called by, beside its method, where it differs between configurations.
SOURCE = ("dataset", "teacher", "student")
# Settings that the page shows elsewhere than among the settings.
SHOWN = ("method", "seed", "fingerprint")
COLUMNS = {
    "auroc": "AUROC ↑",
    "f1_macro": "F1 macro ↑",
    "f1_binary": "F1 of class 1 ↑",
    "accuracy": "accuracy ↑",
    "mean_deo": "mean-DEO ↓",
    "max_deo": "max-DEO ↓",
}


@dataclass(frozen=True)
class Run:
    """A finished run: what run.json, curve.jsonl and metrics-SPLIT.json hold; `settings` is its flat config."""

    folder: Path
    name: str
    settings: dict[str, Any]
    info: dict[str, Any]
    curve: list[dict[str, Any]]
    metrics: dict[str, dict[str, Any]]


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


def write_report(runs: Sequence[Path], out: Path, *, title: str = "BIRD report") -> Path:
    """Write the page on `runs` to `out`, whole or not at all, and return `out`. The same runs give the same bytes.

    A run that is not finished is listed as such. Raises RunError for a path that is no run folder, a damaged one, or
    if no run is finished; StorageError if `out` cannot be written.
    """
    loaded = [read_run(folder) for folder in runs]
    finished = [run for run in loaded if isinstance(run, Run)]
    unfinished = [run for run in loaded if isinstance(run, str)]
    if not finished:
        found = f"none that is finished ({'; '.join(unfinished) or 'none given'})"
        raise RunError(
            where="report",
            found=found,
            wanted="at least one finished run",
            fix="finish one with `bird distill`",
        )
    configurations, repeated = group(finished)
    page = render(title, configurations, unfinished, repeated)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(out.parent, error, 0) from None
    replace(out, page.encode())
    return out


def read_run(folder: Path) -> Run | str:
    """The run in `folder`, or a sentence on an unfinished one. Raises RunError for anything else."""
    name = "/".join(folder.resolve().parts[-2:])
    if not (folder / "run.json").exists() and not (folder / "config.json").exists():
        found = "no run.json" if folder.is_dir() else "no such folder"
        raise RunError(where=str(folder), found=found, wanted="a run folder", fix="give the --out of `bird distill`")
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


def render(
    title: str, configurations: Sequence[Configuration], unfinished: Sequence[str], repeated: Sequence[str]
) -> str:
    """The page."""
    names = list(dict.fromkeys(name for each in configurations for name in each.runs[0].settings))
    shared = [name for name in names if name not in SHOWN and len(_values(configurations, name)) == 1]
    few = [f"{each.label}: {len(each.runs)}" for each in configurations if len(each.runs) < ENOUGH_SEEDS]
    values: dict[str, Any] = {
        "title": title,
        "runs": sum(len(each.runs) for each in configurations),
        "shared": [(name, configurations[0].setting(name)) for name in shared],
        "sources": _sources(configurations),
        "versions": _versions(configurations),
        "unfinished": unfinished,
        "repeated": repeated,
        "few": few,
        "enough": ENOUGH_SEEDS,
        "replicates": REPLICATES,
        "columns": COLUMNS,
        "mark": MARK,
        "what_trivial_means": WHAT_TRIVIAL_MEANS,
        "tables": [_table(configurations, split) for split in SPLITS],
        "scatters": _scatters(configurations),
        "paths": _paths(configurations),
        "details": [_detail(index, each, shared) for index, each in enumerate(configurations)],
    }
    return page("report", values, {"plain": _plain})


def _table(configurations: Sequence[Configuration], split: str) -> dict[str, Any]:
    """The results on one split: a row a configuration."""
    rows = [{"label": each.label, **_result(each, split)} for each in configurations]
    columns = [
        name
        for name in COLUMNS
        if name != "f1_binary" or any(row["cells"] and row["cells"][name]["mean"] is not None for row in rows)
    ]
    return {"split": split, "columns": columns, "rows": rows}


def _result(configuration: Configuration, split: str) -> dict[str, Any]:
    """Mean, standard deviation (ddof 1), 95 % interval, floor and gap beyond chance of each metric over the seeds, all x100;
    what does not exist is None, with `reason` for a metric; `trivial` says which seeds' gap says nothing.

    Intervals over several seeds are computed from predictions or counts, which do not determine AUROC's.
    """
    runs = configuration.evaluated(split)
    if not runs:
        reason = configuration.runs[0].metrics[split].get("error")
        return {"seeds": 0, "cells": {}, "reason": reason, "trivial": None}
    metrics = [run.metrics[split] for run in runs]
    confusions = [np.asarray(each["confusion"], dtype=np.int64) for each in metrics]
    predicted = [load_predictions(run.folder, split) for run in runs] if len(runs) > 1 else []
    over_seeds = two_level_intervals(confusions, REPLICATES, predicted=predicted)
    intervals = {name: (each.low, each.high) for name, each in over_seeds.items()}
    if len(metrics) == 1:
        intervals["auroc"] = metrics[0]["intervals"]["auroc"]
    cells = {}
    for name in COLUMNS:
        values = [each[name] for each in metrics if each.get(name) is not None]
        gaps = metrics if values and name.endswith("_deo") else []
        floors = [each["deo_floor"][name.removesuffix("_deo")] for each in gaps]
        cells[name] = {
            "mean": float(np.mean(values)) if values else None,
            "std": float(np.std(values, ddof=1)) if len(values) > 1 else None,
            "interval": intervals.get(name),
            "floor": float(np.mean(floors)) if floors else None,
            "beyond": over_seeds[name].beyond_chance if name in over_seeds else None,
            "reason": None if values else reason_of(name, metrics) or "not recorded",
        }
    marks = trivial_seeds({run.settings["seed"]: run.metrics[split] for run in runs})
    return {"seeds": len(runs), "cells": cells, "reason": None, "trivial": marks}


def _scatters(configurations: Sequence[Configuration]) -> list[dict[str, Any]]:
    """AUROC against mean-DEO on the test split, one plot a data set."""
    scatters = []
    methods = list(dict.fromkeys(str(each.setting("method")) for each in configurations))
    for index, dataset in enumerate(dict.fromkeys(str(each.setting("dataset")) for each in configurations)):
        points = []
        for each in configurations:
            for run in each.evaluated("test") if str(each.setting("dataset")) == dataset else ():
                metrics = run.metrics["test"]
                if metrics["mean_deo"] is not None and metrics["auroc"] is not None:
                    place = (metrics["mean_deo"], metrics["auroc"], metrics["deo_floor"]["mean"])
                    points.append(
                        plots.Point(str(each.setting("method")), each.label, *place, bool(metrics["trivial"]))
                    )
        if points:
            svg = plots.scatter_plot(points, methods, f"scatter{index}")
            scatters.append({"dataset": dataset, "plot": Markup(svg)})
    return scatters


# What the points of a path may differ in (bird_pipelines.study.dial).
ALONG = ("seed", "balance", "epochs", "warmup", "started")


def _paths(configurations: Sequence[Configuration]) -> list[dict[str, Any]]:
    """Accuracy against mean-DEO on the test split, one plot for each path of runs that go on from one another."""
    kin: dict[str, list[Configuration]] = {}
    for each in configurations:
        if each.setting("method") == "bird-offsets":
            settings = {name: value for name, value in each.runs[0].settings.items() if name not in ALONG}
            kin.setdefault(json.dumps(settings, sort_keys=True), []).append(each)
    found: list[dict[str, Any]] = []
    for path in kin.values():
        stops = [stop for each in path if (stop := _stop(each)) is not None]
        if len(stops) > 1 and any(each.setting("started") for each in path):
            svg = plots.path_plot(stops, f"path{len(found)}")
            found.append({"dataset": str(path[0].setting("dataset")), "plot": Markup(svg)})
    return found


def _stop(configuration: Configuration) -> plots.Stop | None:
    result = _result(configuration, "test")
    deo, accuracy = (result["cells"].get(name) for name in ("mean_deo", "accuracy"))
    if not deo or deo["mean"] is None or accuracy is None or accuracy["mean"] is None:
        return None
    label = f"balance {configuration.setting('balance'):g}"
    ends = deo["interval"], accuracy["mean"], accuracy["interval"]
    return plots.Stop(label, deo["mean"], *ends, deo["floor"], bool(result["trivial"]))


def _detail(index: int, configuration: Configuration, shared: Sequence[str]) -> dict[str, Any]:
    """The plots of a configuration's first run: recalls and gaps, curves, gate."""
    run = configuration.runs[0]
    shown = next((split for split in SPLITS if "auroc" in run.metrics[split]), None)
    recall, metrics = None, run.metrics[shown] if shown else {}
    if metrics and metrics["mean_deo"] is not None:
        names = (
            [str(each) for each in run.info["class_names"]],
            [str(each) for each in run.info["group_names"]],
        )
        counts = np.asarray(metrics["confusion"], dtype=np.int64)
        floors = (metrics["deo_floor"]["mean"], gap_floors(counts, replicates=REPLICATES).tolist())
        recall = plots.recall_plot(metrics["recalls"], *names, *floors, f"recall{index}")
    acts = any(line.get("bias") is not None or line.get("gate") for line in run.curve)
    warmup = run.settings.get("warmup") if acts else None
    seconds = [each.info["seconds"] for each in configuration.runs if each.info.get("seconds") is not None]
    return {
        "label": configuration.label,
        "seeds": [each.settings["seed"] for each in configuration.runs],
        "seconds": float(np.mean(seconds)) if seconds else None,
        "views": run.info.get("view_policy", "not recorded"),
        "at_once": run.info.get("models_at_once"),
        "shares": list((run.info.get("time_shares") or {}).items()),
        "settings": [(name, value) for name, value in run.settings.items() if name not in (*shared, *SHOWN)],
        "run": run.name,
        "seed": run.settings["seed"],
        "split": shown,
        "recall": recall and Markup(recall),
        "reason": metrics.get("undefined", {}).get("mean_deo"),
        "trivial": metrics.get("trivial"),
        "curve": Markup(plots.curve_plot(run.curve, warmup, f"curve{index}")) if run.curve else None,
        "gate": Markup(gate) if (gate := plots.gate_plot(run.curve, f"gate{index}")) else None,
        "offsets": _offsets(run),
        "lost": lost_of_cells(run.info),
    }


def _offsets(run: Run) -> dict[str, Any] | None:
    """phi of bird-offsets by class and group: after the first, a middle and the last epoch; None for other methods."""
    lines = [line for line in run.curve if line.get("offsets")]
    if not lines:
        return None
    shown = [lines[place] for place in sorted({0, len(lines) // 2, len(lines) - 1})]
    classes, groups = ([str(each) for each in run.info[kind]] for kind in ("class_names", "group_names"))
    rows = [
        (name, [[line["offsets"][c][m] for line in shown] for m in range(len(groups))])
        for c, name in enumerate(classes)
    ]
    return {"epochs": [line["epoch"] for line in shown], "groups": groups, "rows": rows}


def _sources(configurations: Sequence[Configuration]) -> list[dict[str, Any]]:
    """What data the runs read, each kind once: data set, teacher, fingerprint, rows a split, failed rows a group, empty
    cells."""
    sources = {}
    for each in configurations:
        info = each.runs[0].info
        source = {
            "dataset": each.setting("dataset"),
            "teacher": each.setting("teacher"),
            "fingerprint": info.get("fingerprint"),
            "rows": info["rows"],
            "failed": info.get("failed") or {},
            "accounted": info.get("accounted"),
            "empty": {split: few(cells) for split, cells in (info.get("empty_cells") or {}).items()},
        }
        sources[json.dumps(source, sort_keys=True)] = source
    return list(sources.values())


def _versions(configurations: Sequence[Configuration]) -> list[tuple[str, str]]:
    """Each library with every version that a run recorded."""
    seen: dict[str, dict[str, None]] = {}
    for run in (run for each in configurations for run in each.runs):
        for library, version in run.info.get("versions", {}).items():
            seen.setdefault(library, {})[str(version)] = None
    return [(library, " and ".join(each)) for library, each in seen.items()]


def _label(settings: dict[str, Any], every: Sequence[dict[str, Any]]) -> str:
    """The method, with what tells this configuration from the others: its source, and what differs within the method."""
    differing = [name for name in SOURCE if len({_plain(each.get(name)) for each in every}) > 1]
    kin = [each for each in every if all(each.get(name) == settings.get(name) for name in ("method", *differing))]
    extra = [
        name
        for name in settings
        if name not in SOURCE and name != "seed" and len({_plain(each.get(name)) for each in kin}) > 1
    ]
    parts = [_plain(settings.get(name)) for name in differing] + [f"{name} {_plain(settings[name])}" for name in extra]
    return " · ".join([_plain(settings["method"]), *parts])


def _values(configurations: Sequence[Configuration], name: str) -> set[str]:
    return {_plain(each.setting(name)) for each in configurations}


def _plain(value: object) -> str:
    """A setting as a reader writes it."""
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


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
