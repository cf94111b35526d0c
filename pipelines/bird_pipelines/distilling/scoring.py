"""From a student to its metrics on one split of its data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor, nn

from bird.errors import DataError, DivergedError, unknown_name
from bird.measuring.caveats import largest_class, trivial, undefined
from bird.measuring.metrics import assess, confusion, mean_deo, recalls
from bird.students import Student
from bird_pipelines.distilling.data import RunData
from bird_pipelines.distilling.ranks import ONE, World
from bird_pipelines.predictions import save_predictions

__all__ = ["logits_of", "meta_score", "require_finite", "score"]

BATCH = 256


def logits_of(
    student: Student, data: RunData, rows: NDArray[np.int64], device: torch.device, world: World = ONE
) -> Float[Tensor, "rows classes"]:
    """The student's logits on the given rows, in evaluation mode; leaves the mode as it was. The ranks of a world share the
    batches, which are those of one process, and all have the answer. Raises DivergedError for NaN or infinite ones."""
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
        return _finite(torch.cat([*parts.values()]))
    whole = torch.zeros(len(rows), len(data.class_names))
    for start, part in parts.items():
        whole[start : start + BATCH] = part
    (whole,) = world.ranks.sum([whole.to(device)])
    return _finite(whole.cpu())


def require_finite(model: nn.Module, out: Path, step: int) -> None:
    """Raise DivergedError for weights that no checkpoint of the run in `out` should hold: the one before may be of use."""
    weights = [each for each in model.parameters() if each.requires_grad]
    if bad := sum(not bool(each.isfinite().all()) for each in weights):
        raise DivergedError(
            where=f"run {out}",
            found=f"NaN or infinite numbers in {bad} of {len(weights)} weights after step {step:,}: training diverged",
            wanted="finite numbers",
            fix="lower --lr (with feedback --mu1 and --mu2, too), or mend a loss of your own",
        )


def _finite(logits: Float[Tensor, "rows classes"]) -> Float[Tensor, "rows classes"]:
    bad = int((~logits.isfinite().all(1)).sum())
    if bad:
        raise DivergedError(
            where="the student's logits",
            found=f"NaN or infinite numbers in {bad:,} of {len(logits):,} rows: training diverged",
            wanted="finite numbers",
            fix="lower --lr (with feedback --mu1 and --mu2, too), or mend a loss of your own",
        )
    return logits


def score(
    student: Student,
    data: RunData,
    split: str,
    device: torch.device,
    save_to: Path | None = None,
    world: World = ONE,
) -> dict[str, Any]:
    """Metrics on a split, as JSON, whose predictions are also written to the run folder `save_to` if there is one. Where the
    groups are crossed from several columns, `marginals` has the metrics by each column.

    Raises UsageError for an empty or unknown split, EmptyCellError for an empty cell."""
    rows = data.rows(split)
    if len(rows) == 0:
        raise unknown_name("--split", split, sorted({*data.table.splits}), "choose another split")
    rows = rows[data.table.groups[rows] >= 0]  # train rows may be without a group, and then are in no gap
    logits = logits_of(student, data, rows, device, world)
    scores = torch.softmax(logits.double(), 1).numpy()
    if save_to is not None:
        save_predictions(save_to, split, data.table, rows, scores)

    def by(groups: NDArray[np.int64], names: Sequence[str]) -> dict[str, Any]:
        answers = data.table.labels[rows], groups, logits.argmax(1).numpy(), scores
        sizes = len(data.class_names), len(names)
        found = assess(*answers, *sizes, class_names=data.class_names, group_names=names)
        return found.as_json() | {"largest_class": largest_class(found.confusion)}

    crossed = data.table.groups[rows]
    marginals = {
        name: {"group_names": [*each.names], **by(np.asarray(each.codes, np.int64)[crossed], each.names)}
        for name, each in data.factors.items()
    }
    return by(crossed, data.group_names) | ({"marginals": marginals} if marginals else {})


def meta_score(
    student: Student, data: RunData, device: torch.device, world: World = ONE, *, balanced: bool = False
) -> dict[str, Any] | None:
    """Accuracy and mean-DEO on the meta split, x100, and why the gap says nothing, if so; None where there is no meta
    sample. A gap is None where a cell is empty. With `balanced` the balanced accuracy, too."""
    rows, table, names = data.rows("meta"), data.table, data.class_names
    if not len(rows):
        return None
    predictions = logits_of(student, data, rows, device, world).argmax(1).numpy()
    counts = confusion(table.labels[rows], table.groups[rows], predictions, len(names), len(data.group_names))
    accuracy = None if "accuracy" in undefined(counts) else float(100 * (predictions == table.labels[rows]).mean())
    found: dict[str, Any] = {"accuracy": accuracy, "trivial": trivial(counts, names)}
    if balanced:
        found["balanced_accuracy"] = balanced_accuracy(counts)
    try:
        return found | {"mean_deo": mean_deo(recalls(counts))}
    except DataError:
        return found | {"mean_deo": None}


def balanced_accuracy(counts: Int[NDArray[np.int64], "classes groups classes"]) -> float:
    """The mean recall of the (class, group) cells that have a row, x100. A student that serves the large cells alone, or
    names one class, scores low here; a gap would not show it."""
    rows, right = counts.sum(2), np.einsum("cmc->cm", counts)
    return float(100 * (right[rows > 0] / rows[rows > 0]).mean())
