"""Two methods compared on the same seeds and the same test rows: effect, interval, p-value, Holm's correction.

For each training seed both methods are scored on one test set. The interval and the p-value speak of the mean true
difference over training seeds, on rows such as these, and are one construction: p is the level at which the interval
would end at 0, so that a 95 % interval without 0 and p < .05 are the same statement.

Two errors count. What seeds differ by is told by the seeds, with Student's t; it holds what chance draws of rows do to
each seed on its own. What the shared test rows do to all seeds alike is told by those rows: a Bayesian bootstrap that
gives a row the same weight in all runs (Rubin 1981), or, for accuracy and F1, its linear form. Together they make an
ellipse of errors for the pair of means (method, reference). For a DEO each point of it is read as a true gap, chance taken
off (`bird.measuring.intervals`), and the interval ends at the smallest and the largest difference; near equal recalls that is far
from symmetric.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

from bird.errors import DataError
from bird.measuring.caveats import undefined
from bird.measuring.cells import cells_of
from bird.measuring.intervals import GAPS, TAIL, Curves, GapStatistic, curves_of, mean_curve, over_classes, student
from bird.measuring.metrics import STATISTICS, Statistic, confusion, recalls, statistics_of

__all__ = ["ENOUGH_SEEDS", "Comparison", "Predicted", "compare", "holm", "sign_flip_p"]

ENOUGH_SEEDS = 8
EXACT_SEEDS = 16  # 2^16 sign patterns; above, as many random ones
DRAWS = 400  # of gaps along the curves
POINTS = 48  # on the ellipse
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Predicted:
    """One run on a test set: (N,) ids, labels, groups and predicted classes."""

    ids: Sequence[str]
    labels: Int[Ints, rows]
    groups: Int[Ints, rows]
    predictions: Int[Ints, rows]


@dataclass(frozen=True)
class Comparison:
    """A method minus its reference in one metric, x100: mean over seeds, 95 % interval, the seeds' differences.

    `beyond_chance` is the effect with chance taken off each run's gap (accuracy and F1: the effect). The interval may lie
    beside the effect where chance adds more to one method's gap than to the other's. `p` is two-sided and belongs to the
    interval; None below ENOUGH_SEEDS. AUROC is not compared: predictions do not determine it.
    """

    effect: float
    interval: tuple[float, float]
    by_seed: tuple[float, ...]
    p: float | None
    beyond_chance: float


@dataclass(frozen=True, eq=False)
class _Errors:
    """Covariances (2, 2) of the means of method and reference over seeds: of the rows that all share, and of seeds."""

    rows: Float[Floats, "2 2"]
    seeds: Float[Floats, "2 2"]
    count: int

    def outline(self, alpha: float) -> Float[Floats, "2 points"]:
        """Errors of the two means at the edge of what a two-sided test at `alpha` does not exclude: an ellipse."""
        share = 1 - TAIL * alpha / 2
        square = NormalDist().inv_cdf(share) ** 2 * self.rows
        if self.count > 1:
            square = square + student(share, self.count - 1) ** 2 * self.seeds
        values, vectors = np.linalg.eigh(square)
        angles = np.linspace(0, 2 * np.pi, POINTS, endpoint=False)
        found: Floats = vectors * np.sqrt(np.maximum(values, 0)) @ np.stack([np.cos(angles), np.sin(angles)])
        return found


def compare(
    method: Mapping[int, Predicted],
    reference: Mapping[int, Predicted],
    classes: int,
    groups: int,
    *,
    replicates: int = 400,
    seed: int = 0,
) -> dict[str, Comparison]:
    """accuracy, f1_macro, mean_deo and max_deo of `method` minus `reference`, as far as they exist (`bird.measuring.caveats`), over
    the seeds that both have.

    `replicates` are those of the rows' bootstrap. Raises DataError if no seed is shared or, within a seed, the rows are
    not the same.
    """
    runs = _runs(method, reference)
    counts = [confusion(run.labels, run.groups, run.predictions, classes, groups) for run in runs]
    observed = [statistics_of(each[None], recalls(each)) for each in counts]
    values = {name: np.array([each[name][0] for each in observed]).reshape(2, -1) for name in STATISTICS}
    one_set = all(list(run.ids) == list(runs[0].ids) for run in runs)
    missing, found = undefined(counts[0]), {}
    for name in (each for each in _INFLUENCES if each not in missing):
        influence = _INFLUENCES[name]
        shares = np.stack([influence(run, classes) for run in runs]) if one_set else None
        rows = None if shares is None else shares @ shares.T
        found[name] = _comparison(values[name], _errors(rows, values[name]), _plain(values[name]))
    moved = _apart(runs)
    for statistic in (each for each in GAPS if each not in missing):
        curves = [curves_of(cells_of(each, seed, DRAWS), statistic, moved) for each in counts]
        rows = _gap_covariance(runs, curves, statistic, replicates, seed) if one_set else None
        found[statistic] = _comparison(
            values[statistic], _errors(rows, values[statistic]), _read(values[statistic], curves)
        )
    return {name: found[name] for name in STATISTICS if name in found}


def sign_flip_p(differences: Sequence[float]) -> float | None:
    """Two-sided p of mean difference 0 under random signs: exact up to 16 seeds; None below ENOUGH_SEEDS.

    For AUROC, which has no interval here. It takes the test rows as given and so speaks of other seeds on these rows.
    """
    values = np.asarray(differences, dtype=np.float64)
    count = len(values)
    if count < ENOUGH_SEEDS:
        return None
    if count <= EXACT_SEEDS:
        signs = 1 - 2 * ((np.arange(1 << count)[:, None] >> np.arange(count)) & 1)
        more = 0
    else:
        signs = np.random.default_rng(0).choice([-1, 1], size=(1 << EXACT_SEEDS, count))
        more = 1  # the observed pattern counts as one of them
    reached = np.abs(signs @ values) >= abs(values.sum()) - 1e-9
    return float((reached.sum() + more) / (len(signs) + more))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down corrected p-values, in the order given (Holm 1979)."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    corrected, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = highest
    return corrected


# From errors (2, P) of the two means to the differences, x100, that they leave: smallest, nearest and largest, each (P,).
_Reading = Callable[[Floats], tuple[Floats, Floats, Floats]]


def _runs(method: Mapping[int, Predicted], reference: Mapping[int, Predicted]) -> list[Predicted]:
    """The method's runs of the shared seeds, then the reference's. Raises DataError where there is nothing to pair."""
    shared = sorted(method.keys() & reference.keys())
    if not shared:
        raise DataError(
            where="paired comparison", found="no seed in common", wanted="at least one", fix="train both with one seed"
        )
    for key in shared:
        one, other = method[key], reference[key]
        same = list(one.ids) == list(other.ids)
        if not same or (one.labels != other.labels).any() or (one.groups != other.groups).any():
            raise DataError(
                where=f"paired comparison, seed {key}",
                found="two sets of test rows",
                wanted="the same rows, labels and groups in the same order",
                fix="evaluate both on one cache or data set",
            )
    return [runs[key] for runs in (method, reference) for key in shared]


def _comparison(values: Float[Floats, "2 seeds"], errors: _Errors, reading: _Reading) -> Comparison:
    def ends(alpha: float) -> tuple[float, float]:
        smallest, _, largest = reading(errors.outline(alpha))
        return float(smallest.min()), float(largest.max())

    def holds_zero(alpha: float) -> bool:
        low, high = ends(alpha)
        return low <= 1e-9 and high >= -1e-9

    low, high = ends(0.05)
    by_seed = values[0] - values[1]
    p = None
    if len(by_seed) >= ENOUGH_SEEDS:
        p, excluded = (1.0, 1.0) if holds_zero(1.0) else (1e-9, 1.0)
        while excluded / p > 1.0001:
            middle = float(np.sqrt(p * excluded))
            p, excluded = (middle, excluded) if holds_zero(middle) else (p, middle)
    beyond = float(reading(np.zeros((2, 1)))[1][0])
    interval = (round(low, 6) + 0.0, round(high, 6) + 0.0)
    return Comparison(float(by_seed.mean()), interval, tuple(by_seed.tolist()), p, round(beyond, 6) + 0.0)


def _errors(rows: Float[Floats, "runs runs"] | None, values: Float[Floats, "2 seeds"]) -> _Errors:
    """`rows`: covariances of all runs by the draw of test rows, method's runs first; None where seeds share no rows.

    What the rows do to two seeds alike is the covariance of runs of different seeds; the rest shows in the seeds.
    """
    count = values.shape[1]
    if count == 1:
        return _Errors(np.zeros((2, 2)) if rows is None else rows, np.zeros((2, 2)), 1)
    seeds = np.cov(values) / count
    if rows is None:
        return _Errors(np.zeros((2, 2)), seeds, count)
    other_seed = ~np.eye(count, dtype=bool)
    blocks = rows.reshape(2, count, 2, count)
    common = np.array([[blocks[i, :, j][other_seed].mean() for j in range(2)] for i in range(2)])
    found, vectors = np.linalg.eigh((common + common.T) / 2)
    return _Errors(vectors * np.maximum(found, 0) @ vectors.T, seeds, count)


def _plain(values: Float[Floats, "2 seeds"]) -> _Reading:
    effect = values[0].mean() - values[1].mean()
    return lambda errors: (effect + errors[0] - errors[1],) * 3


def _read(values: Float[Floats, "2 seeds"], curves: Sequence[Curves]) -> _Reading:
    """Mean observed gaps, moved by the errors, read as true gaps on the seeds' mean curves; then their difference.

    Not the mean of the seeds' own readings: near no gap a reading is 0 or above, so that their mean stays above 0.
    """
    count, observed = values.shape[1], values.mean(1)

    def reader(which: int) -> Callable[[Literal["lower", "nearest", "upper"], Floats], Floats]:
        of_runs = curves[which * count : (which + 1) * count]
        means = {name: mean_curve([getattr(each, name) for each in of_runs]) for name in ("lower", "nearest", "upper")}
        deviation = max(float(np.mean([each.deviation for each in of_runs])), 1e-9)
        return lambda name, errors: means[name].read(observed[which], errors[which] / deviation)

    method, reference = reader(0), reader(1)
    return lambda errors: (
        method("lower", errors) - reference("upper", errors),
        method("nearest", errors) - reference("nearest", errors),
        method("upper", errors) - reference("lower", errors),
    )


def _apart(runs: Sequence[Predicted]) -> float:
    """How far, in 0..1, least favourable moves may part two runs: 0 for equal ones, 1 for unrelated ones.

    The standard error of a difference of two recalls in that of one: sqrt(2 (1 - correlation)) within cells, at most 1.
    """
    differing, single = 0.0, 0.0
    count = len(runs) // 2
    for one, other in zip(runs[:count], runs[count:], strict=True):
        _, cell = np.unique(np.stack([one.labels, one.groups]), axis=1, return_inverse=True)
        first, second = (_centred(run, cell.ravel()) for run in (one, other))
        differing += float(((first - second) ** 2).sum())
        single += float((first**2).sum() + (second**2).sum()) / 2
    return float(min(1.0, np.sqrt(differing / single))) if single else 0.0


def _centred(run: Predicted, cell: Int[Ints, " rows"]) -> Float[Floats, " rows"]:
    """Whether each row is predicted right, less the mean of its cell."""
    right = (run.labels == run.predictions).astype(np.float64)
    centred: Floats = right - (np.bincount(cell, right) / np.bincount(cell))[cell]
    return centred


def _gap_covariance(
    runs: Sequence[Predicted], curves: Sequence[Curves], statistic: GapStatistic, replicates: int, seed: int
) -> Float[Floats, "runs runs"]:
    """Covariances (x100 squared) of the runs' gaps when the rows that they share are drawn anew.

    Each cell's rows get exponential weights, the same in all runs (Rubin 1981), and what they do to the recalls is added
    to the recalls nearest to the observed ones. Small cells know less than their rows show: normal noise makes up for
    it, the same for runs that agree on all rows of the cell.
    """
    rng = np.random.default_rng(seed)
    classes, groups = curves[0].recalls.shape
    right = np.stack([run.labels == run.predictions for run in runs])
    drawn = np.empty((classes, groups, replicates, len(runs)))
    for label, group in np.ndindex(classes, groups):
        inside = right[:, (runs[0].labels == label) & (runs[0].groups == group)]
        rows, means = inside.shape[1], inside.mean(1)
        weights = rng.standard_exponential((replicates, rows), dtype=np.float32)
        drawn[label, group] = weights @ inside.T.astype(np.float32) / weights.sum(1, keepdims=True) - means
        smooth = (inside.sum(1) + 0.5) / (rows + 1)
        missing = np.maximum(0, smooth * (1 - smooth) / rows - means * (1 - means) / (rows + 1))
        noise = {each.tobytes(): rng.standard_normal(replicates) for each in inside}
        for run, each in enumerate(inside):
            drawn[label, group, :, run] += np.sqrt(missing[run]) * noise[each.tobytes()]
    recalls_drawn = np.stack([each.recalls for each in curves], axis=-1)[:, :, None] + drawn
    gaps = over_classes(np.ptp(recalls_drawn, axis=1), statistic)
    return np.atleast_2d(np.cov(100 * gaps, rowvar=False))


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


_INFLUENCES: dict[Statistic, Callable[[Predicted, int], Floats]] = {
    "accuracy": _accuracy_influence,
    "f1_macro": _f1_influence,
}
