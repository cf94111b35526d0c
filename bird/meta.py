"""The student's feedback to the gate: how a change of phi would change the student's bias, one step ahead.

Let theta be the student's parameters, h = h(x_t; theta) its answer on a train batch, and G(phi) the gated teacher
features of that batch. One iteration of BIRD (Java et al. 2023, section 3) asks for

    L_in   = alpha D(h, G(phi)) + (1 - alpha) CE(z, y)                     the inner loss
    theta' = theta - mu1 dL_in/dtheta                                      look ahead
    dL_o(theta') / dphi                                                    feedback, L_o on a meta batch

phi reaches theta' through D alone. So, with v = dL_o/dtheta' and u = dD/dh,

    dL_o/dphi = - mu1 alpha  d/dphi  v^T (dh/dtheta)^T u
              = - mu1 alpha  d/dphi  < u(h, G(phi)), Jv >,                 Jv = (dh/dtheta) v

where h and Jv do not depend on phi. The usual way builds the gradient's graph and differentiates it again; but Jv is
one forward-mode pass through the student, and what is left to differentiate twice is D's own small graph. It is exact
for every D that is twice differentiable. For the mean squared error it reads

    dL_o/dphi = mu1 alpha 2/(B d) sigmoid'(phi) sum_b (Jv)_b h_T,b

Students that train side by side (bird.stack) need nothing else: with parameters, gates, batches and losses that have a
leading dimension of S models, what is differentiated is the sum over the models, and each one's part is its own.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad, grad
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from bird.tangents import FastTangents, Tape, same_chances

# torch leaves these two untyped
make_dual: Callable[[Tensor, Tensor], Tensor] = forward_ad.make_dual
unpack_dual: Callable[[Tensor], Any] = forward_ad.unpack_dual

__all__ = [
    "Distance",
    "Output",
    "Parameters",
    "Sensitive",
    "Weight",
    "feedback",
    "jvp",
    "look_ahead",
    "probe",
    "sensitivity",
    "weigh",
]

Parameters = dict[str, Tensor]
Output = Any
"""A student's answer h: a named tuple of tensors, such as `bird.students.StudentOutput`."""
Distance = Callable[[Output, Any], Tensor]
"""D(h, gated teacher) -> one value a model."""
Weight = float | Tensor
"""A hyperparameter: a number, or (S,), one for each of S models side by side."""


def feedback(
    student: nn.Module,
    gate: nn.Module,
    *,
    inputs: Tensor,
    output: Output,
    inner_loss: Tensor,
    teacher: Any,
    distance: Distance,
    meta_inputs: Tensor,
    meta_loss: Callable[[Output], Tensor],
    alpha: Weight,
    mu1: Weight,
    tape: Tape | None = None,
    keep: bool = True,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """L_o(theta') and its gradient with respect to the gate's parameters, in their order.

    `output` is `student(inputs)` and `inner_loss` is L_in computed from it. With `keep` their graph stays, so that the
    caller's own backward pass can follow; otherwise it is freed before the meta batch has one. With the `tape` of
    `student(inputs)` Jv costs a forward pass less. `teacher` is what the gate takes for `inputs`, such as features
    (batch, d); `meta_loss` maps the student's answer on `meta_inputs` to L_o.
    No buffer of the student changes and no `.grad` is touched.
    """
    see = student.sensitivity if isinstance(student, Sensitive) else partial(sensitivity, student, tape=tape, keep=keep)
    bias, jv = see(
        inputs=inputs, output=output, inner_loss=inner_loss, meta_inputs=meta_inputs, meta_loss=meta_loss, mu1=mu1
    )
    h = type(output)(*(tensor.detach().requires_grad_() for tensor in output))
    gap = distance(h, gate(teacher)).sum()
    u = grad(gap, list(h), create_graph=True, allow_unused=True)  # dD/dh, a function of phi
    product = sum((a * b).sum() for a, b in zip(u, jv, strict=True) if a is not None)  # < u, Jv >
    slope = grad(product, list(gate.parameters()), materialize_grads=True)  # 0 for a gate that D does not read
    return bias, tuple(weigh(-mu1 * alpha, g) for g in slope)


def sensitivity(
    student: nn.Module,
    *,
    inputs: Tensor,
    output: Output,
    inner_loss: Tensor,
    meta_inputs: Tensor,
    meta_loss: Callable[[Output], Tensor],
    mu1: Weight,
    tape: Tape | None = None,
    keep: bool = True,
) -> tuple[Tensor, Output]:
    """L_o(theta'), detached, and Jv: how the student's answer on `inputs` moves along dL_o/dtheta'."""
    theta: Parameters = {name: value for name, value in student.named_parameters() if value.requires_grad}
    ahead = look_ahead(theta, inner_loss, mu1, keep)  # theta' = theta - mu1 dL_in/dtheta
    bias = meta_loss(probe(student, ahead, meta_inputs))  # L_o(theta')
    slope = grad(bias.sum(), list(ahead.values()), materialize_grads=True)
    v = dict(zip(ahead, slope, strict=True))  # dL_o/dtheta'
    del ahead  # memory
    return bias.detach(), jvp(student, theta, v, inputs, tape)  # (dh/dtheta) v


@runtime_checkable
class Sensitive(Protocol):
    """A student that knows a shorter way to its `sensitivity`: the same numbers in fewer operations."""

    def sensitivity(
        self,
        *,
        inputs: Tensor,
        output: Output,
        inner_loss: Tensor,
        meta_inputs: Tensor,
        meta_loss: Callable[[Output], Tensor],
        mu1: Weight,
    ) -> tuple[Tensor, Output]:
        """What `sensitivity` of this student gives."""


def look_ahead(theta: Parameters, loss: Tensor, mu1: Weight, keep: bool = True) -> Parameters:
    """theta' after one plain gradient step of `loss` (no momentum), as fresh leaves. With `keep` the graph of `loss`
    stays."""
    gradients = grad(loss.sum(), list(theta.values()), retain_graph=keep, materialize_grads=True)
    return {
        name: (value.detach() - weigh(mu1, g)).requires_grad_()
        for (name, value), g in zip(theta.items(), gradients, strict=True)
    }


def jvp(
    student: nn.Module, theta: Parameters, direction: Parameters, inputs: Tensor, tape: Tape | None = None
) -> Output:
    """(dh/dtheta) v: the student's answer on `inputs`, differentiated along `direction` in one forward-mode pass."""
    # the fused attention kernels have no forward mode
    with (
        torch.no_grad(),
        same_chances(tape and tape.chances),
        sdpa_kernel(SDPBackend.MATH),
        forward_ad.dual_level(),
        FastTangents(tape),
    ):
        dual = {name: make_dual(value.detach(), direction[name]) for name, value in theta.items()}
        output = probe(student, dual, inputs)
        tangents = [unpack_dual(tensor).tangent for tensor in output]
        # a part of the answer that theta does not reach has no tangent
        return type(output)(*(torch.zeros_like(o) if t is None else t for o, t in zip(output, tangents, strict=True)))


def probe(student: nn.Module, theta: Parameters, inputs: Tensor) -> Output:
    """The student's answer under other parameters, on copies of its buffers: running statistics stay as they are. A tensor
    that several modules share is replaced in each, a module that has several names once."""
    own = dict(student.named_parameters())
    values = {id(own[name]): value for name, value in theta.items()} | {id(b): b.clone() for b in student.buffers()}
    places: Parameters = {}
    for prefix, module in student.named_modules():
        for listed in (module.named_parameters, module.named_buffers):
            held = listed(prefix, recurse=False, remove_duplicate=False)
            places |= {name: values[id(tensor)] for name, tensor in held if id(tensor) in values}
    return functional_call(student, places, (inputs,), tie_weights=False)


def weigh(weight: Weight, value: Tensor) -> Tensor:
    """weight * value; a weight (S,) goes along the value's first dimension."""
    return weight.view(-1, *[1] * (value.ndim - 1)) * value if isinstance(weight, Tensor) else weight * value
