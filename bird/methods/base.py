"""What every method works on: a batch, the hyperparameters, the learner, and the method itself as an abstract class."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from bird.gate import Gate
from bird.meta import Weight
from bird.students import Student, StudentOutput

__all__ = ["Batch", "Hyperparameters", "Learner", "Losses", "Method", "Regressed", "SingleLearner"]

Losses = dict[str, Tensor]
"""Named losses of one step, detached: a scalar, or one value a model."""


@dataclass(frozen=True)
class Batch:
    """One batch: the student's inputs, class labels, protected groups, and what the teacher said (None if not needed).

    `inputs` are pixels in [0, 1], (batch, 3, size, size), or raw teacher features (batch, d) for the adapter;
    `teacher` the standardised penultimate features (batch, d); `teacher_logits` (batch, classes). The batches of S models
    that train side by side (bird.stack) have a dimension S before all of these, and standardised inputs.
    """

    inputs: Float[Tensor, ...]
    labels: Int[Tensor, "*models batch"]
    groups: Int[Tensor, "*models batch"]
    teacher: Float[Tensor, "*models batch dim"] | None = None
    teacher_logits: Float[Tensor, "*models batch classes"] | None = None


@dataclass(frozen=True)
class Hyperparameters:
    """What the losses are weighed with. Defaults: Java et al. 2023 where it gives them (alpha, tau), else ours.

    `lambda_` weighs L_o in the distillation step; `mu1` is the look-ahead step, `mu2` the learning rate of phi.
    What weighs a loss is a number, or for S models side by side (S,).
    """

    alpha: Weight = 0.9
    tau: float = 4.0
    lambda_: Weight = 0.1
    mu1: Weight = 1e-3
    mu2: float = 1e-3
    fitnet_weight: Weight = 0.1


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


class Learner(ABC):
    """What training changes, as a method sees it: a student, and a gate if there is a teacher."""

    model: nn.Module
    gate: Gate | None

    @abstractmethod
    def descend(self, loss: Float[Tensor, "*models"]) -> None:
        """One Adam step of the student on `loss`."""

    @abstractmethod
    def move_gate(self, gradients: Sequence[Tensor]) -> None:
        """One Adam step of the gate against the given gradients of its parameters."""


@final
class SingleLearner(Learner):
    """One student with its regressor, its gate, and their Adam optimisers."""

    model: Regressed

    def __init__(self, student: Student, *, teacher_dim: int | None, lr: float, mu2: float, seed: int) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model = Regressed(student, teacher_dim)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=lr, fused=True)
        self.gate = None if teacher_dim is None else Gate(teacher_dim, seed)
        # The feedback is of the size 1e-5 mu1: Adam's usual eps of 1e-8 would swallow it.
        self.gate_optimizer = None if self.gate is None else torch.optim.Adam(self.gate.parameters(), lr=mu2, eps=1e-16)

    def descend(self, loss: Float[Tensor, "*models"]) -> None:
        """One Adam step of the student on `loss`."""
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        self.optimizer.step()

    def move_gate(self, gradients: Sequence[Tensor]) -> None:
        """One Adam step of the gate against the given gradients of its parameters."""
        assert self.gate is not None
        assert self.gate_optimizer is not None
        for parameter, gradient in zip(self.gate.parameters(), gradients, strict=True):
            parameter.grad = gradient
        self.gate_optimizer.step()


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
    stacks = True
    """`step` may be given S models at once (bird.stack)"""

    def __init__(self, hyper: Hyperparameters, groups: int) -> None:
        self.hyper, self.groups = hyper, groups

    @abstractmethod
    def step(self, learner: Learner, batch: Batch, meta_batch: Callable[[], Batch], *, warm: bool) -> Losses:
        """One update of `learner` from `batch`; `meta_batch()` draws a meta batch, `warm` says that the warmup is over."""
