"""Adversarial debiasing (Zhang, Lemoine, Mitchell 2018)."""

from __future__ import annotations

from collections.abc import Callable
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd import grad

from bird.losses.terms import cross_entropy
from bird.methods.base import Batch, Learner, Losses, Method, Regressed, SingleLearner
from bird.step.ranks import ALONE, Ranks
from bird.students import Student, StudentOutput

__all__ = ["AD", "without"]

HIDDEN = 32


def without(gradient: Float[Tensor, ...], adversary: Float[Tensor, ...]) -> Float[Tensor, ...]:
    """g - proj_{g_adv} g: what of a tensor's gradient is orthogonal to the adversary's (inner products over the whole
    tensor)."""
    unit = adversary / (torch.linalg.vector_norm(adversary) + torch.finfo(adversary.dtype).tiny)
    orthogonal: Tensor = gradient - (gradient * unit).sum() * unit
    return orthogonal


@final
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
        model, weight, ranks = learner.model, self.hyper.ad_weight, learner.ranks
        output = model(batch.inputs)
        ce = cross_entropy(output.logits, batch.labels)
        caught = cross_entropy(learner.aide(output.logits), batch.groups)
        own = list(learner.aide.parameters())
        for parameter, gradient in zip(own, ranks.sum(grad(ranks.part(caught), own, retain_graph=True)), strict=True):
            parameter.grad = gradient
        if self.moves:
            given = (model, batch.inputs, output, ranks.part(ce), ranks.part(caught), weight)
            update = linear_update(*given) if is_linear(model) and ranks.alone else tensor_update(*given, ranks)
            for parameter, direction in zip(model.parameters(), update, strict=True):
                parameter.grad = direction
            learner.optimizer.step()
        learner.aide_optimizer.step()
        return {"loss": ce.detach(), "ce": ce.detach(), "adversary": caught.detach()}


def tensor_update(
    model: nn.Module,
    inputs: Tensor,
    output: StudentOutput,
    ce: Tensor,
    caught: Tensor,
    weight: float,
    ranks: Ranks = ALONE,
) -> list[Tensor]:
    """What Adam is given for each tensor of any student: two backward passes. The projection is of the gradients of all
    ranks' rows."""
    theta = list(model.parameters())
    gradients = grad(ce, theta, retain_graph=True, materialize_grads=True)
    adversary = grad(caught, theta, retain_graph=True, materialize_grads=True)
    every = ranks.sum([*gradients, *adversary])
    gradients, adversary = every[: len(theta)], every[len(theta) :]
    return [without(g, a) - weight * a for g, a in zip(gradients, adversary, strict=True)]


def is_linear(model: Regressed) -> bool:
    """Whether the student is two linear layers and nothing else: an adapter with one head."""
    plain = isinstance(model.student.backbone, nn.Linear) and isinstance(model.regressor, nn.Identity)
    return plain and model.student.heads == 1


def linear_update(
    model: Regressed, inputs: Tensor, output: StudentOutput, ce: Tensor, caught: Tensor, weight: float
) -> list[Tensor]:
    """`tensor_update` of an adapter, with one (d, d) product instead of two and no pass over a (d, d) gradient. Those of a
    layer are G = g^T X and A = a^T X with g, a the gradients of its outputs, so that <G, A> = sum (g a^T) (X X^T)
    elementwise, and what Adam is given is again of that form."""
    student = model.student
    x = (inputs - student.mean) / student.std
    of_task, of_adversary = (grad(loss, list(output), retain_graph=True) for loss in (ce, caught))
    updates = []
    for layer_inputs, g, a in zip((x, output.features.detach().relu()), of_task, of_adversary, strict=True):
        kernel = layer_inputs @ layer_inputs.T
        along, size = (((one @ a.T) * kernel).sum() for one in (g, a))  # <G, A> and <A, A>
        share = along / size.clamp_min(torch.finfo(a.dtype).tiny)
        updates.append((g - (share + weight) * a).T @ layer_inputs)
        bias, adversary = g.sum(0), a.sum(0)
        updates.append(without(bias, adversary) - weight * adversary)
    return updates
