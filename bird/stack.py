"""Adapters that train side by side: S models of one shape, each with its own seed and hyperparameters, as batched matrices.

A stack is made of ordinary learners. Their parameters become rows of shared tensors (S, ...): the stack computes all S
models at once on the shared tensors, and each learner's own Adam moves its own row. The learners stay whole: one that is
saved, scored or restored is so as if it trained alone.

What makes it exact: no model's loss depends on another's parameters, so the gradient of the losses' sum with respect to
model s is the gradient of loss s. The same holds for the look-ahead, the tangents of the JVP and the gate (bird.meta).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bird.gate import Gate
from bird.methods.base import Learner, SingleLearner
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
        features = linear(inputs, theta["backbone_weight"], theta["backbone_bias"])
        return StudentOutput(features, linear(features.relu(), theta["head_weight"], theta["head_bias"]))


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
        gates = [learner.gate for learner in learners if isinstance(learner.gate, Gate)]
        self.gate = stacked_gate(gates) if gates else None

    def descend(self, loss: Float[Tensor, "*models"]) -> None:
        """One Adam step of each model on its loss."""
        self.model.zero_grad(set_to_none=True)
        torch.autograd.backward(loss.sum())
        for index, learner in enumerate(self.learners):
            for own, every in zip(learner.model.parameters(), self.model.parameters(), strict=True):
                own.grad = None if every.grad is None else every.grad[index]
            learner.optimizer.step()

    def move_gate(self, gradients: Sequence[Tensor]) -> None:
        """One Adam step of each gate against its row of the gradients."""
        for index, learner in enumerate(self.learners):
            learner.move_gate([gradient[index] for gradient in gradients])


def stacked_gate(gates: Sequence[Gate]) -> Gate:
    """One gate with phi of shape (S, d), whose rows are the given gates' own."""
    gate = Gate(gates[0].phi.shape[-1])
    gate.phi = shared([each.phi for each in gates])
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
    return torch.baddbmm(bias.unsqueeze(-2), inputs, weight.mT)
