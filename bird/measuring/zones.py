"""Each group and each cell against a baseline: better, worse, or within the interval.

A gap can shrink because the best-served group lost. That shows here (NH-Fair 2026): the recall of each cell and the accuracy
of each group, less the baseline's, with a 95 % interval. On shared rows the difference is paired, row by row; variances
have two pseudo-rows on which the two disagree (Bonett & Price 2012), so that small cells in which both agree keep a width.
On other rows it is Newcombe's (1998, method 10). Over several seeds, the seeds' part is added (bird.measuring.shared_rows).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, final

import numpy as np
from jaxtyping import Bool
from numpy.typing import NDArray

from bird.errors import DataError
from bird.measuring.intervals import Z, wilson
from bird.measuring.shared_rows import Predicted, errors_of, same_rows

__all__ = ["Change", "Zone", "Zones", "zones"]

Zone = Literal["better", "worse", "within the interval"]
Bools = NDArray[np.bool_]


@final
class Change(NamedTuple):
    """A share less the baseline's, x100, its 95 % interval, the rows behind it, and its zone; None without rows."""

    effect: float | None
    low: float | None
    high: float | None
    rows: int
    zone: Zone | None


@final
@dataclass(frozen=True)
class Zones:
    """`accuracy` of each group, (M,), and `recall` of each cell, [class][group], against a baseline. `paired`: on the same
    rows."""

    accuracy: list[Change]
    recall: list[list[Change]]
    paired: bool

    def as_json(self) -> dict[str, Any]:
        """The same as plain numbers, lists and dicts."""
        recall = [[each._asdict() for each in line] for line in self.recall]
        return {"accuracy": [each._asdict() for each in self.accuracy], "recall": recall, "paired": self.paired}


def zones(method: Sequence[Predicted], reference: Sequence[Predicted], classes: int, groups: int) -> Zones:
    """`method` against `reference`: their runs of the same seeds in the same order, or one of each. Raises DataError for
    several seeds on rows that are not the same."""
    runs = [*method, *reference]
    paired = same_rows(runs)
    if not method or len(method) != len(reference) or (len(method) > 1 and not paired):
        raise DataError(
            where="zones",
            found=f"{len(method)} and {len(reference)} runs on {'the same' if paired else 'other'} rows",
            wanted="the same number of runs, on the same rows where there are several",
            fix="evaluate both on one cache or data set",
        )
    change = _paired if paired else _apart
    inside = [(each.labels, each.groups) for each in runs]
    right = [each.labels == each.predictions for each in runs]

    def of(label: int | None, group: int) -> Change:
        cells = [(group == g) & (True if label is None else y == label) for y, g in inside]
        return change([each[cell] for each, cell in zip(right, cells, strict=True)])

    return Zones(
        [of(None, m) for m in range(groups)], [[of(c, m) for m in range(groups)] for c in range(classes)], paired
    )


def _paired(right: Sequence[Bool[Bools, " rows"]]) -> Change:
    """Of K runs of the method and K of the reference in the same rows."""
    count = len(right[0])
    if not count:
        return Change(None, None, None, 0, None)
    hits = 100 * np.stack(right).astype(np.float64)
    means = hits.mean(1)
    shares = (hits - means[:, None]) / count
    errors = errors_of(shares @ shares.T, means.reshape(2, -1)).outline(0.05)
    ends = float((errors[0] - errors[1]).max())
    half = float(np.hypot(ends, 100 * Z * np.sqrt(2) / (count + 2)))
    seeds = len(right) // 2
    return _zoned(float(means[:seeds].mean() - means[seeds:].mean()), half, half, count)


def _apart(right: Sequence[Bool[Bools, " rows"]]) -> Change:
    """Of one run of each, on other rows."""
    one, other = right
    if not len(one) or not len(other):
        return Change(None, None, None, min(len(one), len(other)), None)
    first, second = float(one.mean()), float(other.mean())
    (low, high), (less, more) = (wilson(each.sum(), len(each)) for each in (one, other))
    below, above = np.hypot(first - low, more - second), np.hypot(high - first, second - less)
    return _zoned(100 * (first - second), 100 * float(below), 100 * float(above), min(len(one), len(other)))


def _zoned(effect: float, below: float, above: float, count: int) -> Change:
    low, high = max(-100.0, effect - below), min(100.0, effect + above)
    return Change(effect, low, high, count, "better" if low > 0 else "worse" if high < 0 else "within the interval")
