"""What run.json says of a finished run."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from bird_pipelines.distilling.data import RunData
from bird_pipelines.distilling.learners import batch_statistics
from bird_pipelines.distilling.schedule import chosen

if TYPE_CHECKING:
    from bird_pipelines.distilling.training import Trainer

__all__ = ["summary_of"]

LIBRARIES = ("bird-distill", "torch", "torchvision", "numpy", "zarr")


def summary_of(trainer: Trainer) -> dict[str, Any]:
    """Of a run that has ended: its configuration, its data, and how it went."""
    config, data = trainer.config, trainer.data
    found = {
        "config": config.identity() | {"teacher": data.teacher},
        "logits_fingerprint": data.logits_fingerprint if trainer.method.logits else None,
        **of_data(data, config.scored()),
        "seconds": trainer.seconds,
        "time_shares": trainer.clock.shares(),
        "steps": trainer.step,
        "initial": trainer.initial,
        "models_at_once": trainer.beside,
        "ranks": trainer.worlds,
        "batch_statistics": batch_statistics(trainer.learner.model, trainer.worlds),
        "view_policy": data.view_policy(config.training.augment, staged=trainer.method.stages is not None),
        "versions": {name: version(name) for name in LIBRARIES},
    }
    if config.training.early_stop:
        found["early_stop"] = chosen(trainer.curve, trainer.unsettled)
    return found


def of_data(data: RunData, scored: Sequence[str]) -> dict[str, Any]:
    """What run.json says of the data."""
    found = {
        "fingerprint": data.fingerprint,
        "class_names": list(data.class_names),
        "group_names": list(data.group_names),
        "dataset_settings": dict(data.settings),
        "image_size": data.image_size or None,
        "rows": {split: len(data.rows(split)) for split in ("train", *scored)},
        "empty_cells": data.empty_cells(),
        "cells": data.cells(),
        "failed": dict(data.failed),
        "accounted": data.accounted,
        "estimated_groups": data.estimated,
        "probe_accuracy": data.probe,
    }
    if data.factors:
        found["factors"] = {name: each.as_json() for name, each in data.factors.items()}
    return found
