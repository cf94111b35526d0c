"""What every method works on: a batch, the hyperparameters, the learner, and the method itself as an abstract class."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from bird.step.averaging import running_mean
from bird.step.feedback import Weight
from bird.step.gate import Gate, StageGates, move
from bird.step.guard import Guard
from bird.step.offsets import Offsets
from bird.step.optimizers import OptimizerName, student_optimizer
from bird.step.ranks import ALONE, Ranks
from bird.students import StagedOutput, Student, StudentOutput, last_stage, require_stages

__all__ = ["Batch", "Hyperparameters", "Learner", "Losses", "Method", "Regressed", "SingleLearner"]

Losses = dict[str, Tensor]
"""Named losses of one step, detached: a scalar, or one value a model."""


@final
@dataclass(frozen=True)
class Batch:
    """One batch: the student's inputs, class labels, protected groups, and what the teacher said (None if not needed).

    `inputs` are pixels in [0, 1], (batch, 3, size, size), or raw teacher features (batch, d) for the adapter;
    `teacher` the standardised penultimate features (batch, d); `teacher_logits` (batch, classes);
    `stages` one tensor a residual stage of the teacher, from the shallowest: maps (batch, channels, height, width) or
    attention (batch, height, width), as the method asks; `posterior` the probabilities of the groups where these are not
    known, `groups` then the most probable ones. The batches of S models that train side by side (bird.step.stack) have a
    dimension S before all of these, and standardised inputs.
    """

    inputs: Float[Tensor, ...]
    labels: Int[Tensor, "*models batch"]
    groups: Int[Tensor, "*models batch"]
    teacher: Float[Tensor, "*models batch dim"] | None = None
    teacher_logits: Float[Tensor, "*models batch classes"] | None = None
    stages: tuple[Float[Tensor, ...], ...] | None = None
    posterior: Float[Tensor, "*models batch groups"] | None = None


@final
@dataclass(frozen=True)
class Hyperparameters:
    """What the losses are weighed with. Defaults: Java et al. 2023 where it gives them (alpha, tau), else ours.

    `lambda_` weighs L_o in the distillation step; `mu1` is the look-ahead step, `mu2` the learning rate of phi.
    What weighs a loss is a number, or for S models side by side (S,).

    | name | method | default, and where it is from |
    |---|---|---|
    | fitnet_weight | fitnet | .1 |
    | at_beta | at, bird+at: weight of the attention loss | 1e3, Zagoruyko and Komodakis' code (the paper of BIRD: 1e6) |
    | mfd_weight | mfd, bird+mfd: lambda, of which half weighs MMD^2 | 3 (Jung et al. 2021: 7 CelebA, 3 UTKFace) |
    | ad_weight | ad: weight of - g_adv | 1 |
    | ad_lr | ad: the adversary's learning rate | 1e-3 |
    | ad_every | ad: the student moves in every nth epoch only | 1 |
    | dro_step | group-dro: step of the exponentiated gradient | .01 (Sagawa et al. 2020, their code) |
    | average | decay of the running mean of the weights, which ships; 0: none | .999 for bird-plus, bird-offsets; else 0 |
    | balance | bird-offsets: the weight of the balanced CE in what its feedback is of, the rest is L_o's | 0 |
    | offsets_from | bird-offsets: phi starts at log p(class given group) ("prior") or at 0 ("zero") | "prior" |
    | shrink | bird-offsets: the offset of a cell of n meta rows goes n / shrink nats from its start at most; 0: freely | 0 |
    | pool | bird-offsets: phi moves along log p(class given group) alone, by one number that all cells agree on | False |
    | learn_alpha | bird-offsets: the feedback moves alpha, too | False |
    | soft_max | bird and its kin: T of the soft maximum in L_o, in nats; 0: the maximum | 0 |
    | feedback_every | bird and its kin: of so many steps one has feedback | 1 |
    | feedback_through | bird and its kin: what the look-ahead moves: all, or what is from the last stage on (last) | "all" |
    """

    alpha: Weight = 0.9
    tau: float = 4.0
    lambda_: Weight = 0.03
    mu1: Weight = 1e-3
    mu2: float = 1e-3
    fitnet_weight: Weight = 0.1
    at_beta: Weight = 1e3
    mfd_weight: Weight = 3.0
    ad_weight: float = 1.0
    ad_lr: float = 1e-3
    ad_every: int = 1
    dro_step: float = 0.01
    average: float | None = None
    balance: float = 0.0
    offsets_from: Literal["prior", "zero"] = "prior"
    shrink: float = 0.0
    pool: bool = False
    learn_alpha: bool = False
    soft_max: float = 0.0
    feedback_every: int = 1
    feedback_through: Literal["all", "last"] = "all"


@final
class Regressed(nn.Module):
    """A student whose features are mapped to the teacher's width by a linear regressor (Romero et al. 2015).

    The regressor belongs to training: it is part of theta, and left behind when the student ships. With `staged` the
    answer has the maps of the residual stages, too; raises UsageError for a student that has none.
    """

    def __init__(self, student: Student, dim: int | None, *, staged: bool = False) -> None:
        super().__init__()
        if staged:
            require_stages(student.architecture, student.stages)
        self.student, self.staged = student, staged
        self.regressor = nn.Identity() if dim is None or dim == student.dim else nn.Linear(student.dim, dim)

    def forward(self, inputs: Float[Tensor, batch * shape]) -> StudentOutput | StagedOutput:
        """Features at the teacher's width, logits, and the stages' maps if they are asked for."""
        features, logits, *stages = self.student.staged(inputs) if self.staged else self.student(inputs)
        features = self.regressor(features)
        return StagedOutput(features, logits, *stages) if self.staged else StudentOutput(features, logits)

    def last_part(self) -> frozenset[str]:
        """The names of the parameters from the student's last residual stage on. Raises UsageError where it has none."""
        names = [name for name, _ in self.named_parameters()]
        first = f"student.backbone.{last_stage(self.student.architecture, self.student.stages)}."
        return frozenset(names[next(place for place, name in enumerate(names) if name.startswith(first)) :])


class Learner(ABC):
    """What training changes, as a method sees it: a student, and a gate if there is a teacher. The guard watches the
    student's feedback; it changes nothing, and no checkpoint holds it. `ranks` are the processes that train it together."""

    model: nn.Module
    gate: Gate | StageGates | Offsets | None
    guard: Guard
    ranks: Ranks = ALONE

    @abstractmethod
    def descend(self, loss: Float[Tensor, "*models"], *, summed: bool = False) -> None:
        """One step of the student on `loss`: a mean over the rows of the batch, or, where it is `summed`, one whose
        gradients add up over the ranks."""

    @abstractmethod
    def move_gate(self, gradients: Sequence[Tensor]) -> None:
        """One Adam step of the gate against the given gradients of its parameters."""


@final
class SingleLearner(Learner):
    """One student with its regressor and its gate, each with its optimiser: the student's is `optimizer` (a name in
    bird.step.optimizers) with `weight_decay`, the gate's is Adam.

    `aide` is what a method trains or keeps beside the student (the adversary of AD, the weights of group-DRO); its
    parameters, if it has any, have an Adam of their own. With `average` > 0 the student that ships has the running mean
    of the weights (bird.step.averaging) and no part in training.
    """

    model: Regressed

    def __init__(
        self,
        student: Student,
        *,
        teacher_dim: int | None,
        lr: float,
        mu2: float,
        seed: int,
        gate: Gate | StageGates | Offsets | None = None,
        aide: nn.Module | None = None,
        aide_lr: float = 1e-3,
        staged: bool = False,
        average: float = 0.0,
        optimizer: OptimizerName = "adam",
        weight_decay: float = 0.0,
    ) -> None:
        device = student.mean.device
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model = Regressed(student, teacher_dim, staged=staged).to(device)
        self.optimizer = student_optimizer(optimizer, self.model.parameters(), lr, weight_decay)
        self.gate = gate or (None if teacher_dim is None else Gate(teacher_dim, seed))
        self.guard = Guard()
        self.aide = aide
        for part in (self.gate, self.aide):
            if part is not None:
                part.to(device)
        # The feedback is of the size 1e-5 mu1: Adam's usual eps of 1e-8 would swallow it.
        self.gate_optimizer = None if self.gate is None else torch.optim.Adam(self.gate.parameters(), lr=mu2, eps=1e-16)
        trained = [] if aide is None else list(aide.parameters())
        self.aide_optimizer = torch.optim.Adam(trained, lr=aide_lr) if trained else None
        self.average = running_mean(self.model.student, average) if average else None
        self.optimizer.register_step_post_hook(lambda *_: self.update_average())  # whoever calls its step

    @property
    def student(self) -> Student:
        """The student that ships."""
        if self.average is None:
            return self.model.student
        return cast("Student", self.average.module)

    def descend(self, loss: Float[Tensor, "*models"], *, summed: bool = False) -> None:
        """One step of the student on `loss`."""
        torch.autograd.backward(loss if summed else self.ranks.part(loss))
        self.ranks.sum_gradients(self.model.parameters())
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)  # not held during the next forward pass

    def update_average(self) -> None:
        """The running mean of the weights, if there is one, takes in the present ones."""
        if self.average is not None:
            self.average.update_parameters(self.model.student)

    def move_gate(self, gradients: Sequence[Tensor]) -> None:
        """One Adam step of the gate against the given gradients of its parameters."""
        assert self.gate is not None
        assert self.gate_optimizer is not None
        move(self.gate, self.gate_optimizer, gradients)


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
    stages: Literal["attention", "maps"] | None = None
    """attention or maps of the teacher's residual stages, and the student's own"""
    heads_by_group = False
    """the student has one head a group"""
    averages = False
    """the student that ships has the running mean of the weights, unless the hyperparameters say otherwise"""
    stackable = True
    """`step` takes S learners side by side (bird.step.stack); otherwise it needs a SingleLearner"""
    cells: Mapping[str, str] = {}
    """the splits of which the method needs a sample in every (class, group) cell, and why: without one it is another
    method"""
    one_process = ""
    """why several processes cannot train one student with it (bird.step.ranks); empty where they can"""
    recompute = False
    """to be set: two more forward passes a step rather than two graphs at once, where a meta batch is in it"""
    number = 0
    """to be set before each step: how many came before it in the run"""

    def __init__(self, hyper: Hyperparameters, groups: int) -> None:
        self.hyper, self.groups = hyper, groups

    def learner(
        self,
        student: Student,
        *,
        teacher_dim: int | None,
        stage_channels: Sequence[int] = (),
        lr: float,
        mu2: float,
        seed: int,
        optimizer: OptimizerName = "adam",
        weight_decay: float = 0.0,
    ) -> SingleLearner:
        """All that this method trains, around `student`. `teacher_dim` is the width of the teacher's features, if there is
        a teacher; `stage_channels` the channels of its residual stages, where `stages` is "maps"; `lr`, `optimizer` and
        `weight_decay` are the student's, `mu2` is the learning rate of the gate."""
        average = self.hyper.average
        return SingleLearner(
            student,
            teacher_dim=None if self.stages else teacher_dim,
            lr=lr,
            mu2=mu2,
            seed=seed,
            gate=self.gate(teacher_dim, stage_channels, seed),
            aide=self.aide(student, seed),
            aide_lr=self.hyper.ad_lr,
            staged=self.stages is not None,
            average=(0.999 if self.averages else 0.0) if average is None else average,
            optimizer=optimizer,
            weight_decay=weight_decay,
        )

    def gate(
        self, teacher_dim: int | None, stage_channels: Sequence[int], seed: int
    ) -> Gate | StageGates | Offsets | None:
        """What the feedback moves, fresh; None for the gate on the teacher's features, if there are any."""
        return StageGates(stage_channels, seed) if self.gated and self.stages else None

    def aide(self, student: Student, seed: int) -> nn.Module | None:
        """What is trained or kept beside the student, fresh; None for most methods. It is part of every checkpoint."""
        return None

    def prepare(  # noqa: B027  (most methods need not know)
        self, counts: Int[Tensor, "classes groups"], meta: Int[Tensor, "classes groups"] | None = None
    ) -> None:
        """Told once, before the first step: how many training samples each cell has, and how many meta samples."""

    def begin_epoch(self, epoch: int) -> None:  # noqa: B027  # most methods need not know
        """Told at the start of each epoch, also of one that is resumed; epochs count from 0."""

    @abstractmethod
    def step(self, learner: Learner, batch: Batch, meta_batch: Callable[[], Batch], *, warm: bool) -> Losses:
        """One update of `learner` from `batch`; `meta_batch()` draws a meta batch, `warm` says that the warmup is over."""
