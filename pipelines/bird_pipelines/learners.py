"""What a run trains, from its configuration: hyperparameters, method, and learner."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from bird.errors import UsageError
from bird.methods import Hyperparameters, Method, SingleLearner, build_method
from bird.precision import in_bf16
from bird.students import STUDENTS, Student, build_student, require_stages
from bird_cache.order import raw
from bird_pipelines.config import RunConfig
from bird_pipelines.data import RunData

__all__ = ["hyperparameters", "make_learner", "make_method", "seed_of"]


def hyperparameters(config: RunConfig) -> Hyperparameters:
    """The run's, as the methods take them."""
    return Hyperparameters(
        alpha=config.alpha,
        tau=config.tau,
        lambda_=config.lambda_,
        mu1=config.mu1,
        mu2=config.mu2,
        fitnet_weight=config.fitnet_weight,
        at_beta=config.at_beta,
        mfd_weight=config.mfd_weight,
        ad_weight=config.ad_weight,
        ad_lr=config.ad_lr,
        ad_every=max(config.ad_every, 1),
        dro_step=config.dro_step,
        average=config.average,
    )


def make_method(config: RunConfig, data: RunData) -> Method:
    """The run's method. Raises UsageError if it needs a teacher and the run has no cache."""
    method = build_method(config.method, hyperparameters(config), len(data.group_names))
    method.recompute = config.recompute
    if method.stages and config.student in STUDENTS:
        require_stages(config.student)
    if data.features is None and (method.features or method.logits or method.stages):
        raise UsageError(
            where=f"--method {config.method}",
            found="no cache",
            wanted="a teacher's features",
            fix="use `bird distill --cache CACHE`, or --method baseline",
        )
    return method


def make_learner(
    config: RunConfig, data: RunData, device: torch.device, method: Method, stage_channels: Sequence[int] = ()
) -> SingleLearner:
    """The student as the seed draws it, with all that the method trains beside it."""
    mean, std = data.moments() if data.features is not None else (None, None)
    student: Student = build_student(
        config.student,
        classes=len(data.class_names),
        image_size=data.image_size,
        feature_mean=mean,
        feature_std=std,
        seed=seed_of(config.seed, 3),
        heads=len(data.group_names) if method.heads_by_group else 1,
    )
    dim = None if data.features is None else data.features.shape[-1]
    student = student.to(device)
    seed = seed_of(config.seed, 4)
    learner = method.learner(
        student, teacher_dim=dim, stage_channels=stage_channels, lr=config.lr, mu2=config.mu2, seed=seed
    )
    if config.precision == "bf16":
        in_bf16(learner.model)
    return learner


def seed_of(seed: int, purpose: int) -> int:
    """A seed for torch that differs by purpose."""
    return int(raw(seed, purpose, count=1)[0] >> np.uint64(1))
