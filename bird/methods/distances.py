"""The distances D that BIRD can be put around. One of your own is a function of three things:

    Distance(lambda h, gated, batch: (1 - cosine_similarity(h.features, gated)).mean(-1))

`h` is the student's answer (features, logits, and stages where it has them), `gated` what the gate left of the teacher, and
`batch` everything else. It must be differentiable in `h` and, once more, in `gated`; it returns a scalar, or with leading
dimensions one value a model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, final

from torch import Tensor, nn

from bird.losses.attention import attention, attention_loss
from bird.losses.mmd import class_mmd
from bird.losses.terms import distillation_kl, feature_mse
from bird.methods.base import Batch
from bird.step.feedback import Weight
from bird.step.gate import Gate, StageGates

__all__ = ["Distance", "attention_distance", "feature_distance", "mmd_distance", "reheaded_distance"]


@final
@dataclass(frozen=True)
class Distance:
    """D(h, gated, batch), and which teacher tensors are gated: "features", the penultimate vectors (batch, d), by a
    `Gate`; or "maps", those of the residual stages, by a `StageGates`."""

    loss: Callable[[Any, Any, Batch], Tensor]
    reads: Literal["features", "maps"] = "features"

    def given(self, batch: Batch) -> Any:
        """What goes into the gate. Raises ValueError if the batch does not hold it."""
        found = batch.teacher if self.reads == "features" else batch.stages
        if found is None:
            raise ValueError(f"this distance gates the teacher's {self.reads}, and the batch holds none")
        return found

    def new_gate(self, batch: Batch, seed: int = 0) -> Gate | StageGates:
        """A fresh gate for teachers such as the batch's."""
        given = self.given(batch)
        return (
            Gate(given.shape[-1], seed) if self.reads == "features" else StageGates([m.shape[-3] for m in given], seed)
        )


def feature_distance() -> Distance:
    """Mean (h_S - sigmoid(phi) h_T)^2 over samples and features: BIRD, which is "BIRD + FitNet" (Java et al. 2023).
    No weight besides alpha, other than FitNet's own .1."""
    return Distance(lambda h, gated, batch: feature_mse(h.features, gated))


def attention_distance(beta: Weight) -> Distance:
    """beta times the attention loss against gated maps ("BIRD + AT", Table 5). The attention loss is about 1e-3, and
    without a weight of its own it would have no effect beside CE (ours; the paper gives none)."""
    return Distance(lambda h, gated, batch: beta * attention_loss(_attention(h.stages), _attention(gated)), "maps")


def mmd_distance(weight: Weight, groups: int) -> Distance:
    """weight / 2 times the sum of MMD^2 against gated features ("BIRD + MFD", Table 5); `weight` is MFD's own lambda (ours;
    the paper gives none)."""

    def loss(h: Any, gated: Tensor, batch: Batch) -> Tensor:
        value = class_mmd(h.features, gated, batch.labels, batch.groups, h.logits.shape[-1], groups)
        return weight / 2 * value

    return Distance(loss)


def reheaded_distance(head: nn.Module, tau: float) -> Distance:
    """tau^2 KL between the student's logits and those that the teacher's `head` makes of its gated features: BKD with a gate
    (not in the paper). The head's own parameters are not trained."""
    return Distance(lambda h, gated, batch: distillation_kl(h.logits, head(gated), tau))


def _attention(maps: tuple[Tensor, ...]) -> list[Tensor]:
    return [attention(each) for each in maps]
