"""Intervals of mean-DEO and max-DEO that hold what they promise, and the gap beyond chance.

An observed gap overstates the true one: chance parts recalls that are equal, and the largest of several differences is
never negative. A bootstrap adds that chance a second time, so its intervals lie too high. Here each end is found by
inverting a test instead (Neyman 1937): the interval holds every gap for which recalls exist that

1. have this gap: the recalls nearest to the observed ones (weighted least squares), moved a fixed part of a standard
   error in the direction that is least favourable to the end in question, and
2. would show a gap as far out as the observed one in at least 2 % of samples with as many rows a cell (1.5 % for the lower
   end of mean-DEO).

How the least favourable direction looks: for the lower end, groups that crowd at both ends of the range and gaps that
sit in few classes, because then chance adds most to the observed gap; for the upper end, groups in the middle and equal
gaps in all classes, because then it adds least. The interval of max-DEO ends above at the highest upper end of a class.
The gap beyond chance is the gap of those nearest recalls (not moved) that show the observed gap on average.

Over several seeds the tests compare means: of what the runs show, and of what they would show if all had one gap.
Coverage, widths and the ways that were rejected: docs/decisions/0012-intervals-by-test-inversion.md, bench/coverage.py and
bench/coverage_seeds.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from statistics import NormalDist
from typing import Any, Literal, NamedTuple, final

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike, NDArray

from bird.measuring.cells import Cells, cells_of

__all__ = [
    "GAPS",
    "Cells",
    "Curve",
    "Curves",
    "Gap",
    "GapStatistic",
    "Inversion",
    "cells_of",
    "curves_of",
    "gap_interval",
    "gap_intervals",
    "reading",
    "wilson",
]

GapStatistic = Literal["mean_deo", "max_deo"]
Side = Literal["lower", "nearest", "upper"]
GAPS: tuple[GapStatistic, ...] = ("mean_deo", "max_deo")
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Z = NormalDist().inv_cdf(0.975)  # two-sided 95 %
# From a gap in 0..1, (1,), to recalls (M, C) with that gap.
Family = Callable[[Floats], Floats]

# How far recalls are moved in the least favourable direction, in standard errors; chosen by simulation (decision 0012).
OUTWARD = 1.0  # lower end: groups towards the ends, gaps of classes apart
INWARD = 0.25  # upper end: groups towards the middle
TOGETHER = 1.0  # upper end: gaps of classes towards their mean
TAIL = 0.8  # of the nominal error is what a test may err by; that the shape of the recalls is estimated takes the rest
LOWER_TAIL = (
    0.6  # the same for the lower end of mean-DEO: chance parts equal groups in all classes, and its mean hides that
)
STEPS = 14  # halvings of 0..100: to .006 points
ROUNDING = 1e-6


@final
class Gap(NamedTuple):
    """Interval and bias-corrected estimate ("beyond chance") of a DEO, all x100; low <= beyond_chance <= high.

    The observed DEO may lie above `high`: what lies between is what chance adds at this sample size.
    """

    low: float
    high: float
    beyond_chance: float


@final
class Families(NamedTuple):
    """Recalls by gap: least favourable to the lower end, nearest to the observed ones, least favourable to the upper."""

    lower: Family
    nearest: Family
    upper: Family


def gap_intervals(
    confusion: Int[Ints, "classes groups classes"], *, level: float = 0.95, seed: int = 0
) -> dict[GapStatistic, Gap]:
    """Interval and gap beyond chance (x100) of mean-DEO and max-DEO of counts (C, M, C) without an empty cell."""
    cells = cells_of(confusion, seed)
    return {name: gap_interval([cells], name, level=level) for name in GAPS}


def gap_interval(runs: Sequence[Cells], statistic: GapStatistic, *, level: float = 0.95, added: float = 0.0) -> Gap:
    """Interval and gap beyond chance (x100) of the mean of one statistic over runs, such as those of several seeds.

    `added` is the half-width (x100) of an error besides that of the rows; the squares of both add.
    """
    if len(runs[0].rows) == 1:
        return Gap(0.0, 0.0, 0.0)
    tests = Inversion(runs, statistic, level, added / 100)
    low = tests.gap("lower", _last(tests.too_small))
    beyond = tests.gap("nearest", _last(tests.below_average))
    if statistic == "mean_deo":
        high = tests.gap("upper", _last(lambda gap: tests.within("upper", gap)))
        if tests.within("nearest", np.array([high])).all():  # with one row in a cell all of the gap may hide there
            high = max(high, tests.gap("nearest", _last(lambda gap: tests.within("nearest", gap))))
    else:  # the largest true gap is that of some class, and that class's own upper end is above it
        ends = [_last(partial(tests.within_by_class, each), len(each.observed)).max() for each in runs]
        high = float(np.mean(ends))
    return Gap(*(round(100 * end, 6) for end in (min(low, beyond), max(high, beyond), beyond)))


@final
class Inversion:
    """The tests of one statistic (in 0..1), mean over runs; each is true up to some gap (1,) of its family of recalls.

    `error` is the half-width of an error besides that of the rows.
    """

    def __init__(self, runs: Sequence[Cells], statistic: GapStatistic, level: float = 0.95, error: float = 0.0):
        self.runs, self.statistic, self.error = runs, statistic, error
        self.tail = TAIL * (1 - level) / 2
        self.lower_tail = LOWER_TAIL * (1 - level) / 2 if statistic == "mean_deo" else self.tail
        self.observed = float(np.mean([over_classes(each.observed, statistic) for each in runs]))
        self.families = [families_of(each, statistic) for each in runs]

    def gap(self, side: Side, gap: Floats) -> float:
        """The gap of a family's recalls: near `gap`, unless a least favourable move changes it."""
        return float(np.mean([gap_of(getattr(each, side)(gap), self.statistic) for each in self.families]))

    def too_small(self, gap: Floats) -> Bools:
        """Whether a gap shows one as large as the observed in too few samples."""
        return self._edge("lower", gap, 1 - self.lower_tail) < self.observed - ROUNDING

    def within(self, side: Side, gap: Floats) -> Bools:
        """Whether a gap shows one as small as the observed in enough samples."""
        return self._edge(side, gap, self.tail) <= self.observed + ROUNDING

    def within_by_class(self, cells: Cells, gaps: Floats) -> Bools:
        """The same for the gap of each class of one run, on its own, (C,)."""
        drawn = cells.draw(cells.between(cells.ends_at(gaps), -INWARD))
        return _edge(drawn, self.tail, self.error) <= cells.observed + ROUNDING

    def below_average(self, gap: Floats) -> Bools:
        """Whether a gap shows less than the observed one on average."""
        return np.array([np.mean([each.mean() for each in self._shown("nearest", gap)]) < self.observed])

    def _edge(self, side: Side, gap: Floats, share: float) -> Floats:
        return np.array([np.mean([_edge(each, share, self.error) for each in self._shown(side, gap)])])

    def _shown(self, side: Side, gap: Floats) -> list[Floats]:
        """What samples of each run show where its recalls are those of the family with that gap, (R,) each."""
        families = (getattr(each, side)(gap) for each in self.families)
        return [over_classes(cells.draw(each), self.statistic) for cells, each in zip(self.runs, families, strict=True)]


def families_of(cells: Cells, statistic: GapStatistic, moved: float = 1.0) -> Families:
    """The recalls that the tests of one statistic draw from, by gap; `moved` scales the least favourable moves."""
    out, inward, together = OUTWARD * moved, -INWARD * moved, -TOGETHER * moved

    def mean_family(apart: float, by: float) -> Family:
        return lambda gap: cells.between(cells.spread(cells.ends_at_mean(float(gap[0])), apart), by)

    if statistic == "mean_deo":
        return Families(mean_family(out, out), mean_family(0, 0), mean_family(together, inward))
    nearest, error = cells.recalls[-1] - cells.recalls[0], np.hypot(cells.errors[0], cells.errors[-1])

    @cache  # a search, which the lower end does without
    def own() -> Floats:
        """The gap beyond chance of each class on its own."""
        return _last(
            lambda gaps: cells.draw(cells.between(cells.ends_at(gaps), 0)).mean(-1) < cells.observed,
            len(cells.observed),
        )

    def max_family(less: float, by: float) -> Family:
        def recalls(gap: Floats) -> Floats:
            top = np.arange(len(own())) == own().argmax()
            return cells.between(cells.ends_at(np.where(top, gap, np.clip(own() - less * error, 0, gap))), by)

        return recalls

    return Families(
        lambda gap: cells.between(cells.ends_at(np.minimum(gap, nearest + out * error)), out),
        max_family(0, 0),
        max_family(out, inward),
    )


@final
class Curve(NamedTuple):
    """Along true gaps (K,), x100: what samples of this size show on average, and the standard deviation of that."""

    gaps: Float[Floats, " points"]
    means: Float[Floats, " points"]
    deviations: Float[Floats, " points"]

    def read(self, observed: float, errors: Float[Floats, " errors"]) -> Float[Floats, " errors"]:
        """The true gaps of which `observed` (x100) lies so many standard deviations (`errors`) below the average."""
        shown = np.maximum.accumulate(self.means - errors[:, None] * self.deviations, axis=1)
        return np.array([np.interp(observed, each, self.gaps) for each in shown])


@final
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


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """What runs with one and the same true gap show on average."""
    gaps = np.unique(np.concatenate([each.gaps for each in curves]))
    means = np.mean([np.interp(gaps, each.gaps, each.means) for each in curves], axis=0)
    return Curve(gaps, means, np.mean([np.interp(gaps, each.gaps, each.deviations) for each in curves], axis=0))


def reading(curves: Sequence[Curves], observed: float) -> Callable[[Side, Floats], Floats]:
    """A function from a side and errors (E,) to true gaps (E,), x100: those that runs of several seeds, all of one true gap,
    need to show `observed` on average when it errs so. By the seeds' mean curves.

    Not the mean of the seeds' own readings: near no gap a reading is 0 or above, so that their mean stays above 0.
    """
    means: dict[Side, Curve] = {
        "lower": mean_curve([each.lower for each in curves]),
        "nearest": mean_curve([each.nearest for each in curves]),
        "upper": mean_curve([each.upper for each in curves]),
    }
    deviation = max(float(np.mean([each.deviation for each in curves])), 1e-9)
    return lambda side, errors: means[side].read(observed, errors / deviation)


def student(share: float, degrees: int) -> float:
    """The quantile of Student's t."""
    from scipy.special import stdtrit  # a second to import

    return float(stdtrit(degrees, share))


def over_classes(gaps: NDArray[np.floating[Any]], statistic: GapStatistic) -> Floats:
    """Mean or maximum of gaps (C, ...) over the classes."""
    found: Floats = gaps.mean(0) if statistic == "mean_deo" else gaps.max(0)
    return found


def wilson(hits: ArrayLike, rows: ArrayLike) -> tuple[Floats, Floats]:
    """The ends, in 0..1, of Wilson's 95 % intervals of shares: `hits` of `rows`, of one shape (Wilson 1927)."""
    found, total = np.asarray(hits, np.float64), np.asarray(rows, np.float64)
    centre, share = found + Z**2 / 2, found / total
    half = Z * np.sqrt(total * share * (1 - share) + Z**2 / 4)
    low, high = (centre - half) / (total + Z**2), (centre + half) / (total + Z**2)
    return np.where(found > 0, low, 0.0), np.where(found < total, high, 1.0)


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
