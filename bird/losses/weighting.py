"""Cross-entropy by cell: what the references that know the groups are made of. A cell is a (class, group) pair."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bird.losses.terms import Total, cell_sums, cross_entropy, sample_cross_entropy

__all__ = [
    "adjusted_cross_entropy",
    "cell_cross_entropy",
    "exponentiated",
    "inverse_frequencies",
    "log_prior",
    "own_head",
    "weighted_cross_entropy",
]


def inverse_frequencies(counts: Int[Tensor, "classes groups"]) -> Float[Tensor, "classes groups"]:
    """N / (K n) for a cell of n of the N training samples, K the number of cells that have any: their mean over the
    training samples is 1. An empty cell has weight 0."""
    total, cells = counts.sum(), (counts > 0).sum()
    return torch.where(counts > 0, total / (cells * counts.clamp(min=1)), 0.0)


def weighted_cross_entropy(
    logits: Float[Tensor, "*models batch classes"],
    labels: Int[Tensor, "*models batch"],
    protected: Int[Tensor, "*models batch"],
    weights: Float[Tensor, "classes groups"],
) -> Float[Tensor, "*models"]:
    """Mean over the batch of w(class, group) CE, in nats. With inverse frequencies its expectation over training samples
    is that of CE over samples drawn with every cell equally likely."""
    return (weights[labels, protected] * sample_cross_entropy(logits, labels)).mean(-1)


def cell_cross_entropy(
    logits: Float[Tensor, "*models batch classes"],
    labels: Int[Tensor, "*models batch"],
    protected: Int[Tensor, "*models batch"],
    groups: int,
    total: Total | None = None,
) -> Float[Tensor, "*models classes groups"]:
    """The mean CE of each cell, in nats; 0 for a cell that is absent from the batch. `total` as in `bias_loss`."""
    sums, counts = cell_sums(logits, labels, protected, groups, total)
    means: Tensor = sums / counts.clamp(min=1)
    return means


def exponentiated(
    q: Float[Tensor, "*models classes groups"], losses: Float[Tensor, "*models classes groups"], step: float
) -> Float[Tensor, "*models classes groups"]:
    """q exp(step loss), scaled to sum 1: one step of exponentiated gradient ascent (Sagawa et al. 2020, algorithm 1)."""
    grown = q * torch.exp(step * losses)
    return grown / grown.sum((-2, -1), keepdim=True)


def log_prior(counts: Int[Tensor, "classes groups"]) -> Float[Tensor, "classes groups"]:
    """log p(class | group) in the training split, in nats, with one sample added to each cell (no cell is impossible)."""
    return ((counts + 1) / (counts + 1).sum(0)).log()


def adjusted_cross_entropy(
    logits: Float[Tensor, "*models batch classes"],
    labels: Int[Tensor, "*models batch"],
    protected: Int[Tensor, "*models batch"],
    log_prior: Float[Tensor, "classes groups"],
) -> Float[Tensor, "*models"]:
    """CE(z + log p(. | group), y), in nats: the logit-adjusted loss (Menon et al. 2021, eq. 10) with the classes'
    frequencies within the sample's own group. What its minimiser puts into z itself is log p(x | class, group) up to what
    all classes share: a group in which a class is frequent is no evidence for the class. Nothing is added at test time."""
    return cross_entropy(logits + log_prior.T[protected], labels)


def own_head(
    logits: Float[Tensor, "*models batch heads classes"], protected: Int[Tensor, "*models batch"]
) -> Float[Tensor, "*models batch classes"]:
    """Each sample's logits of the head of its own group."""
    index = protected[..., None, None].expand(*protected.shape, 1, logits.shape[-1])
    return logits.take_along_dim(index, -2).squeeze(-2)
