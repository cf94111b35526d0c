"""From a student to its metrics on one split of its data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from bird.errors import unknown_name
from bird.measuring.metrics import Metrics, assess
from bird.students import Student
from bird_pipelines.distilling.data import RunData
from bird_pipelines.predictions import save_predictions

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


def score(student: Student, data: RunData, split: str, device: torch.device, save_to: Path | None = None) -> Metrics:
    """Metrics on a split, whose predictions are also written to the run folder `save_to` if there is one.

    Raises UsageError for an empty or unknown split, EmptyCellError for an empty cell."""
    rows = data.rows(split)
    if len(rows) == 0:
        raise unknown_name("--split", split, sorted({*data.table.splits}), "choose another split")
    rows = rows[data.table.groups[rows] >= 0]  # train rows may be without a group, and then are in no gap
    logits = logits_of(student, data, rows, device)
    scores = torch.softmax(logits.double(), 1).numpy()
    if save_to is not None:
        save_predictions(save_to, split, data.table, rows, scores)
    return assess(
        data.table.labels[rows],
        data.table.groups[rows],
        logits.argmax(1).numpy(),
        scores,
        len(data.class_names),
        len(data.group_names),
        class_names=data.class_names,
        group_names=data.group_names,
    )
