"""What the report says of each configuration, seed by seed, and of the data that the runs read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bird.measuring.groups import GroupNumbers, Number, by_group, parity_gap, share_over_seeds
from bird.measuring.metrics import gap_floors
from bird_pipelines.marks import few, lost_of_cells, trivial_seeds
from bird_pipelines.predictions import load_scores
from bird_pipelines.reporting.curves import gate_chart, loss_chart, meta_chart
from bird_pipelines.reporting.loading import SPLITS, Configuration, Run
from bird_pipelines.reporting.look import MOST_GROUPS
from bird_pipelines.reporting.recall_chart import recall_chart
from bird_pipelines.reporting.results import COLUMNS, REPLICATES
from bird_pipelines.reporting.settings import SHOWN, settings_that_matter

__all__ = ["detail_of", "groups_of", "numbers_of", "sources_of", "versions_of"]


def detail_of(configuration: Configuration, shared: Sequence[str]) -> dict[str, Any]:
    """A configuration: its own settings, and each of its seeds."""
    run = configuration.runs[0]
    seconds = [each.info["seconds"] for each in configuration.runs if each.info.get("seconds") is not None]
    settings = settings_that_matter(run.settings)
    seeds = [_seed(each) for each in configuration.runs]
    return {
        "label": configuration.label,
        "seeds": seeds,
        "columns": [name for name in COLUMNS if any(name in each["scores"] for each in seeds)],
        "seconds": float(np.mean(seconds)) if seconds else None,
        "views": run.info.get("view_policy", "not recorded"),
        "at_once": run.info.get("models_at_once"),
        "settings": [(name, value) for name, value in settings.items() if name not in (*shared, *SHOWN)],
        "class_names": [str(each) for each in run.info["class_names"]],
        "group_names": [str(each) for each in run.info["group_names"]],
    }


def _seed(run: Run) -> dict[str, Any]:
    """One run: its scores, recalls and numbers by group, curves."""
    shown = next((split for split in SPLITS if "auroc" in run.metrics[split]), None)
    recall, metrics = None, run.metrics[shown] if shown else {}
    names = ([str(each) for each in run.info["class_names"]], [str(each) for each in run.info["group_names"]])
    if metrics and metrics["mean_deo"] is not None and len(names[1]) <= MOST_GROUPS:
        counts = np.asarray(metrics["confusion"], dtype=np.int64)
        floors = (metrics["deo_floor"]["mean"], gap_floors(counts, replicates=REPLICATES).tolist())
        recall = recall_chart(metrics["recalls"], *names, *floors)
    acts = any(line.get("bias") is not None or line.get("gate") for line in run.curve)
    warmup = run.settings.get("warmup") if acts else None
    stop = run.info.get("early_stop")
    ships = stop and stop["best_epoch"]
    charts = [loss_chart(run.curve, warmup), meta_chart(run.curve, warmup, ships)] if run.curve else []
    return {
        "run": run.name,
        "seed": run.settings["seed"],
        "split": shown,
        "scores": _scores(metrics),
        "recall": recall,
        "numbers": numbers_of(run, shown).as_json() if shown else None,
        "marginals": [
            {"by": factor, "names": run.info["factors"][factor]["names"], "numbers": numbers_of(each, shown).as_json()}
            for factor in (run.info.get("factors") or {})
            if shown and (each := run.by(factor)).metrics[shown]
        ],
        "reason": metrics.get("undefined", {}).get("mean_deo"),
        "trivial": metrics.get("trivial"),
        "shares": list((run.info.get("time_shares") or {}).items()),
        "charts": charts,
        "early": stop and stop | {"at_most": run.settings.get("epochs")},
        "gate": gate_chart(run.curve),
        "offsets": _offsets(run),
        "lost": lost_of_cells(run.info),
    }


def _scores(metrics: Mapping[str, Any]) -> dict[str, Number]:
    """The scores that exist, each with its interval and floor, by column of the results."""
    found = {}
    for name in COLUMNS:
        if metrics.get(name) is not None:
            low, high = metrics["intervals"].get(name) or (None, None)
            floor = metrics["deo_floor"][name.removesuffix("_deo")] if name.endswith("_deo") else None
            found[name] = Number(metrics[name], low, high, 0, floor=floor)
    return found


def numbers_of(run: Run, split: str) -> GroupNumbers:
    """By group, of what the run predicts; from its counts alone, without scores, where the predictions are not there."""
    counts = np.asarray(run.metrics[split]["confusion"], dtype=np.int64)
    found, scores = run.predictions(split), load_scores(run.folder, split)
    if found is not None:
        return by_group(found.labels, found.groups, found.predictions, scores, len(counts), counts.shape[1])
    cells = np.repeat(np.indices(counts.shape).reshape(3, -1), counts.ravel(), axis=1)
    labels, groups, predictions = cells
    return by_group(labels, groups, predictions, None, len(counts), counts.shape[1])


def groups_of(configurations: Sequence[Configuration], by: str = "") -> list[dict[str, Any]]:
    """On the test split, means over the seeds: accuracy of each group, the cell with the lowest recall, the
    demographic-parity gap. One table for configurations that have the same groups; `by` names one of several columns."""
    tables: dict[str, dict[str, Any]] = {}
    for each in configurations:
        runs = each.evaluated("test")
        if not runs:
            continue
        names = [[str(name) for name in runs[0].info[kind]] for kind in ("class_names", "group_names")]
        counts = np.array([run.metrics["test"]["confusion"] for run in runs], dtype=np.int64)
        correct, rows = np.einsum("rcmc->rcm", counts), counts[0].sum(2)
        recalls = np.where(rows > 0, correct.mean(0) / np.maximum(rows, 1), np.inf)
        c, m = np.unravel_index(int(recalls.argmin()), recalls.shape)
        row = {
            "label": each.label,
            "accuracy": [
                share_over_seeds(correct[:, :, g].sum(1), int(rows[:, g].sum())) for g in range(len(names[1]))
            ],
            "worst": share_over_seeds(correct[:, c, m], int(rows[c, m])),
            "cell": f"{names[0][c]}, {names[1][m]}",
            "parity": parity_gap(*counts),
            "trivial": trivial_seeds({run.settings["seed"]: run.metrics["test"] for run in runs}),
        }
        tables.setdefault(str(names[1]), {"by": by, "groups": names[1], "rows": []})["rows"].append(row)
    return list(tables.values())


def _offsets(run: Run) -> dict[str, Any] | None:
    """phi of bird-offsets by class and group, and alpha where it is learned, after the first, a middle and the last epoch;
    None for other methods."""
    lines = [line for line in run.curve if line.get("offsets")]
    if not lines:
        return None
    shown = [lines[place] for place in sorted({0, len(lines) // 2, len(lines) - 1})]
    classes, groups = ([str(each) for each in run.info[kind]] for kind in ("class_names", "group_names"))
    rows = [
        (name, [[line["offsets"][c][m] for line in shown] for m in range(len(groups))])
        for c, name in enumerate(classes)
    ]
    alphas = [line["alpha"] for line in shown if "alpha" in line]
    return {"epochs": [line["epoch"] for line in shown], "groups": groups, "rows": rows, "alphas": alphas}


def sources_of(configurations: Sequence[Configuration]) -> list[dict[str, Any]]:
    """What data the runs read, each kind once: data set, teacher, fingerprint, rows a split, failed rows a group, empty
    cells."""
    sources = {}
    for each in configurations:
        info = each.runs[0].info
        source = {
            "dataset": each.setting("dataset"),
            "settings": _settings(each),
            "teacher": each.setting("teacher"),
            "fingerprint": info.get("fingerprint"),
            "rows": info["rows"],
            "cells": _cells(info.get("cells") or {}),
            "failed": info.get("failed") or {},
            "accounted": info.get("accounted"),
            "empty": {split: few(cells) for split, cells in (info.get("empty_cells") or {}).items()},
        }
        sources[json.dumps(source, sort_keys=True)] = source
    return list(sources.values())


def _settings(configuration: Configuration) -> list[tuple[str, Any]]:
    """Those of the data set."""
    run = configuration.runs[0]
    if "dataset_settings" in run.info:
        return list(run.info["dataset_settings"].items())
    found = run.settings.items()
    return [
        (name.removeprefix("dataset_settings."), value) for name, value in found if name.startswith("dataset_settings.")
    ]


def _cells(cells: Mapping[str, Mapping[str, int]]) -> dict[str, Any]:
    """Rows a "class, group" by split."""
    names = list(dict.fromkeys(name for each in cells.values() for name in each))
    return {"splits": list(cells), "rows": [(name, [each.get(name) for each in cells.values()]) for name in names]}


def versions_of(configurations: Sequence[Configuration]) -> list[tuple[str, str]]:
    """Each library with every version that a run recorded."""
    seen: dict[str, dict[str, None]] = {}
    for run in (run for each in configurations for run in each.runs):
        for library, version in run.info.get("versions", {}).items():
            seen.setdefault(library, {})[str(version)] = None
    return [(library, " and ".join(each)) for library, each in seen.items()]
