"""Phase one: run the frozen teacher once over the data set, and write what it says to the cache.

Several threads each take a batch from the files through the teacher; one thread writes. On the CPU that is a batch a core:
nothing waits for another core between two layers. A GPU's queue is filled by one of them at a time. A shard is a pure
function of the plan: batches start at its first row and a failed image keeps its place, so that a resumed run computes the
very batches that an unbroken one does.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import final

import numpy as np
import torch

from bird.datasets.base import Dataset, SampleTable
from bird.devices import enough_memory
from bird.errors import DataError, TeacherError
from bird.teachers import Service, Teacher, expand_layers
from bird_cache.errors import BusyCacheError, StorageError
from bird_cache.folders import open_folder
from bird_cache.manifest import Manifest, Plan, Receipt
from bird_cache.numbers import storage_dtype
from bird_cache.samples import Samples
from bird_cache.storage import Folder
from bird_cache.store import find_layout, read_manifest
from bird_cache.summary import name_of_cell
from bird_cache.worker import open_worker
from bird_cache.writer import FeatureWriter, open_part, open_writer
from bird_pipelines.config import Stored, Work
from bird_pipelines.precomputing.decoding import Decoded, decode, plan_jobs
from bird_pipelines.precomputing.paid import Job, Paid, adopt_canaries, refuse_views, save_canaries
from bird_pipelines.precomputing.plan import (
    BOXES,
    make_plan,
    require_revision,
    samples_of,
)
from bird_pipelines.precomputing.update import Earlier
from bird_pipelines.prefetch import in_order
from bird_pipelines.progress import Advance, Interrupted, progress, stop_requests, tell

__all__ = [
    "Batches",
    "need_room",
    "open_for",
    "planned",
    "precompute",
    "refuse_too_many",
    "rows_of",
    "run_jobs",
    "usual_workers",
]

WRITES_IN_FLIGHT = 2
FINISH_SECONDS = 60.0
"""how long a slice that wrote the last shard waits for another process to let the folder go"""
STORED, WORK = Stored(), Work()


def precompute(
    teacher: Teacher | Service,
    dataset: Dataset,
    table: SampleTable,
    out: str | Path,
    *,
    stored: Stored = STORED,
    work: Work = WORK,
    precision: str = "fp32",
    max_failed: float = 0.01,
) -> Manifest:
    """Write (or finish writing) the cache of `teacher` over `table` in `out` (a folder or URL), and return its manifest.
    Where `work.part` is (i, n) only every n-th shard is computed, from the i-th; the cache is finished by whoever writes
    the last one. What `stored.update`, a finished cache of the same teacher, holds is taken from it.

    Raises the errors of `bird_cache.writer.open_writer`; DataError once more than the share `max_failed` of the rows
    cannot be decoded; TeacherError or FeatureError for unusable vectors; StorageError; Interrupted. What is committed
    is kept, and the same call goes on from there.
    """
    first, every = work.part
    if isinstance(teacher, Service):
        refuse_views(stored.views)
        adopt_canaries(teacher, open_folder(out))
    plan, samples, earlier = planned(teacher, dataset, table, stored, precision, work.batch_size)
    opening = partial(open_for, alone=True) if every == 1 else beside_others
    with opening(out, plan, samples) as writer, stop_requests() as stop:
        mine = [shard for shard in range(writer.plan.shards) if shard % every == first - 1]
        pending = {*writer.pending()}
        jobs = plan_jobs(writer.plan, [shard for shard in mine if shard in pending], work.batch_size)
        waiting, total = sum(job.stop - job.start for job in jobs), rows_of(writer.plan, mine)
        need_room(writer.folder, writer.plan, waiting)
        if isinstance(teacher, Service):
            save_canaries(teacher, writer.folder)
        with progress(f"precompute {teacher.name}", "images", total, total - waiting) as advance:
            batches = Batches(teacher, dataset, samples, writer.plan, earlier)
            run_jobs(batches, jobs, writer, work.workers or usual_workers(), max_failed, advance, stop)
        if every > 1:
            return finish_together(writer, out, plan, samples)
        return writer.manifest if writer.pending() else writer.finish()


def planned(
    teacher: Teacher | Service,
    dataset: Dataset,
    table: SampleTable,
    stored: Stored,
    precision: str,
    batch_size: int,
) -> tuple[Plan, Samples, Earlier | None]:
    """The plan of a cache and its sample table, and the finished cache from which some rows are taken."""
    if stored.views and isinstance(teacher, Teacher):
        teacher.preprocess(np.zeros((8, 8, 3), np.uint8), np.array([0, 0, 8, 8, 0], np.int32))  # can it see a box?
    layers = expand_layers(teacher, [name.strip() for name in stored.layers.split(",")])
    plan = make_plan(teacher, dataset, table, stored, layers, precision=precision, batch_size=batch_size)
    samples = samples_of(table)
    earlier = None if stored.update is None else Earlier(stored.update, plan, samples)
    if earlier is not None:
        plan = plan.model_copy(update={"notes": {**plan.notes, "reused": earlier.reused}})
    return plan, samples, earlier


def rows_of(plan: Plan, shards: Iterable[int]) -> int:
    """How many rows the shards have."""
    return sum(stop - start for start, stop in map(plan.bounds, shards))


@contextmanager
def open_for(out: str | Path, plan: Plan, samples: Samples, *, alone: bool = False) -> Iterator[FeatureWriter]:
    """The writer of a new or unfinished cache; or, where a finished one lacks some of the layers, of those alone. `alone`
    is `open_writer`'s."""
    folder = open_folder(out)
    there = read_manifest(folder)[1] if find_layout(folder) is not None else None
    if there is not None:
        require_revision(there.plan, plan, str(out))
    missing = {name: spec for name, spec in plan.layers.items() if there is not None and name not in there.layers()}
    if there is None or not there.complete:
        with open_writer(out, plan, samples, alone=alone) as writer:
            yield writer
        return
    kept = plan.model_copy(update={"causes": {**plan.causes, "layers": there.plan.causes.get("layers")}})
    if not missing:
        with open_writer(out, kept, samples) as writer:
            yield writer
        return
    there.plan.require(kept, str(out))
    wanted = {name: spec for name, spec in missing.items() if name != BOXES}
    same = [name for name, added in there.parts.items() if not added.complete and added.layers.keys() == wanted.keys()]
    part = same[0] if same else f"added-{len(there.parts) + 1}"
    with open_part(out, part, wanted, {**plan.causes, "layers": [*wanted]}) as writer:
        yield writer


@contextmanager
def beside_others(out: str | Path, plan: Plan, samples: Samples) -> Iterator[FeatureWriter]:
    """The writer of a slice. The folder is held only while the cache is begun, so that several slices write at once. A
    store that keeps no two writers apart has one at a time."""
    if not open_folder(out).shares():
        with open_for(out, plan, samples) as writer:
            yield writer
        return
    try:
        with open_for(out, plan, samples) as begun:
            fingerprint, part = begun.plan.fingerprint, begun.part
        if begun.complete:
            yield begun
            return
    except BusyCacheError:  # another slice begins it, or a process writes it all: its plan is the same, or is refused
        fingerprint, part = plan.fingerprint, ""
    writer = open_worker(out, fingerprint, part)
    for shard in range(writer.plan.shards):
        writer.committed(shard)
    yield writer


def finish_together(writer: FeatureWriter, out: str | Path, plan: Plan, samples: Samples) -> Manifest:
    """Finish a cache if every slice is there, by whoever is first."""
    end = time.monotonic() + FINISH_SECONDS
    while all(writer.committed(shard) is not None for shard in range(writer.plan.shards)) and not writer.complete:
        try:
            with open_for(out, plan, samples) as last:
                return last.manifest if last.pending() else last.finish()
        except BusyCacheError:
            if time.monotonic() >= end:
                tell(f"note: every shard of {out} is there; the process that holds the folder finishes it")
                break
            time.sleep(0.2)
    return writer.manifest


@final
class Batches:
    """Makes of a job the batch that is to be written: what one worker does."""

    def __init__(
        self,
        teacher: Teacher | Service,
        dataset: Dataset,
        samples: Samples,
        plan: Plan,
        earlier: Earlier | None,
    ) -> None:
        self.teacher, self.dataset, self.samples, self.plan, self.earlier = teacher, dataset, samples, plan, earlier
        self.beside = isinstance(teacher, Teacher) and teacher.on_cpu

    def __call__(self, job: Job) -> tuple[Decoded, dict[str, np.ndarray]]:
        """The decoded batch, and what the teacher says of it (a service has yet to be asked). Raises TeacherError,
        DataError."""
        batch = decode(self.teacher, self.dataset, self.samples, job, self.plan, self.earlier)
        if isinstance(self.teacher, Service) or not len(batch.rows):
            return batch, {}
        size = self.plan.notes["batch_size"]
        where = f"teacher {self.teacher.name}, --batch-size {size}"
        with enough_memory(where, "lower --batch-size, or use --precision bf16"):
            answers = teach(self.teacher, self.plan, batch)
        return batch._replace(pixels=[]), answers


def run_jobs(
    batches: Batches,
    jobs: Sequence[Job],
    writer: FeatureWriter,
    workers: int,
    max_failed: float,
    advance: Advance,
    stop: Callable[[], bool],
) -> None:
    """Decode, run the teacher and write, overlapping, until all jobs are done."""
    plan, samples, earlier = batches.plan, batches.samples, batches.earlier
    failures = {row: reason for receipt in writer.receipts.values() for row, reason in receipt.failed.items()}
    refuse_too_many(plan, samples, failures, max_failed)  # what an earlier call has committed counts, too
    parts: list[dict[str, np.ndarray]] = []
    paid = Paid(batches.teacher, writer.folder) if isinstance(batches.teacher, Service) else None
    sources: dict[int, bytes] = {}
    doubtful: dict[int, str] = {}
    writes: deque[Future[Receipt]] = deque()
    with workers_of(batches, workers) as pool, ThreadPoolExecutor(1, "write") as writers:
        for batch, answers in in_order(pool, batches, jobs, workers + 1):
            if stop():
                raise Interrupted
            job = batch.job
            failures |= batch.failed
            refuse_too_many(plan, samples, failures, max_failed)
            if paid is not None and len(batch.rows):
                bought, refused = paid.ask(job, batch.payloads)
                answers = {name: values[batch.rows - job.start] for name, values in bought.items()}
                failures |= refused
                refuse_too_many(plan, samples, failures, max_failed)
            parts.append(with_earlier(answers, plan, batch, earlier))
            sources |= batch.sources
            doubtful |= batch.doubtful
            if earlier is not None:
                doubtful |= earlier.doubtful(np.arange(job.start, job.stop))
            if job.last:
                start, end = plan.bounds(job.shard)
                lost = {row: reason for row, reason in failures.items() if start <= row < end}
                arrays = {name: np.concatenate([each[name] for each in parts]) for name in plan.layers}
                commit = writer.write_shard if paid is None else paid.committing(writer)
                writes.append(writers.submit(commit, job.shard, arrays, lost, sources.get, doubtful))
                parts, sources, doubtful = [], {}, {}
            while len(writes) > (0 if job is jobs[-1] else WRITES_IN_FLIGHT):
                writes.popleft().result()
            advance(job.stop - job.start)


def usual_workers() -> int:
    """How many threads decode and run the teacher, where nobody says."""
    return min(max(torch.get_num_threads(), 2), 16)


@contextmanager
def workers_of(batches: Batches, count: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that share the cores. Where the teacher is elsewhere one more may wait for it, and a core each is enough: for
    the small tensors of an image a pool of threads costs eight times the work itself."""
    cores = torch.get_num_threads()
    each = max(1, cores // count) if batches.beside else 1
    pool = ThreadPoolExecutor(
        count if batches.beside else count + 1, "batch", initializer=torch.set_num_threads, initargs=(each,)
    )
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(cores)  # a part of the setting is the process's


def teach(teacher: Teacher, plan: Plan, batch: Decoded) -> dict[str, np.ndarray]:
    """What the teacher says of a batch: each layer (rows * views, *shape). Raises TeacherError."""
    asked = [name for name in plan.layers if name != BOXES]
    parts = [teacher.answer(views.pixels, asked) for views in batch.pixels]
    order = np.argsort([place for views in batch.pixels for place in views.places])
    answers = {}
    for name in asked:
        values = [part[name].numpy() for part in parts]
        answers[name] = values[0] if len(values) == 1 else np.concatenate(values)[order]
        if answers[name].shape != (wanted := (len(batch.rows) * plan.views, *plan.layers[name].shape)):
            raise wrong_shape(teacher, answers[name].shape, wanted)
    return answers


def with_earlier(
    answers: Mapping[str, np.ndarray], plan: Plan, batch: Decoded, earlier: Earlier | None
) -> dict[str, np.ndarray]:
    """The layers of all rows of a batch, (rows, views, *shape): those just computed, and those that an earlier cache has."""
    found: dict[str, np.ndarray] = {BOXES: batch.boxes} if BOXES in plan.layers else {}
    for name, values in answers.items():
        found[name] = values.reshape(len(batch.rows), plan.views, *plan.layers[name].shape)
    every = np.arange(batch.job.start, batch.job.stop)
    if earlier is None or not (known := earlier.has(every)).any():
        return found
    out = {}
    for name, values in earlier.take(every[known]).items():
        out[name] = np.empty((len(every), *values.shape[1:]), values.dtype)
        out[name][known] = values
        if len(batch.rows):
            out[name][~known] = found[name]
    return out


def need_room(folder: Folder, plan: Plan, rows: int) -> None:
    """Raise StorageError before any work if the disk cannot hold what is still to be written."""
    row_bytes = sum(int(np.prod(spec.shape)) * storage_dtype(spec.dtype).itemsize for spec in plan.layers.values())
    needed, free = rows * row_bytes * plan.views, folder.free()
    if free is not None and needed > free:
        raise StorageError(
            where=folder.name,
            found=f"{free:,} bytes free",
            wanted=f"{needed:,} bytes for {rows:,} rows",
            fix="make room, or choose another --out",
        )


def refuse_too_many(plan: Plan, samples: Samples, failures: dict[int, str], max_failed: float) -> None:
    """Raise DataError, with the counts per cell, once too many rows have failed."""
    if len(failures) <= max_failed * plan.rows:
        return
    cells = Counter(f"{samples.labels[row]},{samples.groups[row]}" for row in failures)
    counts = "; ".join(
        f"{name_of_cell(plan.class_names, plan.group_names, key)}: {n}" for key, n in sorted(cells.items())
    )
    row, reason = next(iter(failures.items()))
    raise DataError(
        where="precompute",
        found=f"{len(failures)} of {plan.rows} images undecodable ({counts}); first: {samples.ids[row]}: {reason}",
        wanted=f"at most {max_failed:.1%}",
        fix="repair the images, or allow more with --max-failed; committed shards are kept",
    )


def wrong_shape(teacher: Teacher | Service, found: tuple[int, ...], wanted: tuple[int, ...]) -> TeacherError:
    """The error for a teacher that answers with another shape than it promised."""
    return TeacherError(
        where=f"teacher {teacher.name}",
        found=f"an answer of shape {found}",
        wanted=f"{wanted}",
        fix="check the model file",
    )
