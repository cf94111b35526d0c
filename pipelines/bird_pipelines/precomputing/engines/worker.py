"""What every engine calls: a process with one loaded teacher that writes the shards it is given."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import socket
import time
import warnings
from collections.abc import Callable, Sequence
from typing import final

import torch

from bird.errors import BirdError
from bird.teachers import Teacher
from bird_cache.errors import CacheError, StaleCacheError
from bird_cache.manifest import Plan
from bird_cache.worker import open_worker
from bird_pipelines.config import PrecomputeConfig
from bird_pipelines.precomputing.decoding import plan_jobs
from bird_pipelines.precomputing.engines.base import Order, portable
from bird_pipelines.precomputing.extraction import Batches, run_jobs, usual_workers
from bird_pipelines.precomputing.plan import teacher_causes
from bird_pipelines.precomputing.teacher import open_data, open_teacher
from bird_pipelines.precomputing.update import Earlier
from bird_pipelines.progress import Interrupted

__all__ = ["Worker"]

SIGN_SECONDS = 2.0
"""between two signs of life, at least"""


@final
class Worker:
    """One of many writers of a cache that a coordinator began."""

    def __init__(
        self, order: Order, *, number: int = 0, threads: int = 1, sign: Callable[[], None] = lambda: None
    ) -> None:
        """Open the cache, the data set and the teacher; worker `number` of a machine takes one of its GPUs. `sign` is called
        now and then when a batch is done, so that who waits knows that the worker is alive.

        Raises StorageError where this host does not see the cache, StaleCacheError where its teacher is not the plan's,
        and what the teacher and the data set raise.
        """
        with contextlib.suppress(OSError):
            os.chdir(order.folder)
        torch.set_num_threads(threads)  # OMP_NUM_THREADS is not heeded in every place where a worker runs
        warnings.filterwarnings("ignore", message=".torch.jit.script. is deprecated", category=FutureWarning)
        self.order = order
        try:
            config = on_gpu(order.config, number)
            with contextlib.redirect_stderr(io.StringIO()):  # the coordinator has told it all
                self.writer = open_worker(config.out, order.fingerprint, order.part)
                data, teacher = open_data(config), open_teacher(config)
                assert isinstance(teacher, Teacher)
                require_teacher(teacher, config, self.writer.plan)
                plan, samples, update = self.writer.plan, self.writer.samples, config.stored.update
                earlier = None if update is None else Earlier(update, plan, samples)
        except (BirdError, CacheError) as error:
            raise of_this_host(error) from error
        self.sign, self.signed = sign, 0.0
        self.batches = Batches(teacher, data, samples, plan, earlier)

    def write_shards(self, shards: Sequence[int], stop: Callable[[], bool] = lambda: False) -> None:
        """Compute and commit those of the shards that nobody has committed.

        Raises what `extraction.precompute` raises; Interrupted once `stop` says so.
        """
        left = [shard for shard in shards if self.writer.committed(shard) is None]
        work = self.order.config.work
        jobs = plan_jobs(self.writer.plan, left, work.batch_size)
        threads = work.workers or usual_workers()
        run_jobs(self.batches, jobs, self.writer, threads, self.order.max_failed, self.done, stop)

    def done(self, *_: object) -> None:
        """A batch is done: give a sign."""
        if (now := time.monotonic()) - self.signed >= SIGN_SECONDS:
            self.signed = now
            self.sign()

    def answer(self, shards: Sequence[int], stop: Callable[[], bool] = lambda: False) -> Exception | None:
        """`write_shards` with its error as a value: so every engine brings it home as it is. Raises Interrupted."""
        try:
            self.write_shards(shards, stop)
        except Interrupted:
            raise
        except (BirdError, CacheError) as error:
            return of_this_host(error)
        except Exception as error:
            return portable(error)
        return None


def of_this_host(error: BirdError | CacheError) -> BirdError | CacheError:
    """The same error, which says on which machine it happened: a disk may be full on one of many."""
    where = f"worker on {socket.gethostname()}, {error.where}"
    return type(error)(where=where, found=error.found, wanted=error.wanted, fix=error.fix)


def on_gpu(config: PrecomputeConfig, number: int) -> PrecomputeConfig:
    """The order with a GPU of its own, where a machine has several and nobody chose one."""
    count = torch.cuda.device_count() if config.work.device in ("auto", "cuda") else 0
    if count < 2:
        return config
    return dataclasses.replace(config, work=dataclasses.replace(config.work, device=f"cuda:{number % count}"))


def require_teacher(teacher: Teacher, config: PrecomputeConfig, plan: Plan) -> None:
    """Raise StaleCacheError, naming the field, unless this worker's teacher is the one that the cache was begun with."""
    mine = {
        "teacher": teacher_causes(teacher),
        "preprocessing": dict(teacher.preprocessing),
        "precision": config.asked.precision,
    }
    own = Plan.model_validate({**plan.model_dump(), "causes": {**plan.causes, **mine}})
    try:
        own.require(plan, f"teacher {teacher.name}")
    except StaleCacheError as error:
        raise StaleCacheError(
            where=error.where,
            found=error.found,
            wanted=error.wanted,
            fix="give every worker the same files of the teacher; nothing was written with these",
        ) from None
