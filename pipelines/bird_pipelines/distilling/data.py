"""What a training run reads: labels and groups, the cached features, and the images, joined by id."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from bird.datasets import open_dataset
from bird.datasets.base import SPLITS, Dataset, SampleTable, empty_cells, prepare, require_test_cells, subset
from bird.datasets.crossing import Factor
from bird.datasets.own import is_object, open_own
from bird.devices import send
from bird.errors import DataError, UsageError
from bird.methods import Batch
from bird.own import Part, is_label
from bird.student_views import apply_views, mirror_as, unit_range
from bird.students import input_of
from bird_cache.errors import StaleCacheError
from bird_cache.files import digest
from bird_cache.manifest import LeftOut
from bird_cache.samples import OK
from bird_cache.store import FeatureStore, open_cache
from bird_cache.summary import accounted, name_of_cell
from bird_pipelines.config import CHOOSE, Source
from bird_pipelines.distilling.images import Images
from bird_pipelines.distilling.stages import Stages
from bird_pipelines.distilling.vectors import Features, features_of, moments_of, pick
from bird_pipelines.progress import tell, tell_remarks

__all__ = ["RunData", "hold_out", "load_data"]

LOGITS, BOXES = "logits", "boxes"


@final
@dataclasses.dataclass(frozen=True)
class RunData:
    """Rows 0..N-1 of one run, all splits together. `features` are the teacher's raw penultimate vectors (N, d)."""

    table: SampleTable
    class_names: tuple[str, ...]
    group_names: tuple[str, ...]
    image_size: int
    flip: bool
    images: Images | None
    features: Features | None
    logits: Float[Tensor, "rows classes"] | None
    """the teacher's, where the cache holds them (`bird cache fit-head`, or imported)"""
    logits_fingerprint: str | None
    stages: Stages | None
    """the teacher's residual stages, read when a method opens them"""
    boxes: NDArray[np.int32] | None
    """stored views (rows, views, 5); then `features` are (rows, views, d), else (rows, d)"""
    fingerprint: str | None
    teacher: str | None
    failed: Mapping[str, int]
    """samples left out, by "class, group" """
    accounted: Mapping[str, Any] | None = None
    """what was listed, and what of it got no row (`bird_cache.summary.accounted`); None where the cache does not say"""
    posterior: Float[Tensor, "rows groups"] | None = None
    """the probabilities of the groups, where those of train rows are not known (bird_pipelines.distilling.groups)"""
    estimated: int = 0
    """train rows whose group is the probe's"""
    probe: float | None = None
    """how often the most probable group is right, on meta rows that the probe has not seen"""
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """the data set's"""
    factors: Mapping[str, Factor] = dataclasses.field(default_factory=dict)
    """the columns that the groups are crossed from, where there are several"""

    def rows(self, split: str) -> NDArray[np.int64]:
        """Rows of one split, in order."""
        return np.flatnonzero(self.table.splits == split)

    def cell_counts(self, split: str) -> Int[Tensor, "classes groups"]:
        """How many samples of a split each (class, group) cell has, of those whose group is known or estimated."""
        rows, classes = self.rows(split), len(self.class_names)
        if self.posterior is None:
            return torch.from_numpy(self.table.take(rows).cells(classes, len(self.group_names)))
        zero = torch.zeros(classes, len(self.group_names))
        return zero.index_add(0, torch.from_numpy(self.table.labels[rows]), self.posterior[rows]).round().long()

    def empty_cells(self) -> dict[str, list[str]]:
        """The (class, group) cells without a sample by name, for each split that has samples and such a cell. Of train rows
        with probabilities in the place of groups none is known to be empty."""
        splits = [split for split in (*SPLITS, CHOOSE) if self.posterior is None or split != "train"]
        return empty_cells(self.table, self.class_names, self.group_names, splits)

    def cells(self) -> dict[str, dict[str, int]]:
        """Rows by split and "class, group", of the cells that have any; without train where groups of it are not known."""
        found: dict[str, dict[str, int]] = {}
        for split in (*SPLITS, CHOOSE):
            rows = self.rows(split)
            rows = rows[self.table.groups[rows] >= 0]
            if not len(rows) or (split == "train" and self.posterior is not None):
                continue
            codes = self.table.labels[rows] * len(self.group_names) + self.table.groups[rows]
            numbers, counts = np.unique(codes, return_counts=True)
            names = (divmod(number, len(self.group_names)) for number in numbers.tolist())
            named = (f"{self.class_names[label]}, {self.group_names[group]}" for label, group in names)
            found[split] = dict(zip(named, counts.tolist(), strict=True))
        return found

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the train split's features, each (d,); a constant feature has deviation 1."""
        return self._moments

    @cached_property
    def _moments(self) -> tuple[Tensor, Tensor]:
        """Every run on these data asks, and the sums read all of the train vectors twice."""
        assert self.features is not None
        return moments_of(self.features, self.rows("train"))

    def batch(
        self,
        rows: NDArray[np.int64],
        device: torch.device,
        *,
        views: NDArray[np.int64] | None = None,
        stored: NDArray[np.int64] | None = None,
        moments: tuple[Tensor, Tensor] | None = None,
        teacher_logits: Tensor | None = None,
        stages: bool = False,
    ) -> Batch:
        """The batch of the given rows: `views` are random views of the images, `stored` says instead which stored view of
        each row the teacher saw and the student sees (default: the deterministic one), `moments` standardise; with
        `stages` the teacher's residual stages, which must be open."""
        index = torch.from_numpy(rows)
        teacher = None
        features = None
        if self.features is not None:
            features = pick(self.features, index, None if stored is None else torch.from_numpy(stored))
        if self.images is not None:
            if stored is not None:
                assert self.boxes is not None
                pixels = send(self.images.boxed(rows, self.boxes[rows, stored]), device)
            else:
                pixels = send(self.images.get(rows), device)
                pixels = pixels if views is None else apply_views(pixels, views)
            inputs = unit_range(pixels)
        else:
            assert features is not None
            inputs = send(features, device)
        if moments is not None:
            assert features is not None
            teacher = send((features - moments[0]) / moments[1], device)
        found = self.stages.get(rows, stored) if stages and self.stages is not None else None
        if found is not None and views is not None:
            found = tuple(mirror_as(each, views) for each in found)
        return Batch(
            inputs=inputs,
            labels=send(torch.from_numpy(self.table.labels[rows]), device),
            groups=send(torch.from_numpy(self.table.groups[rows]), device),
            teacher=teacher,
            teacher_logits=None if teacher_logits is None else send(teacher_logits[index], device),
            stages=None if found is None else tuple(send(each, device) for each in found),
            posterior=None if self.posterior is None else send(self.posterior[index], device),
        )

    def view_policy(self, augment: bool, *, staged: bool) -> str:
        """In words: which views the teacher and the student saw."""
        if self.boxes is not None:
            count = self.boxes.shape[1] - 1
            who = "the student sees the same crop and flip" if self.images is not None else "the student reads no image"
            return f"one of {count} stored random views a step, {who}" if augment else "the deterministic view"
        if self.images is None:
            return "cached features of one deterministic view; the student reads no image"
        student = "a random crop and flip" if augment else "the deterministic view"
        if staged and augment:
            student += " (the teacher's maps are mirrored with it, not shifted)"
        teacher = "the teacher saw one deterministic view" if self.features is not None else "no teacher"
        return f"{teacher}, the student sees {student}"


def load_data(source: Source, student: str, workers: int = 2, own: Part | None = None) -> RunData:
    """Everything a run of that student reads: from its cache if it has one (with the images only if the student looks at
    them, which `workers` threads decode), else from the data set. `own` is the data set, where it is the user's own.

    Raises the cache's errors, DataError, and UsageError for a student that needs a cache and has none.
    """
    if source.cache is not None:
        return _from_cache(source, open_cache(source.cache), student, workers, own)
    if input_of(student) == "features":
        raise UsageError(
            where=f"--student {student}",
            found="no cache",
            wanted="cached features to learn on",
            fix="use `bird distill --cache CACHE`, or a student that reads images",
        )
    if source.choose is not None:
        raise UsageError(
            where="choose",
            found="no cache",
            wanted="a cache whose meta split is halved",
            fix="give --cache, or leave it out",
        )
    dataset = _opened(source, source.dataset_settings, own)
    table = prepare(dataset, limit=source.limit, workers=workers)
    require_test_cells(dataset, table)
    tell_remarks(dataset.remarks)
    size = source.image_size or dataset.image_size
    images = Images(dataset, table, size, workers)
    failures = images.failures()
    if len(failures) > 0.01 * len(table):
        row, reason = next(iter(failures.items()))
        raise DataError(
            where=f"data set {dataset.name}",
            found=f"{len(failures)} of {len(table)} images undecodable; first: {table.ids[row]}: {reason}",
            wanted="at most 1 %",
            fix="repair or remove them",
        )
    splits = table.splits.copy()
    splits[list(failures)] = "failed"
    _tell_doubtful(images.doubtful, table)
    return RunData(
        table=dataclasses.replace(table, splits=splits),
        class_names=dataset.class_names,
        group_names=dataset.group_names,
        settings=dataset.settings,
        factors=dataset.factors,
        image_size=size,
        flip=dataset.flip,
        images=images,
        features=None,
        logits=None,
        logits_fingerprint=None,
        stages=None,
        boxes=None,
        fingerprint=None,
        teacher=None,
        failed=_count(table, list(failures), dataset.class_names, dataset.group_names),
        accounted=accounted(len(table), LeftOut.of(table.left_out), dataset.class_names, dataset.group_names),
    )


def _opened(source: Source, settings: Mapping[str, Any], own: Part | None) -> Dataset:
    """The data set that the run names, its own or a built-in one. Raises UsageError for one of the user's own that is not
    given: a record does not say what to import."""
    if own is not None:
        return open_own(own, source.data_root, {} if is_object(own) else settings)
    if is_label(source.dataset):
        raise UsageError(
            where=f"data set {source.dataset}",
            found="a data set of your own, which a record cannot open by itself",
            wanted="the same data set: the student reads its images",
            fix="give it again with --dataset, as for `bird precompute`; the student adapter reads no images",
        )
    return open_dataset(source.dataset, source.data_root, **settings)


def _tell_doubtful(found: Mapping[int, str], table: SampleTable) -> None:
    """Say on stderr how many images carry little."""
    if found:
        first = min(found)
        tell(
            f"warning: {len(found):,} of {len(table):,} images carry little, such as {table.ids[first]} ({found[first]}): "
            "look at them; 16-bit images of 12 bits need --setting white_level=4095"
        )


def _from_cache(source: Source, store: FeatureStore, student: str, workers: int, own: Part | None) -> RunData:
    store.require_complete()
    plan, samples = store.manifest.plan, store.samples
    described = plan.causes["dataset"]
    assert isinstance(described, dict)
    if described["name"] != source.dataset:
        changed = own is not None and str(described["name"]).startswith(f"{own.attribute}@")
        raise StaleCacheError(
            where=str(source.cache),
            found=f"features of {described['name']}",
            wanted=f"features of {source.dataset}" + (": the file has changed since" if changed else ""),
            fix="write a new cache with --update, which takes over the vectors of the same images"
            if changed
            else "use the cache of that data set, or leave --dataset out",
        )
    whole = SampleTable(samples.ids, samples.labels, samples.groups, samples.splits, samples.digests)
    usable = samples.status == OK
    rows = np.flatnonzero(usable)
    if source.limit is not None:  # thins what is trained on; the test split stays whole
        kept = rows[subset(whole.take(usable), source.limit)]
        rows = np.union1d(kept, rows[samples.splits[rows] == "test"])
    if source.choose is not None:  # whoever chooses a setting does not even read the test split
        rows = rows[samples.splits[rows] != "test"]
    table = whole.take(rows)
    if source.choose is not None:
        table = hold_out(table, source.choose)
    settings = described["settings"]
    assert isinstance(settings, dict)
    reads_images = input_of(student) == "image"
    if source.image_size is not None and not reads_images:
        raise UsageError(
            where="--image-size",
            found=f"--student {student}, which reads no image",
            wanted="a student that reads images",
            fix="leave --image-size out",
        )
    dataset = _opened(source, settings, own) if reads_images else None
    size = 0 if dataset is None else source.image_size or dataset.image_size
    layers = store.manifest.layers()
    return RunData(
        table=table,
        class_names=plan.class_names,
        group_names=plan.group_names,
        settings=settings,
        factors={each.name: Factor(each.names, each.codes) for each in plan.factors},
        image_size=size,
        flip=dataset.flip if dataset else False,
        images=Images(dataset, table, size, workers) if dataset else None,
        features=features_of(store, rows, source.memory_gb * 2**30),
        stages=Stages(store, rows),
        boxes=store.take(BOXES, rows).astype(np.int32) if BOXES in layers else None,
        logits=torch.from_numpy(store.vectors(LOGITS, rows)) if LOGITS in layers else None,
        logits_fingerprint=store.manifest.plan_of(store.manifest.part_of(LOGITS)).fingerprint
        if LOGITS in layers
        else None,
        fingerprint=store.fingerprint,
        teacher=plan.notes.get("teacher"),
        failed=_count(whole, np.flatnonzero(~usable).tolist(), plan.class_names, plan.group_names),
        accounted=accounted(plan.rows, plan.left_out, plan.class_names, plan.group_names),
    )


def hold_out(table: SampleTable, seed: int) -> SampleTable:
    """The table with half of each (class, group) cell of meta in a split `choose`, the smaller half where it is odd.
    Which half is decided by the seed and the samples' content, not by their place."""
    splits, meta = table.splits.copy(), np.flatnonzero(table.splits == "meta")
    by_cell: dict[tuple[int, int], list[int]] = {}
    for row in meta.tolist():
        by_cell.setdefault((int(table.labels[row]), int(table.groups[row])), []).append(row)
    for rows in by_cell.values():
        rows.sort(key=lambda row: digest(f"{seed} {table.digests[row]} {table.ids[row]}".encode()))
        splits[rows[: len(rows) // 2]] = CHOOSE
    return dataclasses.replace(table, splits=splits)


def _count(table: SampleTable, rows: list[int], classes: tuple[str, ...], groups: tuple[str, ...]) -> dict[str, int]:
    cells = Counter(f"{table.labels[row]},{table.groups[row]}" for row in rows)
    return dict(sorted((name_of_cell(classes, groups, key), count) for key, count in cells.items()))


def cache_dataset(cache: str | Path) -> str:
    """The name of the data set whose features a cache holds."""
    described = open_cache(cache).manifest.plan.causes["dataset"]
    assert isinstance(described, dict)
    return str(described["name"])
