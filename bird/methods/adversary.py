"""Adversarial debiasing (Zhang, Lemoine, Mitchell 2018)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd import grad

from bird.losses import cross_entropy
from bird.methods.base import Batch, Learner, Losses, Method, SingleLearner
from bird.students import Student

__all__ = ["AD", "without"]

HIDDEN = 32


def without(gradient: Float[Tensor, ...], adversary: Float[Tensor, ...]) -> Float[Tensor, ...]:
    """g - proj_{g_adv} g: what of a tensor's gradient is orthogonal to the adversary's (inner products over the whole
    tensor)."""
    unit = adversary / (torch.linalg.vector_norm(adversary) + torch.finfo(adversary.dtype).tiny)
    orthogonal: Tensor = gradient - (gradient * unit).sum() * unit
    return orthogonal


class AD(Method):
    """An adversary reads the group off the class logits; the student learns the class without helping it.

    For each tensor of the student the update is g - proj_{g_adv} g - w g_adv (Zhang et al. 2018, eq. 1), with g the gradient
    of CE, g_adv that of the adversary's CE; Adam takes it for the gradient. Both, and the adversary's own gradient, are
    taken before either moves. The adversary (two layers, 32 hidden units, on logits alone as for demographic parity)
    learns in every batch; the student in every `ad_every`th epoch.
    Differs: w is constant (theirs grows as the step shrinks), and the adversary does not see the label.
    """

    stackable = False
    moves = True

    def aide(self, student: Student, seed: int) -> nn.Module:
        """The adversary."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return nn.Sequential(nn.Linear(student.classes, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, self.groups))

    def begin_epoch(self, epoch: int) -> None:
        """Does the student move in this epoch?"""
        self.moves = epoch % self.hyper.ad_every == 0

    def step(self, learner: Learner, batch: Batch, meta_batch: Callable[[], Batch], *, warm: bool) -> Losses:
        """One step of the adversary, and of the student where it moves."""
        assert isinstance(learner, SingleLearner)
        assert learner.aide is not None
        assert learner.aide_optimizer is not None
        logits = learner.model(batch.inputs).logits
        ce, caught = cross_entropy(logits, batch.labels), cross_entropy(learner.aide(logits), batch.groups)
        theta, own = list(learner.model.parameters()), list(learner.aide.parameters())
        gradients = grad(ce, theta, retain_graph=True, materialize_grads=True)
        both = grad(caught, [*theta, *own], materialize_grads=True)
        for parameter, gradient in zip(own, both[len(theta) :], strict=True):
            parameter.grad = gradient
        learner.aide_optimizer.step()
        if self.moves:
            for parameter, g, g_adv in zip(theta, gradients, both, strict=False):
                parameter.grad = without(g, g_adv) - self.hyper.ad_weight * g_adv
            learner.optimizer.step()
        return {"loss": ce.detach(), "ce": ce.detach(), "adversary": caught.detach()}
