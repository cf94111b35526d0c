"""Calibration error: how far probabilities are from what happens, with its floor and an interval by test inversion.

The error is the usual one (Naeini et al. 2015; Guo et al. 2017): rows in 15 bins of equal width by probability, and the mean
over rows of |mean probability - share that happened| of their bin. Like a gap it is never negative and chance adds to it, so
it stands beside its floor, and its interval is found as that of a gap is (docs/decisions/0012): it holds every error for
which the bins nearest to the observed ones, in weighted least squares, would show an error as far out as the observed one in
at least 1 % of samples. bench/coverage_calibration.py measures how often that holds.
"""

from __future__ import annotations

from typing import NamedTuple, final

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import NDArray

__all__ = ["CalibrationError", "calibration_error"]

Floats = NDArray[np.float64]
BINS = 15
DRAWS = 2000
POINTS = 60
TAIL = 0.01  # on each side; with 2.5 % too many intervals miss (docs/decisions/0023)


@final
class CalibrationError(NamedTuple):
    """The error, the ends of its 95 % interval and its floor: what calibrated probabilities would show, all x100."""

    value: float
    low: float
    high: float
    floor: float


def calibration_error(
    probabilities: Float[Floats, " rows"], happened: Bool[NDArray[np.bool_], " rows"], *, seed: int = 0
) -> CalibrationError:
    """The calibration error of (N,) probabilities in 0..1, N at least 1, of what `happened`."""
    place = np.minimum((probabilities * BINS).astype(np.int64), BINS - 1)
    rows = np.bincount(place, minlength=BINS)
    used = rows > 0
    told = np.bincount(place, probabilities, BINS)[used] / rows[used]
    hits, rows = np.bincount(place, happened, BINS)[used], rows[used]
    weights, gaps = rows / rows.sum(), told - hits / rows
    value = float(weights @ np.abs(gaps))
    smooth = (hits + 0.5) / (rows + 1)
    variance = (smooth * (1 - smooth) + told * (1 - told)) / 2 / rows
    noise = np.random.default_rng(seed).standard_normal((DRAWS, len(rows))) * np.sqrt(variance)
    # Pulls from the bins without a gap (1) to those observed (0) and as far again beyond: along it the error falls.
    pull = weights * variance
    whole = float((np.abs(gaps) / pull).max()) if value else 1.0
    far = max(whole, float(8 * np.sqrt(1 / np.sum(weights * pull))))
    path = np.concatenate([np.linspace(1, 0, POINTS) ** 3 * whole, -(np.linspace(0, 1, POINTS)[1:] ** 3) * far])
    sign = np.where(gaps < 0, -1.0, 1.0)
    errors, below, above = np.empty((3, len(path)))
    for at, by in enumerate(path):
        moved = sign * np.clip(np.abs(gaps) - by * pull, 0, 1)
        shown = np.abs(moved + noise) @ weights
        errors[at] = weights @ np.abs(moved)
        below[at], above[at] = np.mean(shown <= value + 1e-12), np.mean(shown >= value - 1e-12)
        if at == 0:
            floor = float(shown.mean())
    held = errors[(below >= TAIL) & (above >= TAIL)]
    if not len(held):  # closer to none than chance allows
        held = errors[:1] if above[0] >= TAIL else np.array([value])
    return CalibrationError(100 * value, 100 * float(held.min()), 100 * float(held.max()), 100 * floor)
