"""What was listed and left out, from the data set's words to the manifest's."""

from __future__ import annotations

from bird.datasets.base import SampleTable
from bird_cache.manifest import LeftOut

__all__ = ["left_out_of"]


def left_out_of(table: SampleTable) -> tuple[LeftOut, ...]:
    """What was listed and is not in the table, as the manifest keeps it."""
    return tuple(
        LeftOut(reason=reason, label=label, group=group, split=split, rows=rows)
        for (reason, label, group, split), rows in table.left_out.items()
    )
