"""BIRD: distillation through a gate that learns from the student's feedback."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bird.losses.terms import bias_loss, cross_entropy
from bird.losses.weighting import adjusted_cross_entropy, log_prior
from bird.methods.base import Batch, Hyperparameters, Learner, Losses, Method, Regressed
from bird.methods.baselines import ALL_PAIRS, MMD_CELLS
from bird.methods.bird_step import bird_loss, task_loss
from bird.methods.distances import Distance, attention_distance, feature_distance, mmd_distance
from bird.step.feedback import Through
from bird.step.offsets import Offsets, mixed_bias

__all__ = ["Bird", "BirdOffsets", "BirdPlus", "bird_at", "bird_mfd"]

L_O_CELLS = "L_o compares the groups of each class, and of an empty cell there is no loss"
PRIOR = "log p(class | group), which an empty cell does not have"


class WithFeedback(Method):
    """What BIRD and its kin share: a step that moves phi by the student's feedback, and then distils. They differ in the
    loss of the task, in what the feedback is of, and in what phi is. With `learn_gate=False` phi is never updated."""

    gated = True

    def __init__(
        self, hyper: Hyperparameters, groups: int, *, distance: Distance | None = None, learn_gate: bool = True
    ) -> None:
        super().__init__(hyper, groups)
        self.meta = learn_gate
        self.distance = distance or feature_distance()
        self.features = self.distance.reads == "features"
        self.stages = "maps" if self.distance.reads == "maps" else None
        splits = [*(["meta"] if learn_gate else []), *(["train"] if bool(torch.as_tensor(hyper.lambda_).any()) else [])]
        self.cells = dict.fromkeys(splits, L_O_CELLS)

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
            meta_batch=meta_batch if self.meta and self.number % self.hyper.feedback_every == 0 else None,
            move_gate=learner.move_gate,
            warm=warm,
            task=partial(self.task, learner),
            outer=partial(self.outer, learner),
            recompute=self.recompute,
            guard=learner.guard,
            through=self.through(learner),
            ranks=learner.ranks,
        )
        learner.descend(loss, summed=True)
        return losses

    def through(self, learner: Learner) -> Through | None:
        """What the look-ahead moves; None for all that learns."""
        if self.hyper.feedback_through == "all":
            return None
        assert isinstance(learner.model, Regressed)
        return learner.model.last_part().__contains__

    @abstractmethod
    def task(self, learner: Learner, logits: Tensor, batch: Batch) -> Tensor:
        """The loss of the task: CE, or what stands in its place."""

    def outer(self, learner: Learner, logits: Tensor, batch: Batch) -> Tensor:
        """What the feedback is of: L_o."""
        total = None if learner.ranks.alone else learner.ranks.total
        return bias_loss(logits, batch.labels, batch.groups, self.groups, self.hyper.soft_max, total)


@final
class Bird(WithFeedback):
    """BIRD (Java et al. 2023, section 3) around any distance; by default FitNet's, as in most of the paper.

    During warmup lambda is 0 and phi stays as it was drawn. Afterwards each step looks ahead, moves phi against
    dL_o/dphi, and distils through the new gate: L_j = alpha D + (1 - alpha) CE + lambda L_o(train batch). The look-ahead
    and the distillation share one forward pass: same theta, same batch.
    With `learn_gate=False` it is "BIRD w/o meta" (Table 7).
    """

    def task(self, learner: Learner, logits: Tensor, batch: Batch) -> Tensor:
        """CE."""
        return task_loss(logits, batch)


@final
class BirdPlus(WithFeedback):
    """BIRD with three changes, ours, found on validation images (docs/decisions/0010):

    - CE is adjusted by log p(class | group) of the training split: L_j = alpha D + (1 - alpha) CE(z + log p(. | group), y).
      The group is asked for in training alone.
    - lambda L_o leaves L_j: it pulls against the adjusted loss. L_o stays what the gate learns from.
    - The student that ships has the running mean of the weights.
    """

    averages = True
    prior: Float[Tensor, "classes groups"] | None = None

    def __init__(self, hyper: Hyperparameters, groups: int, *, learn_gate: bool = True) -> None:
        super().__init__(replace(hyper, lambda_=0.0), groups, learn_gate=learn_gate)
        self.cells = {**self.cells, "train": "CE is adjusted by p(class | group), which an empty cell does not have"}

    def prepare(self, counts: Int[Tensor, "classes groups"], meta: Int[Tensor, "classes groups"] | None = None) -> None:
        """The prior from the cells' sizes."""
        self.prior = log_prior(counts)

    def task(self, learner: Learner, logits: Tensor, batch: Batch) -> Tensor:
        """CE of the adjusted logits."""
        if self.prior is None:
            raise ValueError("BirdPlus.prepare(counts) comes before the first step")
        self.prior = self.prior.to(logits.device)
        return adjusted_cross_entropy(logits, batch.labels, batch.groups, self.prior)


@final
class BirdOffsets(WithFeedback):
    """BIRD whose phi are offsets of the logits by class and group (bird.step.offsets; docs/decisions/0018), ours:

    - L_j = alpha D + (1 - alpha) CE(z + phi[:, a], y), with the gate as it was drawn and without lambda L_o.
    - phi starts at log p(class | group) of the training split, or at 0, and follows the feedback of L_o, of the CE balanced
      over the cells, or of a mixture (`balance`). `shrink` holds it back where a meta cell is small; with `pool` all cells
      say together how far it goes along log p(class | group). With `learn_alpha` alpha follows the same feedback.
    - The student that ships has the running mean of the weights.

    With `learn_gate=False` phi stays where it starts: from log p that is the fixed adjustment of Menon et al. (2021).
    """

    averages = True
    starts: Float[Tensor, "classes groups"] | None = None
    along: Float[Tensor, "classes groups"] | None = None
    meta_rows: Int[Tensor, "classes groups"] | None = None

    def __init__(self, hyper: Hyperparameters, groups: int, *, learn_gate: bool = True) -> None:
        super().__init__(replace(hyper, lambda_=0.0), groups, learn_gate=learn_gate)
        if hyper.pool:
            self.cells = {**self.cells, "train": f"--pool moves phi along {PRIOR}"}
        elif hyper.offsets_from == "prior":
            self.cells = {**self.cells, "train": f"phi starts at {PRIOR} (--offsets-from zero needs none)"}

    def prepare(self, counts: Int[Tensor, "classes groups"], meta: Int[Tensor, "classes groups"] | None = None) -> None:
        """Where phi starts, and how strongly it is pulled back, from the cells' sizes."""
        self.meta_rows = meta
        self.starts = log_prior(counts) if self.hyper.offsets_from == "prior" else torch.zeros(counts.shape)
        self.along = log_prior(counts) if self.hyper.pool else None

    def gate(self, teacher_dim: int | None, stage_channels: Sequence[int], seed: int) -> Offsets:
        """The offsets, and the gate as it is drawn."""
        if self.starts is None or teacher_dim is None:
            raise ValueError("BirdOffsets.prepare(counts) comes before its learner, which has a teacher")
        classes, groups = self.starts.shape
        weighs = float(self.hyper.alpha) if self.hyper.learn_alpha and self.meta else None
        offsets = Offsets(classes, groups, teacher_dim, seed, weighs)
        offsets.start(self.starts, self.meta_rows, self.hyper.shrink, self.along)
        return offsets

    def task(self, learner: Learner, logits: Tensor, batch: Batch) -> Tensor:
        """CE of the logits with the learner's offsets."""
        assert isinstance(learner.gate, Offsets)
        return cross_entropy(learner.gate.adjust(logits, batch.groups, batch.posterior), batch.labels)

    def outer(self, learner: Learner, logits: Tensor, batch: Batch) -> Tensor:
        """The mixture of L_o and the balanced CE."""
        total, hyper = None if learner.ranks.alone else learner.ranks.total, self.hyper
        return mixed_bias(logits, batch.labels, batch.groups, self.groups, hyper.balance, hyper.soft_max, total)


def bird_at(hyper: Hyperparameters, groups: int) -> Bird:
    """BIRD around attention transfer: one phi a stage gates the channels of the teacher's maps (Table 5)."""
    return Bird(hyper, groups, distance=attention_distance(hyper.at_beta))


def bird_mfd(hyper: Hyperparameters, groups: int) -> Bird:
    """BIRD around MFD: the teacher's features are gated before they meet the student's (Table 5)."""
    method = Bird(hyper, groups, distance=mmd_distance(hyper.mfd_weight, groups))
    method.cells = {**method.cells, **MMD_CELLS}
    method.one_process = ALL_PAIRS
    return method
