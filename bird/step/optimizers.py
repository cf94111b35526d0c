"""The optimisers of a student by name, each with the constants that are usual for it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor

__all__ = ["MOMENTUM", "OptimizerName", "student_optimizer"]

OptimizerName = Literal["adam", "adamw", "sgd"]
MOMENTUM = 0.9


def student_optimizer(
    name: OptimizerName, parameters: Iterable[Tensor], lr: float, weight_decay: float = 0.0
) -> torch.optim.Optimizer:
    """Adam, AdamW or SGD with momentum .9, over all parameters alike. The weight decay of adam and sgd is added to the
    gradient; that of adamw is decoupled from it (Loshchilov and Hutter 2019)."""
    if name == "sgd":
        return torch.optim.SGD(parameters, lr=lr, momentum=MOMENTUM, weight_decay=weight_decay, fused=True)
    kind = torch.optim.AdamW if name == "adamw" else torch.optim.Adam
    return kind(parameters, lr=lr, weight_decay=weight_decay, fused=True)
