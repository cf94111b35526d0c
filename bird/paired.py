"""Two methods compared on the same seeds and the same test rows: effect, interval, exact p, Holm's correction.

For each training seed both methods are scored on one test set, so that what the seed and the rows have in common cancels.
The interval is a two-level bootstrap: seeds are drawn with replacement, then rows within each drawn seed, the same rows for
both methods (a multinomial of the joint counts class x group x prediction of one x prediction of the other). The p-value is
that of the exact sign-flip test over the seeds: with n seeds it is at least 2 / 2^n, .0625 for 5 and .0078 for 8, so that
fewer than 8 seeds get none here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

from bird.caveats import undefined
from bird.errors import DataError
from bird.metrics import STATISTICS, confusion, interval_of, recalls, statistics_of

__all__ = ["ENOUGH_SEEDS", "Comparison", "Predicted", "compare", "holm", "sign_flip_p"]

ENOUGH_SEEDS = 8
EXACT_SEEDS = 16  # 2^16 sign patterns; above, as many random ones
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

    `p` is the exact two-sided sign-flip p, None below ENOUGH_SEEDS; AUROC has no interval: counts do not determine it.
    """

    effect: float
    interval: tuple[float, float] | None
    by_seed: tuple[float, ...]
    p: float | None


def compare(
    method: Mapping[int, Predicted],
    reference: Mapping[int, Predicted],
    classes: int,
    groups: int,
    *,
    replicates: int = 2000,
    seed: int = 0,
) -> dict[str, Comparison]:
    """accuracy, f1_macro, mean_deo and max_deo of `method` minus `reference`, as far as they exist (`bird.caveats`), over
    the seeds that both have.

    Raises DataError if no seed is shared or, within a seed, the rows are not the same.
    """
    shared = sorted(method.keys() & reference.keys())
    if not shared:
        raise DataError(
            where="paired comparison", found="no seed in common", wanted="at least one", fix="train both with one seed"
        )
    rng = np.random.default_rng(seed)
    picked = rng.integers(len(shared), size=(replicates, len(shared)))
    sums: dict[str, Floats] = {name: np.zeros(replicates) for name in STATISTICS}
    observed: dict[str, list[float]] = {name: [] for name in STATISTICS}
    for index, key in enumerate(shared):
        one, other = method[key], reference[key]
        same = list(one.ids) == list(other.ids)
        if not same or (one.labels != other.labels).any() or (one.groups != other.groups).any():
            raise DataError(
                where=f"paired comparison, seed {key}",
                found="two sets of test rows",
                wanted="the same rows, labels and groups in the same order",
                fix="evaluate both on one cache or data set",
            )
        for name, value in _differences(_joint(one, other, classes, groups), (classes, groups)).items():
            observed[name].append(value)
        replicate, _ = np.nonzero(picked == index)
        for name, values in _resampled(one, other, (classes, groups), len(replicate), rng).items():
            sums[name] += np.bincount(replicate, values, minlength=replicates)
    found: dict[str, Comparison] = {}
    missing = undefined(_joint(method[shared[0]], reference[shared[0]], classes, groups)[0])
    for name in (name for name in STATISTICS if name not in missing):
        effect = float(np.mean(observed[name]))
        interval = interval_of(name, sums[name] / len(shared), effect, bounds=(-100.0, 100.0))
        found[name] = Comparison(effect, interval, tuple(observed[name]), sign_flip_p(observed[name]))
    return found


def sign_flip_p(differences: Sequence[float]) -> float | None:
    """Two-sided p of mean difference 0 under random signs: exact up to 16 seeds; None below ENOUGH_SEEDS."""
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


def _joint(one: Predicted, other: Predicted, classes: int, groups: int) -> tuple[Ints, Ints]:
    """Confusions (C, M, C) of both."""
    return (
        confusion(one.labels, one.groups, one.predictions, classes, groups),
        confusion(other.labels, other.groups, other.predictions, classes, groups),
    )


def _differences(pair: tuple[Ints, Ints], shape: tuple[int, int]) -> dict[str, float]:
    first, second = (statistics_of(counts[None], recalls(counts)) for counts in pair)
    return {name: float(first[name][0] - second[name][0]) for name in STATISTICS}


def _resampled(
    one: Predicted, other: Predicted, shape: tuple[int, int], replicates: int, rng: np.random.Generator
) -> dict[str, Float[Floats, replicates]]:
    """Differences of `replicates` draws of the rows, the same rows for both."""
    classes, groups = shape
    codes = np.ravel_multi_index(
        (one.labels, one.groups, one.predictions, other.predictions), (classes, groups, classes, classes)
    )
    cells, counts = np.unique(codes, return_counts=True)
    label, group, first, second = np.unravel_index(cells, (classes, groups, classes, classes))
    whole = classes * groups * classes
    parts: dict[str, list[Floats]] = {name: [] for name in STATISTICS}
    pair = _joint(one, other, classes, groups)
    for start in range(0, replicates, 500):
        draws = rng.multinomial(counts.sum(), counts / counts.sum(), size=min(500, replicates - start))
        values = []
        for predicted, observed in zip((first, second), pair, strict=True):
            spread = np.zeros((len(cells), whole))
            spread[
                np.arange(len(cells)), np.ravel_multi_index((label, group, predicted), (classes, groups, classes))
            ] = 1
            table = (draws @ spread).astype(np.int64).reshape(-1, classes, groups, classes)
            values.append(statistics_of(table, recalls(observed)))
        for name in STATISTICS:
            parts[name].append(values[0][name] - values[1][name])
    return {name: np.concatenate(found or [np.zeros(0)]) for name, found in parts.items()}
