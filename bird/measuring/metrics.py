"""Recalls per (class, group) cell and what follows from them: mean-DEO, max-DEO, their chance floor, their intervals.

DEO is the difference of equalized odds, as fairlearn defines it: in each class, the recall of the best-served group
minus that of the worst-served one; mean-DEO is the mean over the classes, max-DEO the largest. Shares are in 0..1,
what is named a score (AUROC, F1, accuracy, DEO) is x100. These numbers describe one classifier on one sample; a small
DEO is no promise about another.

All intervals are 95 % ones. Those of F1 and accuracy are percentile intervals of a bootstrap: both are functions of the
(class, group, prediction) counts, so that resampling rows and drawing the counts from a multinomial are the same thing in
law, and the second costs milliseconds. AUROC's is DeLong's. A gap is never negative and chance adds to it, so that mean-DEO
and max-DEO have intervals of another kind, and an estimate with chance taken off: see `bird.measuring.intervals`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal, NamedTuple, final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bird.errors import DataError, EmptyCellError
from bird.measuring.caveats import SCORES, require_both_sides, require_gap, trivial, undefined
from bird.measuring.intervals import gap_intervals

__all__ = [
    "STATISTICS",
    "Auroc",
    "EqualizedOdds",
    "Metrics",
    "Statistic",
    "assess",
    "auroc",
    "confusion",
    "deo_floor",
    "equalized_odds",
    "gap_floors",
    "max_deo",
    "mean_deo",
    "percentile_interval",
    "recalls",
    "resampled",
    "statistics_of",
]

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Statistic = Literal["mean_deo", "max_deo", "accuracy", "f1_macro"]

LEVELS = (2.5, 97.5)
Z = NormalDist().inv_cdf(0.975)
# Numbers in one array of replicates: 16 MB of float64, whatever the number of classes or rows.
CHUNK = 2_000_000


@final
@dataclass(frozen=True, eq=False)
class Metrics:
    """One classifier on one sample. Scalars, `intervals`, `deo_floor`, `beyond_chance` are x100; `recalls` in 0..1.

    `confusion` is (C, M, C): [true class, group, predicted]; `recalls` and `counts` (rows a cell) are (C, M).
    `f1_binary` has class 1 as the positive one. `intervals` maps auroc, accuracy, f1_macro, mean_deo and max_deo to
    [low, high]; `deo_floor` maps mean and max to the DEO expected of equal recalls, and `beyond_chance` to the DEO with
    chance taken off. With few rows a DEO may lie above its interval: chance put it there. A number that does not exist is
    None, and `undefined` says why, by its name. `trivial` says why this classifier's gap says nothing, if so
    (`bird.measuring.caveats`).
    """

    n: int
    auroc: float | None
    f1_macro: float | None
    f1_binary: float | None
    accuracy: float | None
    mean_deo: float | None
    max_deo: float | None
    recalls: Floats
    counts: Ints
    deo_floor: Mapping[str, float | None]
    beyond_chance: Mapping[str, float | None]
    intervals: Mapping[str, tuple[float, float] | None]
    confusion: Ints
    undefined: Mapping[str, str]
    trivial: str | None

    def as_json(self) -> dict[str, Any]:
        """The same as plain numbers, lists and dicts."""
        arrays = {name: getattr(self, name).tolist() for name in ("recalls", "counts", "confusion")}
        intervals = {name: ends and list(ends) for name, ends in self.intervals.items()}
        plain = {name: dict(getattr(self, name)) for name in ("deo_floor", "beyond_chance", "undefined")}
        return {**vars(self), **arrays, "intervals": intervals, **plain}


@final
class EqualizedOdds(NamedTuple):
    """mean-DEO and max-DEO (x100), and the recalls (C, M) in 0..1 that they come from, classes and groups sorted."""

    mean_deo: float
    max_deo: float
    recalls: Floats


def confusion(labels: ArrayLike, groups: ArrayLike, predictions: ArrayLike, classes: int, groups_count: int) -> Ints:
    """Counts (C, M, C): [true class, group, predicted class]; all three inputs are (N,) integers.

    Raises DataError for different lengths, or for a value that is no class or group.
    """
    columns = {
        "labels": (labels, classes),
        "groups": (groups, groups_count),
        "predictions": (predictions, classes),
    }
    codes = {name: _codes(name, values, below) for name, (values, below) in columns.items()}
    lengths = {name: len(values) for name, values in codes.items()}
    if len({*lengths.values()}) > 1:
        raise DataError(where="metrics", found=f"lengths {lengths}", wanted="one row each", fix="pass the same rows")
    shape = (classes, groups_count, classes)
    flat = np.ravel_multi_index((codes["labels"], codes["groups"], codes["predictions"]), shape)
    return np.bincount(flat, minlength=int(np.prod(shape))).reshape(shape).astype(np.int64)


def recalls(
    confusion: Ints, class_names: Sequence[object] | None = None, group_names: Sequence[object] | None = None
) -> Floats:
    """Recall of each cell, (C, M), in 0..1: the share of class c, group g that is predicted c.

    Raises EmptyCellError naming every cell without rows: its recall is unknown, neither 0 nor NaN.
    """
    counts = confusion.sum(2)
    empty = [
        f"class {class_names[c] if class_names else c} x group {group_names[g] if group_names else g}"
        for c, g in np.argwhere(counts == 0).tolist()
    ]
    if empty:
        raise EmptyCellError(
            where="recalls",
            found=f"no rows of {', '.join(empty)}",
            wanted="at least one row in every (class, group) cell",
            fix="evaluate on a split that holds every cell, or leave out the class or the group",
        )
    correct: Floats = np.einsum("cmc->cm", confusion) / counts
    return correct


def mean_deo(recalls: Floats) -> float:
    """Mean over classes of (highest - lowest recall of a group), x100; from recalls (C, M) in 0..1. Raises DataError for
    one class or one group."""
    return float(100 * np.ptp(require_gap(recalls), axis=1).mean())


def max_deo(recalls: Floats) -> float:
    """Largest over classes of (highest - lowest recall of a group), x100; from recalls (C, M) in 0..1. Raises DataError
    for one class or one group."""
    return float(100 * np.ptp(require_gap(recalls), axis=1).max())


def equalized_odds(labels: ArrayLike, groups: ArrayLike, predictions: ArrayLike) -> EqualizedOdds:
    """mean-DEO, max-DEO and recalls of (N,) labels, groups and predictions of any sortable kind, strings too.

    Raises EmptyCellError naming every cell without rows, DataError for different lengths, one class or one group.
    """
    truth, told = np.asarray(labels), np.asarray(predictions)
    class_names = np.unique(np.concatenate([truth, told]))
    group_names, group = np.unique(np.asarray(groups), return_inverse=True)
    label, predicted = np.searchsorted(class_names, truth), np.searchsorted(class_names, told)
    counts = confusion(label, group, predicted, len(class_names), len(group_names))
    shares = recalls(counts, class_names.tolist(), group_names.tolist())
    return EqualizedOdds(mean_deo(shares), max_deo(shares), shares)


def assess(
    labels: ArrayLike,
    groups: ArrayLike,
    predictions: ArrayLike,
    scores: ArrayLike,
    classes: int,
    groups_count: int,
    *,
    replicates: int = 10_000,
    seed: int = 0,
    class_names: Sequence[object] | None = None,
    group_names: Sequence[object] | None = None,
) -> Metrics:
    """Everything about a classifier with (N,) predictions and (N, C) scores, which rank rows within a class.

    `replicates` and `seed` are those of the bootstrap and of the floor. What one class or one group leaves undefined is
    None. Raises EmptyCellError naming every cell without rows, and DataError for values out of range, unequal lengths or
    scores that are not finite.
    """
    counts = confusion(labels, groups, predictions, classes, groups_count)
    shares = recalls(counts, class_names, group_names)
    truth, table = np.asarray(labels), np.asarray(scores, dtype=np.float64)
    if table.shape != (len(truth), classes) or not np.isfinite(table).all():
        found = f"shape {table.shape}, {int((~np.isfinite(table)).sum())} not finite"
        wanted = f"finite numbers, ({len(truth)}, {classes})"
        raise DataError(
            where="scores", found=found, wanted=wanted, fix="look at the training curve: it may have diverged"
        )
    missing = undefined(counts, class_names)
    observed = {name: float(value[0]) for name, value in statistics_of(counts[None], shares).items()}
    rng = np.random.default_rng(seed)
    intervals = {name: percentile_interval(each) for name, each in resampled(counts, replicates, rng).items()}
    if "auroc" not in missing:
        area = auroc(truth, table)
        observed["auroc"], intervals["auroc"] = area.value, (area.low, area.high)
    if "f1_binary" not in missing:
        observed["f1_binary"] = float(100 * _f1(counts[None])[0, 1])
    floor: Mapping[str, float | None] = {"mean": None, "max": None}
    beyond: Mapping[str, float | None] = floor
    if "deo_floor" not in missing:
        floor = deo_floor(counts, replicates=replicates, seed=seed)
        gaps = gap_intervals(counts, seed=seed)
        intervals |= {name: (gap.low, gap.high) for name, gap in gaps.items()}
        beyond = {name.removesuffix("_deo"): gap.beyond_chance for name, gap in gaps.items()}
    gone = {name.removeprefix("intervals.") for name in missing}
    return Metrics(
        n=len(truth),
        **{name: None if name in missing else observed[name] for name in SCORES},
        recalls=shares,
        counts=counts.sum(2),
        deo_floor=floor,
        beyond_chance=beyond,
        intervals={name: None if name in gone else intervals[name] for name in (*STATISTICS, "auroc")},
        confusion=counts,
        undefined=missing,
        trivial=trivial(counts, class_names),
    )


def deo_floor(confusion: Ints, *, replicates: int = 10_000, seed: int = 0) -> dict[str, float]:
    """The mean-DEO and max-DEO (x100) expected by chance alone, {"mean": ..., "max": ...}, of a
    confusion (C, M, C).

    What a classifier would show on average whose recall in each class is the same in all groups (the observed one,
    pooled over the groups) with as many rows a cell as here: with few rows, equal recalls do not look equal.
    """
    gaps = _chance_gaps(confusion, replicates, seed)
    return {"mean": float(gaps.mean()), "max": float(gaps.max(1).mean())}


def gap_floors(confusion: Ints, *, replicates: int = 10_000, seed: int = 0) -> Floats:
    """The gap (x100) that each class is expected to show by chance alone, (C,); their mean is the floor of mean-DEO."""
    floors: Floats = _chance_gaps(confusion, replicates, seed).mean(0)
    return floors


def _chance_gaps(confusion: Ints, replicates: int, seed: int) -> Floats:
    """Gaps (x100) of the classes, (R, C), in samples in which a class's recall is the same in all groups."""
    counts, correct = confusion.sum(2), np.einsum("cmc->cm", confusion)
    pooled = correct.sum(1, keepdims=True) / counts.sum(1, keepdims=True)
    draws = np.random.default_rng(seed).binomial(counts, pooled, size=(replicates, *counts.shape)) / counts
    gaps: Floats = 100 * np.ptp(draws, axis=2)
    return gaps


@final
class Auroc(NamedTuple):
    """AUROC and the ends of its 95 % interval, x100."""

    value: float
    low: float
    high: float


def auroc(labels: ArrayLike, scores: ArrayLike) -> Auroc:
    """AUROC x100, macro one-vs-rest, of (N, C) scores; for C = 2 that of class 1's score. Ties count half.

    The interval is DeLong's (DeLong et al. 1988, eq. 3-5) on the logit scale; a row counts once in the mean over classes, so
    that the covariance of their areas is in it. Without an error in the order of any pair it is a point. Raises DataError
    naming a class that has no row, or all of them: its AUROC does not exist.
    """
    truth, table = np.asarray(labels), np.asarray(scores, dtype=np.float64)
    classes = [1] if table.shape[1] == 2 else range(table.shape[1])
    require_both_sides(truth, classes)
    areas, error = np.zeros(len(classes)), np.zeros(len(truth))
    for place, c in enumerate(classes):
        areas[place], rows = _one_vs_rest(truth == c, table[:, c])
        error += rows / len(classes)
    area, deviation = float(areas.mean()), float(np.sqrt((error**2).sum()))
    if not 0 < area < 1:
        return Auroc(100 * area, 100 * area, 100 * area)
    half = Z * deviation / (area * (1 - area))
    low, high = (100 / (1 + (1 - area) / area * np.exp(-by)) for by in (-half, half))
    return Auroc(100 * area, float(low), float(high))


STATISTICS: tuple[Statistic, ...] = ("accuracy", "f1_macro", "mean_deo", "max_deo")


def statistics_of(counts: Ints, observed: Floats) -> dict[str, Floats]:
    """The statistics (x100), (R,), of counts (R, C, M, C); the recall of an empty cell is taken from `observed` (C, M)."""
    correct = np.einsum("rcmc->rcm", counts)
    cells = counts.sum(3)
    gaps = np.ptp(np.where(cells > 0, correct / np.maximum(cells, 1), observed), axis=2)
    return {
        "accuracy": 100 * correct.sum((1, 2)) / cells.sum((1, 2)),
        "f1_macro": 100 * np.nanmean(_f1(counts), axis=1),
        "mean_deo": 100 * gaps.mean(1),
        "max_deo": 100 * gaps.max(1),
    }


def _f1(counts: Ints) -> Floats:
    """F1 of each class, (R, C), in 0..1, of counts (R, C, M, C); NaN for a class neither present nor predicted, which has
    none: a draw's macro F1 is the mean of the others."""
    rows = counts.sum((2, 3)) + counts.sum((1, 2))
    f1: Floats = np.where(rows > 0, 2 * np.einsum("rcmc->rc", counts) / np.maximum(rows, 1), np.nan)
    return f1


def resampled(counts: Ints, replicates: int, rng: np.random.Generator) -> dict[str, Floats]:
    """Accuracy and macro F1 of `replicates` multinomial draws of the (C, M, C) counts within their total."""
    observed, total = recalls(counts), int(counts.sum())
    names = ("accuracy", "f1_macro")
    parts: list[dict[str, Floats]] = []
    for size in _chunks(replicates, counts.size):
        draws = rng.multinomial(total, counts.ravel() / total, size=size).reshape(size, *counts.shape)
        parts.append(statistics_of(draws, observed))
    return {name: np.concatenate([part[name] for part in parts] or [np.zeros(0)]) for name in names}


def _one_vs_rest(positive: NDArray[np.bool_], scores: Floats) -> tuple[float, Floats]:
    """AUROC in 0..1, and what each row adds to its error, (N,): the sum of squares is DeLong's variance.

    A row's placement is the share of the rows of the other side that it is in order with, a tie counting half.
    """
    inside, outside = (np.flatnonzero(side) for side in (positive, ~positive))
    inside, outside = (rows[np.argsort(scores[rows], kind="stable")] for rows in (inside, outside))
    placements = np.empty(len(scores))
    for rows, others, share in ((inside, outside, 1.0), (outside, inside, -1.0)):
        below, up_to = (np.searchsorted(scores[others], scores[rows], side=side) for side in ("left", "right"))
        placements[rows] = share * (below + up_to) / (2 * len(others)) + (share < 0)
    area = float(placements[inside].mean())
    errors = placements - area
    for rows in (inside, outside):
        errors[rows] /= np.sqrt(len(rows) * max(len(rows) - 1, 1))
    return area, errors


def _chunks(total: int, width: int) -> list[int]:
    """`total` in parts such that a part times `width` stays near CHUNK."""
    size = max(1, CHUNK // max(1, width))
    return [min(size, total - start) for start in range(0, total, size)]


def percentile_interval(replicates: Floats) -> tuple[float, float]:
    """The percentile interval of bootstrap replicates (R,). Not for a DEO, which it overstates: see `gap_intervals`."""
    low, high = (float(value) for value in np.percentile(replicates, LEVELS))
    return low, high


def _codes(name: str, values: ArrayLike, below: int) -> Ints:
    """`values` as int64 in 0..below-1. Raises DataError naming the first that is not."""
    array = np.asarray(values)
    if array.ndim != 1 or array.dtype.kind not in "iub":
        found = f"{array.dtype} of shape {array.shape}"
        raise DataError(where=name, found=found, wanted="integers, one a row", fix="pass codes 0, 1, 2, ...")
    if len(wrong := array[(array < 0) | (array >= below)]):
        found = f"{wrong[0]} ({len(wrong)} such rows)"
        raise DataError(where=name, found=found, wanted=f"0..{below - 1}", fix="check the number of classes and groups")
    return array.astype(np.int64)
