"""The losses, as pure functions of tensors. All are means over the batch unless they say otherwise.

Leading dimensions (`*models`) are models of their own: S students side by side, logits (S, batch, classes), have S losses.
The gradient of their sum is each model's own gradient. Without leading dimensions a loss is a scalar.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Total", "bias_loss", "cell_sums", "cross_entropy", "distillation_kl", "feature_mse", "sample_cross_entropy"]

Total = Callable[[Tensor], Tensor]
"""Sums over the rows of this process -> sums over those of all processes that train one student (bird.step.ranks)."""


def sample_cross_entropy(
    logits: Float[Tensor, "*models batch classes"], labels: Int[Tensor, "*models batch"]
) -> Float[Tensor, "*models batch"]:
    """CE(z, y) of each sample, in nats."""
    return F.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="none").view(labels.shape)


def cross_entropy(
    logits: Float[Tensor, "*models batch classes"], labels: Int[Tensor, "*models batch"]
) -> Float[Tensor, "*models"]:
    """CE(z, y), in nats."""
    return sample_cross_entropy(logits, labels).mean(-1)


def feature_mse(
    student: Float[Tensor, "*models batch dim"], target: Float[Tensor, "*models batch dim"]
) -> Float[Tensor, "*models"]:
    """Mean over batch and features of (h_S - h_T)^2: FitNet's hint loss (Romero et al. 2015, eq. 3) and BIRD's D."""
    return (student - target).square().mean((-2, -1))


def distillation_kl(
    student: Float[Tensor, "*models batch classes"], teacher: Float[Tensor, "*models batch classes"], tau: float
) -> Float[Tensor, "*models"]:
    """tau^2 KL(softmax(teacher / tau) || softmax(student / tau)) per sample, from logits (Hinton et al. 2015, section 2)."""
    soft_student, soft_teacher = F.log_softmax(student / tau, dim=-1), F.log_softmax(teacher / tau, dim=-1)
    return tau**2 * F.kl_div(soft_student, soft_teacher, reduction="none", log_target=True).sum(-1).mean(-1)


def cell_sums(
    logits: Float[Tensor, "*models batch classes"],
    labels: Int[Tensor, "*models batch"],
    protected: Int[Tensor, "*models batch"],
    groups: int,
    total: Total | None = None,
) -> tuple[Float[Tensor, "*models classes groups"], Float[Tensor, "*models classes groups"]]:
    """The sum of CE over the samples of each (class, group) cell, in nats, and how many samples it has."""
    classes = logits.shape[-1]
    table = (*logits.shape[:-2], classes, groups)
    ce = sample_cross_entropy(logits, labels)
    cell = F.one_hot(labels * groups + protected, classes * groups).to(ce.dtype)
    counts = cell.sum(-2).view(table)
    sums = torch.einsum("...b,...bk->...k", ce, cell).view(table)
    if total is None:
        return sums, counts
    sums, counts = total(torch.stack([sums, counts])).unbind()
    return sums, counts.detach()


def bias_loss(
    logits: Float[Tensor, "*models batch classes"],
    labels: Int[Tensor, "*models batch"],
    protected: Int[Tensor, "*models batch"],
    groups: int,
    soft_max: float = 0.0,
    total: Total | None = None,
) -> Float[Tensor, "*models"]:
    """L_o = sum_i max_j | CE(class i, group j) - CE(class i) | (Java et al. 2023, section 3), in nats.

    CE(class i, group j) is the mean cross-entropy of that cell's samples, CE(class i) the mean over the class. A cell
    absent from the batch is left out of the max; a class with fewer than two groups present contributes 0.
    `protected` holds the group 0..groups-1 of each sample. The gradient of a maximum goes to one group of each class. With
    `soft_max` T > 0 (nats) T log mean_j exp(gap_j / T) stands in its place, and each group has a share: between the mean
    of the gaps (large T) and their maximum (small T). With `total` the cells are those of all processes.
    """
    sums, counts = cell_sums(logits, labels, protected, groups, total)
    ce_cell = sums / counts.clamp(min=1)
    ce_class = sums.sum(-1) / counts.sum(-1).clamp(min=1)
    present = counts > 0
    gaps = (ce_cell - ce_class[..., None]).abs()
    if soft_max > 0:
        some = present.sum(-1, keepdim=True)
        scaled = torch.where(present | (some == 0), gaps / soft_max, -torch.inf)  # all -inf would have no gradient
        largest = soft_max * (scaled.logsumexp(-1) - some[..., 0].clamp(min=1).to(gaps.dtype).log())
    else:
        largest = torch.where(present, gaps, 0.0).amax(-1)
    return torch.where(present.sum(-1) >= 2, largest, 0.0).sum(-1)
