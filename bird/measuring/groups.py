"""What a classifier does to each group, beside the gap: recall, accuracy, selection and base rate, AUROC, calibration.

Every number is x100, with the rows that it is computed from and a 95 % interval: Wilson's for a share, DeLong's for an
AUROC, test inversion for what is never negative (a gap between groups, a calibration error). A number that does not exist
is None, and says why. Read the intervals one by one: of many cells the worst is partly the worst by chance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, final

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike, NDArray

from bird.errors import BirdError, DataError
from bird.measuring.calibration import calibration_error
from bird.measuring.cells import cells_of_shares
from bird.measuring.intervals import gap_interval, student, wilson
from bird.measuring.metrics import auroc, confusion

__all__ = ["GroupNumbers", "Number", "by_group", "metric_frame", "parity_gap", "share_over_seeds", "shares"]

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
SUM = 1e-3  # how far from 1 the scores of a row may sum and still be probabilities
DRAWS = 4000  # of the interval of a demographic-parity gap
NO_ROWS = "no rows"
NO_SCORES = "no scores are given"


@final
class Number(NamedTuple):
    """A number and its 95 % interval, x100, and the `rows` behind it. Where it does not exist, `value` is None and
    `reason` says why. `floor` is what chance alone would show on average, where that is not 0."""

    value: float | None
    low: float | None
    high: float | None
    rows: int
    reason: str | None = None
    floor: float | None = None

    @classmethod
    def missing(cls, reason: str, rows: int = 0) -> Number:
        """A number that does not exist."""
        return cls(None, None, None, rows, reason)


@final
@dataclass(frozen=True)
class GroupNumbers:
    """Of one classifier, by group. Tables are (C, M): [class][group]; lists are (M,).

    `recall` is the share of a cell's rows that is predicted right; `selection_rate` the share of a group's rows that is
    predicted to be a class, `base_rate` the share that is of it. `calibration` is the error of the largest score (top
    label), `calibration_binary` that of class 1's score, for two classes. `worst_cell` is (class, group) and its recall.
    `parity_gap` is the largest over classes of the difference between the groups' selection rates.
    """

    recall: list[list[Number]]
    selection_rate: list[list[Number]]
    base_rate: list[list[Number]]
    accuracy: list[Number]
    auroc: list[Number]
    calibration: list[Number]
    calibration_binary: list[Number]
    worst_cell: tuple[int, int]
    parity_gap: Number

    def as_json(self) -> dict[str, Any]:
        """The same as plain numbers, lists and dicts: a number is a dict of its fields."""
        return {name: _plain(value) for name, value in vars(self).items()}


def by_group(
    labels: ArrayLike,
    groups: ArrayLike,
    predictions: ArrayLike,
    scores: ArrayLike | None,
    classes: int,
    groups_count: int,
) -> GroupNumbers:
    """The numbers of (N,) labels, groups and predictions, and of (N, C) scores if there are any.

    A cell may be empty. Raises DataError for values out of range or unequal lengths.
    """
    counts = confusion(labels, groups, predictions, classes, groups_count)
    truth, group = np.asarray(labels), np.asarray(groups)
    table = None if scores is None else np.asarray(scores, dtype=np.float64)
    rows, in_class = counts.sum((0, 2)), counts.sum(2)
    correct = np.einsum("cmc->cm", counts)
    right = np.asarray(predictions) == truth
    scored: list[dict[str, Number]] = []
    for one in range(groups_count):
        inside = group == one
        scored.append(_scored(truth[inside], right[inside], None if table is None else table[inside]))
    lowest = np.where(in_class > 0, correct / np.maximum(in_class, 1), np.inf)
    worst_class, worst_group = np.unravel_index(int(lowest.argmin()), lowest.shape)
    return GroupNumbers(
        recall=shares(correct, in_class),
        selection_rate=shares(counts.sum(0).T, np.broadcast_to(rows, (classes, groups_count))),
        base_rate=shares(in_class, np.broadcast_to(rows, (classes, groups_count))),
        accuracy=shares(correct.sum(0)[None], rows[None])[0],
        auroc=[each["auroc"] for each in scored],
        calibration=[each["top"] for each in scored],
        calibration_binary=[each["binary"] for each in scored],
        worst_cell=(int(worst_class), int(worst_group)),
        parity_gap=parity_gap(counts),
    )


def shares(hits: Int[Ints, "classes groups"], rows: Int[Ints, "classes groups"]) -> list[list[Number]]:
    """`hits` of `rows` as numbers with Wilson's intervals; one without rows does not exist."""
    low, high = (100 * ends for ends in wilson(hits, np.maximum(rows, 1)))
    found = []
    for c in range(len(hits)):
        line = [
            Number(100 * float(hits[c, m] / rows[c, m]), float(low[c, m]), float(high[c, m]), int(rows[c, m]))
            if rows[c, m]
            else Number.missing(NO_ROWS)
            for m in range(hits.shape[1])
        ]
        found.append(line)
    return found


def share_over_seeds(hits: Int[Ints, " seeds"], rows: int) -> Number:
    """The mean over seeds of the share `hits` of the same `rows`. Two errors of its interval add in squares: that of the
    rows (Wilson's, all of it common to the seeds: wider than it need be), and that of the seeds (Student's t)."""
    if not rows:
        return Number.missing(NO_ROWS)
    values = 100 * hits / rows
    mean, seeds = float(values.mean()), _error_of_seeds(values)
    low, high = (100 * float(end) for end in wilson(hits.mean(), rows))
    return Number(
        mean,
        max(0.0, mean - float(np.hypot(mean - low, seeds))),
        min(100.0, mean + float(np.hypot(high - mean, seeds))),
        rows,
    )


def parity_gap(*confusions: Int[Ints, "classes groups classes"]) -> Number:
    """The largest over classes of (highest - lowest selection rate of a group), of counts (C, M, C): for two classes the
    demographic-parity difference, as fairlearn has it. Of several runs, such as those of several seeds, the mean.

    Its interval is that of a gap (bird.measuring.intervals), class by class at a level that holds for all of them together
    (Bonferroni): selection rates of several classes depend on each other. Two classes have one gap. The error of the seeds
    (Student's t) adds in squares.
    """
    selected, rows = np.stack([each.sum(0).T for each in confusions]), confusions[0].sum((0, 2))
    total, selected = int(rows.sum()), selected[:, :, rows > 0]
    rows = rows[rows > 0]
    if selected.shape[1] < 2:
        return Number.missing("there is one class", total)
    if len(rows) < 2:
        return Number.missing("there is one group: a gap is between two", total)
    selected = selected[:, 1:] if selected.shape[1] == 2 else selected
    gaps = 100 * np.ptp(selected / rows, axis=2)  # (seeds, classes)
    level = 1 - 0.05 / gaps.shape[1]
    ends = []
    for c in range(gaps.shape[1]):
        cells = [cells_of_shares(each[c][None], rows[None], draws=DRAWS) for each in selected]
        ends.append(gap_interval(cells, "max_deo", level=level, added=_error_of_seeds(gaps[:, c], level)))
    largest = float(gaps.max(1).mean())
    return Number(largest, max(each.low for each in ends), max(largest, *(each.high for each in ends)), total)


def _error_of_seeds(values: Float[Floats, " seeds"], level: float = 0.95) -> float:
    """The half-width of a mean over seeds by what they differ by; 0 of one seed."""
    count = len(values)
    return student((1 + level) / 2, count - 1) * float(np.std(values, ddof=1)) / count**0.5 if count > 1 else 0.0


def metric_frame(
    labels: ArrayLike, predictions: ArrayLike, sensitive_features: Any, metrics: dict[str, Any] | None = None
) -> Any:
    """fairlearn's MetricFrame of the same rows, for who works on with it: accuracy, selection rate (two classes coded 0 and
    1) and counts unless other `metrics` are given. Raises DataError where fairlearn is not installed."""
    try:
        from fairlearn.metrics import MetricFrame, count, selection_rate
    except ImportError:
        raise DataError(
            where="metric_frame", found="no fairlearn", wanted="it installed", fix="pip install fairlearn"
        ) from None
    if metrics is None:
        metrics = {"accuracy": _accuracy, "count": count}
        if {*np.unique(np.asarray(labels)).tolist()} <= {0, 1}:
            metrics["selection_rate"] = selection_rate
    return MetricFrame(metrics=metrics, y_true=labels, y_pred=predictions, sensitive_features=sensitive_features)


def _accuracy(labels: ArrayLike, predictions: ArrayLike) -> float:
    return float(np.mean(np.asarray(labels) == np.asarray(predictions)))


def _scored(truth: Ints, right: NDArray[np.bool_], scores: Floats | None) -> dict[str, Number]:
    """What scores say of one group: AUROC, and calibration of the top label and, for two classes, of class 1."""
    count = len(truth)
    if scores is None or not count:
        return dict.fromkeys(("auroc", "top", "binary"), Number.missing(NO_ROWS if not count else NO_SCORES, count))
    try:
        found = {"auroc": Number(*auroc(truth, scores), count)}
    except BirdError as error:
        found = {"auroc": Number.missing(error.found, count)}
    if (scores < 0).any() or (np.abs(scores.sum(1) - 1) > SUM).any():
        return found | dict.fromkeys(("top", "binary"), Number.missing("the scores are no probabilities", count))
    found["top"] = _calibration(scores.max(1), right)
    classes = scores.shape[1]
    many = Number.missing(f"there are {classes} classes: it is for two", count)
    return found | {"binary": _calibration(scores[:, 1], truth == 1) if classes == 2 else many}


def _calibration(probabilities: Float[Floats, " rows"], happened: NDArray[np.bool_]) -> Number:
    error = calibration_error(probabilities, happened)
    return Number(error.value, error.low, error.high, len(happened), floor=error.floor)


def _plain(value: Any) -> Any:
    if isinstance(value, Number):
        return value._asdict()
    return [_plain(each) for each in value] if isinstance(value, Sequence) else value
