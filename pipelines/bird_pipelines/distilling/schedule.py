"""The student's learning rate from epoch to epoch, and when to stop early: functions of the settings and of the curve, so
that a run that is resumed goes on as one that was not interrupted."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from bird_pipelines.config import Training

__all__ = ["best_epoch", "chosen", "rate_factor", "scale_rate", "stopped_early"]

Line = Mapping[str, Any]


def rate_factor(training: Training, epoch: int) -> float:
    """What the learning rate is multiplied with in an epoch (from 0): 1, gamma^(epoch // N), or half a cosine from 1 to 0
    over all epochs (Loshchilov and Hutter 2017, eq. 5, without restarts)."""
    if training.lr_schedule == "step":
        assert training.lr_gamma is not None
        assert training.lr_step_epochs is not None
        return float(training.lr_gamma ** (epoch // training.lr_step_epochs))
    if training.lr_schedule == "cosine":
        return (1 + math.cos(math.pi * epoch / training.epochs)) / 2
    return 1.0


def scale_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set each learning rate to `factor` times the one that the optimiser began with."""
    for group in optimizer.param_groups:
        group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor


def best_epoch(curve: Sequence[Line], warmup: int = 0) -> int | None:
    """The epoch (from 1) after the warmup with the highest balanced accuracy on meta; the first of equals. None where no
    epoch counts."""
    scores = {each["epoch"]: each["meta"]["balanced_accuracy"] for each in curve if each["epoch"] > warmup}
    return max(scores, key=lambda epoch: scores[epoch]) if scores else None


def stopped_early(training: Training, curve: Sequence[Line], warmup: int = 0) -> bool:
    """Whether the last `early_stop` epochs brought nothing better."""
    best = best_epoch(curve, warmup) if training.early_stop else None
    return best is not None and len(curve) - best >= training.early_stop


def chosen(curve: Sequence[Line], warmup: int = 0) -> dict[str, Any]:
    """What run.json says of a run that could stop early."""
    return {
        "score": "balanced accuracy on meta",
        "best_epoch": best_epoch(curve, warmup),
        "epochs_trained": len(curve),
        "note": "The meta split chose the epoch of this student: its scores on meta are optimistic.",
    }
