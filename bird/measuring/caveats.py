"""Two reasons not to trust a number: the score does not exist, or the classifier's gap carries no information.

Both are read off the (C, M, C) counts [true class, group, predicted class] of `bird.measuring.metrics.confusion`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from bird.errors import DataError
from bird.measuring.intervals import wilson

__all__ = ["SCORES", "does_not_exist", "largest_class", "require_both_sides", "require_gap", "trivial", "undefined"]

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

HARDLY = 0.05  # of a class's rows: a class that is named less often is as good as never named
SHOWN = 5  # names in a sentence

SCORES = ("auroc", "f1_macro", "f1_binary", "accuracy", "mean_deo", "max_deo")


def undefined(confusion: Ints, class_names: Sequence[object] | None = None) -> dict[str, str]:
    """Score -> why it does not exist for counts (C, M, C) in which every (class, group) cell has rows.

    The names are those of `Metrics` (bird.measuring.metrics), with `deo_floor` for both floors and `intervals.auroc`
    for that interval.
    """
    classes, groups, _ = confusion.shape
    if classes == 1:
        return dict.fromkeys((*SCORES, "deo_floor", "intervals.auroc"), "there is one class: no answer can be wrong")
    found: dict[str, str] = {}
    if groups == 1:
        found |= dict.fromkeys(("mean_deo", "max_deo", "deo_floor"), "there is one group: a gap is between two")
    if classes > 2:
        found["f1_binary"] = f"there are {classes} classes: the F1 of class 1 is for two"
    if alone := np.flatnonzero(confusion.sum((1, 2)) == 1).tolist():
        found["intervals.auroc"] = f"{_listed(alone, class_names)} has one row: how another would rank is not known"
    return found


def does_not_exist(score: str, confusion: Ints) -> DataError:
    """The error for who asks for a score that is `undefined` for this confusion (C, M, C)."""
    found, wanted = undefined(confusion)[score], "two classes and two groups, or more"
    return DataError(where=score, found=found, wanted=wanted, fix="measure on a sample that holds them")


def require_gap(recalls: Floats) -> Floats:
    """The recalls (C, M). Raises DataError for one class or one group: no gap exists then, which is not a gap of 0."""
    classes, groups = recalls.shape
    if classes < 2 or groups < 2:
        raise does_not_exist("mean_deo", np.zeros((classes, groups, classes), np.int64))
    return recalls


def require_both_sides(labels: NDArray[np.generic], classes: Iterable[int]) -> None:
    """Raise DataError for a class that none of the (N,) labels is, or all: its AUROC does not exist."""
    sizes = {c: int((labels == c).sum()) for c in classes}
    if alone := [c for c, size in sizes.items() if size in (0, len(labels))]:
        raise DataError(
            where="AUROC",
            found=", ".join(f"{sizes[c]} of {len(labels)} rows of class {c}" for c in alone),
            wanted="rows of every class",
            fix="score a sample that holds every class, or leave the class's scores out",
        )


def largest_class(confusion: Ints) -> float:
    """The share of the rows, x100, that are of the largest class, of counts (C, M, C): the accuracy of always naming it."""
    return float(100 * confusion.sum((1, 2)).max() / confusion.sum())


def trivial(confusion: Ints, class_names: Sequence[object] | None = None) -> str | None:
    """Why the gap of a classifier with this confusion (C, M, C) says nothing, in words; None where it is not known to be
    trivial.

    It is called trivial if it names one class for every row, if it never or hardly ever (for fewer rows than 5 % of those
    that the class has) names some class, or if its accuracy is not above that of always naming the largest class (the
    lower end of Wilson's 95 % interval is not above that class's share). Such a classifier can show a small gap without
    having treated the groups alike in anything.
    """
    total, present, named = int(confusion.sum()), confusion.sum((1, 2)), confusion.sum((0, 1))
    if len(present) < 2 or not total:
        return None
    if (named > 0).sum() == 1:
        only = _listed(np.flatnonzero(named).tolist(), class_names)
        return f"it names {only} for every row, so that all groups have the same recall in each class, 0 or 100"
    reasons = []
    hardly = np.flatnonzero(named < HARDLY * present).tolist()
    if hardly:
        some = len(present) - len(hardly)
        reasons.append(
            f"it names {some} of {len(present)} classes (never or hardly ever: {_listed(hardly, class_names)}); where a"
            " class is not named, all groups have recall 0 and no gap"
        )
    largest, share = int(present.argmax()), largest_class(confusion) / 100
    accuracy = np.einsum("cmc->", confusion) / total
    if wilson(accuracy * total, total)[0] <= share:
        name = _listed([largest], class_names)
        reasons.append(
            f"its accuracy, {100 * accuracy:.1f} on {total:,} rows, is not shown to be above {100 * share:.1f}, the share of"
            f" {name}: naming that class for every row does as well, and has no gap"
        )
    return "; ".join(reasons) or None


def _listed(classes: Sequence[int], names: Sequence[object] | None) -> str:
    shown = [str(names[c]) if names else f"class {c}" for c in classes[:SHOWN]]
    return ", ".join(shown) + (f" and {len(classes) - SHOWN} more" if len(classes) > SHOWN else "")
