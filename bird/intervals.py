"""Intervals of mean-DEO and max-DEO that hold what they promise, and the gap beyond chance.

An observed gap overstates the true one: chance parts recalls that are equal, and the largest of several differences is
never negative. A bootstrap adds that chance a second time, so its intervals lie too high. Here each end is found by
inverting a test instead (Neyman 1937): the interval holds every gap for which recalls exist that

1. have this gap: the recalls nearest to the observed ones (weighted least squares), moved a fixed part of a standard
   error in the direction that is least favourable to the end in question, and
2. would show a gap as far out as the observed one in at least 2.5 % of samples with as many rows a cell.

How the least favourable direction looks: for the lower end, groups that crowd at both ends of the range and gaps that
sit in few classes, because then chance adds most to the observed gap; for the upper end, groups in the middle and equal
gaps in all classes, because then it adds least. The interval of max-DEO ends above at the highest upper end of a class.
The gap beyond chance is the gap of those nearest recalls (not moved) that show the observed gap on average.

Simulation draws the counts of each cell by the Cornish-Fisher quantile of the binomial (Cornish & Fisher 1938) from the
same normal numbers in every test, so that the ends do not depend on chance. Coverage, widths and the ways that were
rejected: docs/decisions/0012-intervals-by-test-inversion.md and bench/coverage.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

__all__ = [
    "GAPS",
    "Cells",
    "Curve",
    "Curves",
    "Gap",
    "GapStatistic",
    "cells_of",
    "curves_of",
    "gap_interval",
    "gap_intervals",
]

GapStatistic = Literal["mean_deo", "max_deo"]
GAPS: tuple[GapStatistic, ...] = ("mean_deo", "max_deo")
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Draws = NDArray[np.float32]
# From a gap in 0..1, (1,), to recalls (M, C) with that gap.
Family = Callable[[Floats], Floats]

# How far recalls are moved in the least favourable direction, in standard errors; chosen by simulation (decision 0012).
OUTWARD = 0.6  # lower end: groups towards the ends, gaps of classes apart
INWARD = 0.25  # upper end: groups towards the middle
TOGETHER = 1.0  # upper end: gaps of classes towards their mean
TAIL = 0.8  # of the nominal error is what a test may err by; that the shape of the recalls is estimated takes the rest
STEPS = 14  # halvings of 0..100: to .006 points
NUMBERS = 100_000  # of each test, over its cells: 500 to 10,000 draws of each
ROUNDING = 1e-6
KNOTS = 512


class Gap(NamedTuple):
    """Interval and bias-corrected estimate ("beyond chance") of a DEO, all x100; low <= beyond_chance <= high.

    The observed DEO may lie above `high`: what lies between is what chance adds at this sample size.
    """

    low: float
    high: float
    beyond_chance: float


class Families(NamedTuple):
    """Recalls by gap: least favourable to the lower end, nearest to the observed ones, least favourable to the upper."""

    lower: Family
    nearest: Family
    upper: Family


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
    counts, correct = confusion.sum(2), np.einsum("cmc->cm", confusion)
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


def gap_intervals(
    confusion: Int[Ints, "classes groups classes"],
    *,
    level: float = 0.95,
    seed: int = 0,
    added: Mapping[GapStatistic, float] | None = None,
) -> dict[GapStatistic, Gap]:
    """Interval and gap beyond chance (x100) of mean-DEO and max-DEO of counts (C, M, C) without an empty cell.

    `added` is the half-width (x100) of an error besides that of the rows, by statistic; the squares of both add.
    """
    cells = cells_of(confusion, seed)
    return {name: gap_interval(cells, name, level=level, added=(added or {}).get(name, 0.0)) for name in GAPS}


def gap_interval(cells: Cells, statistic: GapStatistic, *, level: float = 0.95, added: float = 0.0) -> Gap:
    """Interval and gap beyond chance (x100) of one statistic; see `gap_intervals`."""
    if len(cells.rows) == 1:
        return Gap(0.0, 0.0, 0.0)
    tail, error = TAIL * (1 - level) / 2, added / 100
    observed = float(over_classes(cells.observed, statistic))
    families = families_of(cells, statistic)

    def shown(family: Family, gap: Floats) -> Floats:
        return over_classes(cells.draw(family(gap)), statistic)

    def within(family: Family, gap: Floats) -> Bools:
        return _edge(shown(family, gap), tail, error) <= observed + ROUNDING

    def upper_end(family: Family) -> float:
        return gap_of(family(_last(lambda gap: within(family, gap))), statistic)

    def of_class(gaps: Floats) -> Bools:
        drawn = cells.draw(cells.between(cells.ends_at(gaps), -INWARD))
        return _edge(drawn, tail, error) <= cells.observed + ROUNDING

    average = _last(lambda gap: shown(families.nearest, gap).mean(keepdims=True) < observed)
    too_small = _last(lambda gap: _edge(shown(families.lower, gap), 1 - tail, error) < observed - ROUNDING)
    beyond = gap_of(families.nearest(average), statistic)
    low = gap_of(families.lower(too_small), statistic)
    if statistic == "mean_deo":
        high = upper_end(families.upper)
        if within(families.nearest, np.array([high])).all():  # with one row in a cell all of the gap may hide there
            high = max(high, upper_end(families.nearest))
    else:  # the largest true gap is that of some class, and that class's own upper end is above it
        high = float(_last(of_class, len(cells.observed)).max())
    return Gap(*(round(100 * end, 6) for end in (min(low, beyond), max(high, beyond), beyond)))


def families_of(cells: Cells, statistic: GapStatistic, moved: float = 1.0) -> Families:
    """The recalls that the tests of one statistic draw from, by gap; `moved` scales the least favourable moves."""
    out, inward, together = OUTWARD * moved, -INWARD * moved, -TOGETHER * moved

    def mean_family(apart: float, by: float) -> Family:
        return lambda gap: cells.between(cells.spread(cells.ends_at_mean(float(gap[0])), apart), by)

    if statistic == "mean_deo":
        return Families(mean_family(out, out), mean_family(0, 0), mean_family(together, inward))
    nearest, error = cells.recalls[-1] - cells.recalls[0], np.hypot(cells.errors[0], cells.errors[-1])
    own = _last(
        lambda gaps: cells.draw(cells.between(cells.ends_at(gaps), 0)).mean(-1) < cells.observed, len(cells.observed)
    )
    top = np.arange(len(own)) == own.argmax()

    def max_family(others: Floats, by: float) -> Family:
        return lambda gap: cells.between(cells.ends_at(np.where(top, gap, np.clip(others, 0, gap))), by)

    return Families(
        lambda gap: cells.between(cells.ends_at(np.minimum(gap, nearest + out * error)), out),
        max_family(own, 0),
        max_family(own - out * error, inward),
    )


class Curve(NamedTuple):
    """Along true gaps (K,), x100: what samples of this size show on average, and the standard deviation of that."""

    gaps: Float[Floats, " points"]
    means: Float[Floats, " points"]
    deviations: Float[Floats, " points"]

    def read(self, observed: float, errors: Float[Floats, " errors"]) -> Float[Floats, " errors"]:
        """The true gaps of which `observed` (x100) lies so many standard deviations (`errors`) below the average."""
        shown = np.maximum.accumulate(self.means - errors[:, None] * self.deviations, axis=1)
        return np.array([np.interp(observed, each, self.gaps) for each in shown])


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """What runs with one and the same true gap show on average."""
    gaps = np.unique(np.concatenate([each.gaps for each in curves]))
    means = np.mean([np.interp(gaps, each.gaps, each.means) for each in curves], axis=0)
    return Curve(gaps, means, np.mean([np.interp(gaps, each.gaps, each.deviations) for each in curves], axis=0))


class Curves(NamedTuple):
    """One run's curves by family of recalls; `recalls` (C, M), in 0..1: those nearest that show what it shows, on average.

    `deviation` (x100) is the standard deviation of what they show.
    """

    lower: Curve
    nearest: Curve
    upper: Curve
    recalls: Float[Floats, "classes groups"]
    deviation: float


def curves_of(cells: Cells, statistic: GapStatistic, moved: float) -> Curves:
    """Curves of one run, with the least favourable moves scaled by `moved`, in 0..1."""
    observed = float(over_classes(cells.observed, statistic))
    near = min(1.0, 1.5 * observed + 0.05)
    grid = np.concatenate([np.linspace(0, near, 25), np.linspace(near, 1, 6)[1:]])
    families = families_of(cells, statistic, moved)

    def along(family: Family) -> Curve:
        recalls = [family(np.array([gap])) for gap in grid]
        shown = [100 * over_classes(cells.draw(each), statistic) for each in recalls]
        gaps = [100 * gap_of(each, statistic) for each in recalls]
        return Curve(
            np.array(gaps), np.array([each.mean() for each in shown]), np.array([each.std() for each in shown])
        )

    nearest = along(families.nearest)
    gap = nearest.read(100 * observed, np.zeros(1))
    recalls = np.empty(cells.recalls.size)
    recalls[cells.places] = families.nearest(gap / 100)
    lower, upper = (along(families.lower), along(families.upper)) if moved else (nearest, nearest)
    deviation = float(np.interp(gap[0], nearest.gaps, nearest.deviations))
    return Curves(lower, nearest, upper, recalls.reshape(cells.recalls.shape[::-1]), deviation)


def student(share: float, degrees: int) -> float:
    """The quantile of Student's t."""
    from scipy.special import stdtrit  # a second to import

    return float(stdtrit(degrees, share))


def over_classes(gaps: NDArray[np.floating[Any]], statistic: GapStatistic) -> Floats:
    """Mean or maximum of gaps (C, ...) over the classes."""
    found: Floats = gaps.mean(0) if statistic == "mean_deo" else gaps.max(0)
    return found


def gap_of(recalls: Float[Floats, "groups classes"], statistic: GapStatistic) -> float:
    """The gap of recalls, in 0..1."""
    return float(over_classes(np.ptp(recalls, axis=0), statistic))


def _edge(drawn: NDArray[np.floating[Any]], share: float, added: float) -> Floats:
    """The quantile `share` of draws (..., R) once an error of half-width `added` joins theirs."""
    count = drawn.shape[-1]
    # The draw that a share of 1 - `share` reach (or, below a half, that a share of `share` do not exceed).
    place = count - int(np.ceil((1 - share) * count)) if share > 0.5 else int(np.ceil(share * count)) - 1
    edge, mean = np.partition(drawn, place, axis=-1)[..., place], drawn.mean(-1)
    found: Floats = mean + np.sign(share - 0.5) * np.hypot(edge - mean, added)
    return found


def _last(holds: Callable[[Floats], Bools], count: int = 1) -> Floats:
    """The largest gaps (`count`,) in 0..1 for which `holds` is true, which it is up to there; 0 if it never is."""
    low, high = np.zeros(count), np.ones(count)
    never = ~holds(low)
    for _ in range(STEPS):
        middle = (low + high) / 2
        yes = holds(middle)
        low, high = np.where(yes, middle, low), np.where(yes, high, middle)
    return np.where(never, 0.0, (low + high) / 2)


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
