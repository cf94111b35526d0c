"""FairDistill, the gate on the teacher's features (Java et al. 2023, section 3): `Gate` on penultimate features,
`StageGates` on the channels of spatial maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, final, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["Gate", "HoldsBack", "StageGates", "Weighs", "move"]


@final
class Gate(nn.Module):
    """FairDistill(h_T) = sigmoid(phi) * h_T, one phi per teacher feature, shared by all samples.

    phi starts uniform in [0, 1), so the gate starts between .50 and .73; it is not confined to that box afterwards
    (a hard box would keep every feature at least half open).
    """

    phi: Float[Tensor, "*models dim"]

    def __init__(self, dim: int, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.phi = nn.Parameter(torch.rand(dim, generator=generator))

    def forward(self, teacher: Float[Tensor, "*models batch dim"]) -> Float[Tensor, "*models batch dim"]:
        """The gated teacher features."""
        return torch.sigmoid(self.phi).unsqueeze(-2) * teacher


@final
class StageGates(nn.Module):
    """One gate a stage, on the channels of the teacher's maps: sigmoid(phi_k) * T_k, before attention sums over the channels
    ("BIRD + AT", Table 5 of the paper, which does not say how; ours).

    `channels` are the stages' numbers of channels. Every phi starts uniform in [0, 1), as `Gate`'s.
    """

    def __init__(self, channels: Sequence[int], seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.phi = nn.ParameterList([torch.rand(count, generator=generator) for count in channels])

    def forward(
        self, teacher: Sequence[Float[Tensor, "*models batch _ _ _"]]
    ) -> tuple[Float[Tensor, "*models batch _ _ _"], ...]:
        """The gated maps, (batch, channels, height, width) each."""
        pairs = zip(self.phi, teacher, strict=True)
        return tuple(torch.sigmoid(phi)[..., None, :, None, None] * maps for phi, maps in pairs)


@runtime_checkable
class HoldsBack(Protocol):
    """A gate that is pulled back to where it began, after each step of its optimiser."""

    def hold_back(self, rate: float) -> None:
        """The pull that belongs to a step of that learning rate."""


@runtime_checkable
class Weighs(Protocol):
    """A gate that has a say in alpha, the weight of the distance."""

    def weigh(self, alpha: float | Tensor) -> float | Tensor:
        """The weight in the place of alpha, with its graph."""


def move(gate: nn.Module, optimizer: torch.optim.Optimizer, gradients: Sequence[Tensor]) -> None:
    """Move phi: one step of the gate's optimiser against the given gradients of its parameters, in their order."""
    for parameter, gradient in zip(gate.parameters(), gradients, strict=True):
        parameter.grad = gradient
    optimizer.step()
    if isinstance(gate, HoldsBack):
        gate.hold_back(optimizer.param_groups[0]["lr"])
