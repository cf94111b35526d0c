"""FairDistill, the gate on the teacher's penultimate features (Java et al. 2023, section 3; here `Gate`)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["Gate"]


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
