"""Each configuration less one of them: paired effects with intervals, p after Holm, and the zone of each group."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from bird.errors import BirdError, UsageError
from bird.measuring.paired import ENOUGH_SEEDS, Predicted, compare, holm
from bird.measuring.zones import zones
from bird_pipelines.predictions import load_predictions
from bird_pipelines.reporting.loading import Configuration

__all__ = ["ENOUGH_SEEDS", "differences", "effects_of"]

METRICS = {"accuracy": "accuracy ↑", "f1_macro": "F1 macro ↑", "mean_deo": "mean-DEO ↓", "max_deo": "max-DEO ↓"}


def differences(
    predicted: Mapping[str, Mapping[int, Predicted]], reference: str, classes: int, groups: int
) -> dict[str, Any]:
    """Each method less the reference, by metric: effect, 95 % interval, p and p after Holm over the methods."""
    others = [name for name in predicted if name != reference]
    compared = {name: compare(predicted[name], predicted[reference], classes, groups) for name in others}
    found: dict[str, dict[str, Any]] = {
        name: {
            metric: {"effect": each.effect, "interval": each.interval, "p": each.p, "p_holm": None}
            for metric, each in metrics.items()
        }
        for name, metrics in compared.items()
    }
    for metric in {metric for metrics in found.values() for metric in metrics}:
        p = {name: found[name][metric]["p"] for name in others if metric in found[name]}
        if all(value is not None and math.isfinite(value) for value in p.values()):
            for name, corrected in zip(p, holm([*p.values()]), strict=True):
                found[name][metric]["p_holm"] = corrected
    return found


def effects_of(configurations: Sequence[Configuration], against: str | None) -> list[dict[str, Any]]:
    """One table a data set: the reference, and of every other configuration its effects and zones, or why there are none.

    `against` is a configuration's method or its whole label; by default the baseline, else the first of the data set.
    Raises UsageError if nothing or several configurations are called so.
    """
    labels = [each.label for each in configurations]
    if against is not None and against not in {*labels, *(str(each.setting("method")) for each in configurations)}:
        raise UsageError(where="--against", found=repr(against), wanted=", ".join(labels), fix="name one of them")
    kinds: dict[str, list[Configuration]] = {}
    for each in configurations:
        kinds.setdefault(str((each.setting("dataset"), each.setting("fingerprint"))), []).append(each)
    tables = []
    for mine in kinds.values():
        reference = _reference(mine, against)
        if reference is not None and len(mine) > 1:
            tables.append(_table(mine, reference))
    return tables


def _reference(mine: Sequence[Configuration], against: str | None) -> Configuration | None:
    """None where this data set has no configuration of that name."""
    if against is None:
        usual = [each for each in mine if each.setting("method") == "baseline"]
        return (usual or [*mine])[0]
    found = [each for each in mine if each.label == against] or [e for e in mine if e.setting("method") == against]
    if len(found) > 1:
        wanted = ", ".join(each.label for each in found)
        raise UsageError(
            where="--against", found=f"{len(found)} of {against}", wanted=wanted, fix="give the whole name"
        )
    return found[0] if found else None


def _table(mine: Sequence[Configuration], reference: Configuration) -> dict[str, Any]:
    info = reference.runs[0].info
    sizes = len(info["class_names"]), len(info["group_names"])
    base = _predicted(reference)
    rows: list[dict[str, Any]] = []
    comparable: dict[str, dict[int, Predicted]] = {}
    for each in mine:
        if each is reference:
            continue
        found = _predicted(each)
        row: dict[str, Any] = {"label": each.label, "effects": None, "zones": None, "reason": None}
        shared = sorted(found.keys() & base.keys())
        try:
            if not base or not found:
                raise _no_predictions(reference.label if not base else each.label)
            row["zones"] = zones([found[s] for s in shared], [base[s] for s in shared], *sizes).as_json()
            comparable[each.label] = found
        except BirdError as error:
            row["reason"] = f"{error.found} ({error.where})"
        rows.append(row | {"seeds": len(shared)})
    try:
        effects = differences({**comparable, reference.label: base}, reference.label, *sizes) if comparable else {}
    except BirdError as error:
        effects = {}
        rows = [row | {"reason": row["reason"] or f"{error.found} ({error.where})"} for row in rows]
    rows = [row | {"effects": effects.get(row["label"])} for row in rows]
    return {
        "dataset": str(reference.setting("dataset")),
        "against": reference.label,
        "metrics": METRICS,
        "class_names": [str(name) for name in info["class_names"]],
        "group_names": [str(name) for name in info["group_names"]],
        "rows": rows,
    }


def _predicted(configuration: Configuration) -> dict[int, Predicted]:
    found = {run.settings["seed"]: load_predictions(run.folder, "test") for run in configuration.runs}
    return {seed: each for seed, each in found.items() if each is not None}


def _no_predictions(label: str) -> BirdError:
    return BirdError(
        where=label,
        found="no predictions-test.npz",
        wanted="a run that was evaluated",
        fix="run `bird evaluate` on its folders",
    )
