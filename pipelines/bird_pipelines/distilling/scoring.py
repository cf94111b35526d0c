"""From a student to its metrics on one split of its data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from bird.errors import DataError, unknown_name
from bird.measuring.caveats import trivial, undefined
from bird.measuring.metrics import Metrics, assess, confusion, mean_deo, recalls
from bird.students import Student
from bird_pipelines.distilling.data import RunData
from bird_pipelines.distilling.ranks import ONE, World
from bird_pipelines.predictions import save_predictions

__all__ = ["logits_of", "meta_score", "score"]

BATCH = 256


def logits_of(
    student: Student, data: RunData, rows: NDArray[np.int64], device: torch.device, world: World = ONE
) -> Float[Tensor, "rows classes"]:
    """The student's logits on the given rows, in evaluation mode; leaves the mode as it was. The ranks of a world share the
    batches, which are those of one process, and all have the answer."""
    training = student.training
    world.same_statistics(student)
    student.eval()
    try:
        with torch.inference_mode():
            parts = {
                start: student(data.batch(rows[start : start + BATCH], device).inputs).logits.cpu()
                for start in range(world.rank * BATCH, len(rows), world.size * BATCH)
            }
    finally:
        student.train(training)
    if world.size == 1:
        return torch.cat([*parts.values()])
    whole = torch.zeros(len(rows), len(data.class_names))
    for start, part in parts.items():
        whole[start : start + BATCH] = part
    (whole,) = world.ranks.sum([whole.to(device)])
    return whole.cpu()


def score(
    student: Student,
    data: RunData,
    split: str,
    device: torch.device,
    save_to: Path | None = None,
    world: World = ONE,
) -> Metrics:
    """Metrics on a split, whose predictions are also written to the run folder `save_to` if there is one.

    Raises UsageError for an empty or unknown split, EmptyCellError for an empty cell."""
    rows = data.rows(split)
    if len(rows) == 0:
        raise unknown_name("--split", split, sorted({*data.table.splits}), "choose another split")
    rows = rows[data.table.groups[rows] >= 0]  # train rows may be without a group, and then are in no gap
    logits = logits_of(student, data, rows, device, world)
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


def meta_score(student: Student, data: RunData, device: torch.device, world: World = ONE) -> dict[str, Any] | None:
    """Accuracy and mean-DEO on the meta split, x100, and why the gap says nothing, if so; None without a meta sample.
    A gap is None where a cell is empty."""
    rows, table, names = data.rows("meta"), data.table, data.class_names
    if not len(rows):
        return None
    predictions = logits_of(student, data, rows, device, world).argmax(1).numpy()
    counts = confusion(table.labels[rows], table.groups[rows], predictions, len(names), len(data.group_names))
    accuracy = None if "accuracy" in undefined(counts) else float(100 * (predictions == table.labels[rows]).mean())
    found = {"accuracy": accuracy, "trivial": trivial(counts, names)}
    try:
        return found | {"mean_deo": mean_deo(recalls(counts))}
    except DataError:
        return found | {"mean_deo": None}
