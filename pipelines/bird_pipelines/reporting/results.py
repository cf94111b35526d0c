"""The results of the report: scores over seeds with intervals, and the plots of gap against score."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from bird.measuring.seeds import two_level_intervals
from bird_pipelines.marks import reason_of, trivial_seeds
from bird_pipelines.reporting import plots
from bird_pipelines.reporting.loading import Configuration

__all__ = ["COLUMNS", "REPLICATES", "paths_of", "scatters_of", "table_of"]

# Enough for the first decimal of an interval; 40 runs take two seconds.
REPLICATES = 2000
COLUMNS = {
    "auroc": "AUROC ↑",
    "f1_macro": "F1 macro ↑",
    "f1_binary": "F1 of class 1 ↑",
    "accuracy": "accuracy ↑",
    "mean_deo": "mean-DEO ↓",
    "max_deo": "max-DEO ↓",
}


def table_of(configurations: Sequence[Configuration], split: str) -> dict[str, Any]:
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
    predicted = [run.predictions(split) for run in runs] if len(runs) > 1 else []
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
            "largest": metrics[0].get("largest_class") if name == "accuracy" else None,
        }
    marks = trivial_seeds({run.settings["seed"]: run.metrics[split] for run in runs})
    return {"seeds": len(runs), "cells": cells, "reason": None, "trivial": marks}


def scatters_of(configurations: Sequence[Configuration]) -> list[dict[str, Any]]:
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


def paths_of(configurations: Sequence[Configuration]) -> list[dict[str, Any]]:
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
