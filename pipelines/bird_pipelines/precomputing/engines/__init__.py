"""Who computes the shards of a cache, where this process alone does not. An engine only decides who calls
`Worker.write_shards`; what is in a shard follows from the plan. So a run that one engine began is finished by another.

base.py          what an engine is: `Workers`
worker.py        what all of them call: `Worker`
coordinator.py   who gets which shard, and what is done about workers that are lost, slow or silent
processes.py, ray_actors.py, slurm_jobs.py   the engines
"""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from bird.datasets.base import Dataset, SampleTable
from bird.teachers import Service, Teacher
from bird_cache.folders import open_folder
from bird_cache.manifest import Manifest
from bird_cache.worker import require_sharing
from bird_pipelines.config import PrecomputeConfig
from bird_pipelines.precomputing.engines.base import Order, Workers
from bird_pipelines.precomputing.engines.coordinator import Coordinator
from bird_pipelines.precomputing.engines.processes import Processes
from bird_pipelines.precomputing.engines.ray_actors import RayActors
from bird_pipelines.precomputing.engines.slurm_jobs import SlurmJobs
from bird_pipelines.precomputing.extraction import need_room, open_for, planned, rows_of
from bird_pipelines.progress import progress, stop_requests

__all__ = ["ENGINES", "precompute_by_workers"]

ENGINES: Mapping[str, type[Workers]] = {"local": Processes, "ray": RayActors, "slurm": SlurmJobs}


def precompute_by_workers(
    config: PrecomputeConfig, teacher: Teacher | Service, data: Dataset, table: SampleTable, max_failed: float
) -> Manifest:
    """Write (or finish writing) a cache by the workers that `config.workers` asks for. `teacher` fixes the plan; each worker
    opens its own.

    Raises what `extraction.precompute` raises; what a worker raises, as if it had been raised here; UsageError for an
    engine that is not there; RunError for a shard that failed three times. What is committed is kept.
    """
    require_sharing(open_folder(config.out))
    plan, samples, _ = planned(teacher, data, table, config.stored, config.asked.precision, config.work.batch_size)
    with open_for(config.out, plan, samples) as writer:
        waiting = rows_of(writer.plan, writer.pending())
        need_room(writer.folder, writer.plan, waiting)
        order = Order(
            packed=pickle.dumps(_absolute(config)),
            fingerprint=writer.plan.fingerprint,
            part=writer.part,
            shards=writer.pending(),
            max_failed=max_failed,
            threads=torch.get_num_threads(),
            folder=str(Path.cwd()),
        )
        engine: Callable[[Order], Workers] = ENGINES[config.workers.engine]
        if order.shards:
            with stop_requests() as stop, engine(order) as workers:
                total = writer.plan.rows
                with progress(f"precompute {teacher.name}", "images", total, total - waiting) as advance:
                    Coordinator(writer, workers, advance, max_failed).run(stop)
        return writer.finish()


def _absolute(config: PrecomputeConfig) -> PrecomputeConfig:
    """The same for a process with another working folder."""
    out = config.out if "://" in config.out else str(Path(config.out).resolve())
    return dataclasses.replace(config, out=out)
