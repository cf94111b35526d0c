"""From a student to its metrics on one split of its data."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from bird.errors import DataError
from bird.metrics import Metrics, assess
from bird.students import Student
from bird_pipelines.data import RunData

__all__ = ["logits_of", "score"]

BATCH = 256


def logits_of(
    student: Student, data: RunData, rows: NDArray[np.int64], device: torch.device
) -> Float[Tensor, "rows classes"]:
    """The student's logits on the given rows, in evaluation mode; leaves the mode as it was."""
    training = student.training
    student.eval()
    try:
        with torch.inference_mode():
            parts = [
                student(data.batch(rows[start : start + BATCH], device).inputs).logits.cpu()
                for start in range(0, len(rows), BATCH)
            ]
    finally:
        student.train(training)
    return torch.cat(parts)


def score(student: Student, data: RunData, split: str, device: torch.device) -> Metrics:
    """Metrics on a split. Raises DataError for an empty or unknown split, EmptyCellError for an empty cell."""
    rows = data.rows(split)
    if len(rows) == 0:
        known = sorted({*data.table.splits})
        raise DataError(
            where="--split",
            found=repr(split),
            wanted=f"one of {', '.join(known)}",
            fix="choose another split",
        )
    logits = logits_of(student, data, rows, device)
    return assess(
        data.table.labels[rows],
        data.table.groups[rows],
        logits.argmax(1).numpy(),
        torch.softmax(logits.double(), 1).numpy(),
        len(data.class_names),
        len(data.group_names),
        class_names=data.class_names,
        group_names=data.group_names,
    )
