"""What every data set gives: a listing of its samples, the encoded bytes of one, and its pixels.

`prepare` turns a listing into the sample table that a cache or a training run is planned on:

    listing -> content digests -> drop conflicting copies -> splits -> carve meta -> no copy on two sides -> limit

Everything here is deterministic: what is kept is decided by hashes of the samples' contents, never by position.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from bird.datasets.crossing import Factor
from bird.datasets.finding import refuse_dead_link
from bird.datasets.kept_splits import keep_sides
from bird.datasets.left_out import count_problems, count_rows, first_of
from bird.datasets.samples import Ints, Listing, Problem, SampleTable, Strings, strings
from bird.datasets.sampling import carve_meta, subset
from bird.datasets.subjects import whole_subjects
from bird.errors import DataError

__all__ = [
    "SPLITS",
    "Dataset",
    "Listing",
    "Problem",
    "SampleTable",
    "carve_meta",
    "empty_cells",
    "prepare",
    "require_test_cells",
    "subset",
]

SPLITS = ("train", "meta", "test")
COPY_BY_NAME = "copy by its file name"


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
    filtered: str = "left out by the split settings"
    """why `assign_splits` leaves rows out"""
    subjects: Mapping[str, str] | None = None
    """id -> who is in the image, where the data set knows: a subject is never in two splits"""
    factors: Mapping[str, Factor] = {}
    """the columns that the groups are crossed from, where there are several"""
    own: Mapping[str, str | None] = {}
    """what identifies the code of a data set of the user's own (`bird.own.Part.identity`)"""
    unknown_groups = False
    """whether train rows may be of group -1, which nobody knows"""

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
    sides: Mapping[str, str] | None = None,
) -> SampleTable:
    """The sample table of `dataset`: see the module's docstring for the steps. `sides` (digest -> split) is where samples
    were in an earlier state of the data set: where splits are drawn, they stay there.

    Raises DataError if nothing is left, a label or group is out of range, or more than `max_problem_share` of the
    samples had to be left out for missing files or unparsable names.
    """
    found = dataset.listing()
    table = _with_digests(dataset, found, workers)
    _check(dataset, found, table, max_problem_share)
    notes = {"listed": len(found.ids), "unusable": len(table.problems)}
    elsewhere = Listing.of((id, -1, -1, "") for id in found.compared)
    foreign = set(_with_digests(dataset, elsewhere, workers).digests.tolist())
    table, copies = _drop_conflicts(table, keep_conflicts, foreign)
    notes |= copies
    lost = count_problems((*table.problems, *found.left_out))
    splits = dataset.assign_splits(table)
    listed = table.splits[splits != ""]
    lost += count_rows(table, splits == "", dataset.filtered)
    table = dataclasses.replace(table, splits=splits).take(splits != "")
    _require_some(dataset, table, notes)
    if "meta" not in table.splits:
        table = dataclasses.replace(table, splits=carve_meta(table, meta_fraction, meta_at_least, split_seed))
        if dataset.subjects is not None:
            table = dataclasses.replace(table, splits=whole_subjects(table, table.splits, dataset.subjects, "meta"))
    else:
        listed = np.where(listed == "", "", "fixed").astype(object)  # train and meta are the data set's own
    if sides is not None:
        splits, notes["kept_on_their_side"] = keep_sides(table, listed, sides, dataset.subjects)
        table = dataclasses.replace(table, splits=splits)
    _require_groups(dataset, table)
    keep = _one_side_only(table)
    lost += count_rows(table, ~keep, "copy across splits")
    table, notes["copies_dropped_across_splits"] = table.take(keep), int((~keep).sum())
    if limit is not None:  # last: carving from what a limit left would take its least number a cell from very few
        chosen = subset(table, limit)
        lost += count_rows(table, ~np.isin(np.arange(len(table)), chosen), "not in --limit")
        table = table.take(chosen)
    train = table.digests[table.splits == "train"].tolist()
    notes["copies_that_count_twice_in_train"] = len(train) - len(set(train))
    if by_name := sum(problem.kind == COPY_BY_NAME for problem in found.left_out):
        notes["copies_by_name"] = by_name
    order = np.argsort([SPLITS.index(split) for split in table.splits], kind="stable")
    return dataclasses.replace(table.take(order), notes=notes, left_out=dict(sorted(lost.items())))


def _require_some(dataset: Dataset, table: SampleTable, notes: Mapping[str, int]) -> None:
    if len(table) == 0:
        raise DataError(
            where=f"data set {dataset.name}",
            found=f"no sample left of {notes['listed']} ({notes})",
            wanted="at least one in a split",
            fix="look at the split settings and at the conflicting copies",
        )


def _with_digests(dataset: Dataset, found: Listing, workers: int) -> SampleTable:
    def one(id: str) -> str | Problem:
        try:
            return dataset.digest(id, dataset.read(id))
        except OSError as error:
            if (path := dataset.file(id)) is not None:
                refuse_dead_link(path, f"data set {dataset.name}")
            kind = "missing file" if isinstance(error, FileNotFoundError) else "unreadable file"
            return Problem(id, f"unreadable: {error.strerror or error}", kind=kind)

    with ThreadPoolExecutor(max(1, workers)) as pool:
        results = list(pool.map(one, found.ids, chunksize=64))
    good = np.array([isinstance(result, str) for result in results], dtype=bool)
    problems = [
        dataclasses.replace(
            result, label=int(found.labels[row]), group=int(found.groups[row]), split=str(found.splits[row])
        )
        for row, result in enumerate(results)
        if isinstance(result, Problem)
    ]
    everything = SampleTable(found.ids, found.labels, found.groups, found.splits, strings(results))
    return dataclasses.replace(everything.take(good), problems=found.problems + tuple(problems))


def _check(dataset: Dataset, found: Listing, table: SampleTable, max_problem_share: float) -> None:
    total = len(table) + len(table.problems)
    where = f"data set {dataset.name}"
    if len(table) == 0:
        reason = f"; first: {first_of(table.problems[:1], dataset.file)}" if table.problems else ""
        fix = "check --data-root (bird list datasets tells the layout)"
        missing = bool(table.problems) and dataset.file(table.problems[0].id) is not None
        raise DataError(
            where=where,
            found=f"no usable sample{reason}",
            wanted="images where the lists say" if missing else "images",
            fix=f"correct the paths in the lists, or {fix}" if missing else fix,
        )
    for kind, values, size in (
        ("label", table.labels, len(dataset.class_names)),
        ("group", table.groups, len(dataset.group_names)),
    ):
        low = -1 if kind == "group" and dataset.unknown_groups else 0
        if values.min() < low or values.max() >= size:
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
            + first_of(table.problems[:3], dataset.file),
            wanted=f"at most {max_problem_share:.1%}",
            fix=f"complete the data set, or allow more with --max-failed {share:g}",
        )


def _require_groups(dataset: Dataset, table: SampleTable) -> None:
    """Raise DataError for meta and test rows of an unknown group: feedback and gaps are of groups."""
    for split in ("meta", "test"):
        unknown = table.ids[(table.splits == split) & (table.groups < 0)].tolist()
        if unknown:
            raise DataError(
                where=f"data set {dataset.name}",
                found=f"{len(unknown)} {split} rows without a group: {', '.join(map(repr, unknown[:10]))}",
                wanted="a group in every meta and test row: train rows alone may be without",
                fix="write the groups of these rows, or put them into train",
            )


def require_test_cells(dataset: Dataset, table: SampleTable) -> None:
    """Raise DataError if there are not two classes and two groups, or, naming them, if (class, group) cells have no test
    sample: a gap or a recall that does not exist is better told before a teacher has run for hours than after."""
    for kind, names in (("class", dataset.class_names), ("group", dataset.group_names)):
        if len(names) < 2:
            raise DataError(
                where=f"data set {dataset.name}",
                found=f"one {kind}: {', '.join(map(repr, names))}",
                wanted="two classes and two groups, or more: less leaves nothing to tell apart",
                fix=f"add samples of another {kind}",
            )
    counts = table.take(table.splits == "test").cells(len(dataset.class_names), len(dataset.group_names))
    if empty := _without(counts, dataset.class_names, dataset.group_names):
        raise DataError(
            where=f"data set {dataset.name}",
            found=f"no test sample for {', '.join(empty[:10])}",
            wanted="at least one test sample of every class in every group",
            fix="add samples, merge groups, or raise --limit",
        )


def empty_cells(
    table: SampleTable, class_names: Sequence[str], group_names: Sequence[str], splits: Sequence[str] = SPLITS
) -> dict[str, list[str]]:
    """The (class, group) cells without a sample, by name, of each split that has samples and such a cell."""
    found: dict[str, list[str]] = {}
    for split in splits:
        rows = table.splits == split
        empty = _without(table.take(rows).cells(len(class_names), len(group_names)), class_names, group_names)
        if empty and rows.any():
            found[split] = empty
    return found


def _without(counts: Ints, class_names: Sequence[str], group_names: Sequence[str]) -> list[str]:
    return [f"class {class_names[c]} x group {group_names[g]}" for c, g in np.argwhere(counts == 0).tolist()]


def _drop_conflicts(table: SampleTable, keep: bool, foreign: set[str]) -> tuple[SampleTable, dict[str, int]]:
    """Byte-identical samples that disagree on label or group carry no usable label: none of them is kept. `foreign` are the
    digests of left-out samples, which carry other labels."""
    copies: dict[str, list[int]] = {}
    for row, digest in enumerate(table.digests):
        copies.setdefault(digest, []).append(row)
    groups = [rows for digest, rows in copies.items() if len(rows) > 1 or digest in foreign]
    conflicts = [
        rows
        for rows in groups
        if table.digests[rows[0]] in foreign
        or len({(int(table.labels[row]), int(table.groups[row])) for row in rows}) > 1
    ]
    drop = np.zeros(len(table), dtype=bool)
    problems = list(table.problems)
    for rows in [] if keep else conflicts:
        drop[rows] = True
        others = " = ".join(table.ids[row] for row in rows)
        others += " = a sample that is left out" if table.digests[rows[0]] in foreign else ""
        problems += [
            Problem(
                table.ids[row],
                f"identical images, different labels: {others}",
                int(table.labels[row]),
                int(table.groups[row]),
                str(table.splits[row]),
                "conflicting copy",
            )
            for row in rows
        ]
    notes = {
        "identical_groups": len(groups),
        "conflicting_groups": len(conflicts),
        "conflicting_dropped": int(drop.sum()),
    }
    return dataclasses.replace(table.take(~drop), problems=tuple(problems)), notes


def _one_side_only(table: SampleTable) -> NDArray[np.bool_]:
    """The rows to keep, so that byte-identical samples are on one side: test has its copy before meta, meta before train."""
    side: dict[str, str] = {}
    for split in ("test", "meta", "train"):
        for digest in table.digests[table.splits == split]:
            side.setdefault(digest, split)
    return np.array(
        [side[digest] == split for digest, split in zip(table.digests, table.splits, strict=True)], dtype=bool
    )
