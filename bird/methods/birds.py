"""BIRD: distillation through a gate that learns from the student's feedback."""

from __future__ import annotations

from collections.abc import Callable

from bird.methods.base import Batch, Hyperparameters, Learner, Losses, Method
from bird.methods.distances import Distance, attention_distance, feature_distance, mmd_distance
from bird.methods.step import bird_loss

__all__ = ["Bird", "bird_at", "bird_mfd"]


class Bird(Method):
    """BIRD (Java et al. 2023, section 3) around any distance; by default FitNet's, as in most of the paper.

    During warmup lambda is 0 and phi stays as it was drawn. Afterwards each step looks ahead, moves phi against
    dL_o/dphi, and distils through the new gate: L_j = alpha D + (1 - alpha) CE + lambda L_o(train batch). The look-ahead
    and the distillation share one forward pass: same theta, same batch.
    With `learn_gate=False` phi is never updated ("BIRD w/o meta", Table 7).
    """

    gated = True

    def __init__(
        self, hyper: Hyperparameters, groups: int, *, distance: Distance | None = None, learn_gate: bool = True
    ) -> None:
        super().__init__(hyper, groups)
        self.meta = learn_gate
        self.distance = distance or feature_distance()
        self.features = self.distance.reads == "features"
        self.stages = "maps" if self.distance.reads == "maps" else None

    def step(self, learner: Learner, batch: Batch, meta_batch: Callable[[], Batch], *, warm: bool) -> Losses:
        """Feedback, then one distillation step."""
        assert learner.gate is not None
        loss, losses = bird_loss(
            learner.model,
            learner.gate,
            self.distance,
            batch,
            self.hyper,
            self.groups,
            meta_batch=meta_batch if self.meta else None,
            move_gate=learner.move_gate,
            warm=warm,
        )
        learner.descend(loss)
        return losses


def bird_at(hyper: Hyperparameters, groups: int) -> Bird:
    """BIRD around attention transfer: one phi a stage gates the channels of the teacher's maps (Table 5)."""
    return Bird(hyper, groups, distance=attention_distance(hyper.at_beta))


def bird_mfd(hyper: Hyperparameters, groups: int) -> Bird:
    """BIRD around MFD: the teacher's features are gated before they meet the student's (Table 5)."""
    return Bird(hyper, groups, distance=mmd_distance(hyper.mfd_weight, groups))
