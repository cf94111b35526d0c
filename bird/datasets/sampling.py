"""Which samples go where, by the hashes of their contents: a subset with the proportions of the whole, a meta split."""

from __future__ import annotations

import math

import numpy as np
import xxhash
from numpy.typing import NDArray

from bird.datasets.samples import Ints, SampleTable, Strings

__all__ = ["carve_meta", "subset"]


def subset(table: SampleTable, limit: int) -> Ints:
    """Rows of a deterministic subset of `limit` samples with the proportions of split, class and group, in table order.

    What is learned from (train and meta) and test have their shares to the nearest sample, so has each (class, group) cell
    of either, and so has meta. Where `limit` allows, a cell that a split has keeps a sample. Content hashes decide which.
    """
    if limit >= len(table):
        return np.arange(len(table))
    cells: dict[tuple[bool, int, int], dict[str, list[int]]] = {}
    for row, split in enumerate(table.splits.tolist()):
        cell = cells.setdefault((split == "test", int(table.labels[row]), int(table.groups[row])), {})
        cell.setdefault(split, []).append(row)
    # Of equal remainders the first by name, not by position, gets the sample.
    parts = [parts for _, parts in sorted(cells.items())]
    rows = np.array([sum(map(len, each.values())) for each in parts])
    least = np.array([len(each) for each in parts])
    least = least if limit >= least.sum() else np.full(len(parts), int(limit >= len(parts)))
    tested = np.array([key[0] for key in sorted(cells)])
    sides = [side for side in (~tested, tested) if side.any()]
    share, counts = limit / len(table), np.zeros(len(parts), np.int64)
    totals = np.array([[rows[side].sum() * share, least[side].sum()] for side in sides])
    for side, total in zip(sides, _whole(totals[:, 0], limit, totals[:, 1].astype(np.int64)).tolist(), strict=True):
        counts[side] = _whole(rows[side] * share, total, least[side])
    of_meta = np.array([len(each.get("meta", [])) for each in parts])
    alone = of_meta == rows
    most = np.where(of_meta > 0, np.minimum(of_meta, np.where(alone, counts, np.maximum(counts - 1, 0))), 0)
    low = np.maximum(np.minimum(most, 1), counts - (rows - of_meta))
    wanted = int(np.clip(round(share * int(of_meta.sum())), low.sum(), most.sum()))
    meta = _whole(counts * of_meta / rows, wanted, low, most)
    chosen: list[int] = []
    for each, count, kept in zip(parts, counts.tolist(), meta.tolist(), strict=True):
        for split, members in each.items():
            size = kept if split == "meta" else count - kept
            chosen += sorted(members, key=lambda row: _rank(table, row, 0))[:size]
    return np.array(sorted(chosen), np.int64)


def _whole(quota: NDArray[np.float64], total: int, least: Ints, most: Ints | None = None) -> Ints:
    """Whole numbers near the quotas that add up to `total`, none below its `least` or above its `most`: largest
    remainders."""
    top = np.full(len(quota), np.iinfo(np.int64).max) if most is None else most
    counts = np.clip(np.floor(quota + 1e-9).astype(np.int64), least, top)
    while (missing := total - int(counts.sum())) != 0:
        gap = (quota - counts).round(9)
        if missing > 0:
            free = np.argsort(np.where(counts < top, -gap, np.inf), kind="stable")[: min(missing, (counts < top).sum())]
            counts[free] += 1
        else:  # the least overshot: take from where the count exceeds its quota most
            counts[np.argsort(np.where(counts > least, gap, np.inf), kind="stable")[0]] -= 1
    return counts


def carve_meta(table: SampleTable, fraction: float, at_least: int, seed: int) -> Strings:
    """The splits with a meta split carved from train: `fraction` of each (class, group) cell, at least `at_least`
    samples, but never more than half a cell (a cell emptied of training samples would be a bias of our making)."""
    splits = table.splits.copy()
    cells: dict[tuple[int, int], list[int]] = {}
    for row in np.flatnonzero((table.splits == "train") & (table.groups >= 0)).tolist():
        cells.setdefault((int(table.labels[row]), int(table.groups[row])), []).append(row)
    for rows in cells.values():
        count = min(max(math.ceil(fraction * len(rows)), at_least), len(rows) // 2)
        splits[sorted(rows, key=lambda row: _rank(table, row, seed))[:count]] = "meta"
    return splits


def _rank(table: SampleTable, row: int, seed: int) -> tuple[int, str]:
    """Pseudo-random but content-addressed order; byte-identical samples are neighbours."""
    return xxhash.xxh3_64_intdigest(table.digests[row].encode(), seed), table.ids[row]
