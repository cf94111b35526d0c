"""In which order rows are read: pure functions of a seed, an epoch and a step, so that a resumed run sees the same.

The raw output of numpy's Philox generator is fixed for all time (its `permutation` is not): orders are made from that.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

__all__ = ["StratifiedRows", "batches", "raw", "shuffled"]

Rows = NDArray[np.int64]


def raw(seed: int, *words: int, count: int) -> NDArray[np.uint64]:
    """`count` random 64-bit words that depend on nothing but the arguments."""
    return np.random.Philox(np.random.SeedSequence([seed, *words])).random_raw(count)


def shuffled(rows: Rows, seed: int, epoch: int) -> Rows:
    """`rows` in the order of one epoch."""
    return rows[np.argsort(raw(seed, 0, epoch, count=len(rows)), kind="stable")]


def batches(order: Rows, batch_size: int, consumed: int = 0) -> Iterator[Rows]:
    """`order` in batches, from the sample after the first `consumed`. Every row comes exactly once; a single row left
    at the end joins the batch before it (batch norm has no statistics of one sample)."""
    start = consumed
    while start < len(order):
        stop = start + batch_size
        if stop >= len(order) - 1:
            stop = len(order)
        yield order[start:stop]
        start = stop


class StratifiedRows:
    """Batches with a fixed number of rows from every (class, group) cell that has any, drawn with replacement."""

    def __init__(self, rows: Rows, labels: Rows, groups: Rows, *, per_cell: int, seed: int) -> None:
        cells = {*zip(labels.tolist(), groups.tolist(), strict=True)}
        self._cells = [rows[(labels == label) & (groups == group)] for label, group in sorted(cells)]
        self._per_cell, self._seed = per_cell, seed

    def draw(self, step: int) -> Rows:
        """The rows of batch number `step`, cell by cell."""
        words = raw(self._seed, 1, step, count=len(self._cells) * self._per_cell)
        picks = words.reshape(len(self._cells), self._per_cell)
        return np.concatenate([cell[pick % len(cell)] for cell, pick in zip(self._cells, picks, strict=True)])
