"""Distillation without feedback: the methods that the paper compares with."""

from __future__ import annotations

from collections.abc import Callable

from bird.losses import cross_entropy, distillation_kl, feature_mse
from bird.methods.base import Batch, Learner, Losses, Method

__all__ = ["BKD", "Baseline", "FitNet"]


class Baseline(Method):
    """CE alone, no teacher."""

    def step(self, learner: Learner, batch: Batch, meta_batch: Callable[[], Batch], *, warm: bool) -> Losses:
        """CE."""
        ce = cross_entropy(learner.model(batch.inputs).logits, batch.labels)
        learner.descend(ce)
        return {"loss": ce.detach(), "ce": ce.detach()}


class BKD(Method):
    """alpha tau^2 KL(teacher_tau || student_tau) + (1 - alpha) CE (Hinton et al. 2015)."""

    logits = True

    def step(self, learner: Learner, batch: Batch, meta_batch: Callable[[], Batch], *, warm: bool) -> Losses:
        """KL of softened logits, and CE."""
        assert batch.teacher_logits is not None
        logits = learner.model(batch.inputs).logits
        ce = cross_entropy(logits, batch.labels)
        distance = distillation_kl(logits, batch.teacher_logits, self.hyper.tau)
        loss = self.hyper.alpha * distance + (1 - self.hyper.alpha) * ce
        learner.descend(loss)
        return {"loss": loss.detach(), "ce": ce.detach(), "distance": distance.detach()}


class FitNet(Method):
    """CE + 0.1 MSE(h_S, h_T), in one stage (Romero et al. 2015; the one-stage form is usual)."""

    features = True

    def step(self, learner: Learner, batch: Batch, meta_batch: Callable[[], Batch], *, warm: bool) -> Losses:
        """CE, and the hint loss on penultimate features."""
        assert batch.teacher is not None
        features, logits = learner.model(batch.inputs)
        ce, distance = cross_entropy(logits, batch.labels), feature_mse(features, batch.teacher)
        loss = ce + self.hyper.fitnet_weight * distance
        learner.descend(loss)
        return {"loss": loss.detach(), "ce": ce.detach(), "distance": distance.detach()}
