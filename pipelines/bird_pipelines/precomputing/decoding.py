"""From image files to what a teacher sees, batch by batch, several at once and in order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bird.datasets.base import Dataset
from bird.errors import DataError, ImageError
from bird.images import carries_little
from bird.stored_views import BOX, draw_boxes
from bird.teachers import Service, Teacher
from bird_cache.manifest import Plan
from bird_cache.samples import Samples
from bird_pipelines.precomputing.paid import Job, payload
from bird_pipelines.precomputing.update import Earlier

__all__ = ["Decoded", "decode", "plan_jobs"]


@final
class Views(NamedTuple):
    """Views of one shape, and their places among all views of a batch: as a rule that is every one."""

    places: list[int]
    pixels: Tensor


@final
class Decoded(NamedTuple):
    """A decoded batch, and which of its rows (numbered in the whole cache) could not be decoded, and why. `rows` are those
    to compute; `pixels` hold their views, `boxes` say which they are (len(rows), views, 5)."""

    job: Job
    rows: NDArray[np.int64]
    pixels: list[Views]
    boxes: np.ndarray
    failed: dict[int, str]
    sources: dict[int, bytes]
    """the encoded images that could be read, where the store holds them"""
    payloads: dict[int, bytes]
    """what is sent to a service"""
    doubtful: dict[int, str]
    """rows whose images carry little, and what they are"""


def plan_jobs(plan: Plan, shards: Sequence[int], batch_size: int) -> list[Job]:
    """The batches of the given shards, in order. None spans two shards."""
    return [
        Job(
            shard,
            start,
            min(start + batch_size, plan.bounds(shard)[1]),
            start + batch_size >= plan.bounds(shard)[1],
        )
        for shard in shards
        for start in range(*plan.bounds(shard), batch_size)
    ]


def decode(
    teacher: Teacher | Service, dataset: Dataset, samples: Samples, job: Job, plan: Plan, earlier: Earlier | None = None
) -> Decoded:
    """Read, decode and preprocess one batch, but for what an earlier cache has; a row that fails is left as zeros and keeps
    its place. Raises DataError for an image that is not the planned one."""
    every = np.arange(job.start, job.stop)
    rows = every if earlier is None else every[~earlier.has(every)]
    boxes = np.zeros((len(rows), plan.views, BOX), np.int32)
    views: dict[int, list[Tensor]] = {}
    failed: dict[int, str] = {}
    sources: dict[int, bytes] = {}
    payloads: dict[int, bytes] = {}
    doubtful: dict[int, str] = {}
    for row in (every if plan.images else rows).tolist():
        try:
            data = read(dataset, samples, row)
            if plan.images:
                sources[row] = data
            if (position := int(np.searchsorted(rows, row))) == len(rows) or rows[position] != row:
                continue
            image = dataset.decode(samples.ids[row], data)
            if (little := carries_little(image)) is not None:
                doubtful[row] = little
            if isinstance(teacher, Service):
                payloads[row] = payload(samples.ids[row], data, image)
                continue
            height, width, _ = image.shape
            boxes[position] = draw_boxes(samples.digests[row], plan.views - 1, height, width, dataset.flip)
            views[row] = [teacher.preprocess(image, box) for box in boxes[position]]
        except ImageError as error:
            failed[row] = error.found
            sources.pop(row, None)
        except OSError as error:
            failed[row] = f"unreadable: {error.strerror or error}"
    if isinstance(teacher, Service) or not len(rows):
        return Decoded(job, rows, [], boxes, failed, sources, payloads, doubtful)
    blank = torch.zeros_like(views[min(views)][0] if views else teacher.preprocess(np.zeros((64, 64, 3), np.uint8)))
    every_view = [view for row in rows.tolist() for view in views.get(row, [blank] * plan.views)]
    return Decoded(job, rows, put_together(every_view), boxes, failed, sources, {}, doubtful)


def put_together(views: Sequence[Tensor]) -> list[Views]:
    """Those of one shape in one tensor: a library's processor may keep a photo's proportions."""
    places: dict[torch.Size, list[int]] = {}
    for place, view in enumerate(views):
        places.setdefault(view.shape, []).append(place)
    # As they lie in memory, channels last: the teacher turns them around when it normalises.
    return [
        Views(same, torch.stack([views[place].permute(1, 2, 0) for place in same]).permute(0, 3, 1, 2))
        for same in places.values()
    ]


def read(dataset: Dataset, samples: Samples, row: int) -> bytes:
    """The encoded image of a row. Raises DataError unless it is the planned one."""
    id = samples.ids[row]
    data = dataset.read(id)
    if dataset.digest(id, data) != samples.digests[row]:
        raise DataError(
            where=f"{dataset.name}, sample {id}",
            found="an image that changed while the cache was being written",
            wanted="the bytes that were planned",
            fix="restore it, or start another cache for the changed data set",
        )
    return data
