"""In which order rows are read: pure functions of a seed, an epoch and a step, so that a resumed run sees the same.

The raw output of numpy's Philox generator is fixed for all time (its `permutation` is not): orders are made from that.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import final

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "EpochOrder",
    "InverseFrequencyRows",
    "StratifiedRows",
    "batches",
    "ranked",
    "raw",
    "shards_of",
    "shuffle_score",
    "shuffled",
    "slices",
]

Rows = NDArray[np.int64]


def raw(seed: int, *words: int, count: int) -> NDArray[np.uint64]:
    """Random 64-bit words (count,) that depend on nothing but the arguments."""
    return np.random.Philox(np.random.SeedSequence([seed, *words])).random_raw(count)


def ranked(words: NDArray[np.uint64]) -> Rows:
    """Where the words (n,) stand in ascending order, equal ones as they come. numpy's usual sort is five times faster
    than its stable one, and the same where no two words are equal: random ones of 64 bits hardly ever are."""
    order = np.argsort(words)
    ordered = words[order]
    return np.argsort(words, kind="stable") if (ordered[1:] == ordered[:-1]).any() else order


def shuffled(rows: Rows, seed: int, epoch: int) -> Rows:
    """`rows` in the order of one epoch."""
    return rows[ranked(raw(seed, 0, epoch, count=len(rows)))]


@final
class EpochOrder:
    """The order of `rows` (ascending) in one epoch, read piece by piece.

    Without a `window` every permutation of the whole set is as likely. With one, the shards are permuted and taken in
    groups of `window`, and the rows of a group are shuffled: nothing beyond one group need be in memory.
    """

    def __init__(self, rows: Rows, shard_rows: int, *, seed: int, epoch: int, window: int | None) -> None:
        self._rows, self._seed, self._epoch = rows, seed, epoch
        shards, bounds = shards_of(rows, shard_rows)
        if window is None or window >= len(shards):
            self._groups = [bounds]
        else:
            mixed = ranked(raw(seed, 2, epoch, count=len(shards)))
            self._groups = [bounds[np.sort(mixed[start : start + window])] for start in range(0, len(mixed), window)]
        self._whole = len(self._groups) == 1
        sizes = [int(np.diff(group).sum()) for group in self._groups]
        self.starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        self._held: tuple[int, Rows] | None = None

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def groups(self) -> int:
        """Number of groups."""
        return len(self._groups)

    def members(self, number: int) -> Rows:
        """The rows of one group, ascending."""
        if self._whole:
            return self._rows
        return np.concatenate([self._rows[first:end] for first, end in self._groups[number].tolist()])

    def group(self, number: int) -> Rows:
        """The rows of one group, shuffled."""
        held = self._held  # another thread may ask for another group meanwhile
        if held is None or held[0] != number:
            if self._whole:
                rows = shuffled(self._rows, self._seed, self._epoch)
            else:
                rows = self.members(number)
                rows = rows[ranked(raw(self._seed, 3, self._epoch, number, count=len(rows)))]
            held = self._held = number, rows
        return held[1]

    def group_at(self, position: int) -> int:
        """Which group holds a position of the epoch."""
        return int(np.searchsorted(self.starts, position, side="right")) - 1

    def between(self, start: int, stop: int) -> Rows:
        """The rows at positions start..stop of the epoch."""
        pieces = []
        while start < stop:
            number = self.group_at(start)
            first, end = int(self.starts[number]), min(stop, int(self.starts[number + 1]))
            pieces.append(self.group(number)[start - first : end - first])
            start = end
        return np.concatenate(pieces) if pieces else np.empty(0, np.int64)


def shards_of(rows: Rows, shard_rows: int) -> tuple[Rows, Rows]:
    """Which shards `rows` (ascending) lie in, and where those of each begin and end among them, (shards, 2)."""
    first, last = (int(rows[0]) // shard_rows, int(rows[-1]) // shard_rows) if len(rows) else (0, -1)
    cuts = np.searchsorted(rows, shard_rows * np.arange(first, last + 2))
    there = np.flatnonzero(np.diff(cuts))
    return first + there, np.stack([cuts[there], cuts[there + 1]], axis=1)


def slices(total: int, batch_size: int, consumed: int = 0, least: int = 2) -> Iterator[tuple[int, int]]:
    """Start and stop of each batch of an epoch of `total` samples, from the sample after the first `consumed`. Every
    sample comes exactly once; fewer than `least` left at the end join the batch before them (batch norm has no
    statistics of one sample, and every rank needs some)."""
    start = consumed
    while start < total:
        stop = start + batch_size
        if total - stop < least:
            stop = total
        yield start, stop
        start = stop


def batches(order: Rows, batch_size: int, consumed: int = 0) -> Iterator[Rows]:
    """`order` in batches: see `slices`."""
    for start, stop in slices(len(order), batch_size, consumed):
        yield order[start:stop]


def shuffle_score(order: Rows) -> float:
    """How far neighbours of an order lie apart in storage, against a uniform permutation: 1 is as good as one, 0 is the
    stored order. Mean |difference| of successive rows' ranks, over its expectation (n + 1) / 3."""
    if len(order) < 2:
        return 1.0
    ranks = np.argsort(np.argsort(order))
    return float(np.abs(np.diff(ranks)).mean() / ((len(order) + 1) / 3))


@final
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


@final
class InverseFrequencyRows:
    """Batches in which every (class, group) cell that has any row is as likely as another, drawn with replacement."""

    def __init__(self, rows: Rows, labels: Rows, groups: Rows, *, batch_size: int, seed: int) -> None:
        cells = sorted({*zip(labels.tolist(), groups.tolist(), strict=True)})
        self._cells = [rows[(labels == label) & (groups == group)] for label, group in cells]
        self._batch_size, self._seed = batch_size, seed

    def draw(self, step: int) -> Rows:
        """The rows of batch number `step`."""
        words = raw(self._seed, 4, step, count=2 * self._batch_size).reshape(2, -1)
        cells = [self._cells[number] for number in (words[0] % len(self._cells)).tolist()]
        return np.array([cell[pick % len(cell)] for cell, pick in zip(cells, words[1].tolist(), strict=True)], np.int64)
