"""Distillation without feedback: the methods that the paper compares with."""

from __future__ import annotations

from collections.abc import Callable
from typing import final

from bird.losses.attention import attention, attention_loss
from bird.losses.mmd import class_mmd
from bird.losses.terms import cross_entropy, distillation_kl, feature_mse
from bird.methods.base import Batch, Learner, Losses, Method

__all__ = ["ALL_PAIRS", "AT", "BKD", "MFD", "MMD_CELLS", "Baseline", "FitNet"]

MMD_CELLS = {
    "train": "the features of each group of a class are drawn to the teacher's; of an empty cell there are none"
}


ALL_PAIRS = "MMD compares all pairs of the batch's rows, and is no mean over rows"


@final
class Baseline(Method):
    """CE alone, no teacher."""

    def step(self, learner: Learner, batch: Batch, meta_batch: Callable[[], Batch], *, warm: bool) -> Losses:
        """CE."""
        ce = cross_entropy(learner.model(batch.inputs).logits, batch.labels)
        learner.descend(ce)
        return {"loss": ce.detach(), "ce": ce.detach()}


@final
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


@final
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


@final
class AT(Method):
    """CE + beta sum over the residual stages of the attention loss (Zagoruyko and Komodakis 2017).

    Attention has places: the student should see what the teacher saw. With random crops of the student's image that means
    stored views (`bird precompute --views`); nothing here checks it. Without them the pipelines mirror the teacher's maps
    with the image and leave the crop's shift.
    """

    stages = "attention"

    def step(self, learner: Learner, batch: Batch, meta_batch: Callable[[], Batch], *, warm: bool) -> Losses:
        """CE, and the attention loss of the stages."""
        assert batch.stages is not None
        output = learner.model(batch.inputs)
        ce = cross_entropy(output.logits, batch.labels)
        distance = attention_loss([attention(maps) for maps in output.stages], batch.stages)
        loss = ce + self.hyper.at_beta * distance
        learner.descend(loss)
        return {"loss": loss.detach(), "ce": ce.detach(), "distance": distance.detach()}


@final
class MFD(Method):
    """CE + lambda / 2 sum over classes and groups of MMD^2 (Jung et al. 2021): each group's features of a class shall be
    distributed as the teacher's of that class. Penultimate features, the teacher's standardised as for every method."""

    features = True
    cells = MMD_CELLS
    one_process = ALL_PAIRS

    def step(self, learner: Learner, batch: Batch, meta_batch: Callable[[], Batch], *, warm: bool) -> Losses:
        """CE, and the discrepancy of the features."""
        assert batch.teacher is not None
        features, logits = learner.model(batch.inputs)
        ce = cross_entropy(logits, batch.labels)
        distance = class_mmd(features, batch.teacher, batch.labels, batch.groups, logits.shape[-1], self.groups)
        loss = ce + self.hyper.mfd_weight / 2 * distance
        learner.descend(loss)
        return {"loss": loss.detach(), "ce": ce.detach(), "distance": distance.detach()}
