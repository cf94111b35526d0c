"""What the curve says of an epoch: the sums of its losses, and the gate. Losses are read every some steps: reading a
value waits for the device that computes it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import numpy as np
import torch

from bird.methods.base import Losses, SingleLearner
from bird.step.ranks import ALONE, Ranks

__all__ = ["Pending", "gate_histogram"]

GATE_BINS = 50
READ_EVERY = 64  # steps


@final
class Pending:
    """What the last steps lost, not read yet. `ranks` train together: each notes the losses of its own rows."""

    def __init__(self, ranks: Ranks = ALONE) -> None:
        self._ranks = ranks
        self._steps: list[tuple[Losses, int]] = []

    def add(self, losses: Losses, rows: int, sums: Sequence[dict[str, float]]) -> None:
        """Note the losses of a step on `rows` rows; from time to time `settle`."""
        self._steps.append((losses, rows))
        if len(self._steps) == READ_EVERY:
            self.settle(sums)

    def settle(self, sums: Sequence[dict[str, float]]) -> None:
        """Add all that was noted to `sums`, one dict a model: by name, each step's loss times its rows, of all ranks."""
        if not self._steps:
            return
        noted = [value.reshape(-1).double() * rows for losses, rows in self._steps for value in losses.values()]
        (every,) = self._ranks.sum([torch.stack(noted)])
        values = iter(every.tolist())  # (losses, models), in one transfer
        for losses, _ in self._steps:
            for name in losses:
                for own, value in zip(sums, next(values), strict=True):
                    own[name] = own.get(name, 0.0) + value
        self._steps.clear()


def gate_histogram(learner: SingleLearner) -> list[int]:
    """How many gate values fall in each of the bins of [0, 1]."""
    assert learner.gate is not None
    phi = torch.cat([parameter.detach().flatten() for parameter in learner.gate.parameters()])
    values = torch.sigmoid(phi).cpu().numpy()
    return [int(count) for count in np.histogram(values, GATE_BINS, (0.0, 1.0))[0]]
