"""The student's feedback to the gate: how a change of phi would change the student's bias, one step ahead.

Let theta be the student's parameters, h = h(x_t; theta) its answer on a train batch, and G(phi) the gated teacher
features of that batch. One iteration of BIRD (Java et al. 2023, section 3) asks for

    L_in   = alpha D(h, G(phi)) + (1 - alpha) CE(z, y)                     the inner loss
    theta' = theta - mu1 dL_in/dtheta                                      look ahead
    dL_o(theta') / dphi                                                    feedback, L_o on a meta batch

phi reaches theta' through the inner loss alone. So, with v = dL_o/dtheta' and u = dL_in/dh, a function of h and phi,

    dL_o/dphi = - mu1  d/dphi  v^T (dh/dtheta)^T u
              = - mu1  d/dphi  < u(h, phi), Jv >,                          Jv = (dh/dtheta) v

where h and Jv do not depend on phi. The usual way builds the gradient's graph and differentiates it again; but Jv is
one forward-mode pass through the student, and what is left to differentiate twice is the inner loss's own small graph. It
is exact for every inner loss of h and phi that is twice differentiable. For the mean squared error D it reads

    dL_o/dphi = mu1 alpha 2/(B d) sigmoid'(phi) sum_b (Jv)_b h_T,b

The number < u, Jv > is known from the other side, too: it is < J^T u, v >, and J^T u = dL_in/dtheta is what the look-ahead
moves along. bird.step.guard compares the two.

A student that several processes train (bird.step.ranks) has the feedback of all their rows: dL_in/dtheta, dL_o/dtheta' and
the slope of phi are summed over them, and Jv is of each one's own rows.

Students that train side by side (bird.step.stack) need nothing else: with parameters, gates, batches and losses that have a
leading dimension of S models, what is differentiated is the sum over the models, and each one's part is its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, final, runtime_checkable

from torch import Tensor, nn
from torch.autograd import grad

from bird.step.guard import Guard, Sides
from bird.step.passes import Output, Parameters, dense, within
from bird.step.ranks import ALONE, Ranks
from bird.step.tangents import Tape

__all__ = ["Ahead", "Loss", "Objective", "Sensitive", "Through", "Weight", "feedback", "look_ahead", "weigh"]

Loss = Callable[[Output], Tensor]
"""A loss of a student's answer -> one value a model."""
Weight = float | Tensor
"""A hyperparameter: a number, or (S,), one for each of S models side by side."""
Through = Callable[[str], bool]
"""Which of the student's parameters the look-ahead moves, by name."""


@final
class Objective(NamedTuple):
    """A batch's inputs, and a loss of the student's answer on them."""

    inputs: Tensor
    loss: Loss


def feedback(
    student: nn.Module,
    gate: nn.Module,
    inner: Objective,
    outer: Objective,
    *,
    output: Output,
    mu1: Weight,
    tape: Tape | None = None,
    keep: bool = True,
    guard: Guard | None = None,
    through: Through | None = None,
    ranks: Ranks = ALONE,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """L_o(theta'), one value a model, and its gradient with respect to the gate's parameters phi, in their order and shapes.

    `inner` is L_in on a train batch, through the gate; `outer` is L_o on a meta batch; `output` is `student(inner.inputs)`.
    With `keep` the graph of `output` stays, so that the caller's own backward pass can follow; otherwise it is freed before
    the meta batch has one. With the `tape` of `student(inner.inputs)` Jv costs a forward pass less. `guard` is the
    student's own, kept from step to step (None: Jv is not checked). With `through` theta' differs from theta in some
    parameters alone: exact for a look-ahead of these, an approximation of the whole one's. Over `ranks` L_in is a mean over
    the train rows, and `outer.loss` has the value of all meta rows and the gradient of its own. No buffer of the student
    changes and no `.grad` is touched. Raises StudentError where Jv cannot be had exactly."""
    guard, tape = guard or Guard(every=0), tape or Tape(student, keep=False)
    h = type(output)(*(tensor.detach().requires_grad_() for tensor in output))

    def inner_slope(*, graph: bool) -> tuple[Tensor, ...]:
        loss = ranks.part(inner.loss(h).sum())
        return grad(loss, list(h), create_graph=graph, materialize_grads=True)  # dL_in/dh

    u, due = inner_slope(graph=keep), guard.due()
    at = [each.detach() for each in u]
    given = {"output": output, "u": at, "mu1": mu1}
    if isinstance(student, Sensitive) and through is None and ranks.alone:
        bias, jv = student.sensitivity(inner.inputs, outer, **given)
        if due:
            _, v, gradient = look_ahead(student, outer, **given, tape=tape, tell=True)
            guard.require(student, Sides(at, gradient, v, bias.ndim), jv, tape)
    else:
        bias, v, gradient = look_ahead(
            student, outer, **given, tape=tape, keep=keep, tell=due, through=through, ranks=ranks
        )
        sides = Sides(at, gradient, v, bias.ndim, ranks) if due else None
        jv = guard.tangent(student, v, inner.inputs, output, tape, sides)
    if not keep:
        u = inner_slope(graph=True)  # its graph, too, waited until the student's was gone
    product = sum((a * b).sum() for a, b in zip(u, jv, strict=True))  # < u, Jv >
    slope = grad(product, list(gate.parameters()), materialize_grads=True)  # 0 for a gate that L_in does not read
    return bias, tuple(weigh(-mu1, g) for g in ranks.sum(slope))


@final
class Ahead(NamedTuple):
    """What a step ahead tells, all detached: L_o(theta'), v = dL_o/dtheta' by names, and J^T u = dL_in/dtheta if it was
    asked for."""

    bias: Tensor
    v: Parameters
    gradient: Parameters


def look_ahead(
    student: nn.Module,
    outer: Objective,
    *,
    output: Output,
    u: Sequence[Tensor],
    mu1: Weight,
    tape: Tape,
    keep: bool = True,
    tell: bool = False,
    through: Through | None = None,
    ranks: Ranks = ALONE,
) -> Ahead:
    """One plain gradient step of the inner loss (no momentum), and what L_o is there. With `keep` the graph of `output`
    stays; with `tell` the step's gradient is told. `through` and `ranks` as in `feedback`."""
    learned = {name: value for name, value in student.named_parameters() if value.requires_grad}
    theta = {name: value for name, value in learned.items() if through is None or through(name)}
    still = {name: value.detach() for name, value in learned.items() if name not in theta}
    told, weights = zip(*((h, w) for h, w in zip(output, u, strict=True) if h.requires_grad), strict=True)

    def inner_gradient(_: nn.Module) -> tuple[Tensor, ...]:
        return grad(told, list(theta.values()), weights, retain_graph=keep, materialize_grads=True)  # J^T u

    def outer_gradient(student: nn.Module) -> tuple[Tensor, tuple[Tensor, ...]]:
        bias = outer.loss(student(outer.inputs))  # L_o(theta')
        return bias.detach(), grad(bias.sum(), list(ahead.values()), materialize_grads=True)

    moved = ranks.sum([dense(each) for each in within(student, {}, tape.buffers, inner_gradient)])
    gradient = dict(zip(theta, moved, strict=True))
    ahead = {name: (value.detach() - weigh(mu1, gradient[name])).requires_grad_() for name, value in theta.items()}
    if not tell:
        gradient = {}  # memory
    bias, slope = within(student, still | ahead, None, outer_gradient)
    return Ahead(bias, dict(zip(theta, ranks.sum([dense(each) for each in slope]), strict=True)), gradient)


@runtime_checkable
class Sensitive(Protocol):
    """A student that knows a shorter way to L_o(theta') and Jv: the same numbers in fewer operations."""

    def sensitivity(
        self,
        inputs: Tensor,
        outer: Objective,
        *,
        output: Output,
        u: Sequence[Tensor],
        mu1: Weight,
    ) -> tuple[Tensor, Output]:
        """L_o(theta'), detached, and Jv: how the student's answer on `inputs` moves along dL_o/dtheta'. `u` is dL_in/dh at
        `output`."""


def weigh(weight: Weight, value: Tensor) -> Tensor:
    """weight * value; a weight (S,) goes along the value's first dimension."""
    return weight.view(-1, *[1] * (value.ndim - 1)) * value if isinstance(weight, Tensor) else weight * value
