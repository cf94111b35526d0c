"""The samples of a data set: as they are listed, and as a table in their final order."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import final

import numpy as np
from numpy.typing import NDArray

from bird.errors import DataError

__all__ = ["Ints", "Listing", "Lost", "Problem", "SampleTable", "Strings", "strings"]

Strings = NDArray[np.object_]
Ints = NDArray[np.int64]
Lost = tuple[str, int, int, str]
"""reason, label and group (-1: unknown), split ("": none yet)"""


@final
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


@final
@dataclasses.dataclass(frozen=True)
class Listing:
    """What a data set finds on disk before a single image is read. `splits` holds "" where the data set draws them later."""

    ids: Strings
    labels: Ints
    groups: Ints
    splits: Strings
    problems: tuple[Problem, ...] = ()
    left_out: tuple[Problem, ...] = ()
    """samples that are left out for no fault of their files: a further file of the same face, a part that is not used"""
    compared: tuple[str, ...] = ()
    """ids of left-out samples whose byte-identical copies carry no usable label"""

    @staticmethod
    def of(
        rows: Iterable[tuple[str, int, int, str]],
        problems: Sequence[Problem] = (),
        left_out: Sequence[Problem] = (),
        compared: Sequence[str] = (),
    ) -> Listing:
        """From (id, label, group, split) rows. Raises DataError for a repeated id."""
        rows = list(rows)
        ids, labels, groups, splits = ([*column] for column in zip(*rows, strict=True)) if rows else ([], [], [], [])
        twice = [name for name, count in Counter(ids).items() if count > 1]
        if twice:
            raise DataError(
                where="data set listing",
                found=f"{len(twice)} ids more than once: {', '.join(map(repr, twice[:10]))}",
                wanted="every id once",
                fix="rename or remove the copies",
            )
        numbers = np.array(labels, np.int64), np.array(groups, np.int64)
        return Listing(strings(ids), *numbers, strings(splits), tuple(problems), tuple(left_out), tuple(compared))


@final
@dataclasses.dataclass(frozen=True)
class SampleTable:
    """The samples in their final order: row i is sample i, for the cache, the stream and the report alike.

    `digests` are xxh3-128 of each sample's encoded source; `notes` count what `prepare` found and did.
    """

    ids: Strings
    labels: Ints
    groups: Ints
    splits: Strings
    digests: Strings
    problems: tuple[Problem, ...] = ()
    notes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    left_out: Mapping[Lost, int] = dataclasses.field(default_factory=dict)
    """everything that was listed and is not in the table"""

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> SampleTable:
        """The given rows, in the given order."""
        columns = ("ids", "labels", "groups", "splits", "digests")
        return dataclasses.replace(self, **{name: getattr(self, name)[rows] for name in columns})

    def cells(self, classes: int, groups: int) -> Ints:
        """Samples per (class, group), shape (classes, groups), of those whose group is known."""
        codes = (self.labels * groups + self.groups)[self.groups >= 0]
        return np.bincount(codes, minlength=classes * groups).reshape(classes, groups)


def strings(values: Iterable[object]) -> Strings:
    """A column of text."""
    items = list(values)
    out = np.empty(len(items), dtype=object)
    out[:] = items
    return out
