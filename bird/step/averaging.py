"""A running mean of a student's weights while it trains (Tarvainen and Valpola 2017, eq. 7)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

__all__ = ["running_mean"]

RAMP = 10  # the mean reaches back over about a tenth of the steps so far, until `decay` is reached


def running_mean(model: nn.Module, decay: float) -> AveragedModel:
    """A copy of `model` whose `update_parameters(model)` moves it a part 1 - k towards the model's present weights, with
    k = min(decay, n / (n + 10)) after n steps: early weights are forgotten fast, late noise is averaged out. Buffers that
    are real numbers (running statistics) are averaged as the weights are; others are copied."""
    return AveragedModel(model, multi_avg_fn=partial(_towards, decay), use_buffers=True)


def _towards(decay: float, mean: Sequence[Tensor], present: Sequence[Tensor], seen: Tensor | int) -> None:
    keep = min(decay, float(seen) / (float(seen) + RAMP))
    if mean[0].is_floating_point():
        torch._foreach_lerp_(list(mean), list(present), 1 - keep)
    else:
        for kept, new in zip(mean, present, strict=True):
            kept.copy_(new)
