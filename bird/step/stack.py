"""Adapters that train side by side: S models of one shape, each with its own seed and hyperparameters, as batched matrices.

A stack is made of ordinary learners. Their parameters become rows of shared tensors (S, ...): the stack computes all S
models at once on the shared tensors, and each learner's own optimiser moves its own row. The learners stay whole: one
that is saved, scored or restored is so as if it trained alone.

What makes it exact: no model's loss depends on another's parameters, so the gradient of the losses' sum with respect to
model s is the gradient of loss s. The same holds for the look-ahead, the tangents of the JVP and the gate
(bird.step.feedback)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd import grad

from bird.methods.base import Learner, SingleLearner
from bird.step.feedback import Objective, Weight, weigh
from bird.step.gate import Gate
from bird.step.guard import Guard
from bird.step.offsets import Offsets
from bird.students import StudentOutput

__all__ = ["StackedAdapters", "StackedLearner"]


@final
class StackedAdapters(nn.Module):
    """S adapters as one module: x W_s^T + b_s -> ReLU -> head_s. Its inputs are standardised already."""

    def __init__(self, adapters: Sequence[nn.Module]) -> None:
        super().__init__()
        models = [dict(adapter.named_parameters()) for adapter in adapters]
        for name in models[0]:
            self.register_parameter(name.replace(".", "_"), shared([model[name] for model in models]))

    def forward(self, inputs: Float[Tensor, "models batch dim"]) -> StudentOutput:
        """Features and logits of each model's own batch."""
        theta = dict(self.named_parameters())
        features = linear(inputs, theta["backbone_weight"], theta["backbone_bias"]).to(inputs.dtype)
        return StudentOutput(features, linear(features.relu(), theta["head_weight"], theta["head_bias"]))

    def sensitivity(
        self,
        inputs: Tensor,
        outer: Objective,
        *,
        output: StudentOutput,
        u: Sequence[Tensor],
        mu1: Weight,
    ) -> tuple[Tensor, StudentOutput]:
        """L_o(theta') and Jv (bird.step.feedback.Sensitive) without a (d, d) gradient. The look-ahead moves W by -mu1
        G^T X with G = dL_in/dh, and so the answer on meta inputs X_m by -mu1 (X_m X^T) G; v is G_m^T X_m, and so dh =
        (X X_m^T) G_m. The bias adds 1 to the kernel X_m X^T. What is left are products of batch by batch by d."""
        W, b, V, c = (parameter.detach() for parameter in self.parameters())
        features = output.features.detach()
        g_h, g_z = grad(list(output), list(output), list(u), retain_graph=True)  # what h moves through z, too
        kernel = outer.inputs @ inputs.mT + 1
        h = (linear(outer.inputs, W, b) - weigh(mu1, kernel @ g_h)).requires_grad_()  # on meta, at theta'
        V_ahead, c_ahead = V - weigh(mu1, g_z.mT @ features.relu()), c - weigh(mu1, g_z.sum(-2))
        z = linear(h.relu(), V_ahead, c_ahead)
        bias = outer.loss(StudentOutput(h, z))
        g_h, g_z = grad(bias.sum(), [h, z], materialize_grads=True)
        v_head, v_bias = g_z.mT @ h.detach().relu(), g_z.sum(-2)  # v's part in the head
        dh = kernel.mT @ g_h
        dz = linear(dh * (features > 0), V, v_bias) + features.relu() @ v_head.mT
        return bias.detach(), StudentOutput(dh, dz)


@final
class StackedLearner(Learner):
    """S learners of one shape as one, for S batches at a time and losses of shape (S,). Raises ValueError for students
    other than adapters."""

    def __init__(self, learners: Sequence[SingleLearner]) -> None:
        students = [learner.model.student for learner in learners]
        if any(student.architecture != "adapter" for student in students):
            raise ValueError("only adapters can be stacked")
        self.learners = learners
        self.model = StackedAdapters(students)
        gates = [learner.gate for learner in learners if isinstance(learner.gate, Gate | Offsets)]
        self.gate = stacked_gate(gates) if gates else None
        self.guard = Guard()
        self.optimizer = joint_optimizer([learner.optimizer for learner in learners])

    def descend(self, loss: Float[Tensor, "*models"], *, summed: bool = False) -> None:
        """One step of each model on its loss. (A stack lives in one process.)"""
        self.model.zero_grad(set_to_none=True)
        torch.autograd.backward(loss.sum())
        for index, learner in enumerate(self.learners):
            for own, every in zip(learner.model.parameters(), self.model.parameters(), strict=True):
                own.grad = None if every.grad is None else every.grad[index]
        self.optimizer.step()
        for learner in self.learners:
            learner.update_average()

    def move_gate(self, gradients: Sequence[Tensor]) -> None:
        """One Adam step of each gate against its row of the gradients."""
        for index, learner in enumerate(self.learners):
            learner.move_gate([gradient[index] for gradient in gradients])


def joint_optimizer(optimizers: Sequence[torch.optim.Optimizer]) -> torch.optim.Optimizer:
    """One optimiser that moves what the given ones move, in one call a learning rate; they differ in nothing else. The
    states are theirs: what one of them saves or goes on with is what this one did."""
    groups: dict[float, dict[str, Any]] = {}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            groups.setdefault(group["lr"], {**group, "params": []})["params"].extend(group["params"])
    kind: Any = type(optimizers[0])
    joint: torch.optim.Optimizer = kind(
        [*groups.values()], lr=optimizers[0].defaults["lr"]
    )  # all else is in the groups
    for optimizer in optimizers:
        for parameter in (each for group in optimizer.param_groups for each in group["params"]):
            joint.state[parameter] = optimizer.state[parameter]
    return joint


def stacked_gate(gates: Sequence[Gate | Offsets]) -> Gate | Offsets:
    """One gate with phi of shape (S, ...), whose rows are the given gates' own."""
    gate = copy.deepcopy(gates[0])
    for name in dict(gate.named_parameters()):
        gate.register_parameter(name, shared([each.get_parameter(name) for each in gates]))
    for name in dict(gate.named_buffers()):
        gate.register_buffer(name, torch.stack([each.get_buffer(name) for each in gates]))
    return gate


def shared(parameters: Sequence[Tensor]) -> nn.Parameter:
    """The parameters as one, (S, ...); from now on the given ones are its rows, in the same memory."""
    together = torch.stack([parameter.detach() for parameter in parameters])
    for parameter, row in zip(parameters, together, strict=True):
        parameter.data = row
    return nn.Parameter(together)


def linear(
    inputs: Float[Tensor, "models batch dim"],
    weight: Float[Tensor, "models out dim"],
    bias: Float[Tensor, "models out"],
) -> Float[Tensor, "models batch out"]:
    """inputs W^T + b for each model."""
    answer: Tensor = _Linear.apply(inputs, weight, bias)
    return answer


@final
class _Linear(torch.autograd.Function):
    """`linear`, whose weight gradient comes out in the weight's own layout. The one of baddbmm is transposed, and autograd
    copies it into place: at d = 1024 a third of a step."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        out = torch.baddbmm(bias.unsqueeze(-2), inputs, weight.mT)
        ctx.save_for_backward(inputs.to(out.dtype), weight.to(out.dtype))  # under autocast the products are in bfloat16
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        (g,), (inputs, weight), needs = gradients, ctx.saved_tensors, ctx.needs_input_grad
        return g @ weight if needs[0] else None, g.mT @ inputs if needs[1] else None, g.sum(-2) if needs[2] else None
