"""The losses, as pure functions of tensors. All are means over the batch unless they say otherwise."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

__all__ = ["bias_loss", "cross_entropy", "distillation_kl", "feature_mse"]


def cross_entropy(logits: Float[Tensor, "batch classes"], labels: Int[Tensor, batch]) -> Float[Tensor, ""]:
    """CE(z, y), in nats."""
    return F.cross_entropy(logits, labels)


def feature_mse(student: Float[Tensor, "batch dim"], target: Float[Tensor, "batch dim"]) -> Float[Tensor, ""]:
    """Mean over batch and features of (h_S - h_T)^2: FitNet's hint loss (Romero et al. 2015, eq. 3) and BIRD's D."""
    return F.mse_loss(student, target)


def distillation_kl(
    student: Float[Tensor, "batch classes"], teacher: Float[Tensor, "batch classes"], tau: float
) -> Float[Tensor, ""]:
    """tau^2 KL(softmax(teacher / tau) || softmax(student / tau)) per sample, from logits (Hinton et al. 2015, section 2)."""
    soft_student, soft_teacher = F.log_softmax(student / tau, dim=1), F.log_softmax(teacher / tau, dim=1)
    return tau**2 * F.kl_div(soft_student, soft_teacher, reduction="batchmean", log_target=True)


def bias_loss(
    logits: Float[Tensor, "batch classes"],
    labels: Int[Tensor, batch],
    protected: Int[Tensor, batch],
    groups: int,
) -> Float[Tensor, ""]:
    """L_o = sum_i max_j | CE(class i, group j) - CE(class i) | (Java et al. 2023, section 3), in nats.

    CE(class i, group j) is the mean cross-entropy of that cell's samples, CE(class i) the mean over the class. A cell
    absent from the batch is left out of the max; a class with fewer than two groups present contributes 0.
    `protected` holds the group 0..groups-1 of each sample.
    """
    classes = logits.shape[1]
    ce = F.cross_entropy(logits, labels, reduction="none")
    cell = labels * groups + protected
    counts = torch.bincount(cell, minlength=classes * groups).view(classes, groups).to(ce.dtype)
    sums = ce.new_zeros(classes * groups).index_add(0, cell, ce).view(classes, groups)
    ce_cell = sums / counts.clamp(min=1)
    ce_class = sums.sum(1) / counts.sum(1).clamp(min=1)
    present = counts > 0
    gaps = torch.where(present, (ce_cell - ce_class[:, None]).abs(), 0.0).amax(1)
    return torch.where(present.sum(1) >= 2, gaps, 0.0).sum()
