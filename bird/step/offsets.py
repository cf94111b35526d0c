"""phi where a shortcut lives: offsets of the logits by class and group, learned from the student's feedback.

    L_in = alpha D(h, gate * h_T) + (1 - alpha) CE(z + phi[:, a], y)               phi (classes, groups)

A group in which a class is frequent is no evidence for the class: what phi[:, a] says of it, z need not say. In training
alone is the group asked for; at test time z stands by itself.

With `weighs` alpha belongs to phi, too: `trust`, its log-odds, follows the same feedback. Where the teacher is as biased as
the data, features like the teacher's are what the feedback is against.

Offsets that are fixed at log p(class | group) are the logit adjustment of Menon et al. (2021) within each group. Learning
additive and multiplicative adjustments by a bilevel loss is AutoBalance (Li et al. 2021), with the loss of Kini et al.
(2021). Here the feedback is exact, by one forward-mode pass (bird.step.feedback), and the student is distilled from a cache.
"""

from __future__ import annotations

from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from bird.errors import UsageError
from bird.losses.terms import Total, bias_loss, cell_sums
from bird.step.feedback import Weight
from bird.step.gate import Gate

__all__ = ["Offsets", "mixed_bias"]

LEAST = 1e-3
"""An alpha that is learned starts between this and 1 - this: from 0 or 1 no slope leads away."""


@final
class Offsets(nn.Module):
    """phi (classes, groups), in nats, beside a gate that stays as it was drawn. It learns the offsets, and with `weighs`
    alpha, which starts there (in 0..1; None: alpha is the step's own and stays).

    The gate is the one that `Gate(dim, seed)` draws. phi starts at 0, until `start` is told otherwise. Raises UsageError
    for an alpha out of 0..1.
    """

    phi: Float[Tensor, "*models classes groups"]
    trust: Float[Tensor, "*models"] | None
    gate: Float[Tensor, "*models dim"]
    begin: Float[Tensor, "*models classes groups"]
    pull: Float[Tensor, "*models classes groups"]
    along: Float[Tensor, "*models classes groups"]

    def __init__(self, classes: int, groups: int, dim: int, seed: int = 0, weighs: float | None = None) -> None:
        super().__init__()
        if weighs is not None and not 0 <= weighs <= 1:
            raise UsageError(
                where="Offsets(weighs=...)", found=f"{weighs:g}", wanted="an alpha from 0 to 1", fix="correct it"
            )
        self.phi = nn.Parameter(torch.zeros(classes, groups))
        start = None if weighs is None else torch.tensor(weighs).logit(eps=LEAST)
        self.trust = None if start is None else nn.Parameter(start)
        self.register_buffer("gate", torch.sigmoid(Gate(dim, seed).phi.detach()))
        self.pulled = self.pooled = False
        for name in ("begin", "pull", "along"):  # follow from `start`: no checkpoint holds them
            self.register_buffer(name, torch.zeros(classes, groups), persistent=False)

    def start(
        self,
        phi: Float[Tensor, "classes groups"],
        rows: Int[Tensor, "classes groups"] | None = None,
        shrink: float = 0.0,
        along: Float[Tensor, "classes groups"] | None = None,
    ) -> None:
        """Begin at these offsets. With `shrink` they are pulled back to where they began, by shrink / n for a cell of n meta
        `rows`; with `along` they move in that direction alone, all by one number: see `hold_back`."""
        with torch.no_grad():
            self.phi.copy_(phi)
            self.begin.copy_(phi)
            self.pulled = rows is not None and shrink > 0
            if rows is not None and self.pulled:
                self.pull.copy_(shrink / rows)  # a cell without rows stays where it begins
            self.pooled = along is not None
            if along is not None:
                self.along.copy_(along - along.mean(0))  # what all classes have alike moves no logit against another

    def hold_back(self, rate: float) -> None:
        """One proximal step of `rate` on pull / 2 (phi - begin)^2, after a step of Adam of the same rate. Adam divides a
        gradient by its usual size: to weigh the gradient of a small cell less would do nothing. The two steps are at
        balance where |phi - begin| = m n / shrink. m in 0..1 is the mean of Adam's steps, in units of the rate: 1 where
        all gradients have one sign. So phi goes less far by what few rows say, and by what meta batches do not agree on.
        It is a decoupled decay (Loshchilov and Hutter 2019), towards the start and not to 0. Offsets that move `along` one
        direction are then put back on it, at the nearest place: all cells together say how far."""
        if not self.pulled and not self.pooled:
            return
        with torch.no_grad():
            moved = self.phi - self.begin
            if self.pulled:
                moved = moved / (1 + rate * self.pull)
            if self.pooled:
                cells = (-2, -1)
                moved = (
                    self.along
                    * (moved * self.along).sum(cells, True)
                    / self.along.square().sum(cells, True).clamp(min=1e-12)
                )
            self.phi.copy_(self.begin + moved)

    def forward(self, teacher: Float[Tensor, "*models batch dim"]) -> Float[Tensor, "*models batch dim"]:
        """The gated teacher features."""
        return self.gate.unsqueeze(-2) * teacher

    def weigh(self, alpha: Weight) -> Weight:
        """The weight of the distance: alpha, or what has been learned in its place."""
        return alpha if self.trust is None else self.trust.sigmoid()

    def adjust(
        self,
        logits: Float[Tensor, "*models batch classes"],
        protected: Int[Tensor, "*models batch"],
        posterior: Float[Tensor, "*models batch groups"] | None = None,
    ) -> Float[Tensor, "*models batch classes"]:
        """z + phi[:, a] of each sample's own group a; with a `posterior` over the groups, z + its mean of phi."""
        if posterior is not None:
            return logits + posterior @ self.phi.mT
        index = protected[..., None].expand(logits.shape)
        return logits + self.phi.mT.gather(-2, index)


def mixed_bias(
    logits: Float[Tensor, "*models batch classes"],
    labels: Int[Tensor, "*models batch"],
    protected: Int[Tensor, "*models batch"],
    groups: int,
    balance: float,
    soft_max: float = 0.0,
    total: Total | None = None,
) -> Float[Tensor, "*models"]:
    """(1 - balance) L_o + balance CE, the latter with all cells of the batch weighing the same, in nats. L_o asks for groups
    alike, the balanced CE for each cell well served: it pays for equality that costs every group its accuracy. `soft_max`
    and `total` as in `bias_loss`."""
    parts = []
    if balance < 1:
        parts.append((1 - balance) * bias_loss(logits, labels, protected, groups, soft_max, total))
    if balance > 0:
        sums, counts = cell_sums(logits, labels, protected, groups, total)
        cells = sums / counts.clamp(min=1)  # 0 where a cell is absent
        parts.append(balance * cells.sum((-2, -1)) / (counts > 0).to(cells.dtype).sum((-2, -1)))
    return sum(parts[1:], parts[0])
