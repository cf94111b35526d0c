"""Every sample that was listed is in the table, or counted here: why it was left out, of which class, group and split."""

from __future__ import annotations

import dataclasses
import errno
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bird.datasets.finding import beside

if TYPE_CHECKING:
    from bird.datasets.base import Dataset, SampleTable

__all__ = ["Lost", "Problem", "count_problems", "count_rows", "first_of"]

Lost = tuple[str, int, int, str]
"""reason, label and group (-1: unknown), split ("": none yet)"""


@dataclasses.dataclass(frozen=True)
class Problem:
    """One sample that was left out: which, why, and, where known, of which class, group (-1: unknown) and split. `kind` is
    the reason without what is of this sample alone."""

    id: str
    reason: str
    label: int = -1
    group: int = -1
    split: str = ""
    kind: str = "unusable"


def count_problems(problems: Iterable[Problem]) -> Counter[Lost]:
    """The problems by reason, class, group and split."""
    return Counter((each.kind, each.label, each.group, each.split) for each in problems)


def count_rows(table: SampleTable, gone: NDArray[np.bool_], reason: str) -> Counter[Lost]:
    """The rows of `gone`, shape (rows,), by class, group and split."""
    rows = np.flatnonzero(gone).tolist()
    return Counter((reason, int(table.labels[row]), int(table.groups[row]), str(table.splits[row])) for row in rows)


def first_of(dataset: Dataset, problems: Sequence[Problem]) -> str:
    """The problems in words; of the first missing file also the full path, and what lies there instead."""
    lines = [f"{problem.id}: {problem.reason}" for problem in problems]
    missing = [problem for problem in problems if problem.reason == f"unreadable: {os.strerror(errno.ENOENT)}"]
    if missing and (path := dataset.file(missing[0].id)) is not None:
        lines.append(f"{path} is not there; {beside(path)}")
    return "; ".join(lines)
