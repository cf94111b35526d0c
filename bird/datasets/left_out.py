"""Every sample that was listed is in the table, or counted here: why it was left out, of which class, group and split."""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bird.datasets.finding import beside
from bird.datasets.samples import Lost, Problem, SampleTable

__all__ = ["count_problems", "count_rows", "first_of"]


def count_problems(problems: Iterable[Problem]) -> Counter[Lost]:
    """The problems by reason, class, group and split."""
    return Counter((each.kind, each.label, each.group, each.split) for each in problems)


def count_rows(table: SampleTable, gone: NDArray[np.bool_], reason: str) -> Counter[Lost]:
    """The rows of `gone`, shape (rows,), by class, group and split."""
    rows = np.flatnonzero(gone).tolist()
    return Counter((reason, int(table.labels[row]), int(table.groups[row]), str(table.splits[row])) for row in rows)


def first_of(problems: Sequence[Problem], file: Callable[[str], Path | None]) -> str:
    """The problems in words. `file` maps an id to its path; the first missing file is told with what lies there instead."""
    lines = [f"{problem.id}: {problem.reason}" for problem in problems]
    missing = [problem for problem in problems if problem.reason == f"unreadable: {os.strerror(errno.ENOENT)}"]
    if missing and (path := file(missing[0].id)) is not None:
        lines.append(f"{path} is not there; {beside(path)}")
    return "; ".join(lines)
