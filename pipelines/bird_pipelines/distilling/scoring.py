"""From a student to its metrics on one split of its data."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from bird.errors import RunError, unknown_name
from bird.measuring.metrics import Metrics, assess
from bird.measuring.paired import Predicted
from bird.students import Student
from bird_cache.files import replace
from bird_pipelines.distilling.data import RunData

__all__ = ["load_predictions", "logits_of", "score"]

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
        save_predictions(save_to, split, data, rows, scores)
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


def save_predictions(
    folder: Path, split: str, data: RunData, rows: NDArray[np.int64], scores: Float[NDArray[np.float64], "rows classes"]
) -> None:
    """predictions-SPLIT.npz: `ids` (UTF-8 bytes), `labels`, `groups`, `predictions` (int16) and `scores` (float32,
    softmax, (N, C)), a row a sample, in the order of the cache or data set. Plain arrays: read with allow_pickle=False."""
    table, buffer = data.table, io.BytesIO()
    np.savez_compressed(
        buffer,
        ids=np.array([str(id).encode() for id in table.ids[rows]]),
        labels=table.labels[rows].astype(np.int16),
        groups=table.groups[rows].astype(np.int16),
        predictions=scores.argmax(1).astype(np.int16),
        scores=scores.astype(np.float32),
    )
    replace(folder / f"predictions-{split}.npz", buffer.getvalue())


def load_predictions(folder: Path, split: str) -> Predicted | None:
    """What `save_predictions` wrote, without the scores; None where there is nothing. Raises RunError if it is damaged."""
    path = folder / f"predictions-{split}.npz"
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as held:
            codes = {name: held[name].astype(np.int64) for name in ("labels", "groups", "predictions")}
            return Predicted(ids=[each.decode() for each in held["ids"].tolist()], **codes)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise RunError(
            where=str(path),
            found=f"a damaged file ({error})",
            wanted="what `bird distill` writes",
            fix="run `bird evaluate` on the folder: it writes the file again",
        ) from None
