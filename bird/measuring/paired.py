"""Two methods compared on the same seeds and the same test rows: effect, interval, p-value, Holm's correction.

For each training seed both methods are scored on one test set. The interval and the p-value speak of the mean true
difference over training seeds, on rows such as these, and are one construction: p is the level at which the interval
would end at 0, so that a 95 % interval without 0 and p < .05 are the same statement.

Two errors count, that of the seeds and that of the rows that all runs share (`bird.measuring.shared_rows`). Together
they make an ellipse of errors for the pair of means (method, reference). For a DEO each point of it is read as a true
gap, chance taken off (bird.measuring.intervals), and the interval ends at the smallest and the largest difference; near
equal recalls that is far from symmetric."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from bird.errors import DataError
from bird.measuring.caveats import undefined
from bird.measuring.cells import cells_of
from bird.measuring.intervals import GAPS, Curves, curves_of, reading
from bird.measuring.metrics import STATISTICS, confusion, recalls, statistics_of
from bird.measuring.shared_rows import (
    DRAWS,
    INFLUENCES,
    REPLICATES,
    Errors,
    Predicted,
    centred,
    errors_of,
    gap_covariance,
    recall_errors,
    same_rows,
)

__all__ = ["ENOUGH_SEEDS", "Comparison", "Predicted", "compare", "holm", "sign_flip_p"]

ENOUGH_SEEDS = 8
EXACT_SEEDS = 16  # 2^16 sign patterns; above, as many random ones
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@final
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


def compare(
    method: Mapping[int, Predicted],
    reference: Mapping[int, Predicted],
    classes: int,
    groups: int,
    *,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> dict[str, Comparison]:
    """accuracy, f1_macro, mean_deo and max_deo of `method` minus `reference`, as far as they exist
    (bird.measuring.caveats), over the seeds that both have.

    `replicates` are those of the rows' bootstrap. Raises DataError if no seed is shared or, within a seed, the rows are
    not the same.
    """
    runs = _runs(method, reference)
    counts = [confusion(run.labels, run.groups, run.predictions, classes, groups) for run in runs]
    observed = [statistics_of(each[None], recalls(each)) for each in counts]
    values = {name: np.array([each[name][0] for each in observed]).reshape(2, -1) for name in STATISTICS}
    one_set = same_rows(runs)
    missing, found = undefined(counts[0]), {}
    for name in (each for each in INFLUENCES if each not in missing):
        influence = INFLUENCES[name]
        shares = np.stack([influence(run, classes) for run in runs]) if one_set else None
        rows = None if shares is None else shares @ shares.T
        found[name] = _comparison(values[name], errors_of(rows, values[name]), _plain(values[name]))
    moved = _apart(runs)
    drawn = recall_errors(runs, classes, groups, replicates, seed) if one_set else None
    for statistic in (each for each in GAPS if each not in missing):
        curves = [curves_of(cells_of(each, seed, DRAWS), statistic, moved) for each in counts]
        rows = None if drawn is None else gap_covariance(drawn, curves, statistic)
        found[statistic] = _comparison(
            values[statistic], errors_of(rows, values[statistic]), _read(values[statistic], curves)
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


def _comparison(values: Float[Floats, "2 seeds"], errors: Errors, reading: _Reading) -> Comparison:
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


def _plain(values: Float[Floats, "2 seeds"]) -> _Reading:
    effect = values[0].mean() - values[1].mean()
    return lambda errors: (effect + errors[0] - errors[1],) * 3


def _read(values: Float[Floats, "2 seeds"], curves: Sequence[Curves]) -> _Reading:
    """Mean observed gaps, moved by the errors, read as true gaps; then their difference."""
    count, means = values.shape[1], values.mean(1)
    method, reference = reading(curves[:count], means[0]), reading(curves[count:], means[1])
    return lambda errors: (
        method("lower", errors[0]) - reference("upper", errors[1]),
        method("nearest", errors[0]) - reference("nearest", errors[1]),
        method("upper", errors[0]) - reference("lower", errors[1]),
    )


def _apart(runs: Sequence[Predicted]) -> float:
    """How far, in 0..1, least favourable moves may part two runs: 0 for equal ones, 1 for unrelated ones.

    The standard error of a difference of two recalls in that of one: sqrt(2 (1 - correlation)) within cells, at most 1.
    """
    differing, single = 0.0, 0.0
    count = len(runs) // 2
    for one, other in zip(runs[:count], runs[count:], strict=True):
        first, second = centred([one, other])
        differing += float(((first - second) ** 2).sum())
        single += float((first**2).sum() + (second**2).sum()) / 2
    return float(min(1.0, np.sqrt(differing / single))) if single else 0.0
