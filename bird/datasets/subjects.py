"""Splits in which every subject is on one side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np
import xxhash
from numpy.typing import NDArray

from bird.datasets.samples import SampleTable

__all__ = ["whole_subjects"]


def whole_subjects(
    table: SampleTable, splits: NDArray[np.object_], subjects: Mapping[str, str], split: str
) -> NDArray[np.object_]:
    """The splits (N,) with `split` drawn from train once more, so that all samples of a subject are on one side.

    Its size in each (class, group) cell stays about the same: subjects are taken in the order of their hashes, each if at
    least half of its samples fill a need. A cell that gets none this way gets the smallest subject that leaves some for
    train.
    """
    cells = list(zip(table.labels.tolist(), table.groups.tolist(), strict=True))
    need = Counter(cells[row] for row in np.flatnonzero(splits == split).tolist())
    left = Counter(cells[row] for row in np.flatnonzero((splits == split) | (splits == "train")).tolist())
    rows: dict[str, list[int]] = {}
    for row in np.flatnonzero((splits == split) | (splits == "train")).tolist():
        rows.setdefault(subjects[table.ids[row]], []).append(row)
    known = [subject for subject, mine in rows.items() if (table.groups[mine] >= 0).all()]  # others stay in train
    order = sorted(known, key=lambda subject: xxhash.xxh3_64_intdigest(subject.encode()))
    out, empty = splits.copy(), set(need)
    for mine in rows.values():
        out[mine] = "train"

    def take(subject: str) -> None:
        out[rows[subject]] = split
        for cell in (cells[row] for row in rows[subject]):
            need[cell] -= 1
            left[cell] -= 1
            empty.discard(cell)

    def leaves_some(own: Counter[tuple[int, int]]) -> bool:
        return all(left[cell] > count for cell, count in own.items())

    for subject in order:
        own = Counter(cells[row] for row in rows[subject])
        useful = sum(min(max(need[cell], 0), count) for cell, count in own.items())
        if 2 * useful >= own.total() and leaves_some(own):
            take(subject)
    for cell in sorted(empty):
        for subject in sorted(order, key=lambda subject: len(rows[subject])):
            own = Counter(cells[row] for row in rows[subject])
            if cell in empty and own[cell] and out[rows[subject][0]] == "train" and leaves_some(own):
                take(subject)
    return out
