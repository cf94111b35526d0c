"""The teacher and the data set that a command names, opened, with every option of the command that concerns them."""

from __future__ import annotations

import dataclasses
from typing import Any

from bird.datasets import open_dataset
from bird.datasets.base import Dataset
from bird.datasets.own import open_own
from bird.teachers import Service, Teacher, load_teacher, open_service, own_part, takes_of
from bird.teachers.claims import require_takers
from bird_pipelines.config import PrecomputeConfig
from bird_pipelines.progress import tell

__all__ = ["describe_teacher", "open_data", "open_teacher"]


def open_data(config: PrecomputeConfig) -> Dataset:
    """The data set. Raises UsageError, DataError."""
    rows, part = config.rows, config.own.get("dataset")
    data = (
        open_own(part, rows.data_root, rows.settings)
        if part
        else open_dataset(rows.dataset, rows.data_root, **rows.settings)
    )
    if rows.max_megapixels is not None:
        data.max_pixels = int(1e6 * rows.max_megapixels)
    return data


def open_teacher(config: PrecomputeConfig) -> Teacher | Service:
    """A service where the name is an address, else a teacher that runs here. What it assumes is said on stderr.

    Raises UsageError for an option that it cannot honour, and what `load_teacher` and `open_service` raise.
    """
    part = config.own.get("teacher") or own_part(config.teacher)
    address = part is None and "://" in config.teacher
    # An address may hold a key: it is repeated nowhere.
    asked, service = config.asked, config.service
    given = {**asked.named(), **dataclasses.asdict(service)}
    name = "a service" if address else config.teacher if part is None else part.label
    require_takers(name, given, takes_of(config.teacher, part))
    teacher: Teacher | Service
    if address:
        teacher = open_service(
            config.teacher,
            image_size=asked.image_size,
            kind=asked.kind,
            output=asked.output,
            key_env=service.api_key_env,
            per_minute=service.requests_per_minute,
        )
    else:
        teacher = load_teacher(
            config.teacher if part is None else part.label,
            weights=asked.weights,
            device=config.work.device,
            precision=asked.precision,
            image_size=asked.image_size,
            kind=asked.kind,
            output=asked.output,
            mean=asked.mean,
            std=asked.std,
            range_=asked.range,
            part=part,
        )
    for what, told in teacher.notes.items():
        tell(f"{teacher.name}, {what}: {told}")
    return teacher


def describe_teacher(teacher: Teacher) -> dict[str, Any]:
    """Which vector a teacher gives: its reading and layers, how it sees, what was compared with its own library."""
    layers = ", ".join(
        f"{name} {'x'.join(map(str, spec.shape))} ({spec.kind})" for name, spec in teacher.layers.items()
    )
    return {
        "teacher": teacher.name,
        "dim": teacher.dim,
        "kind": teacher.feature_kind,
        "reading": teacher.preprocessing.get("reading", ""),
        "layers": layers,
        **teacher.notes,
        "weights": teacher.weights_digest,
    }
