"""A data set that grew: what was on one side of its splits stays there, and what is new fills up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np
import xxhash
from numpy.typing import NDArray

from bird.datasets.samples import SampleTable

__all__ = ["keep_sides"]

DRAWN: Mapping[str, tuple[str, ...]] = {"": ("train", "meta", "test"), "train": ("train", "meta")}
"""where a sample may be of which the data set itself says nothing, or train of which meta is carved"""


def keep_sides(
    table: SampleTable, listed: NDArray[np.object_], sides: Mapping[str, str], subjects: Mapping[str, str] | None
) -> tuple[NDArray[np.object_], int]:
    """The splits of `table`, with every sample of `sides` (digest -> split) on the side that it had; and how many these are.

    `listed` is what the data set itself says of each sample ("": nothing), which counts more. New samples of a (class,
    group) cell are put where the kept ones leave room, so that each split's size stays what was drawn; with `subjects` those
    of a known subject follow it, and others stay where they were drawn.
    """
    splits = table.splits.copy()
    known = [sides.get(digest, "") for digest in table.digests.tolist()]
    kept = {row: side for row, side in enumerate(known) if side in DRAWN.get(listed[row], ())}
    splits[[*kept]] = [*kept.values()]
    if subjects is not None:
        followed = {subjects[table.ids[row]]: side for row, side in kept.items()}
        for row, id in enumerate(table.ids.tolist()):
            if listed[row] in DRAWN:
                splits[row] = followed.get(subjects[id], splits[row])
        return splits, len(kept)
    cells: dict[tuple[int, int, str], list[int]] = {}
    for row, said in enumerate(listed.tolist()):
        if said in DRAWN:
            cells.setdefault((int(table.labels[row]), int(table.groups[row]), said), []).append(row)
    for rows in cells.values():
        room = Counter(table.splits[rows].tolist())
        room.subtract(kept[row] for row in rows if row in kept)
        new = sorted((row for row in rows if row not in kept), key=lambda row: _rank(table, row))
        moved = []
        for row in new:
            if room[table.splits[row]] > 0:
                room[table.splits[row]] -= 1
            else:
                moved.append(row)
        for row in moved:
            splits[row] = next((side for side in ("test", "meta") if room[side] > 0), "train")
            room[splits[row]] -= 1
    return splits, len(kept)


def _rank(table: SampleTable, row: int) -> tuple[int, str]:
    """Pseudo-random, by content; byte-identical samples are neighbours."""
    return xxhash.xxh3_64_intdigest(table.digests[row].encode()), table.ids[row]
