"""What a table, class folders and a hub's folder share: rows of a class, a group, and perhaps a split and a subject.

Rows are taken at their word or refused: nothing is dropped or filled in, and whatever is read in another way than it stands
there is told (`remarks`).
"""

from __future__ import annotations

import dataclasses
import errno
import stat
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

import numpy as np
import xxhash
from numpy.typing import NDArray

from bird.datasets.base import Dataset, Listing, Problem, SampleTable
from bird.datasets.columns import (
    MOST,
    SHOWN,
    categories,
    categories_or_unknown,
    filled,
    in_order,
    read_split_names,
    refuse,
    splits_of,
    subjects_of,
)
from bird.datasets.crossing import cross
from bird.datasets.subjects import whole_subjects
from bird.errors import DataError, UsageError

__all__ = ["WHITE", "ListedImages", "Options", "Rows", "unlike"]

WHITE = 65535  # as bird.images has it, which is imported when an image is read
_NEEDS_TWO = {
    "label": "two classes or more: with one there is nothing to learn, and no answer can be wrong",
    "group": "two groups or more: a gap is between two",
}
_UNKNOWN = "; or add --setting unknown_groups=true: then these rows train, and are never in meta or test"
_UNKNOWN_ITEMS = (
    "; or set the attribute unknown_groups = True of the class: then these items train, and are never in meta or test"
    " (docs/own-parts.md)"
)


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """The settings that all of these have.

    Without splits, `test_fraction` of each (class, group) cell is test, chosen by content hash. `white_level` is the value
    of a 16-bit gray pixel that is shown as white: 65535, or 4095 for images of 12 bits. With `unknown_groups` an empty group
    says that nobody knows it: such a row trains, and is never in meta or test. `split_names` are words or numbers that name
    splits, such as "0:train,1:meta,2:test".
    """

    test_fraction: float = 0.2
    image_size: int = 64
    flip: bool = True
    white_level: int = WHITE
    unknown_groups: bool = False
    split_names: str = ""

    def check(self, name: str) -> None:
        """Raise UsageError for a value out of range; `name` is the data set's."""

        def refuse(setting: str, value: float, wanted: str) -> UsageError:
            where = f"data set {name}, setting {setting}"
            return UsageError(where=where, found=str(value), wanted=wanted, fix="correct the setting")

        if not 0.0 < self.test_fraction < 1.0:
            raise refuse("test_fraction", self.test_fraction, "a share above 0 and below 1")
        if self.image_size < 1:
            raise refuse("image_size", self.image_size, "a number of pixels")
        if not 1 <= self.white_level <= WHITE:
            raise refuse("white_level", self.white_level, f"a pixel value from 1 to {WHITE}, such as 4095 for 12 bits")
        read_split_names(f"data set {name}, setting split_names", self.split_names)

    def recorded(self) -> dict[str, str | int | float | bool]:
        """As settings. Those that are newer than the first caches stand there only where they say something."""
        first = {name: getattr(self, name) for name in ("test_fraction", "image_size", "flip")}
        newer = ("white_level", "unknown_groups", "split_names")
        return first | unlike({name: (getattr(self, name), getattr(Options, name)) for name in newer})


def unlike(settings: Mapping[str, tuple[Any, Any]]) -> dict[str, Any]:
    """name -> (value, default), as name -> value of those that differ."""
    return {name: value for name, (value, default) in settings.items() if value != default}


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class Rows:
    """N rows. `source` is where they were read (labels: `label_source`, if elsewhere); `label_name` and the keys of `groups`
    are what its columns are called. `orders` holds the names of a column in their order, where the source says it. Without
    `splits` they are drawn."""

    source: Path
    ids: Sequence[str]
    label_name: str
    labels: Sequence[Any]
    label_source: Path | None = None
    groups: Mapping[str, Sequence[Any]]
    splits: Sequence[Any] | None = None
    subject_name: str = "subject"
    subjects: Sequence[Any] | None = None
    orders: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    problems: Sequence[Problem] = ()
    code: bool = False
    """The rows are items of a class of the user's own, whose attributes are what is a setting elsewhere."""


class ListedImages(Dataset):
    """A data set whose rows are known before an image is read. Labels and groups are integers 0..K-1 or strings, which are
    numbered in sorted order. Several group columns are crossed. All images of a subject stay in one split."""

    def _take(self, rows: Rows, options: Options, remarks: Sequence[str]) -> None:
        """Become these rows. Raises DataError for labels, groups, splits and subjects that are none."""
        self.image_size, self.flip, self._options = options.image_size, options.flip, options
        self.unknown_groups = options.unknown_groups
        file, ids, told = rows.source, rows.ids, [*remarks]
        if not len(ids):
            found, wanted = ("no item", "an item an image") if rows.code else ("no row", "a row an image")
            raise DataError(where=str(file), found=found, wanted=wanted, fix="add the images")
        unknown = _UNKNOWN_ITEMS if rows.code else _UNKNOWN

        def codes_of(column: str, values: Sequence[Any], *, group: bool) -> tuple[list[int], tuple[str, ...]]:
            read = categories_or_unknown if group and options.unknown_groups else categories
            place = file if group else rows.label_source or file
            if column in rows.orders:
                _need_named(place, column, values, ids, rows.orders[column])
            codes, names, doubts = read(place, column, values, ids, hint=unknown if group else "")
            told.extend(doubts)
            if column not in rows.orders:
                return codes, names
            if unused := [name for name in rows.orders[column] if name not in names]:
                told.append(f"column {column}: no row is {', '.join(map(repr, unused[:SHOWN]))}")
            return in_order(codes, names, rows.orders[column])

        labels, self.class_names = codes_of(rows.label_name, rows.labels, group=False)
        columns = {name: codes_of(name, values, group=True) for name, values in rows.groups.items()}
        groups, self.group_names, self.factors = cross(columns)
        splits = [""] * len(ids)
        self._draws_splits = rows.splits is None
        if rows.splits is not None:
            named = read_split_names("split_names", options.split_names)
            splits, renamed = splits_of(file, rows.splits, ids, named, code=rows.code)
            told += renamed
        if rows.subjects is not None:
            subjects, persons = subjects_of(file, rows.subject_name, rows.subjects, ids)
            self.subjects = dict(zip(ids, subjects, strict=True))
            told += persons
        self.remarks = (*told,)
        self._listing = Listing.of(list(zip(ids, labels, groups, splits, strict=True)), rows.problems)
        _need_two(rows.label_source or file, len(ids), rows.label_name, self.class_names, "label", rows.code)
        for name, (_, names) in columns.items():
            _need_two(file, len(ids), name, names, "group", rows.code)
        if not self._draws_splits and "test" not in splits:
            _need_test(file, rows.splits or [], rows.code)

    def listing(self) -> Listing:
        """All rows, in their order."""
        return self._listing

    @abstractmethod
    def file(self, id: str) -> Path | None:
        """The image's file; None where the source holds the image."""

    def read(self, id: str) -> bytes:
        """The image file."""
        path = self.file(id)
        if path is None:
            raise OSError(errno.ENODATA, "no image bytes in the table")
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe or a device would block for ever
            raise OSError(errno.EINVAL, "not a regular file")
        return path.read_bytes()

    def decode(self, id: str, data: bytes) -> NDArray[np.uint8]:
        """RGB pixels."""
        from bird.images import decode_image

        return decode_image(data, id, self.max_pixels, self._options.white_level)

    def assign_splits(self, table: SampleTable) -> NDArray[np.object_]:
        """The rows' own splits, or `test_fraction` of each cell as test (at least one, never all) by content hash.
        Raises DataError where the rows' own splits have a subject on two sides."""
        if not self._draws_splits:
            _refuse_torn(self.name, table, self.subjects)
            return table.splits
        splits = np.full(len(table), "train", dtype=object)
        cells: dict[tuple[int, int], list[int]] = {}
        for row, cell in enumerate(zip(table.labels.tolist(), table.groups.tolist(), strict=True)):
            if cell[1] >= 0:
                cells.setdefault(cell, []).append(row)
        share = self._options.test_fraction
        for rows in cells.values():
            rows.sort(key=lambda row: (xxhash.xxh3_64_intdigest(str(table.digests[row]).encode()), table.ids[row]))
            splits[rows[: min(max(1, round(share * len(rows))), len(rows) - 1)]] = "test"
        return splits if self.subjects is None else whole_subjects(table, splits, self.subjects, "test")


def _need_named(file: Path, column: str, values: Sequence[Any], ids: Sequence[str], names: Sequence[str]) -> None:
    """Raise DataError for values that are none of `names`; empty ones, and very many, are looked at elsewhere."""
    if len({str(value) for value in values}) > MOST:
        return
    strange = [
        f"{value!r} ({id})" for id, value in zip(ids, values, strict=True) if str(value) not in names and filled(value)
    ]
    wanted = f"0..{len(names) - 1}, or one of the names {', '.join(map(repr, names[:MOST]))}"
    fix = "correct these rows, or add what is missing to the names"
    refuse(file, f"a {column} that the names do not have", strange, wanted, len(values), fix)


def _need_two(file: Path, rows: int, column: str, names: Sequence[str], kind: str, code: bool) -> None:
    if len(names) < 2:
        raise DataError(
            where=f"{file}, column {column}",
            found=f"one value, {names[0]!r}, in all {rows} rows" if names else f"no value in any of {rows} rows",
            wanted=_NEEDS_TWO[kind],
            fix=f"add rows with another {column}"
            + ("" if code else f", or name another column with --setting {kind}=COLUMN"),
        )


def _need_test(file: Path, splits: Sequence[Any], code: bool) -> None:
    words = sorted({str(each) for each in splits})
    say = 'with the attribute split_names = "{}" of the class' if code else "such as --setting split_names={}"
    raise DataError(
        where=str(file),
        found=f"the splits {', '.join(map(repr, words))}: none is test",
        wanted="test rows: on them the student is measured",
        fix=f"say which split is test, {say.format(f'{words[-1]}:test')}; or leave the splits out, then they are drawn",
    )


def _refuse_torn(name: str, table: SampleTable, subjects: Mapping[str, str] | None) -> None:
    if subjects is None:
        return
    sides: dict[str, set[str]] = {}
    for id, split in zip(table.ids.tolist(), table.splits.tolist(), strict=True):
        sides.setdefault(subjects[id], set()).add(split)
    if torn := [f"{subject!r} ({', '.join(sorted(where))})" for subject, where in sides.items() if len(where) > 1]:
        raise DataError(
            where=f"data set {name}, column split",
            found=f"{len(torn)} of {len(sides)} subjects in several splits: {', '.join(torn[:10])}",
            wanted="all images of a subject in one split",
            fix="correct the splits, or leave the column split out: then subjects are kept whole; without the column"
            " subject nobody looks",
        )
