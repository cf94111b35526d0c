"""What a run trains: the student that its configuration describes, with all that its method trains beside it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from bird.methods import Method, SingleLearner
from bird.own import Part
from bird.precision import in_bf16
from bird.student_weights import start
from bird.students import Student, build_student, last_stage
from bird_cache.order import raw
from bird_pipelines.config import Training
from bird_pipelines.distilling.data import RunData

__all__ = ["batch_statistics", "make_learner", "seed_of"]


def make_learner(
    student: str,
    training: Training,
    data: RunData,
    device: torch.device,
    method: Method,
    stage_channels: Sequence[int] = (),
    *,
    part: Part | None = None,
    init: str | None = None,
) -> SingleLearner:
    """The student of that name, or the user's own `part`, as the seed draws it or from the weights `init`, with all that the
    method trains beside it."""
    mean, std = data.moments() if data.features is not None else (None, None)
    drawn: Student = build_student(
        student,
        classes=len(data.class_names),
        image_size=data.image_size,
        feature_mean=mean,
        feature_std=std,
        seed=seed_of(training.seed, 3),
        heads=len(data.group_names) if method.heads_by_group else 1,
        part=part,
    )
    if init is not None:
        drawn.started = start(drawn, init)
    if method.meta and method.hyper.feedback_through == "last":
        last_stage(student, drawn.stages)
    dim = None if data.features is None else data.features.shape[-1]
    drawn = drawn.to(device)
    seed = seed_of(training.seed, 4)
    learner = method.learner(
        drawn,
        teacher_dim=dim,
        stage_channels=stage_channels,
        lr=training.lr,
        mu2=method.hyper.mu2,
        seed=seed,
        optimizer=training.optimizer,
        weight_decay=training.weight_decay,
    )
    if training.precision == "bf16":
        in_bf16(learner.model)
    return learner


def seed_of(seed: int, purpose: int) -> int:
    """A seed for torch that differs by purpose."""
    return int(raw(seed, purpose, count=1)[0] >> np.uint64(1))


def batch_statistics(model: nn.Module, worlds: list[int]) -> str | None:
    """Which rows a batch norm's statistics are of; None where the student has none."""
    if not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()):
        return None
    return "each rank's own rows of a batch" if max(worlds) > 1 else "all rows of a batch"
