"""BIRD: distillation through a gate that learns from the student's feedback."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bird.losses import bias_loss, cross_entropy, feature_mse
from bird.meta import feedback
from bird.methods.base import Batch, Hyperparameters, Learner, Losses, Method
from bird.students import StudentOutput

__all__ = ["Bird"]


class Bird(Method):
    """BIRD (Java et al. 2023, section 3): distillation through a gate that learns from the student's bias.

    During warmup lambda is 0 and phi stays as it was drawn. Afterwards each step looks ahead, moves phi against
    dL_o/dphi, and distils through the new gate: L_j = alpha D + (1 - alpha) CE + lambda L_o(train batch). The look-ahead
    and the distillation share one forward pass: same theta, same batch.
    With `learn_gate=False` phi is never updated ("BIRD w/o meta", Table 7).
    """

    features = True
    gated = True

    def __init__(self, hyper: Hyperparameters, groups: int, *, learn_gate: bool = True) -> None:
        super().__init__(hyper, groups)
        self.meta = learn_gate

    def step(self, learner: Learner, batch: Batch, meta_batch: Callable[[], Batch], *, warm: bool) -> Losses:
        """Feedback, then one distillation step."""
        assert batch.teacher is not None
        assert learner.gate is not None
        alpha = self.hyper.alpha
        output = learner.model(batch.inputs)
        ce = cross_entropy(output.logits, batch.labels)
        losses: Losses = {"ce": ce.detach()}
        if warm and self.meta:
            losses["meta_bias"] = self._move_gate(learner, batch, meta_batch(), output, ce)
        with torch.no_grad():  # phi is detached from L_j
            target = learner.gate(batch.teacher)
        distance = feature_mse(output.features, target)
        loss = alpha * distance + (1 - alpha) * ce
        if warm:
            bias = bias_loss(output.logits, batch.labels, batch.groups, self.groups)
            loss = loss + self.hyper.lambda_ * bias
            losses["bias"] = bias.detach()
        learner.descend(loss)
        return losses | {"loss": loss.detach(), "distance": distance.detach()}

    def _move_gate(self, learner: Learner, batch: Batch, meta: Batch, output: StudentOutput, ce: Tensor) -> Tensor:
        """One Adam step of phi along the student's feedback; returns L_o(theta') on the meta batch."""
        assert batch.teacher is not None
        assert learner.gate is not None
        alpha = self.hyper.alpha
        distance = feature_mse(output.features, learner.gate(batch.teacher))
        bias, gradients = feedback(
            learner.model,
            learner.gate,
            inputs=batch.inputs,
            output=output,
            inner_loss=alpha * distance + (1 - alpha) * ce,
            teacher=batch.teacher,
            distance=lambda h, gated: feature_mse(h.features, gated),
            meta_inputs=meta.inputs,
            meta_loss=lambda h: bias_loss(h.logits, meta.labels, meta.groups, self.groups),
            alpha=alpha,
            mu1=self.hyper.mu1,
        )
        learner.move_gate(gradients)
        return bias
