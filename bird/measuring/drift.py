"""What a changed file does to a student, row by row: a copy that was exported, rounded or quantised beside its original.

Both answer for the same rows, so everything is paired: which predictions differ, and how the recall of each (class, group)
cell changes. A gap alone says nothing here: a copy that names one class for every row has recalls of 0 or 1 in all groups
alike, and a gap of 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any, NamedTuple, final

import numpy as np
from jaxtyping import Int
from numpy.typing import NDArray

from bird.measuring.caveats import undefined
from bird.measuring.metrics import confusion, mean_deo, recalls

__all__ = ["CellChange", "Drift", "Share", "change_interval", "drift", "wilson"]

Z = NormalDist().inv_cdf(0.975)
Ints = NDArray[np.int64]


@final
class Share(NamedTuple):
    """How many of how many."""

    changed: int
    rows: int

    @property
    def percent(self) -> float:
        """x100."""
        return 100 * self.changed / self.rows


@final
@dataclass(frozen=True)
class CellChange:
    """The recall of one (class, group) cell before and after, and its change with the 95 % interval, all x100."""

    cell: str
    rows: int
    before: float
    after: float
    change: float
    interval: tuple[float, float]


@final
@dataclass(frozen=True)
class Drift:
    """A copy beside its original on the same rows. `accuracy`, `least_recall` and `mean_deo` are (before, after), x100;
    mean-DEO is None where it does not exist. `flips` are rows whose predicted class changed; `cells` stand from the largest
    loss on, and a cell without rows is not among them."""

    accuracy: tuple[float, float]
    least_recall: tuple[float, float]
    flips: Share
    flips_by_group: Mapping[str, Share]
    cells: tuple[CellChange, ...]
    mean_deo: tuple[float, float] | None

    def as_json(self) -> dict[str, Any]:
        """The same as plain numbers, lists and dicts; mean-DEO last."""
        groups = {name: share._asdict() for name, share in self.flips_by_group.items()}
        return {**asdict(self), "flips": self.flips._asdict(), "flips_by_group": groups, "mean_deo": self.mean_deo}


def drift(
    labels: Int[Ints, " rows"],
    groups: Int[Ints, " rows"],
    before: Int[Ints, " rows"],
    after: Int[Ints, " rows"],
    class_names: Sequence[str],
    group_names: Sequence[str],
) -> Drift:
    """The drift from predictions `before` to `after`, of one row or more. Raises DataError for values out of range and for
    different lengths."""
    counts = [confusion(labels, groups, each, len(class_names), len(group_names)) for each in (before, after)]
    cells = []
    for label, group in np.argwhere(counts[0].sum(2)).tolist():
        inside = (labels == label) & (groups == group)
        was, now = before[inside] == label, after[inside] == label
        low, high = change_interval(was, now)
        shares = 100 * float(was.mean()), 100 * float(now.mean())
        name = f"{class_names[label]}, {group_names[group]}"
        cells.append(CellChange(name, len(was), *shares, shares[1] - shares[0], (100 * low, 100 * high)))
    changed = before != after
    rows_of = {name: groups == number for number, name in enumerate(group_names)}
    no_gap = "mean_deo" in undefined(counts[0]) or (counts[0].sum(2) == 0).any()
    return Drift(
        accuracy=(100 * float((before == labels).mean()), 100 * float((after == labels).mean())),
        least_recall=(min(each.before for each in cells), min(each.after for each in cells)),
        flips=Share(int(changed.sum()), len(changed)),
        flips_by_group={name: Share(int(changed[at].sum()), int(at.sum())) for name, at in rows_of.items() if at.any()},
        cells=tuple(sorted(cells, key=lambda each: each.change)),
        mean_deo=None if no_gap else (mean_deo(recalls(counts[0])), mean_deo(recalls(counts[1]))),
    )


def change_interval(before: NDArray[np.bool_], after: NDArray[np.bool_]) -> tuple[float, float]:
    """95 % interval of the change, in -1..1, of a share of the same rows: `before` and `after` (N,) say of each row whether
    it counts. Newcombe (1998), Statistics in Medicine 17, method 10: Wilson's intervals of both shares, joined with the
    correlation of the pairs."""
    rows = len(before)
    both, neither = int((before & after).sum()), int((~before & ~after).sum())
    gained, lost = int((after & ~before).sum()), int((before & ~after).sum())
    was, now = (both + lost) / rows, (both + gained) / rows
    (was_low, was_high), (now_low, now_high) = wilson(both + lost, rows), wilson(both + gained, rows)
    product = (both + gained) * (lost + neither) * (both + lost) * (gained + neither)
    excess = float(both * neither - gained * lost)
    excess = max(excess - rows / 2, 0.0) if excess > 0 else excess  # a correction for small numbers
    together = excess / product**0.5 if product else 0.0

    def width(one: float, other: float) -> float:
        return float(max(one**2 - 2 * together * one * other + other**2, 0) ** 0.5)

    change = now - was
    low = change - width(now - now_low, was_high - was)
    high = change + width(now_high - now, was - was_low)
    return max(low, -1.0), min(high, 1.0)


def wilson(count: int, rows: int) -> tuple[float, float]:
    """Wilson's 95 % interval, in 0..1, of a share of `count` in `rows` (Wilson 1927)."""
    share, extra = count / rows, Z**2 / rows
    middle = (share + extra / 2) / (1 + extra)
    half = Z / (1 + extra) * (share * (1 - share) / rows + extra / (4 * rows)) ** 0.5
    return max(0.0, middle - half), min(1.0, middle + half)
