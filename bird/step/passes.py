"""A student's passes under other parameters that leave no trace in it, and the ways to Jv = (dh/dtheta) v, its directional
derivative at the place of its last forward pass.

| way | cost, in forward passes | needs |
|---|---|---|
| `in_forward_mode` | 2 with a tape, else 3 | a forward rule for every operator |
| `by_double_backward` | 5 or so, and a graph of the gradient | operators that are differentiable twice |

Both are exact. The second differentiates the gradient of <w, h> along v by w, in which it is linear:
(dh/dtheta) v = d/dw < (dh/dtheta)^T w, v >.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar, final

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad, grad
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from bird.step.tangents import FastTangents, Tape, dual, native_recurrence, parts, same_chances

__all__ = [
    "WAYS",
    "Output",
    "Parameters",
    "Way",
    "by_double_backward",
    "dense",
    "in_forward_mode",
    "probe",
    "repeat",
    "within",
]

Parameters = Mapping[str, Tensor]
Output = Any
"""A student's answer h: a named tuple of tensors, such as `bird.students.StudentOutput`."""
Way = Callable[[nn.Module, Parameters, Tensor, Tape], Output]
"""(student, v, inputs, tape of `student(inputs)`) -> Jv."""
Found = TypeVar("Found")


def in_forward_mode(student: nn.Module, v: Parameters, inputs: Tensor, tape: Tape) -> Output:
    """Jv in one forward-mode pass. Raises NotImplementedError where an operator has no forward rule."""
    with _again(tape), forward_ad.dual_level(), FastTangents(tape):
        theta = {name: value.detach() for name, value in student.named_parameters()}
        duals = {name: dual(theta[name], along) for name, along in v.items()}
        output = probe(student, theta | duals, inputs, tape.buffers)
        tangents = [parts(each)[1] for each in output]
        # a part of the answer that theta does not reach has no tangent
        return type(output)(*(torch.zeros_like(o) if t is None else t for o, t in zip(output, tangents, strict=True)))


def by_double_backward(student: nn.Module, v: Parameters, inputs: Tensor, tape: Tape) -> Output:
    """Jv as the derivative of a gradient. Raises RuntimeError where an operator is not differentiable twice."""
    leaves = {name: value.detach().requires_grad_() for name, value in student.named_parameters() if name in v}

    def moved(student: nn.Module) -> Output:
        output = student(inputs)
        reached = [each for each in output if each.requires_grad]
        w = [torch.ones_like(each, requires_grad=True) for each in reached]
        slope = grad(reached, list(leaves.values()), w, create_graph=True, materialize_grads=True)
        along = torch.stack([(dense(g) * v[name]).sum() for name, g in zip(leaves, slope, strict=True)])
        tangents = iter(grad(along.sum(), w, materialize_grads=True))
        return type(output)(*(next(tangents) if o.requires_grad else torch.zeros_like(o) for o in output))

    with _again(tape), native_recurrence():
        return within(student, leaves, tape.buffers, moved)


WAYS: tuple[Way, ...] = (in_forward_mode, by_double_backward)
"""From the fastest."""


def probe(student: nn.Module, theta: Parameters, inputs: Tensor, buffers: Parameters | None = None) -> Output:
    """The student's answer under other parameters, from `buffers` on."""
    return within(student, theta, buffers, lambda student: student(inputs))


def repeat(student: nn.Module, inputs: Tensor, tape: Tape) -> Output:
    """The tape's forward pass once more, as Jv sees it."""
    with _again(tape), torch.no_grad():
        return probe(student, {}, inputs, tape.buffers)


def within(
    student: nn.Module, theta: Parameters, buffers: Parameters | None, do: Callable[[nn.Module], Found]
) -> Found:
    """The result of `do` while the student has other parameters. Its buffers are replaced by copies of `buffers` (None:
    of its own), so its running statistics do not change. What is differentiated through a student that checkpoints its
    activations must be differentiated in here, since it runs once more then. A tensor that several modules share is
    replaced in each, a module that has several names once."""
    own, given = dict(student.named_parameters()), buffers or {}
    values = {id(own[name]): value for name, value in theta.items()}
    values |= {id(value): given.get(name, value).clone() for name, value in student.named_buffers()}
    places: dict[str, Tensor] = {}
    scene = _Within(student, do)
    for prefix, module in scene.named_modules():
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if id(tensor) in values:
                places[f"{prefix}.{name}"] = values[id(tensor)]
    found: Found = functional_call(scene, places, (), tie_weights=False)
    return found


@final
class _Within(nn.Module):
    """Something done with a student, as a module: so torch can replace what the student holds meanwhile."""

    def __init__(self, student: nn.Module, do: Callable[[nn.Module], Any]) -> None:
        super().__init__()
        self.student, self.do = student, do

    def forward(self) -> Any:
        """Do it."""
        return self.do(self.student)


def dense(gradient: Tensor) -> Tensor:
    """The gradient of an embedding may be sparse."""
    return gradient if gradient.layout == torch.strided else gradient.to_dense()


@contextmanager
def _again(tape: Tape) -> Iterator[None]:
    """What the tape's forward pass drew is drawn again, and all that runs has derivatives of either kind: attention's fused
    kernels have no forward mode and no second derivative, and what is compiled loses tangents."""
    with torch.enable_grad(), same_chances(tape.chances), sdpa_kernel(SDPBackend.MATH):
        if "torch._dynamo" not in sys.modules:  # nothing is compiled; asking would import it
            yield
        else:
            with torch.compiler.set_stance("force_eager"):
                yield
