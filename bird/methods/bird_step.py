"""One iteration of BIRD around any distance: the losses, and the gate's own step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, final

import torch
from torch import Tensor, nn

from bird.errors import StudentError, UsageError
from bird.losses.terms import bias_loss, cross_entropy
from bird.methods.base import Batch, Hyperparameters, Losses
from bird.methods.distances import Distance, feature_distance
from bird.step.feedback import Objective, Sensitive, Through, Weight, feedback
from bird.step.gate import Gate, StageGates, Weighs, move
from bird.step.guard import HALF, Guard, refuse_wrapped
from bird.step.offsets import Offsets
from bird.step.ranks import ALONE, Ranks, Reduce
from bird.step.tangents import Tape
from bird.students import StudentOutput

__all__ = ["BirdStep", "bird_loss"]


Outer = Callable[[Tensor, Batch], Tensor]
"""What the student's feedback is of, from its logits on a meta batch: one value a model. By default L_o."""
MoveGate = Callable[[Sequence[Tensor]], None]
"""One descent step of the gate against gradients of its parameters."""
Task = Callable[[Tensor, Batch], Tensor]
"""The loss of the task from logits (*models, batch, classes): one value a model."""


def task_loss(logits: Tensor, batch: Batch) -> Tensor:
    """CE(z, y), in nats."""
    return cross_entropy(logits, batch.labels)


@final
class InnerLoss(NamedTuple):
    """L_in = alpha D + (1 - alpha) CE of a student's answer, and its two parts: one value a model each."""

    distance: Tensor
    ce: Tensor
    mixed: Tensor


def bird_loss(
    model: nn.Module,
    gate: nn.Module,
    distance: Distance,
    batch: Batch,
    hyper: Hyperparameters,
    groups: int,
    *,
    meta_batch: Callable[[], Batch] | None,
    move_gate: MoveGate,
    warm: bool,
    task: Task = task_loss,
    outer: Outer | None = None,
    recompute: bool = False,
    guard: Guard | None = None,
    through: Through | None = None,
    ranks: Ranks = ALONE,
) -> tuple[Tensor, Losses]:
    """L_j = alpha D + (1 - alpha) CE + lambda L_o(batch), with its graph, at the student's present parameters and the gate's
    NEW phi: with `warm` and a `meta_batch`, phi was moved against the student's feedback first (Java et al. 2023,
    section 3). Before the warmup is over lambda is 0 and phi stays. All share one forward pass of `batch`; `task` is CE
    or what stands in its place, `outer` L_o. The second result holds the parts, detached: ce, distance, loss; with `warm`
    bias (L_o of the batch), and where phi moved meta_bias (`outer` at theta', of the meta batch). `recompute`: no two graphs
    at once. `guard` checks the feedback (bird.step.guard); it is the student's own; `through` as in `feedback`. Over `ranks`
    the gradient of the loss is this rank's part of a sum; ce and distance are of its own rows, bias and meta_bias of all.
    Raises StudentError where the feedback is not exact.
    """
    inner = inner_loss(gate, distance, batch, hyper, task)
    losses: Losses = {}
    if warm and meta_batch is not None:
        meta, outer = meta_batch(), outer or equality(groups, hyper, None if ranks.alone else ranks.total)
        inside = Objective(batch.inputs, lambda h: inner(h).mixed)
        outside = Objective(meta.inputs, lambda h: outer(h.logits, meta))
        output, losses["meta_bias"], gradients = answer_and_feedback(
            model, gate, inside, outside, hyper.mu1, recompute=recompute, guard=guard, through=through, ranks=ranks
        )
        move_gate(gradients)
    else:
        output = model(batch.inputs)
    with held(gate):  # phi is detached from L_j
        gap, ce, told = inner(output)
    loss = ranks.part(told)
    if warm:
        bias = equality(groups, hyper, None if ranks.alone else ranks.total_of_rows)(output.logits, batch)
        loss = loss + hyper.lambda_ * bias
        told = loss if ranks.alone else told + hyper.lambda_ * bias
        losses["bias"] = bias.detach()
    return loss, losses | {"ce": ce.detach(), "loss": told.detach(), "distance": gap.detach()}


def inner_loss(
    gate: nn.Module, distance: Distance, batch: Batch, hyper: Hyperparameters, task: Task
) -> Callable[[Any], InnerLoss]:
    """The inner loss as a function of the student's answer on `batch`, at the gate's phi of the moment."""
    given = distance.given(batch)

    def of(output: Any) -> InnerLoss:
        gap, ce = distance.loss(output, gate(given), batch), task(output.logits, batch)
        alpha = gate.weigh(hyper.alpha) if isinstance(gate, Weighs) else hyper.alpha
        return InnerLoss(gap, ce, alpha * gap + (1 - alpha) * ce)

    return of


def equality(groups: int, hyper: Hyperparameters, total: Callable[[Tensor], Tensor] | None) -> Outer:
    """L_o; `total` sums the cells over ranks."""
    return lambda logits, batch: bias_loss(logits, batch.labels, batch.groups, groups, hyper.soft_max, total)


def answer_and_feedback(
    model: nn.Module,
    gate: nn.Module,
    inner: Objective,
    outer: Objective,
    mu1: Weight,
    *,
    recompute: bool,
    guard: Guard | None,
    through: Through | None,
    ranks: Ranks,
) -> tuple[Any, Tensor, tuple[Tensor, ...]]:
    """The student's answer on `inner.inputs`, with its graph, and what `feedback` gives: L_o(theta') and its gradient by
    phi. With `recompute` it is computed a second time: the first graph went before the meta batch had one."""
    keep = not recompute or isinstance(model, Sensitive)  # which keeps no graph of a meta batch
    tape = Tape(model, keep=keep)
    with tape:
        output = model(inner.inputs)
    bias, gradients = feedback(
        model,
        gate,
        inner,
        outer,
        output=output,
        mu1=mu1,
        tape=tape,
        keep=keep,
        guard=guard,
        through=through,
        ranks=ranks,
    )
    if not keep:
        with tape.again(model):
            output = model(inner.inputs)
    return output, bias, gradients


@contextmanager
def held(gate: nn.Module) -> Iterator[None]:
    """Within it the gate is a constant: nothing is differentiated by its parameters."""
    learned = [parameter for parameter in gate.parameters() if parameter.requires_grad]
    try:
        gate.requires_grad_(False)
        yield
    finally:
        for parameter in learned:
            parameter.requires_grad_(True)


@final
class BirdStep:
    """BIRD inside a training loop of your own. The student, its optimiser and the batches are yours:

        step = BirdStep(student, Gate(512), groups=2)
        for batch, meta_batch in ...:                      # bird.Batch each, from two disjoint splits
            loss, parts = step(batch, meta_batch, warm=epoch >= 5)
            optimizer.zero_grad(); loss.backward(); optimizer.step()

    - The student's optimiser is yours: any one, with any schedule, weight decay or clipping. The look-ahead is a plain
      gradient step of `mu1` whatever it is, also while its rate decays.
    - `student`: any module whose answer is (features (batch, d), logits (batch, classes)), or that `adapt` turns into one
      (`bird.students.StudentOutput`, or StagedOutput with maps). It is called with `batch.inputs`. Features have the
      teacher's width; if yours have not, put a linear layer behind them, into the student and its optimiser. It may be
      compiled (`torch.compile`), may checkpoint its activations, and may compute under autocast within its own `forward`.
    - `gate`: `Gate(d)`, or what `distance.new_gate(batch)` gives; `Offsets(classes, groups, d)` with a task that adds
      them (`cross_entropy(offsets.adjust(logits, batch.groups), batch.labels)`; `offsets.start` says where they begin and
      how strongly they are held back); any module of the teacher's features whose parameters the losses read.
      `step.optimizer` moves it (Adam with learning rate mu2, unless you give one; leave the gate out of yours).
    - `distance`: a `Distance`, or a function (h, gated, batch) -> scalar; default: mean squared error of features.
    - `task`: a function (logits, batch) -> scalar in the place of cross-entropy, such as `bird.losses.weighting`'s.
    - `outer`: a function (logits, meta batch) -> scalar that the feedback is of; default: L_o.
    - `groups`: the number M of protected groups, 0..M-1 in `batch.groups`.
    - `alpha`, `lambda_`, `mu1`, `mu2`, `soft_max`: as in `Hyperparameters`.
    - `through`: a function of the name of a parameter: whether the look-ahead moves it. One that says yes for the last
      layers alone makes the feedback cheaper, and an approximation (docs/when-does-feedback-help.md).
    - `recompute`: two more forward passes a step, for a seventh to a half less memory; the same numbers.
    - `reduce`: where several processes train one student, each with rows of its own (`torchrun`): a function that sums a
      vector over them. See below.
    - `check`: of so many steps with a meta batch the first eight compare the feedback's derivative with the student's
      gradient (bird.step.guard; 0: none). No number depends on it.

    Not every student has a derivative of that kind. Where torch has no forward mode for an operator the step says so once
    and takes a slower way to the same number; where there is no way, or the student draws random numbers from elsewhere than
    torch, it raises StudentError.

    With `reduce`, such as a function that calls torch.distributed.all_reduce on the vector and returns it, all processes
    take the step that one would take on all their rows: to rounding, for a student whose answer on a row does not depend
    on the other rows (batch norm in training has each process's own statistics). `step.reduce_gradients()` comes between
    `loss.backward()` and `optimizer.step()`. All must start with the same weights, which the first step checks, and make
    the same calls in the same order; each needs a train row and a meta row. `task` and `distance` are means over rows
    (MMD is none); an `outer` of your own returns a loss whose gradients add up over the processes, such as
    `mixed_bias(..., total=Ranks(reduce).total)` (bird.step.ranks). The returned loss and its parts ce and distance are of
    the process's own rows, bias and meta_bias of all. docs/scaling.md has a whole example.

    Raises UsageError for numbers out of range, and for offsets that do not fit.

    Running statistics of batch norm change once a step, as in one forward pass of `batch`. Save `gate.state_dict()` and
    `step.optimizer.state_dict()` with your own checkpoints. Without a `meta_batch` phi stays ("BIRD w/o meta", Table 7).
    """

    def __init__(
        self,
        student: nn.Module,
        gate: Gate | StageGates | Offsets | nn.Module,
        distance: Distance | Callable[[Any, Any, Batch], Tensor] | None = None,
        *,
        groups: int,
        adapt: Callable[[Any], Any] | None = None,
        task: Task = task_loss,
        outer: Outer | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        alpha: float = 0.9,
        lambda_: float = 0.03,
        mu1: float = 1e-3,
        mu2: float = 1e-3,
        soft_max: float = 0.0,
        through: Through | None = None,
        recompute: bool = False,
        reduce: Reduce | None = None,
        check: int = 1000,
    ) -> None:
        refuse_wrapped(student)
        _require_ranges(alpha=alpha, lambda_=lambda_, mu1=mu1, mu2=mu2, soft_max=soft_max)
        if isinstance(gate, Offsets):
            _require_offsets(gate, groups, adds=task is not task_loss)
        self.ranks = Ranks(reduce)
        self._steps, self._owed = 0, False
        self.model, self.gate, self.groups = _Answering(student, adapt), gate, groups
        self.task, self.outer = task, outer
        given = feature_distance() if distance is None else distance
        self.distance = given if isinstance(given, Distance) else Distance(given)
        self.hyper = Hyperparameters(alpha=alpha, lambda_=lambda_, mu1=mu1, mu2=mu2, soft_max=soft_max)
        self.recompute = recompute
        # Parameters are those of the student as it was given, not of what answers for it here.
        self.through = None if through is None else lambda name: through(name.removeprefix("student."))
        # The feedback is of the size 1e-5 mu1: Adam's usual eps of 1e-8 would swallow it.
        self.optimizer = optimizer or torch.optim.Adam(gate.parameters(), lr=mu2, eps=1e-16)
        self.guard = Guard(check)

    def __call__(self, batch: Batch, meta_batch: Batch | None = None, *, warm: bool = True) -> tuple[Tensor, Losses]:
        """Move the gate, and return the student's loss with its graph, and its parts by name, detached. Raises ValueError
        for a group outside 0..M-1; StudentError as above, for an answer of another kind, and within autocast."""
        refuse_wrapped(self.model)  # again: FSDP changes a module in place
        _refuse_autocast(batch.inputs.device.type)
        for each in (batch, *([] if meta_batch is None else [meta_batch])):
            low, high = int(each.groups.min()), int(each.groups.max())
            if low < 0 or high >= self.groups:
                raise ValueError(f"a batch with groups {low}..{high}: wanted 0..{self.groups - 1}")
        if not self.ranks.alone:
            self._begin_together(batch)
        return bird_loss(
            self.model,
            self.gate,
            self.distance,
            batch,
            self.hyper,
            self.groups,
            meta_batch=None if meta_batch is None else lambda: meta_batch,
            move_gate=self._move_gate,
            warm=warm,
            task=self.task,
            outer=self.outer,
            recompute=self.recompute,
            guard=self.guard,
            through=self.through,
            ranks=self.ranks,
        )

    def reduce_gradients(self) -> None:
        """Between `loss.backward()` and `optimizer.step()`: the `.grad` of each of the student's parameters becomes its sum
        over all processes. Without `reduce` it does nothing."""
        self.ranks.sum_gradients(self.model.parameters())
        self._owed = False

    def _begin_together(self, batch: Batch) -> None:
        """Learn how many rows all processes have. Raises StudentError for weights that differ, and for a step whose
        gradients were not summed."""
        if self._owed:
            raise StudentError(
                where="BirdStep(reduce=...)",
                found="a step whose gradients were not summed over the processes",
                wanted="step.reduce_gradients() after each loss.backward()",
                fix="call it before optimizer.step()",
            )
        weights = [*self.model.parameters(), *self.gate.parameters()]
        if self._steps == 0 and not self.ranks.agree(weights):
            raise StudentError(
                where="BirdStep(reduce=...)",
                found="students or gates that differ between the processes",
                wanted="the same weights in all of them",
                fix="make them after the same torch.manual_seed, or load the same file",
            )
        self.ranks.count(len(batch.labels), batch.inputs)
        self._steps, self._owed = self._steps + 1, True

    def _move_gate(self, gradients: Sequence[Tensor]) -> None:
        move(self.gate, self.optimizer, gradients)


def _require_ranges(**numbers: float) -> None:
    """Raise UsageError for a number out of its range, which NaN is of none."""
    for name, value in numbers.items():
        moves, most = name in ("mu1", "mu2"), 1 if name == "alpha" else math.inf
        if not (value > 0 if moves else value >= 0) or value > most:
            least = "a number above 0" if moves else "a number of 0 or more"
            raise UsageError(
                where=f"BirdStep({name}=...)",
                found=f"{value:g}",
                wanted="a number from 0 to 1" if name == "alpha" else least,
                fix="correct it",
            )


def _require_offsets(offsets: Offsets, groups: int, adds: bool) -> None:
    """Raise UsageError for offsets of another number of groups, or that no loss reads."""
    if (there := offsets.phi.shape[-1]) != groups:
        raise UsageError(
            where=f"BirdStep(groups={groups})",
            found=f"Offsets of {there} groups",
            wanted="the same number",
            fix=f"make Offsets(classes, {groups}, d)",
        )
    if not adds and offsets.trust is None:
        raise UsageError(
            where="BirdStep(gate=Offsets(...))",
            found="the default task, which does not add the offsets to the logits",
            wanted="a task that adds them",
            fix="task=lambda logits, batch: cross_entropy(offsets.adjust(logits, batch.groups), batch.labels), with "
            "cross_entropy of torch.nn.functional",
        )


@final
class _Answering(nn.Module):
    """A student whose answer has names, and float32 where it was computed in less."""

    def __init__(self, student: nn.Module, adapt: Callable[[Any], Any] | None) -> None:
        super().__init__()
        self.student, self.adapt = student, adapt

    def forward(self, inputs: Tensor) -> Any:
        answer = self.student(inputs)
        answer = answer if self.adapt is None else self.adapt(answer)
        if type(answer) in (tuple, list) and len(answer) == 2:
            answer = StudentOutput(*answer)
        named = isinstance(answer, tuple) and hasattr(answer, "features") and hasattr(answer, "logits")
        if not named or not all(isinstance(each, Tensor) for each in answer):
            raise StudentError(
                where=f"the answer of {type(self.student).__name__}",
                found=_described(answer),
                wanted="(features (batch, d), logits (batch, classes))",
                fix="pass adapt=, a function that makes them of it, such as lambda a: (a['features'], a['logits'])",
            )
        return type(answer)(*(each.float() if each.dtype in HALF else each for each in answer))


def _described(answer: Any) -> str:
    """An answer's kind, and what is in it."""
    if isinstance(answer, Mapping):
        return f"{type(answer).__name__} of {', '.join(map(str, answer))}"
    if isinstance(answer, tuple | list):
        return f"{type(answer).__name__} of {len(answer)} ({', '.join(type(each).__name__ for each in answer)})"
    return type(answer).__name__


def _refuse_autocast(device: str) -> None:
    """Raise StudentError within autocast: L_o is a difference of losses, which bfloat16 does not resolve."""
    if torch.is_autocast_enabled(device):
        raise StudentError(
            where="BirdStep",
            found=f"autocast ({torch.get_autocast_dtype(device)}) around the step",
            wanted="losses and gradients in float32",
            fix="put autocast into the student alone, in its forward: "
            f"`with torch.autocast({device!r}, torch.bfloat16): ...`, and call the step outside of it",
        )
