"""`bird audit`: from a file of anybody's predictions to the whole report. No training, no cache, no model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bird.errors import DataError
from bird.measuring.caveats import trivial
from bird.measuring.groups import Number, by_group
from bird.measuring.intervals import gap_intervals
from bird.measuring.metrics import (
    auroc,
    confusion,
    deo_floor,
    gap_floors,
    percentile_interval,
    resampled,
    statistics_of,
)
from bird.measuring.paired import compare
from bird.measuring.shared_rows import Predicted, same_rows
from bird.measuring.zones import zones
from bird_cache.files import make_room_for, replace
from bird_pipelines.marks import MARK, WHAT_TRIVIAL_MEANS
from bird_pipelines.reporting.look import MOST_GROUPS
from bird_pipelines.reporting.page import page
from bird_pipelines.reporting.predictions_file import Predictions, read_predictions
from bird_pipelines.reporting.recall_chart import recall_chart

__all__ = ["audit"]

REPLICATES = 2000
NAMES = {
    "auroc": "AUROC ↑",
    "f1_macro": "F1 macro ↑",
    "accuracy": "accuracy ↑",
    "mean_deo": "mean-DEO ↓",
    "max_deo": "max-DEO ↓",
    "parity_gap": "demographic-parity gap ↓",
}
NO_CELL = "a class has no row in some group"


def audit(
    file: Path,
    out: Path,
    *,
    label: str = "label",
    group: Sequence[str] = ("group",),
    prediction: str | None = None,
    scores: Sequence[str] = (),
    baseline: Path | None = None,
) -> dict[str, Any]:
    """Write the report on the predictions in `file` to `out`, whole or not at all, and return its numbers by grouping.

    Where `prediction` is None, it is the column prediction or else predicted, and in a file with neither the class with the
    highest of `scores`. `baseline` is a file with the same columns: each group gets its zone against it. Raises UsageError
    for a column that is not there or has two roles, DataError for a file that does not fit.
    """
    columns: dict[str, Any] = {"label": label, "group": [*group], "prediction": prediction, "scores": [*scores]}
    found = read_predictions(file, **columns)
    other = None if baseline is None else read_predictions(baseline, **columns)
    if other is not None and (other.class_names, other.group_names) != (found.class_names, found.group_names):
        raise DataError(
            where=str(baseline),
            found="other classes or groups",
            wanted=f"those of {file}",
            fix="give predictions for the same classes and groups",
        )
    make_room_for(out)
    groupings = {name: _grouping(found, name, other) for name in found.groups}
    views = [_view(name, found, each) for name, each in groupings.items()]
    values = {
        "title": f"Audit of {file.name}",
        "rows": len(found.labels),
        "classes": found.class_names,
        "columns": columns,
        "baseline": baseline and baseline.name,
        "names": NAMES,
        "mark": MARK,
        "what_trivial_means": WHAT_TRIVIAL_MEANS,
        "groupings": views,
    }
    replace(out, page("audit", values).encode())
    return {"report": str(out), "rows": len(found.labels), "class_names": found.class_names, "groups": groupings}


def _grouping(found: Predictions, name: str, other: Predictions | None) -> dict[str, Any]:
    """The numbers of one grouping, as plain values."""
    sizes = len(found.class_names), len(found.group_names[name])
    counts = confusion(found.labels, found.groups[name], found.predictions, *sizes)
    numbers = by_group(found.labels, found.groups[name], found.predictions, found.scores, *sizes)
    summary = _summary(found, counts) | {"parity_gap": numbers.parity_gap}
    told: dict[str, Any] = {
        "group_names": found.group_names[name],
        "summary": {key: value._asdict() for key, value in summary.items()},
        "trivial": trivial(counts, found.class_names),
        "by_group": numbers.as_json(),
        "confusion": counts.tolist(),
        "zones": None,
        "effects": None,
    }
    if other is not None:
        runs = [_predicted(each, name) for each in (found, other)]
        told["zones"] = zones(runs[:1], runs[1:], *sizes).as_json()
        if same_rows(runs) and (counts.sum(2) > 0).all():
            told["effects"] = {
                metric: {"effect": each.effect, "interval": each.interval}
                for metric, each in compare({0: runs[0]}, {0: runs[1]}, *sizes).items()
            }
    return told


def _summary(found: Predictions, counts: NDArray[np.int64]) -> dict[str, Number]:
    """Scores of all rows, and the gaps between the groups."""
    rows, whole = len(found.labels), counts.sum(1, keepdims=True)
    observed = statistics_of(whole[None], np.zeros((len(whole), 1)))
    ends = {
        name: percentile_interval(each) for name, each in resampled(whole, REPLICATES, np.random.default_rng(0)).items()
    }
    summary = {name: Number(float(observed[name][0]), *ends[name], rows) for name in ("f1_macro", "accuracy")}
    area = Number.missing("no scores are given", rows)
    if found.scores is not None:
        area = Number(*auroc(found.labels, found.scores), rows)
    if (counts.sum(2) == 0).any():
        return {"auroc": area, **summary, **dict.fromkeys(("mean_deo", "max_deo"), Number.missing(NO_CELL, rows))}
    shares = np.einsum("cmc->cm", counts) / counts.sum(2)
    gaps, floors, shown = (
        gap_intervals(counts),
        deo_floor(counts, replicates=REPLICATES),
        statistics_of(counts[None], shares),
    )
    for name, gap in gaps.items():
        floor = floors[name.removesuffix("_deo")]
        summary[name] = Number(float(shown[name][0]), gap.low, gap.high, rows, floor=floor)
    return {"auroc": area, **summary}


def _predicted(found: Predictions, name: str) -> Predicted:
    ids = [str(row) for row in range(len(found.labels))]
    return Predicted(ids, found.labels, found.groups[name], found.predictions)


def _view(name: str, found: Predictions, told: Mapping[str, Any]) -> dict[str, Any]:
    """What the page shows of one grouping beside its numbers: the chart of recalls where every cell has rows."""
    counts = np.asarray(told["confusion"])
    chart = None
    if (counts.sum(2) > 0).all() and counts.shape[1] <= MOST_GROUPS:
        shares = np.einsum("cmc->cm", counts) / counts.sum(2)
        floors = told["summary"]["mean_deo"]["floor"], gap_floors(counts, replicates=REPLICATES).tolist()
        chart = recall_chart(shares.tolist(), found.class_names, found.group_names[name], *floors)
    return {**told, "name": name, "class_names": found.class_names, "chart": chart}
