"""References that the paper does not have. They learn from the groups of the training samples, and from no teacher."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from bird.losses.terms import cross_entropy
from bird.losses.weighting import (
    cell_cross_entropy,
    exponentiated,
    inverse_frequencies,
    own_head,
    weighted_cross_entropy,
)
from bird.methods.base import Batch, Learner, Losses, Method, SingleLearner
from bird.students import Student

__all__ = ["DomainIndependent", "GroupDRO", "Reweight", "WorstCase"]


@final
class Reweight(Method):
    """CE with each sample weighed by the inverse frequency of its (class, group) cell in the training split; weights have
    mean 1 over the training samples. In expectation, CE on a resample in which every cell is equally likely."""

    cells: Mapping[str, str] = {"train": "its weights make all cells count the same, and nothing weighs an empty one"}
    weights: Float[Tensor, "classes groups"] | None = None

    def prepare(self, counts: Int[Tensor, "classes groups"], meta: Int[Tensor, "classes groups"] | None = None) -> None:
        """Weights from the cells' sizes."""
        self.weights = inverse_frequencies(counts)

    def step(self, learner: Learner, batch: Batch, meta_batch: Callable[[], Batch], *, warm: bool) -> Losses:
        """Weighted CE."""
        if self.weights is None:
            raise ValueError("Reweight.prepare(counts) comes before the first step")
        self.weights = self.weights.to(batch.labels.device)
        logits = learner.model(batch.inputs).logits
        loss = weighted_cross_entropy(logits, batch.labels, batch.groups, self.weights)
        learner.descend(loss)
        return {"loss": loss.detach(), "ce": cross_entropy(logits.detach(), batch.labels)}


@final
class WorstCase(nn.Module):
    """The weights q of group-DRO over the cells, (classes, groups), uniform at first."""

    q: Float[Tensor, "classes groups"]

    def __init__(self, classes: int, groups: int) -> None:
        super().__init__()
        self.register_buffer("q", torch.full((classes, groups), 1 / (classes * groups)))


@final
class GroupDRO(Method):
    """Group distributionally robust optimisation (Sagawa et al. 2020, algorithm 1): the loss is sum q CE over the (class,
    group) cells, and q <- q exp(dro_step CE(cell)), scaled to sum 1, before each step of the student.

    As in the authors' code a batch holds several cells and an absent one counts with CE 0. Differs: no adjustment by the
    cells' sizes, no group-balanced sampling, no strong weight decay.
    """

    cells: Mapping[str, str] = {"train": "it lowers the loss of the worst cell, and an empty one has no loss"}
    stackable = False

    def aide(self, student: Student, seed: int) -> nn.Module:
        """q."""
        return WorstCase(student.classes, self.groups)

    def step(self, learner: Learner, batch: Batch, meta_batch: Callable[[], Batch], *, warm: bool) -> Losses:
        """Exponentiated gradient ascent of q, then one descent step of the student."""
        assert isinstance(learner, SingleLearner)
        assert isinstance(learner.aide, WorstCase)
        logits = learner.model(batch.inputs).logits
        total = None if learner.ranks.alone else learner.ranks.total_of_rows
        cells = cell_cross_entropy(logits, batch.labels, batch.groups, self.groups, total)
        learner.aide.q.copy_(exponentiated(learner.aide.q, cells.detach(), self.hyper.dro_step))
        loss = (learner.aide.q * cells).sum()
        learner.descend(loss, summed=True)
        return {"loss": loss.detach(), "ce": cross_entropy(logits.detach(), batch.labels)}


@final
class DomainIndependent(Method):
    """Domain-independent training (Wang et al. 2020): one head a group on a shared backbone, each with CE on the samples of
    its own group; afterwards the heads' logits are summed (their best rule), and no group is asked for."""

    cells: Mapping[str, str] = {
        "train": "each group has a head of its own, which never sees a class of which its group has no sample"
    }
    heads_by_group = True
    stackable = False

    def step(self, learner: Learner, batch: Batch, meta_batch: Callable[[], Batch], *, warm: bool) -> Losses:
        """CE of each sample on the head of its group."""
        assert isinstance(learner, SingleLearner)
        loss = cross_entropy(own_head(learner.model.student.by_head(batch.inputs), batch.groups), batch.labels)
        learner.descend(loss)
        return {"loss": loss.detach(), "ce": loss.detach()}
