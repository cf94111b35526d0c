"""What a cache follows from, fixed and hashed before any work: its plan and its sample table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bird.datasets.base import Dataset, SampleTable, empty_cells, require_test_cells
from bird.stored_views import BOX, view_policy
from bird.teachers import Service, Teacher
from bird_cache.create import shard_and_chunk_rows
from bird_cache.errors import StaleCacheError
from bird_cache.manifest import Factor, Layer, LeftOut, Plan
from bird_cache.samples import PENDING, Samples
from bird_pipelines.config import Stored
from bird_pipelines.config.cache import refuse_compress
from bird_pipelines.marks import few
from bird_pipelines.progress import tell

__all__ = [
    "BOXES",
    "LAYER",
    "dataset_causes",
    "factors_of",
    "make_plan",
    "require_cells",
    "require_revision",
    "samples_of",
    "teacher_causes",
    "warn_of_cells",
]

LAYER, BOXES = "penultimate", "boxes"


def make_plan(
    teacher: Teacher | Service,
    dataset: Dataset,
    table: SampleTable,
    stored: Stored,
    layers: Sequence[str],
    *,
    precision: str,
    batch_size: int,
) -> Plan:
    """Everything the cache's vectors follow from, and its layout. Raises UsageError for a store that is not compressed."""
    store, dtype, views = stored.store, stored.dtype, stored.views
    refuse_compress(store, stored.compress)
    shard_rows, chunk_rows = shard_and_chunk_rows(len(table), stored.shard_rows, store)
    given = {name: teacher.layers[name] for name in layers}
    specs = {name: Layer(shape=spec.shape, dtype=dtype, kind=spec.kind) for name, spec in given.items()}
    if views:
        specs[BOXES] = Layer(shape=(BOX,), dtype="int32", kind="boxes")
    return Plan(
        causes={
            "teacher": teacher_causes(teacher),
            "preprocessing": dict(teacher.preprocessing),
            "precision": precision,
            "dtype": dtype,
            "layers": [*layers],
            "views": view_policy(views, dataset.flip),
            "dataset": dataset_causes(dataset, table),
        },
        layers=specs,
        rows=len(table),
        views=1 + views,
        shard_rows=shard_rows,
        chunk_rows=chunk_rows,
        store=store,
        images=store == "webdataset",
        class_names=dataset.class_names,
        group_names=dataset.group_names,
        factors=factors_of(dataset),
        notes={"teacher": teacher.name, "batch_size": str(batch_size), **teacher.notes},
        left_out=LeftOut.of(table.left_out),
        compress=stored.compress,
    )


def factors_of(dataset: Dataset) -> tuple[Factor, ...]:
    """The columns that the groups are crossed from, as a manifest has them."""
    return tuple(Factor(name=name, names=each.names, codes=each.codes) for name, each in dataset.factors.items())


def teacher_causes(teacher: Teacher | Service) -> dict[str, Any]:
    """What identifies a teacher: its weights, and the architecture that they fill, where it is known."""
    config = dict(teacher.config) if isinstance(teacher, Teacher) else {}
    causes = {"weights": teacher.weights_digest, "dim": teacher.dim, "kind": teacher.feature_kind}
    return causes | ({"config": config} if config else {})


def require_cells(dataset: Dataset, table: SampleTable) -> None:
    """Before a teacher runs: raise DataError for a (class, group) cell that test lacks; tell on stderr, by name, of those
    that train or meta lacks. Not every method needs them."""
    require_test_cells(dataset, table)
    warn_of_cells(empty_cells(table, dataset.class_names, dataset.group_names))


def warn_of_cells(empty: Mapping[str, Sequence[str]], why: str = "") -> None:
    """Tell on stderr of cells without a sample, by split and name."""
    for split, cells in empty.items():
        tell(f"warning: no {split} sample of {few(cells)}{why}; methods that need one, such as bird, refuse this cache")


def require_revision(there: Plan, now: Plan, where: str) -> None:
    """Raise StaleCacheError, with both commits, where the hub has other weights under the teacher's name than when the cache
    `there` was begun."""
    before, after = there.notes.get("revision"), now.notes.get("revision")
    weights = [_weights(plan) for plan in (there, now)]
    if before and after and before != after and weights[0] != weights[1]:
        raise StaleCacheError(
            where=where,
            found=f"vectors by the weights of {before}",
            wanted=f"those of {after}, which the hub has now",
            fix="ask for the earlier ones (hf:REPO@COMMIT, or --weights FILE), or write to another folder with --out",
        )


def _weights(plan: Plan) -> object:
    teacher = plan.causes.get("teacher")
    return teacher.get("weights") if isinstance(teacher, dict) else None


def dataset_causes(dataset: Dataset, table: SampleTable) -> dict[str, Any]:
    """What identifies the rows of a cache."""
    return {
        "name": dataset.name,
        "settings": dict(dataset.settings),
        **({"own": dict(dataset.own)} if dataset.own else {}),
        "rows": len(table),
        "identity": samples_of(table).identity(),
    }


def samples_of(table: SampleTable) -> Samples:
    """The cache's sample table, before any row is written."""
    status = np.full(len(table), PENDING, dtype=object)
    return Samples(table.ids, table.labels, table.groups, table.splits, table.digests, status)
