"""The check of an exported file: as it ships, in the runtime that will run it, beside the student, row by row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray

from bird.measuring.drift import Drift, Share, drift
from bird.students import Student
from bird_pipelines.distilling.data import RunData
from bird_pipelines.shipping.formats import Runtime

__all__ = ["BOUNDS", "Checked", "check", "check_rows", "refusals"]

BOUNDS: Mapping[str, float] = {
    "accuracy_points": 1.0,
    "least_recall_points": 3.0,
    "cell_recall_points": 3.0,
    "flips_percent": 2.0,
    "batch_flips_rows": 0,
}
"""how far an accepted export may fall below its student, and how many predictions may change"""
ALONE = 1_000  # rows that are asked one by one
TIE = 1e-3  # of a row's range of logits: nearer ones are decided by rounding
ROUNDING = 1e-9
Floats = Float[NDArray[np.float32], "rows classes"]


@final
@dataclass(frozen=True)
class Checked:
    """What the check found: the drift on `rows` test rows, and how many of `batch_flips.rows` rows get another class alone
    than in a batch of `batch`. `ties` are rows left out of these, whose two largest logits differ by rounding alone.
    `beyond_half` are values inside a half-precision graph that are not finite in half precision, by name."""

    drift: Drift
    batch: int
    batch_flips: Share
    ties: int
    not_finite: int
    beyond_half: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """The same as plain numbers, lists and dicts."""
        found = self.drift.as_json()
        batches = {"largest": self.batch, "flips": self.batch_flips._asdict(), "ties": self.ties}
        gap = found.pop("mean_deo")
        whole = {"not_finite": self.not_finite, "beyond_half": list(self.beyond_half)}
        return {"bounds": dict(BOUNDS), **whole, **found, "batch_sizes": batches, "mean_deo": gap}


def check_rows(data: RunData, most: int | None) -> NDArray[np.int64]:
    """The test rows that a file is checked on: all, or about `most`, drawn evenly from the cells."""
    return _evenly(data, data.rows("test"), most)


def check(student: Student, runtime: Runtime, data: RunData, rows: NDArray[np.int64], batch: int) -> Checked:
    """The student and the file on the same test rows, in batches of `batch`; the file also one by one, on at most ALONE
    rows of them, evenly from the cells."""
    expected, found = [], []
    for start in range(0, len(rows), batch):
        inputs = data.batch(rows[start : start + batch], torch.device("cpu")).inputs
        with torch.inference_mode():
            expected.append(student(inputs).logits.numpy())
        found.append(runtime(inputs.numpy()))
    before, after = np.concatenate(expected), np.concatenate(found)
    table = data.table
    alone = np.isin(rows, _evenly(data, rows, ALONE))
    one_by_one = [
        runtime(data.batch(rows[at : at + 1], torch.device("cpu")).inputs.numpy()) for at in np.flatnonzero(alone)
    ]
    flips, ties = _batch_flips(after[alone], np.concatenate(one_by_one))
    return Checked(
        drift(
            table.labels[rows],
            table.groups[rows],
            before.argmax(1),
            after.argmax(1),
            data.class_names,
            data.group_names,
        ),
        batch,
        Share(flips, int(alone.sum())),
        ties,
        int((~np.isfinite(after)).any(1).sum()),
    )


def refusals(checked: Checked) -> list[str]:
    """Why an export is not accepted, in words, what weighs most first; empty where it is accepted."""
    found, drifted = [], checked.drift
    if checked.not_finite:
        found.append(f"logits that are no finite numbers in {checked.not_finite:,} rows")
    if checked.beyond_half:
        found.append(
            f"{len(checked.beyond_half)} values inside the graph that half precision cannot hold (the first is "
            f"{checked.beyond_half[0]}): a CPU computes them in float32, other devices answer with NaN or infinity"
        )
    found += _fall("accuracy", drifted.accuracy, BOUNDS["accuracy_points"])
    found += _fall("the least recall of a cell", drifted.least_recall, BOUNDS["least_recall_points"])
    fallen = [each for each in drifted.cells if each.change < -BOUNDS["cell_recall_points"] - ROUNDING]
    if fallen:
        worst = fallen[0]
        low, high = worst.interval
        found.append(
            f"recall falls by more than {BOUNDS['cell_recall_points']:g} points in {len(fallen)} of {len(drifted.cells)} "
            "cells: "
            f"{worst.cell} {worst.change:+.1f} [{low:+.1f}, {high:+.1f}] on {worst.rows:,} rows"
        )
    if drifted.flips.percent > BOUNDS["flips_percent"]:
        found.append(f"{drifted.flips.percent:.1f} % of predictions change (at most {BOUNDS['flips_percent']:g} %)")
    if checked.batch_flips.changed > BOUNDS["batch_flips_rows"]:
        flips = checked.batch_flips
        found.append(
            f"{flips.changed:,} of {flips.rows:,} predictions depend on the batch (alone or in {checked.batch})"
        )
    return found


def _fall(name: str, shares: tuple[float, float], bound: float) -> list[str]:
    before, after = shares
    return [f"{name} falls from {before:.1f} to {after:.1f}"] if after < before - bound - ROUNDING else []


def _batch_flips(together: Floats, alone: Floats) -> tuple[int, int]:
    """Rows with another class alone than together; and, apart from them, those whose two largest logits are tied."""
    differ = together.argmax(1) != alone.argmax(1)
    margins: Sequence[NDArray[np.float32]] = [
        np.diff(np.sort(each, 1)[:, -2:], axis=1)[:, 0] for each in (together, alone)
    ]
    tied = np.maximum(*margins) <= TIE * np.ptp(together, axis=1)
    return int((differ & ~tied).sum()), int((differ & tied).sum())


def _evenly(data: RunData, rows: NDArray[np.int64], most: int | None, seed: int = 0) -> NDArray[np.int64]:
    """At most `most` of the rows, as evenly from the cells as these allow; in order."""
    if most is None or len(rows) <= most:
        return rows
    cells = data.table.labels[rows] * len(data.group_names) + data.table.groups[rows]
    shuffled = np.random.default_rng(seed).permutation(len(rows))
    seen: dict[int, int] = {}
    rounds = np.empty(len(rows), np.int64)
    for place in shuffled.tolist():  # the how many-th of its cell
        rounds[place] = seen[cells[place]] = seen.get(cells[place], -1) + 1
    first = np.lexsort((shuffled.argsort(), rounds))[:most]
    return np.sort(rows[first])
