"""What was listed and left out, from the data set's words to the manifest's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from bird.datasets.base import SampleTable
from bird_cache.manifest import LeftOut

__all__ = ["left_out_of", "lost_of_cells"]


def left_out_of(table: SampleTable) -> tuple[LeftOut, ...]:
    """What was listed and is not in the table, as the manifest keeps it."""
    return tuple(
        LeftOut(reason=reason, label=label, group=group, split=split, rows=rows)
        for (reason, label, group, split), rows in table.left_out.items()
    )


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
