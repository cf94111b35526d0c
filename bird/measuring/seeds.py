"""Statistics of several runs that differ in their training seed: mean and interval.

The interval speaks of the mean over training seeds, on rows such as these.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bird.errors import DataError
from bird.measuring.caveats import does_not_exist, undefined
from bird.measuring.cells import cells_of
from bird.measuring.intervals import GAPS, gap_interval, student
from bird.measuring.metrics import Statistic, percentile_interval, recalls, resampled, statistics_of

__all__ = ["OverSeeds", "two_level_interval", "two_level_intervals"]

Ints = NDArray[np.int64]


class OverSeeds(NamedTuple):
    """A statistic over runs, x100: the mean of what they show, its 95 % interval, and of a DEO the mean beyond chance."""

    mean: float
    low: float
    high: float
    beyond_chance: float | None


def two_level_interval(
    confusions: Sequence[Ints], statistic: Statistic = "mean_deo", replicates: int = 10_000, seed: int = 0
) -> OverSeeds:
    """A statistic over runs of several seeds; see `two_level_intervals`. Raises DataError for one that does not exist."""
    found = two_level_intervals(confusions, replicates, seed)
    if statistic not in found:
        raise does_not_exist(statistic, confusions[0])
    return found[statistic]


def two_level_intervals(confusions: Sequence[Ints], replicates: int = 10_000, seed: int = 0) -> dict[str, OverSeeds]:
    """Each statistic that exists over runs: one (C, M, C) confusion for each training seed.

    The interval speaks of the mean over training seeds, on rows such as these. Two errors add in squares: that of the
    seeds, by Student's t, and that of the rows, which counts as common to all seeds, since seeds share their test set.
    One run has the interval of its rows.
    """
    if not confusions:
        raise DataError(
            where="two-level interval", found="no runs", wanted="at least one", fix="pass a confusion a seed"
        )
    count, missing, rng = len(confusions), undefined(confusions[0]), np.random.default_rng(seed)
    values = statistics_of(np.stack(confusions), np.stack([recalls(each) for each in confusions]))
    times = student(0.975, count - 1) / np.sqrt(count) if count > 1 else 0.0
    errors = {name: times * float(np.std(each, ddof=1)) if count > 1 else 0.0 for name, each in values.items()}
    ends: dict[str, list[tuple[float, float]]] = {"accuracy": [], "f1_macro": []}
    for run, counts in enumerate(confusions):
        for name, replicated in resampled(counts, replicates, rng).items():
            (low, high), value = percentile_interval(replicated), values[name][run]
            below, above = np.hypot(value - low, errors[name]), np.hypot(high - value, errors[name])
            ends[name].append((max(0.0, value - below), min(100.0, value + above)))
    means = {name: float(each.mean()) for name, each in values.items()}
    found = {}
    for name, each in ends.items():
        low, high = np.mean(each, axis=0)
        found[name] = OverSeeds(means[name], float(low), float(high), None)
    cells = [cells_of(each, seed) for each in confusions]
    for statistic in GAPS:
        found[statistic] = OverSeeds(means[statistic], *gap_interval(cells, statistic, added=errors[statistic]))
    return {name: each for name, each in found.items() if name not in missing}
