"""Several runs on the same test rows: what the draw of those rows does to them alike, and what seeds differ by.

The rows' part is told by the rows: for a DEO a Bayesian bootstrap that gives a row the same weight in all runs (Rubin
1981), for accuracy and F1 its linear form. What rows do to runs of different seeds alike is the covariance of those runs.
The rest, chance draws of rows that part the seeds included, shows in how the seeds differ, and Student's t goes with it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import final

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

from bird.measuring.intervals import TAIL, Curves, GapStatistic, over_classes, student
from bird.measuring.metrics import Statistic

__all__ = [
    "DRAWS",
    "INFLUENCES",
    "REPLICATES",
    "Errors",
    "Predicted",
    "centred",
    "errors_of",
    "gap_covariance",
    "recall_errors",
    "same_rows",
]

DRAWS = 400  # of gaps along curves
REPLICATES = 400  # of the rows' bootstrap
POINTS = 48  # on an ellipse
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@final
@dataclass(frozen=True, eq=False)
class Predicted:
    """One run on a test set: (N,) ids, labels, groups and predicted classes."""

    ids: Sequence[str]
    labels: Int[Ints, rows]
    groups: Int[Ints, rows]
    predictions: Int[Ints, rows]


@final
@dataclass(frozen=True, eq=False)
class Errors:
    """Covariances (K, K), x100 squared, of the means of K methods over seeds: of the rows that all share, and of seeds."""

    rows: Float[Floats, "methods methods"]
    seeds: Float[Floats, "methods methods"]
    count: int

    def half_widths(self, alpha: float) -> Float[Floats, " methods"]:
        """How far from each mean a two-sided test at `alpha` does not exclude, x100."""
        found: Floats = np.sqrt(np.maximum(np.diag(self._square(alpha)), 0))
        return found

    def outline(self, alpha: float) -> Float[Floats, "2 points"]:
        """The same for two means together: errors at the edge of an ellipse."""
        values, vectors = np.linalg.eigh(self._square(alpha))
        angles = np.linspace(0, 2 * np.pi, POINTS, endpoint=False)
        found: Floats = vectors * np.sqrt(np.maximum(values, 0)) @ np.stack([np.cos(angles), np.sin(angles)])
        return found

    def _square(self, alpha: float) -> Float[Floats, "methods methods"]:
        share = 1 - TAIL * alpha / 2
        square: Floats = NormalDist().inv_cdf(share) ** 2 * self.rows
        if self.count > 1:
            square = square + student(share, self.count - 1) ** 2 * self.seeds
        return square


def same_rows(runs: Sequence[Predicted]) -> bool:
    """Whether all runs have one test set in one order."""
    first = runs[0]
    return all(
        list(run.ids) == list(first.ids)
        and np.array_equal(run.labels, first.labels)
        and np.array_equal(run.groups, first.groups)
        for run in runs[1:]
    )


def errors_of(rows: Float[Floats, "runs runs"] | None, values: Float[Floats, "methods seeds"]) -> Errors:
    """The errors of the means of `values` over seeds. `rows`: covariances of all runs by the draw of test rows, those of
    the first method first; None where seeds share no rows."""
    methods, count = values.shape
    if count == 1:
        return Errors(np.zeros((methods, methods)) if rows is None else rows, np.zeros((methods, methods)), 1)
    seeds = np.atleast_2d(np.cov(values)) / count
    if rows is None:
        return Errors(np.zeros((methods, methods)), seeds, count)
    other_seed = ~np.eye(count, dtype=bool)
    blocks = rows.reshape(methods, count, methods, count)
    common = np.array([[blocks[i, :, j][other_seed].mean() for j in range(methods)] for i in range(methods)])
    found, vectors = np.linalg.eigh((common + common.T) / 2)
    return Errors(vectors * np.maximum(found, 0) @ vectors.T, seeds, count)


def recall_errors(
    runs: Sequence[Predicted], classes: int, groups: int, replicates: int = REPLICATES, seed: int = 0
) -> Float[Floats, "classes groups replicates runs"]:
    """What drawing the shared rows anew does to the recalls of each run, in 0..1.

    Each cell's rows get exponential weights, the same in all runs (Rubin 1981); rows that the runs take alike share one,
    of the gamma distribution. Small cells know less than their rows show: normal noise makes up for it, the same for runs
    that agree on all rows of the cell.
    """
    rng = np.random.default_rng(seed)
    right = np.stack([run.labels == run.predictions for run in runs])
    drawn = np.empty((classes, groups, replicates, len(runs)))
    for label, group in np.ndindex(classes, groups):
        inside = right[:, (runs[0].labels == label) & (runs[0].groups == group)]
        rows, means = inside.shape[1], inside.mean(1)
        kinds, times = np.unique(inside, axis=1, return_counts=True)
        weights = rng.standard_gamma(times, (replicates, len(times)))
        drawn[label, group] = weights @ kinds.T / weights.sum(1, keepdims=True) - means
        smooth = (inside.sum(1) + 0.5) / (rows + 1)
        missing = np.maximum(0, smooth * (1 - smooth) / rows - means * (1 - means) / (rows + 1))
        noise = {each.tobytes(): rng.standard_normal(replicates) for each in inside}
        for run, each in enumerate(inside):
            drawn[label, group, :, run] += np.sqrt(missing[run]) * noise[each.tobytes()]
    return drawn


def gap_covariance(
    drawn: Float[Floats, "classes groups replicates runs"], curves: Sequence[Curves], statistic: GapStatistic
) -> Float[Floats, "runs runs"]:
    """Covariances (x100 squared) of the runs' gaps: `drawn`, from `recall_errors`, about the recalls nearest to the observed
    ones."""
    recalls = np.stack([each.recalls for each in curves], axis=-1)[:, :, None] + drawn
    gaps = over_classes(np.ptp(recalls, axis=1), statistic)
    return np.atleast_2d(np.cov(100 * gaps, rowvar=False))


def centred(runs: Sequence[Predicted]) -> Float[Floats, "runs rows"]:
    """Whether each run is right in each row that they share, less the mean of its cell."""
    _, cell = np.unique(np.stack([runs[0].labels, runs[0].groups]), axis=1, return_inverse=True)
    rows, cell = np.bincount(cell.ravel()), cell.ravel()
    right = np.stack([run.labels == run.predictions for run in runs]).astype(np.float64)
    found: Floats = right - np.stack([(np.bincount(cell, each) / rows)[cell] for each in right])
    return found


def _accuracy_influence(run: Predicted, classes: int) -> Float[Floats, " rows"]:
    """What each row adds to the accuracy's error, x100: its linear form."""
    right = run.labels == run.predictions
    influence: Floats = 100 * (right - right.mean()) / len(right)
    return influence


def _f1_influence(run: Predicted, classes: int) -> Float[Floats, " rows"]:
    """What each row adds to macro F1's error, x100: the derivative of 2 TP / (present + predicted), class by class."""
    right = run.labels == run.predictions
    whole = np.bincount(run.labels, minlength=classes) + np.bincount(run.predictions, minlength=classes)
    whole = np.maximum(whole, 1)
    f1 = 2 * np.bincount(run.labels[right], minlength=classes) / whole
    each: Floats = 2 * right / whole[run.labels] - (f1 / whole)[run.labels] - (f1 / whole)[run.predictions]
    return 100 * each / classes


INFLUENCES: dict[Statistic, Callable[[Predicted, int], Floats]] = {
    "accuracy": _accuracy_influence,
    "f1_macro": _f1_influence,
}
