"""What the intervals of a gap are computed from: the cells of a run, the recalls nearest to those observed, and draws.

Simulation draws the counts of each cell by the Cornish-Fisher quantile of the binomial (Cornish & Fisher 1938) from the
same normal numbers in every test, so that the ends of an interval do not depend on chance.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache
from statistics import NormalDist
from typing import final

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

__all__ = ["Cells", "cells_of", "cells_of_shares"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Draws = NDArray[np.float32]

NUMBERS = 100_000  # of each test, over its cells: 500 to 10,000 draws of each
KNOTS = 512


@final
@dataclass(frozen=True, eq=False)
class Cells:
    """Rows and recalls of one run, in 0..1: groups sorted by recall within a class, classes in an order of their own.

    `places` (M, C) says where a cell stands among the C x M cells of the confusion. `recalls` (M, C) are shrunk by half a
    row each way, so that none is 0 or 1; `errors` (M, C) are standard errors. `pulls`, `lows` and `highs` (K, C) hold the
    path of nearest recalls: where both ends of a class are pulled inwards by `pull`, its recalls are those observed,
    clipped to [low, high]; a negative pull moves the ends outwards. `path_pulls` and `path_means` give the mean gap at a
    pull that is common to all classes.
    """

    places: Int[Ints, "groups classes"]
    rows: Int[Ints, "groups classes"]
    recalls: Float[Floats, "groups classes"]
    errors: Float[Floats, "groups classes"]
    observed: Float[Floats, " classes"]
    chance: Float[Draws, "groups classes draws"]
    noise: Float[Draws, "groups classes draws"]
    skew: Float[Draws, "groups classes draws"]
    pulls: Float[Floats, "knots classes"]
    lows: Float[Floats, "knots classes"]
    highs: Float[Floats, "knots classes"]
    path_pulls: Float[Floats, " points"]
    path_means: Float[Floats, " points"]

    def ends_at_mean(self, mean: float) -> Float[Floats, "2 classes"]:
        """Lowest and highest recall of each class in the nearest recalls whose mean gap is `mean`."""
        pull = np.full(len(self.observed), np.interp(mean, self.path_means[::-1], self.path_pulls[::-1]))
        return _between_knots(pull, self.pulls, np.stack([self.lows, self.highs]))

    def ends_at(self, gaps: Float[Floats, " classes"]) -> Float[Floats, "2 classes"]:
        """Lowest and highest recall of each class in the nearest recalls with the given gap a class."""
        return _between_knots(gaps, (self.highs - self.lows)[::-1], np.stack([self.lows, self.highs])[:, ::-1])

    def spread(self, ends: Float[Floats, "2 classes"], by: float) -> Float[Floats, "2 classes"]:
        """The ends with the classes' gaps moved away from their mean (or, `by` negative, towards it)."""
        gaps = ends[1] - ends[0]
        error = np.hypot(self.errors[0], self.errors[-1])
        gaps = np.clip(gaps + by * np.clip(gaps - gaps.mean(), -error, error), 0, 1)
        middle = np.clip(ends.mean(0), gaps / 2, 1 - gaps / 2)
        return np.stack([middle - gaps / 2, middle + gaps / 2])

    def between(self, ends: Float[Floats, "2 classes"], by: float) -> Float[Floats, "groups classes"]:
        """Recalls clipped to the ends, then moved `by` standard errors towards the nearer end (negative: the middle)."""
        low, high = ends
        middle = (low + high) / 2
        inside, step = np.clip(self.recalls, low, high), by * self.errors
        upper, lower = np.clip(inside + step, middle, high), np.clip(inside - step, low, middle)
        found = np.where(inside > middle, upper, lower)
        found[0], found[-1] = low, high
        return found

    def draw(self, recalls: Float[Floats, "groups classes"]) -> Float[Draws, "classes draws"]:
        """Gaps of samples from cells with these recalls."""
        share, rows = (each.astype(np.float32)[:, :, None] for each in (recalls, self.rows))
        hits = self.noise * np.sqrt(rows * share * (1 - share))
        hits += (1 - 2 * share) * self.skew
        hits += rows * share
        np.rint(hits, out=hits)
        none, all_of_them = (1 - share) ** rows, share**rows
        few = (np.maximum(none, all_of_them) > 0.005)[:, :, 0]  # elsewhere hardly any draw reaches an end
        most, chance = rows[few], self.chance[few]
        middle = np.clip(hits[few], np.minimum(1, most), np.maximum(most - 1, 0))
        hits[few] = np.where(chance < none[few], 0, np.where(chance > 1 - all_of_them[few], most, middle))
        hits /= rows
        drawn: NDArray[np.float32] = hits.max(0) - hits.min(0)
        return drawn


def cells_of(confusion: Int[Ints, "classes groups classes"], seed: int = 0, draws: int | None = None) -> Cells:
    """The cells of a run with counts (C, M, C), at least one row in each, with the numbers that its tests draw from."""
    return cells_of_shares(np.einsum("cmc->cm", confusion), confusion.sum(2), seed, draws)


def cells_of_shares(
    correct: Int[Ints, "classes groups"], counts: Int[Ints, "classes groups"], seed: int = 0, draws: int | None = None
) -> Cells:
    """The same for any shares that groups are compared by: `correct` of `counts` rows, at least one row in each."""
    shares = (correct + 0.5) / (counts + 1)
    # An order that names of classes and groups do not change.
    cells = [sorted(zip(shares[c], counts[c], range(counts.shape[1]), strict=True)) for c in range(len(counts))]
    classes = sorted(range(len(counts)), key=lambda c: [cell[:2] for cell in cells[c]])
    places = np.array([[c * counts.shape[1] + cell[2] for cell in cells[c]] for c in classes]).T
    rows, hits, shares = (each.ravel()[places] for each in (counts, correct, shares))
    pooled = (hits.sum(0) + 0.5) / (rows.sum(0) + 1)
    # Half of equal recalls, half of the cell's own: a single row beside many is not known as well as they are.
    errors = np.sqrt((pooled * (1 - pooled) + shares * (1 - shares)) / 2 / rows)
    pulls, lows, highs = _path(shares, 1 / errors**2)
    points = np.unique(pulls)
    points = points[np.unique(np.linspace(0, len(points) - 1, KNOTS).astype(int))]
    means = np.mean([np.interp(points, pulls[:, c], (highs - lows)[:, c]) for c in range(len(counts))], axis=0)
    chance, noise, skew = _chances(rows.shape, draws or int(np.clip(NUMBERS // rows.size, 500, 10_000)), seed)
    observed = np.ptp(hits / rows, axis=0)
    return Cells(places, rows, shares, errors, observed, chance, noise, skew, pulls, lows, highs, points, means)


@cache
def _normal_quantiles(count: int) -> Floats:
    """Of the middles of `count` equal parts of 0..1."""
    return np.array([NormalDist().inv_cdf((part + 0.5) / count) for part in range(count)])


@lru_cache(maxsize=4)  # megabytes each; the same for all samples of a size
def _chances(shape: tuple[int, ...], draws: int, seed: int) -> tuple[Draws, Draws, Draws]:
    """Numbers in 0..1, of each cell one in each of `draws` equal parts (Latin hypercube, McKay et al. 1979), (*, R).

    The others hold their normal quantiles z and (z^2 - 1) / 6.
    """
    parts = (np.arange(draws) + 0.5) / draws
    normal = _normal_quantiles(draws)
    every = np.broadcast_to(np.arange(draws), (*shape, draws))
    places = np.ascontiguousarray(np.random.default_rng(seed).permuted(every, axis=2))
    chance, noise, skew = (each.astype(np.float32)[places] for each in (parts, normal, (normal**2 - 1) / 6))
    return chance, noise, skew


def _between_knots(
    at: Float[Floats, " classes"], knots: Float[Floats, "knots classes"], values: Float[Floats, "n knots classes"]
) -> Float[Floats, "n classes"]:
    """Linear interpolation, class by class: `values` at `at`, where the knots ascend along their first axis."""
    right = np.clip((knots <= at).sum(0), 1, len(knots) - 1)
    classes = np.arange(len(at))
    start, end = knots[right - 1, classes], knots[right, classes]
    part = np.clip((at - start) / np.where(end > start, end - start, 1), 0, 1)
    found: Floats = values[:, right - 1, classes] * (1 - part) + values[:, right, classes] * part
    return found


def _path(
    recalls: Float[Floats, "groups classes"], weights: Float[Floats, "groups classes"]
) -> tuple[Float[Floats, "knots classes"], Float[Floats, "knots classes"], Float[Floats, "knots classes"]]:
    """Pulls, lowest and highest recalls (K, C) at which the path of nearest recalls bends; sorted recalls in.

    To lift all recalls below `low` up to it costs a pull of sum of weight x (low - recall), and a pull of the same size
    lowers those above `high`: these are the recalls nearest to the observed ones, in weighted least squares, among all
    with a gap of high - low. Both ends are linear between the pulls at which one more group joins them.
    """
    up_weight, up_sum = np.cumsum(weights, 0), np.cumsum(weights * recalls, 0)
    down_weight, down_sum = np.cumsum(weights[::-1], 0), np.cumsum((weights * recalls)[::-1], 0)
    mean = up_sum[-1] / up_weight[-1]
    whole = (weights * np.abs(recalls - mean)).sum(0) / 2
    joins = [recalls * up_weight - up_sum, down_sum - recalls[::-1] * down_weight, whole[None]]
    limits = -np.stack([(1 - recalls[-1]) * weights[-1], recalls[0] * weights[0]])  # where an end reaches 1 or 0
    pulls = np.minimum(np.sort(np.concatenate([*joins, limits]), axis=0), whole)
    low = np.minimum(((up_sum + pulls[:, None]) / up_weight).min(1), mean)
    high = np.maximum(((down_sum - pulls[:, None]) / down_weight).max(1), mean)
    outside = pulls < 0
    low = np.where(outside, np.maximum(0, recalls[0] + pulls / weights[0]), low)
    high = np.where(outside, np.minimum(1, recalls[-1] - pulls / weights[-1]), high)
    return pulls, low, high
