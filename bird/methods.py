"""The distillation methods, one small class each. `METHODS` is the list.

A method turns a train batch (and, where it asks for one, a meta batch) into one update of the student.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from bird.errors import UsageError
from bird.gate import Gate
from bird.losses import bias_loss, cross_entropy, distillation_kl, feature_mse
from bird.meta import feedback
from bird.students import Student, StudentOutput

__all__ = [
    "DESCRIPTIONS",
    "METHODS",
    "Batch",
    "Hyperparameters",
    "Learner",
    "Losses",
    "Method",
    "build_method",
]

Losses = dict[str, Tensor]
"""Named scalar losses of one step, detached."""


@dataclass(frozen=True)
class Batch:
    """One batch: the student's inputs, class labels, protected groups, and what the teacher said (None if not needed).

    `inputs` are pixels in [0, 1], (batch, 3, size, size), or raw teacher features (batch, d) for the adapter;
    `teacher` the standardised penultimate features (batch, d); `teacher_logits` (batch, classes).
    """

    inputs: Float[Tensor, batch * shape]
    labels: Int[Tensor, batch]
    groups: Int[Tensor, batch]
    teacher: Float[Tensor, "batch dim"] | None = None
    teacher_logits: Float[Tensor, "batch classes"] | None = None


@dataclass(frozen=True)
class Hyperparameters:
    """What the losses are weighed with. Defaults: Java et al. 2023 where it gives them (alpha, tau), else ours.

    `lambda_` weighs L_o in the distillation step; `mu1` is the look-ahead step, `mu2` the learning rate of phi.
    """

    alpha: float = 0.9
    tau: float = 4.0
    lambda_: float = 0.1
    mu1: float = 1e-3
    mu2: float = 1e-3
    fitnet_weight: float = 0.1


class Regressed(nn.Module):
    """A student whose features are mapped to the teacher's width by a linear regressor (Romero et al. 2015).

    The regressor belongs to training: it is part of theta, and left behind when the student ships.
    """

    def __init__(self, student: Student, dim: int | None) -> None:
        super().__init__()
        self.student = student
        self.regressor = nn.Identity() if dim is None or dim == student.dim else nn.Linear(student.dim, dim)

    def forward(self, inputs: Float[Tensor, batch * shape]) -> StudentOutput:
        """Features at the teacher's width, and logits."""
        features, logits = self.student(inputs)
        return StudentOutput(self.regressor(features), logits)


class Learner:
    """Everything that training changes: the student with its regressor, the gate, and their Adam optimisers."""

    def __init__(self, student: Student, *, teacher_dim: int | None, lr: float, mu2: float, seed: int) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model = Regressed(student, teacher_dim)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=lr)
        self.gate = None if teacher_dim is None else Gate(teacher_dim, seed)
        # The feedback is of the size 1e-5 mu1: Adam's usual eps of 1e-8 would swallow it.
        self.gate_optimizer = None if self.gate is None else torch.optim.Adam(self.gate.parameters(), lr=mu2, eps=1e-16)

    def descend(self, loss: Tensor) -> None:
        """One Adam step of the student on `loss`."""
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        self.optimizer.step()


class Method(ABC):
    """One way to train a student. The flags say what `step` needs in its batches."""

    features = False
    """the teacher's penultimate features"""
    logits = False
    """the teacher's logits"""
    meta = False
    """batches of the meta split"""
    gated = False
    """the gate has a part in it"""

    def __init__(self, hyper: Hyperparameters, groups: int) -> None:
        self.hyper, self.groups = hyper, groups

    @abstractmethod
    def step(self, learner: Learner, batch: Batch, meta_batch: Callable[[], Batch], *, warm: bool) -> Losses:
        """One update of `learner` from `batch`; `meta_batch()` draws a meta batch, `warm` says that the warmup is over."""


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
        assert learner.gate_optimizer is not None
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
        for parameter, gradient in zip(learner.gate.parameters(), gradients, strict=True):
            parameter.grad = gradient
        learner.gate_optimizer.step()
        return bias


METHODS: Mapping[str, Callable[[Hyperparameters, int], Method]] = {
    "baseline": Baseline,
    "bkd": BKD,
    "fitnet": FitNet,
    "bird": Bird,
    "bird-no-meta": partial(Bird, learn_gate=False),
}


DESCRIPTIONS: Mapping[str, str] = {
    "baseline": "cross-entropy alone, no teacher",
    "bkd": "softened teacher logits (Hinton et al. 2015); logits of a head fitted on the cached features",
    "fitnet": "penultimate features, MSE (Romero et al. 2015)",
    "bird": "gated features with student feedback (Java et al. 2023)",
    "bird-no-meta": "BIRD with the gate as it was drawn (Java et al. 2023, Table 7)",
}


def build_method(name: str, hyper: Hyperparameters, groups: int) -> Method:
    """The method of that name for `groups` protected groups. Raises UsageError for an unknown name."""
    if name not in METHODS:
        raise UsageError(
            where="--method",
            found=repr(name),
            wanted=f"one of {', '.join(METHODS)}",
            fix="see `bird list methods`",
        )
    return METHODS[name](hyper, groups)
