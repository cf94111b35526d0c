"""What every data set gives: a listing of its samples, the encoded bytes of one, and its pixels.

`prepare` turns a listing into the sample table that a cache or a training run is planned on:

    listing -> content digests -> drop conflicting copies -> splits -> limit -> carve meta -> no copy on two sides

Everything here is deterministic: what is kept is decided by hashes of the samples' contents, never by position.
"""

from __future__ import annotations

import dataclasses
import errno
import math
import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from bird.datasets.finding import beside
from bird.errors import DataError

__all__ = [
    "SPLITS",
    "Dataset",
    "Listing",
    "Problem",
    "SampleTable",
    "carve_meta",
    "prepare",
    "require_test_cells",
    "subset",
    "whole_subjects",
]

SPLITS = ("train", "meta", "test")
Strings = NDArray[np.object_]
Ints = NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class Problem:
    """One sample that was left out: which, why, and, where known, of which class and group (-1: unknown)."""

    id: str
    reason: str
    label: int = -1
    group: int = -1


@dataclasses.dataclass(frozen=True)
class Listing:
    """What a data set finds on disk before a single image is read. `splits` holds "" where the data set draws them later."""

    ids: Strings
    labels: Ints
    groups: Ints
    splits: Strings
    problems: tuple[Problem, ...] = ()
    copies: tuple[Problem, ...] = ()
    """samples that were left out because another one is the same: no fault of the files"""

    @staticmethod
    def of(
        rows: Iterable[tuple[str, int, int, str]], problems: Sequence[Problem] = (), copies: Sequence[Problem] = ()
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
        return Listing(_strings(ids), *numbers, _strings(splits), tuple(problems), tuple(copies))


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

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> SampleTable:
        """The given rows, in the given order."""
        columns = ("ids", "labels", "groups", "splits", "digests")
        return dataclasses.replace(self, **{name: getattr(self, name)[rows] for name in columns})

    def cells(self, classes: int, groups: int) -> Ints:
        """Samples per (class, group), shape (classes, groups)."""
        return np.bincount(self.labels * groups + self.groups, minlength=classes * groups).reshape(classes, groups)


class Dataset(ABC):
    """A labelled image set with one protected attribute. Opening one lists it; images are read on demand.

    `settings` is everything beside the files that shapes labels, groups, splits or pixels: it enters the cache's
    fingerprint, and with it the same data set can be opened again. `image_size` is the side in pixels that image
    students are trained at; `flip` says whether a mirrored image keeps its label.
    """

    name: str
    class_names: tuple[str, ...]
    group_names: tuple[str, ...]
    image_size: int
    flip: bool
    settings: Mapping[str, str | int | float | bool]
    max_pixels: int | None = None
    """what an image file may hold, None for 64 million; more is refused from its header"""
    remarks: tuple[str, ...] = ()
    """sentences on what was read in another way than it is written, or not at all"""
    subjects: Mapping[str, str] | None = None
    """id -> who is in the image, where the data set knows: a subject is never in two splits"""

    @abstractmethod
    def listing(self) -> Listing:
        """All samples found, and the problems met on the way."""

    @abstractmethod
    def read(self, id: str) -> bytes:
        """The encoded source bytes of one sample. Raises KeyError for an unknown id, OSError where it cannot be read."""

    @abstractmethod
    def decode(self, id: str, data: bytes) -> NDArray[np.uint8]:
        """RGB pixels (height, width, 3) of one sample from its source bytes. Raises ImageError."""

    def file(self, id: str) -> Path | None:
        """The file of one sample, for messages; None where it has none of its own."""
        return None

    def digest(self, id: str, data: bytes) -> str:
        """Content hash of one sample; a data set that alters pixels after decoding mixes in what it does."""
        return xxhash.xxh3_128_hexdigest(data)

    def assign_splits(self, table: SampleTable) -> Strings:
        """Split of each row, "" to leave a row out. The default keeps what the listing says."""
        return table.splits

    def image(self, id: str) -> NDArray[np.uint8]:
        """Read and decode one sample."""
        return self.decode(id, self.read(id))


def prepare(
    dataset: Dataset,
    *,
    limit: int | None = None,
    meta_fraction: float = 0.1,
    meta_at_least: int = 16,
    split_seed: int = 0,
    keep_conflicts: bool = False,
    max_problem_share: float = 0.01,
    workers: int = 4,
) -> SampleTable:
    """The sample table of `dataset`: see the module's docstring for the steps.

    Raises DataError if nothing is left, a label or group is out of range, or more than `max_problem_share` of the
    samples had to be left out for missing files or unparsable names.
    """
    found = dataset.listing()
    table = _with_digests(dataset, found, workers)
    _check(dataset, found, table, max_problem_share)
    notes = {"listed": len(found.ids), "unusable": len(table.problems)}
    table, copies = _drop_conflicts(table, keep_conflicts)
    notes |= copies
    splits = dataset.assign_splits(table)
    table = dataclasses.replace(table, splits=splits).take(splits != "")
    if len(table) == 0:
        raise DataError(
            where=f"data set {dataset.name}",
            found=f"no sample left of {notes['listed']} ({notes})",
            wanted="at least one in a split",
            fix="look at the split settings and at the conflicting copies",
        )
    if limit is not None:
        table = table.take(subset(table, limit))
    if "meta" not in table.splits:
        table = dataclasses.replace(table, splits=carve_meta(table, meta_fraction, meta_at_least, split_seed))
        if dataset.subjects is not None:
            table = dataclasses.replace(table, splits=whole_subjects(table, table.splits, dataset.subjects, "meta"))
    table, notes["copies_dropped_across_splits"] = _one_side_only(table)
    train = table.digests[table.splits == "train"].tolist()
    notes["copies_that_count_twice_in_train"] = len(train) - len(set(train))
    if found.copies:
        notes["copies_by_name"] = len(found.copies)
    rank = {name: position for position, name in enumerate(SPLITS)}
    order = np.argsort([rank[split] for split in table.splits], kind="stable")
    return dataclasses.replace(table.take(order), notes=notes)


def subset(table: SampleTable, limit: int) -> Ints:
    """Rows of a deterministic subset of `limit` samples with the proportions of (split, class, group), in table order.

    Largest remainders decide the counts (a stratum keeps at least one sample where `limit` allows), content hashes
    decide which samples.
    """
    if limit >= len(table):
        return np.arange(len(table))
    strata: dict[tuple[str, int, int], list[int]] = {}
    for row, key in enumerate(zip(table.splits, table.labels.tolist(), table.groups.tolist(), strict=True)):
        strata.setdefault(key, []).append(row)
    strata = dict(
        sorted(strata.items())
    )  # equal remainders: the first stratum by name, not by position, gets the sample
    quota = np.array([limit * len(rows) / len(table) for rows in strata.values()])
    counts = np.floor(quota).astype(int)
    if limit >= len(strata):
        counts = np.maximum(counts, 1)
    while (missing := limit - int(counts.sum())) != 0:
        gap = quota - counts
        if missing > 0:
            counts[np.argsort(-gap, kind="stable")[:missing]] += 1
        else:  # the minimum of one overshot: take from where the count exceeds its quota most
            counts[np.argsort(np.where(counts > 1, gap, np.inf), kind="stable")[0]] -= 1
    chosen = [
        row
        for count, rows in zip(counts.tolist(), strata.values(), strict=True)
        for row in sorted(rows, key=lambda row: _rank(table, row, 0))[:count]
    ]
    return np.array(sorted(chosen), np.int64)


def carve_meta(table: SampleTable, fraction: float, at_least: int, seed: int) -> Strings:
    """The splits with a meta split carved from train: `fraction` of each (class, group) cell, at least `at_least`
    samples, but never more than half a cell (a cell emptied of training samples would be a bias of our making)."""
    splits = table.splits.copy()
    cells: dict[tuple[int, int], list[int]] = {}
    for row in np.flatnonzero(table.splits == "train").tolist():
        cells.setdefault((int(table.labels[row]), int(table.groups[row])), []).append(row)
    for rows in cells.values():
        count = min(max(math.ceil(fraction * len(rows)), at_least), len(rows) // 2)
        splits[sorted(rows, key=lambda row: _rank(table, row, seed))[:count]] = "meta"
    return splits


def whole_subjects(table: SampleTable, splits: Strings, subjects: Mapping[str, str], split: str) -> Strings:
    """The splits with `split` drawn from train once more, so that all samples of a subject are on one side.

    Its size in each (class, group) cell stays about the same: subjects are taken in the order of their hashes, each if at
    least half of its samples fill a need. A cell that gets none this way gets the smallest subject that leaves some for
    train.
    """
    cells = list(zip(table.labels.tolist(), table.groups.tolist(), strict=True))
    need = Counter(cells[row] for row in np.flatnonzero(splits == split).tolist())
    left = Counter(cells[row] for row in np.flatnonzero((splits == split) | (splits == "train")).tolist())
    rows: dict[str, list[int]] = {}
    for row in np.flatnonzero((splits == split) | (splits == "train")).tolist():
        rows.setdefault(subjects[table.ids[row]], []).append(row)
    order = sorted(rows, key=lambda subject: xxhash.xxh3_64_intdigest(subject.encode()))
    out, empty = splits.copy(), set(need)
    for mine in rows.values():
        out[mine] = "train"

    def take(subject: str) -> None:
        out[rows[subject]] = split
        for cell in (cells[row] for row in rows[subject]):
            need[cell] -= 1
            left[cell] -= 1
            empty.discard(cell)

    def leaves_some(own: Counter[tuple[int, int]]) -> bool:
        return all(left[cell] > count for cell, count in own.items())

    for subject in order:
        own = Counter(cells[row] for row in rows[subject])
        useful = sum(min(max(need[cell], 0), count) for cell, count in own.items())
        if 2 * useful >= own.total() and leaves_some(own):
            take(subject)
    for cell in sorted(empty):
        for subject in sorted(order, key=lambda subject: len(rows[subject])):
            own = Counter(cells[row] for row in rows[subject])
            if cell in empty and own[cell] and out[rows[subject][0]] == "train" and leaves_some(own):
                take(subject)
    return out


def _rank(table: SampleTable, row: int, seed: int) -> tuple[int, str]:
    """Pseudo-random but content-addressed order; byte-identical samples are neighbours."""
    return xxhash.xxh3_64_intdigest(table.digests[row].encode(), seed), table.ids[row]


def _with_digests(dataset: Dataset, found: Listing, workers: int) -> SampleTable:
    def one(id: str) -> str | Problem:
        try:
            return dataset.digest(id, dataset.read(id))
        except OSError as error:
            return Problem(id, f"unreadable: {error.strerror or error}")

    with ThreadPoolExecutor(max(1, workers)) as pool:
        results = list(pool.map(one, found.ids, chunksize=64))
    good = np.array([isinstance(result, str) for result in results], dtype=bool)
    problems = [
        dataclasses.replace(result, label=int(found.labels[row]), group=int(found.groups[row]))
        for row, result in enumerate(results)
        if isinstance(result, Problem)
    ]
    everything = SampleTable(found.ids, found.labels, found.groups, found.splits, _strings(results))
    return dataclasses.replace(everything.take(good), problems=found.problems + tuple(problems))


def _check(dataset: Dataset, found: Listing, table: SampleTable, max_problem_share: float) -> None:
    total = len(table) + len(table.problems)
    where = f"data set {dataset.name}"
    if len(table) == 0:
        reason = f"; first: {_first(dataset, table.problems[:1])}" if table.problems else ""
        raise DataError(
            where=where,
            found=f"no usable sample{reason}",
            wanted="images",
            fix="check --data-root (bird list datasets tells the layout)",
        )
    for kind, values, size in (
        ("label", table.labels, len(dataset.class_names)),
        ("group", table.groups, len(dataset.group_names)),
    ):
        if values.min() < 0 or values.max() >= size:
            raise DataError(
                where=where,
                found=f"{kind}s {values.min()}..{values.max()}",
                wanted=f"0..{size - 1}",
                fix=f"correct the {kind} column",
            )
    if len(table.problems) > max_problem_share * total:
        groups = Counter((problem.label, problem.group) for problem in table.problems)
        per_cell = ", ".join(
            f"class {c} group {g}: {n}" if c >= 0 else f"unknown cell: {n}" for (c, g), n in sorted(groups.items())
        )
        share = math.ceil(1000 * len(table.problems) / total) / 1000
        raise DataError(
            where=where,
            found=f"{len(table.problems)} of {total} samples unusable ({per_cell}); first: "
            + _first(dataset, table.problems[:3]),
            wanted=f"at most {max_problem_share:.1%}",
            fix=f"complete the data set, or allow more with --max-failed {share:g}",
        )


def _first(dataset: Dataset, problems: Sequence[Problem]) -> str:
    """The problems in words; of the first missing file also the full path, and what lies there instead."""
    lines = [f"{problem.id}: {problem.reason}" for problem in problems]
    missing = [problem for problem in problems if problem.reason == f"unreadable: {os.strerror(errno.ENOENT)}"]
    if missing and (path := dataset.file(missing[0].id)) is not None:
        lines.append(f"{path} is not there; {beside(path)}")
    return "; ".join(lines)


def require_test_cells(dataset: Dataset, table: SampleTable) -> None:
    """Raise DataError, naming them, if (class, group) cells have no test sample: a recall without samples does not exist,
    which is better said before a teacher has run for hours than after."""
    test = table.take(table.splits == "test")
    counts = test.cells(len(dataset.class_names), len(dataset.group_names))
    empty = [f"{dataset.class_names[c]} x {dataset.group_names[g]}" for c, g in np.argwhere(counts == 0)]
    if empty:
        raise DataError(
            where=f"data set {dataset.name}",
            found=f"no test sample for {', '.join(empty[:10])}",
            wanted="at least one test sample of every class in every group",
            fix="add samples, merge groups, or raise --limit",
        )


def _drop_conflicts(table: SampleTable, keep: bool) -> tuple[SampleTable, dict[str, int]]:
    """Byte-identical samples that disagree on label or group carry no usable label: none of them is kept."""
    copies: dict[str, list[int]] = {}
    for row, digest in enumerate(table.digests):
        copies.setdefault(digest, []).append(row)
    groups = [rows for rows in copies.values() if len(rows) > 1]
    conflicts = [rows for rows in groups if len({(int(table.labels[row]), int(table.groups[row])) for row in rows}) > 1]
    drop = np.zeros(len(table), dtype=bool)
    problems = list(table.problems)
    for rows in [] if keep else conflicts:
        drop[rows] = True
        others = " = ".join(table.ids[row] for row in rows)
        problems += [
            Problem(
                table.ids[row],
                f"identical images, different labels: {others}",
                int(table.labels[row]),
                int(table.groups[row]),
            )
            for row in rows
        ]
    notes = {
        "identical_groups": len(groups),
        "conflicting_groups": len(conflicts),
        "conflicting_dropped": int(drop.sum()),
    }
    return dataclasses.replace(table.take(~drop), problems=tuple(problems)), notes


def _one_side_only(table: SampleTable) -> tuple[SampleTable, int]:
    """Byte-identical samples stay on one side: test keeps its copy before meta, meta before train."""
    side: dict[str, str] = {}
    for split in ("test", "meta", "train"):
        for digest in table.digests[table.splits == split]:
            side.setdefault(digest, split)
    keep = np.array(
        [side[digest] == split for digest, split in zip(table.digests, table.splits, strict=True)], dtype=bool
    )
    return table.take(keep), int((~keep).sum())


def _strings(values: Iterable[object]) -> Strings:
    items = list(values)
    out = np.empty(len(items), dtype=object)
    out[:] = items
    return out
