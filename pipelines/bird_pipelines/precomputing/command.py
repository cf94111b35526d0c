"""`bird precompute`: from an order for a cache to the cache, in this process or by workers."""

from __future__ import annotations

import dataclasses
from typing import Any

from bird.datasets.base import Dataset, SampleTable, empty_cells, prepare
from bird.errors import UsageError
from bird.teachers import Service, Teacher
from bird_cache.folders import open_folder
from bird_cache.samples import OK
from bird_cache.start import refuse_foreign
from bird_cache.store import open_cache
from bird_pipelines.config import PrecomputeConfig
from bird_pipelines.precomputing.engines import ENGINES, precompute_by_workers
from bird_pipelines.precomputing.extraction import precompute, usual_workers
from bird_pipelines.precomputing.plan import require_cells, warn_of_cells
from bird_pipelines.precomputing.teacher import describe_teacher, open_data, open_teacher
from bird_pipelines.precomputing.update import sides_of
from bird_pipelines.progress import tell_remarks

__all__ = ["precompute_command"]


def precompute_command(config: PrecomputeConfig) -> dict[str, Any]:
    """`bird precompute`: open the data set and the teacher, write the cache, say what it holds (see `FeatureStore.info`)."""
    rows, stored, work = config.rows, config.stored, config.work
    require_one_way(config)
    if not config.dry_run:
        refuse_foreign(open_folder(config.out))
    max_failed = 0.0 if rows.on_error == "fail" else rows.max_failed
    data = open_data(config)
    sides = None if stored.update is None else sides_of(stored.update, data)  # before the teacher, which takes time
    # Where workers compute, the teacher only fixes the plan here: this machine may have no GPU.
    place = dataclasses.replace(work, device="cpu") if config.workers.spreads else work
    teacher = open_teacher(dataclasses.replace(config, work=place))
    table = prepare(
        data,
        limit=rows.limit,
        keep_conflicts=rows.keep_conflicts,
        max_problem_share=max_failed,
        workers=work.workers or usual_workers(),
        sides=sides,
    )
    require_cells(data, table)
    tell_remarks(data.remarks)
    if config.dry_run:
        return estimate(teacher, data, table, config.service.price_per_1000)
    if config.workers.spreads:
        precompute_by_workers(config, teacher, data, table, max_failed)
    else:
        precompute(
            teacher,
            data,
            table,
            config.out,
            stored=stored,
            work=work,
            precision=config.asked.precision,
            max_failed=max_failed,
        )
    store = open_cache(config.out)
    if store.manifest.complete:  # what was planned may have failed
        kept = table.take(store.samples.having("status", OK))
        names, planned = (data.class_names, data.group_names), empty_cells(table, data.class_names, data.group_names)
        lost = {split: cells for split, cells in empty_cells(kept, *names).items() if cells != planned.get(split)}
        warn_of_cells(lost, ": all its images failed")
    unusable = {problem.id: problem.reason for problem in table.problems}
    info = store.info() | {"prepared": dict(table.notes), "left_out": unusable}
    return info | {"remarks": [*data.remarks]}


def require_one_way(config: PrecomputeConfig) -> None:
    """Raise UsageError, before the data set is read, for a slice that is none, options that exclude each other,
    or an engine that is not there."""
    config.workers.require_own()
    part = config.work.part
    if config.workers.spreads and part != (1, 1):
        raise UsageError(
            where="--slice",
            found=f"{config.work.slice} with several workers",
            wanted="one of the two",
            fix="leave --slice out: workers are given shards one by one",
        )
    if config.workers.spreads and "://" in config.teacher:
        raise UsageError(
            where="--engine",
            found="several workers for a service",
            wanted="one process, which keeps to the service's rate",
            fix="leave --engine and --processes out",
        )
    if config.workers.spreads:
        ENGINES[config.workers.engine].require(config.workers)


def estimate(teacher: Teacher | Service, data: Dataset, table: SampleTable, price: float | None) -> dict[str, Any]:
    """What would be asked of the teacher; of a service also bytes, time and cost. Reads the data set, asks nothing."""
    if isinstance(teacher, Service):
        asking = teacher.estimate(len(table), sum(len(data.read(id)) for id in table.ids.tolist()), price)
        return {"teacher": teacher.name, "dim": teacher.dim, "kind": teacher.feature_kind, **teacher.notes, **asking}
    return {**describe_teacher(teacher), "images": len(table)}
