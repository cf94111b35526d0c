"""Statistics of several runs that differ in their training seed: mean and interval.

The interval speaks of the mean over training seeds, on rows such as these. Where it is known what each run predicts for
each row, what the rows do to all seeds alike is measured (`bird.measuring.shared_rows`); where only counts are known,
all of the rows' error counts as common, and the interval is wider than it need be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, final

import numpy as np
from numpy.typing import NDArray

from bird.errors import DataError
from bird.measuring.caveats import does_not_exist, undefined
from bird.measuring.cells import cells_of
from bird.measuring.intervals import GAPS, curves_of, gap_interval, reading, student
from bird.measuring.metrics import Statistic, percentile_interval, recalls, resampled, statistics_of
from bird.measuring.shared_rows import (
    DRAWS,
    INFLUENCES,
    Predicted,
    centred,
    errors_of,
    gap_covariance,
    recall_errors,
    same_rows,
)

__all__ = ["OverSeeds", "two_level_interval", "two_level_intervals"]

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@final
class OverSeeds(NamedTuple):
    """A statistic over runs, x100: the mean of what they show, its 95 % interval, and of a DEO the mean beyond chance."""

    mean: float
    low: float
    high: float
    beyond_chance: float | None


def two_level_interval(
    confusions: Sequence[Ints], statistic: Statistic = "mean_deo", replicates: int = 10_000, seed: int = 0
) -> OverSeeds:
    """A statistic over runs of several seeds, from the confusion (C, M, C) of each; see `two_level_intervals`.
    Raises DataError for one that does not exist."""
    found = two_level_intervals(confusions, replicates, seed)
    if statistic not in found:
        raise does_not_exist(statistic, confusions[0])
    return found[statistic]


def two_level_intervals(
    confusions: Sequence[Ints],
    replicates: int = 10_000,
    seed: int = 0,
    predicted: Sequence[Predicted | None] = (),
) -> dict[str, OverSeeds]:
    """Each statistic that exists over runs: one (C, M, C) confusion for each training seed.

    The interval speaks of the mean over training seeds, on rows such as these. Two errors add in squares: that of the
    seeds, by Student's t, and that of the rows. Of the latter only what is common to the seeds counts where `predicted`
    holds every run's predictions for the same rows; all of it where not. One run has the interval of its rows.
    Raises DataError where there is no run.
    """
    if not confusions:
        raise DataError(
            where="two-level interval", found="no runs", wanted="at least one", fix="pass a confusion a seed"
        )
    values = statistics_of(np.stack(confusions), np.stack([recalls(each) for each in confusions]))
    runs = [each for each in predicted if each is not None]
    if len(confusions) == len(runs) > 1 and same_rows(runs):
        found = _on_shared_rows(runs, confusions, values, seed)
    else:
        found = _on_counts(confusions, values, replicates, seed)
    missing = undefined(confusions[0])
    return {name: each for name, each in found.items() if name not in missing}


def _on_shared_rows(
    runs: Sequence[Predicted], confusions: Sequence[Ints], values: Mapping[str, Floats], seed: int
) -> dict[str, OverSeeds]:
    found: dict[str, OverSeeds] = {}
    for name, influence in INFLUENCES.items():
        shares = np.stack([influence(run, len(confusions[0])) for run in runs])
        mean, half = float(values[name].mean()), errors_of(shares @ shares.T, values[name][None]).half_widths(0.05)
        found[name] = OverSeeds(mean, float(max(0, mean - half[0])), float(min(100, mean + half[0])), None)
    if confusions[0].shape[1] == 1:
        return found
    classes, groups, _ = confusions[0].shape
    drawn = recall_errors(runs, classes, groups, seed=seed)
    right = centred(runs)
    # How far recalls may be moved: the standard error of their mean over seeds in that of one seed's.
    moved = float(np.sqrt((right.mean(0) ** 2).sum() / max((right**2).mean(0).sum(), 1e-9)))
    cells = [cells_of(each, seed, DRAWS) for each in confusions]
    for statistic in GAPS:
        curves = [curves_of(each, statistic, moved) for each in cells]
        rows = gap_covariance(drawn, curves, statistic)
        mean, half = float(values[statistic].mean()), errors_of(rows, values[statistic][None]).half_widths(0.05)
        read = reading(curves, mean)
        low, high, beyond = (
            float(read("lower", -half)[0]),
            float(read("upper", half)[0]),
            float(read("nearest", 0 * half)[0]),
        )
        found[statistic] = OverSeeds(mean, min(low, beyond), max(high, beyond), beyond)
    return found


def _on_counts(
    confusions: Sequence[Ints], values: Mapping[str, Floats], replicates: int, seed: int
) -> dict[str, OverSeeds]:
    count, rng = len(confusions), np.random.default_rng(seed)
    times = student(0.975, count - 1) / np.sqrt(count) if count > 1 else 0.0
    errors = {name: times * float(np.std(each, ddof=1)) if count > 1 else 0.0 for name, each in values.items()}
    ends: dict[str, list[tuple[float, float]]] = {"accuracy": [], "f1_macro": []}
    for run, counts in enumerate(confusions):
        for name, replicated in resampled(counts, replicates, rng).items():
            (low, high), value = percentile_interval(replicated), values[name][run]
            below, above = np.hypot(value - low, errors[name]), np.hypot(high - value, errors[name])
            ends[name].append((max(0.0, value - below), min(100.0, value + above)))
    means = {name: float(each.mean()) for name, each in values.items()}
    found: dict[str, OverSeeds] = {}
    for name, each in ends.items():
        low, high = np.mean(each, axis=0)
        found[name] = OverSeeds(means[name], float(low), float(high), None)
    cells = [cells_of(each, seed) for each in confusions]
    for statistic in GAPS:
        found[statistic] = OverSeeds(means[statistic], *gap_interval(cells, statistic, added=errors[statistic]))
    return found
