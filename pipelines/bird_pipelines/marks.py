"""Marks beside numbers, as all pages and tables set them: what does not exist and why, and whose gap says nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bird.measuring.caveats import largest_class, trivial, undefined
from bird.measuring.intervals import gap_intervals

__all__ = [
    "MARK",
    "ONE_SEED",
    "WHAT_TRIVIAL_MEANS",
    "difference",
    "few",
    "lost_of_cells",
    "p_value",
    "reason_of",
    "trivial_seeds",
    "with_caveats",
]

MARK = "trivial student"
ONE_SEED = "one seed has no standard deviation"
WHAT_TRIVIAL_MEANS = (
    "A student is marked trivial if it names one class for every row, never or hardly ever names some class, or is not"
    " shown to be more accurate than naming the largest class for every row. Such a student can have a small gap without"
    " treating the groups alike in anything, so its DEO says nothing."
)


def with_caveats(metrics: Mapping[str, Any], class_names: Sequence[object] | None = None) -> dict[str, Any]:
    """The metrics of a run folder with `undefined`, `trivial` and `largest_class` (its share of the rows, x100) computed
    from its counts, because older versions did not write them: a number that does not exist is None. So do the intervals
    of a gap and the gap beyond chance, which early versions did not have. Metrics that say why there are none stay as they
    are."""
    if "confusion" not in metrics:
        return dict(metrics)
    counts = np.asarray(metrics["confusion"], dtype=np.int64)
    missing = undefined(counts, class_names)
    found = {**metrics, "undefined": missing, "trivial": trivial(counts, class_names)}
    found["largest_class"] = largest_class(counts) if counts.any() else None
    found |= {name: None for name in missing if name in metrics}
    gone = {name.removeprefix("intervals.") for name in missing}
    found["intervals"] = {name: None if name in gone else ends for name, ends in metrics["intervals"].items()}
    if "deo_floor" in missing:
        return found | {name: dict.fromkeys(("mean", "max")) for name in ("deo_floor", "beyond_chance")}
    if "beyond_chance" not in metrics:
        gaps = gap_intervals(counts)
        found["intervals"] |= {name: [gap.low, gap.high] for name, gap in gaps.items()}
        found["beyond_chance"] = {name.removesuffix("_deo"): gap.beyond_chance for name, gap in gaps.items()}
    return found


def p_value(p: float | None) -> str:
    """A p value as a reader sees it: none is 0."""
    return "n/a" if p is None else f"{p:.3f}" if p >= 0.001 else "< 0.001"


def difference(value: float) -> str:
    """A difference as a reader sees it: one decimal, or two where one would hide on which side of 0 it lies."""
    return f"{value:+.1f}" if value == 0 or abs(value) >= 0.05 else f"{value:+.2f}"


def few(names: Sequence[str], most: int = 10) -> str:
    """Names in a sentence, the first of many."""
    return ", ".join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")


def reason_of(name: str, every: Sequence[Mapping[str, Any]]) -> str | None:
    """Why a number of these metrics does not exist, if it is so."""
    return next((each["undefined"][name] for each in every if name in each.get("undefined", {})), None)


def trivial_seeds(by_seed: Mapping[Any, Mapping[str, Any]]) -> str | None:
    """In words, which seeds' students are trivial and why; None where none is."""
    reasons = {seed: each["trivial"] for seed, each in by_seed.items() if each.get("trivial")}
    if not reasons:
        return None
    seed, why = next(iter(reasons.items()))
    if len(by_seed) == 1:
        return f"{MARK}, whose gap says nothing: {why}"
    return f"{MARK} in {len(reasons)} of {len(by_seed)} seeds, whose gap says nothing; seed {seed}: {why}"


def lost_of_cells(info: Mapping[str, Any]) -> list[str]:
    """In words, of a run's record: how much of each "class, group" was listed and has no row, whatever the reason, or
    failed. Empty where nothing is lost, or where the record is of before and does not say.
    """
    lost: Counter[str] = Counter(info.get("failed") or {})
    for line in (info.get("accounted") or {}).get("left_out", ()):
        lost[line["cell"]] += line["rows"]
    kept: Counter[str] = Counter()
    for cells in (info.get("cells") or {}).values():
        kept.update(cells)
    return [
        f"{cell}: {rows:,} of {rows + kept[cell]:,} ({100 * rows / (rows + kept[cell]):.0f} %)"
        for cell, rows in sorted(lost.items())
        if "train" in (info.get("cells") or {}) and rows
    ]
