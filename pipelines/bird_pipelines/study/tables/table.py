"""A table of the paper beside ours: what `bird reproduce` found, as one plain record that the writers turn into files.

All numbers are x100. A cell holds our mean and standard deviation (ddof 1) over seeds, a 95 % interval over
seeds and rows, the floor of a DEO and the DEO beyond chance, the paper's number, and the paired comparison with the row's
reference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, final

import numpy as np

from bird.errors import DataError
from bird.measuring.paired import ENOUGH_SEEDS, Predicted, compare, holm, sign_flip_p
from bird.measuring.seeds import OverSeeds, two_level_intervals
from bird_pipelines.marks import ONE_SEED, WHAT_TRIVIAL_MEANS, lost_of_cells, reason_of, trivial_seeds
from bird_pipelines.predictions import load_predictions
from bird_pipelines.reporting.report import Run, read_run
from bird_pipelines.study.tables import published
from bird_pipelines.study.tables.recipes import Profile, Recipe, Row

__all__ = ["COLUMNS", "NO_RUN", "Outcome", "tabulate"]

COLUMNS: Mapping[str, tuple[str, str]] = {
    "auroc": ("AUROC", "↑"),
    "f1": ("F1", "↑"),
    "mean_deo": ("mean-DEO", "↓"),
    "max_deo": ("max-DEO", "↓"),
}
REPLICATES = 2000
NO_RUN = "no run was evaluated"


@final
@dataclass(frozen=True)
class Outcome:
    """A row of the table and what became of it: the folders of its finished runs by seed, and why others failed.

    `stand_in` says in words what was trained in the row's place, None where it is the paper's own."""

    row: Row
    runs: Mapping[int, Path]
    errors: Sequence[str] = ()
    stand_in: str | None = None


@final
@dataclass(frozen=True)
class Ours:
    """The finished runs of a row, by seed, with their predictions where they are kept."""

    runs: Mapping[int, Run]
    predicted: Mapping[int, Predicted]

    def metrics(self) -> dict[int, dict[str, Any]]:
        """The test metrics of the runs that could be evaluated."""
        return {seed: run.metrics["test"] for seed, run in self.runs.items() if "auroc" in run.metrics["test"]}


def tabulate(recipe: Recipe, profile: Profile, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The whole report as plain dicts, lists and numbers."""
    ours = {each.row.id: _load(each) for each in outcomes}
    blocks = []
    for block in recipe.blocks:
        mine = [each for each in outcomes if each.row.block == block]
        if mine:
            rows = [_row(each, recipe, profile, ours) for each in mine]
            _correct(rows, recipe.metrics)
            names = {"name": block.name, "dataset": block.dataset, "teacher": block.teacher, "student": block.student}
            stand_in = next((each.stand_in for each in mine if each.stand_in), None)
            order = {metric: _order(rows, metric) for metric in recipe.metrics}
            lost = next((lost_of_cells(run.info) for each in mine for run in ours[each.row.id].runs.values()), [])
            blocks.append({**names, "stand_in": stand_in, "lost": lost, "rows": rows, "order": order})
    headlines = [{**vars(each), "follows": each.follows} for each in published.headlines(recipe.table)]
    seeds = sorted({seed for each in ours.values() for seed in each.runs})
    return {
        "title": recipe.title,
        "table": recipe.table,
        "source": published.PAPER,
        "profile": profile.name,
        "about": profile.about,
        "demo": profile.demo,
        "metrics": list(recipe.metrics),
        "seeds": seeds,
        "enough_seeds": ENOUGH_SEEDS,
        "what_trivial_means": WHAT_TRIVIAL_MEANS,
        "replicates": REPLICATES,
        "blocks": blocks,
        "headlines": headlines,
        "known_errors": list(published.ERRORS.get(recipe.table, ())),
        "open": [*recipe.open, *published.OPEN],
        "failed": [f"{each.row.id}: {error}" for each in outcomes for error in each.errors],
    }


def _load(outcome: Outcome) -> Ours:
    runs, predicted = {}, {}
    for seed, folder in outcome.runs.items():
        run = read_run(folder)
        if isinstance(run, Run):
            runs[seed] = run
            if (found := load_predictions(folder, "test")) is not None:
                predicted[seed] = found
    return Ours(runs, predicted)


def _row(outcome: Outcome, recipe: Recipe, profile: Profile, ours: Mapping[str, Ours]) -> dict[str, Any]:
    """A row with one cell a metric."""
    row, mine = outcome.row, ours[outcome.row.id]
    metrics = mine.metrics()
    other = ours.get(row.reference) if row.reference else None
    marks = [trivial_seeds(each.metrics()) for each in (mine, other) if each is not None]
    counts = [np.asarray(each["confusion"], dtype=np.int64) for each in metrics.values()]
    predicted = [mine.predicted.get(seed) for seed in metrics]
    over_seeds = two_level_intervals(counts, REPLICATES, predicted=predicted) if counts else {}
    errors = list(outcome.errors)
    try:
        paired = _paired(mine, other)
    except DataError as error:
        paired = {}
        errors.append(f"not paired by row: {error}")
    cells = {}
    for metric in recipe.metrics:
        key = _key(metric, row, metrics)
        cell = _cell(key, metrics, over_seeds)
        cell["paper"] = _printed(recipe, row, metric)
        cell["difference"] = _minus(cell["mean"], cell["paper"] and cell["paper"]["mean"])
        cell["comparison"] = _comparison(key, metrics, other.metrics() if other else {}, paired)
        cell["paper_effect"] = _paper_effect(recipe, row, metric)
        says_nothing = key.endswith("_deo") and any(marks)  # then neither does the difference of two gaps
        told = "trivial" if says_nothing and cell["comparison"] else None
        cell["direction"] = told or _direction(cell["comparison"], cell["paper_effect"])
        cell["trivial"] = marks[0] if key.endswith("_deo") else None
        cells[metric] = cell
    names = {"id": row.id, "label": row.label, "method": row.method, "reference": row.reference}
    return {**names, "seeds": sorted(metrics), "errors": errors, "trivial": marks[0], "cells": cells}


def _key(metric: str, row: Row, metrics: Mapping[int, Mapping[str, Any]]) -> str:
    """The metric as run folders call it: F1 is binary for CelebA and macro for the others."""
    if metric != "f1":
        return metric
    binary = row.block.dataset == "celeba" and all(each.get("f1_binary") is not None for each in metrics.values())
    return "f1_binary" if binary else "f1_macro"


def _cell(key: str, metrics: Mapping[int, Mapping[str, Any]], over_seeds: Mapping[str, OverSeeds]) -> dict[str, Any]:
    """Our numbers in one metric; those that do not exist are None, and `undefined` says why."""
    values = [float(each[key]) for each in metrics.values() if each[key] is not None]
    gaps = [*metrics.values()] if values and key.endswith("_deo") else []
    floors = [each["deo_floor"][key.removesuffix("_deo")] for each in gaps]
    found = over_seeds.get(key) if values else None
    cell = {
        "metric": key,
        "mean": float(np.mean(values)) if values else None,
        "std": float(np.std(values, ddof=1)) if len(values) > 1 else None,
        "interval": [found.low, found.high] if found else None,
        "floor": float(np.mean(floors)) if floors else None,
        "beyond_chance": found.beyond_chance if found else None,
    }
    why = reason_of(key, [*metrics.values()]) if metrics else NO_RUN
    reasons = {
        "mean": why,
        "std": why or ONE_SEED,
        "interval": why or "the counts of classes and groups do not determine it over seeds",
        "floor": why or "it belongs to a gap",
        "beyond_chance": why or "it belongs to a gap",
    }
    return {**cell, "undefined": {name: reason for name, reason in reasons.items() if cell[name] is None}}


def _paired(mine: Ours, other: Ours | None) -> dict[str, Any]:
    """Effects, intervals and p-values of what predictions determine; empty where there is nothing to pair."""
    if other is None or not mine.predicted.keys() & other.predicted.keys():
        return {}
    info = next(iter(mine.runs.values())).info
    sizes = (len(info["class_names"]), len(info["group_names"]))
    return dict(compare(mine.predicted, other.predicted, *sizes))


def _comparison(key: str, one: Mapping[int, Any], other: Mapping[int, Any], paired: Mapping[str, Any]) -> Any:
    """This row minus its reference, seed by seed; None where no seed has both.

    `p` belongs to the interval. Without one (AUROC) it is that of the seeds' signs.
    """
    both = sorted(one.keys() & other.keys())
    shared = [seed for seed in both if one[seed][key] is not None and other[seed][key] is not None]
    if not shared:
        return None
    by_seed = [float(one[seed][key] - other[seed][key]) for seed in shared]
    found = paired.get(key)
    return {
        "effect": float(np.mean(by_seed)),
        "interval": list(found.interval) if found else None,
        "beyond_chance": found.beyond_chance if found and key.endswith("_deo") else None,
        "by_seed": by_seed,
        "p": found.p if found else sign_flip_p(by_seed),
        "p_holm": None,
    }


def _printed(recipe: Recipe, row: Row, metric: str) -> dict[str, Any] | None:
    block = row.block
    key = (recipe.table, block.dataset, block.teacher, block.student, row.label, metric)
    found = published.results().get(key)
    return None if found is None else vars(found)


def _paper_effect(recipe: Recipe, row: Row, metric: str) -> float | None:
    reference = next((each for each in recipe.rows if each.id == row.reference), None)
    one = _printed(recipe, row, metric)
    other = _printed(recipe, reference, metric) if reference else None
    return one["mean"] - other["mean"] if one and other else None


def _direction(comparison: Mapping[str, Any] | None, paper: float | None) -> str | None:
    """Whether the effect goes the paper's way: "same", "opposite", or "open" where our interval
    holds 0 or, without one, the seeds do not all have one sign."""
    if comparison is None or not paper:
        return None
    interval, by_seed = comparison["interval"], comparison["by_seed"]
    one_sided = len(by_seed) > 1 and (min(by_seed) > 0 or max(by_seed) < 0)
    if interval[0] <= 0 <= interval[1] if interval is not None else not one_sided:
        return "open"
    side = interval[0] if interval is not None else comparison["effect"]
    return "same" if side * paper > 0 else "opposite"


def _correct(rows: Sequence[dict[str, Any]], metrics: Sequence[str]) -> None:
    """Holm's correction; the family is a block's comparisons in one metric."""
    for metric in metrics:
        tested = [row["cells"][metric]["comparison"] for row in rows]
        tested = [each for each in tested if each is not None and each["p"] is not None]
        for each, p in zip(tested, holm([each["p"] for each in tested]), strict=True):
            each["p_holm"] = p


def _order(rows: Sequence[Mapping[str, Any]], metric: str) -> dict[str, Any]:
    """Of all pairs of methods with different printed means: how many our means put in the same order. The gap of a trivial
    student has no place in it."""
    cells = [row["cells"][metric] for row in rows if not row["cells"][metric]["trivial"]]
    known = [(cell["mean"], cell["paper"]["mean"]) for cell in cells if cell["mean"] is not None and cell["paper"]]
    products = [(a[0] - b[0]) * (a[1] - b[1]) for a, b in combinations(known, 2) if a[1] != b[1]]
    agree = sum(product > 0 for product in products)
    tau = (agree - sum(product < 0 for product in products)) / len(products) if products else None
    return {"pairs": len(products), "agree": agree, "tau": tau}


def _minus(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one - other
