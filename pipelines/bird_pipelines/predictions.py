"""What a run predicts on a split, in a file of its folder. Loads no torch, so that a report starts at once."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from bird.datasets.base import SampleTable
from bird.errors import RunError
from bird.measuring.shared_rows import Predicted
from bird_cache.files import replace

__all__ = ["load_predictions", "load_scores", "save_predictions"]


def save_predictions(
    folder: Path,
    split: str,
    table: SampleTable,
    rows: NDArray[np.int64],
    scores: Float[NDArray[np.float64], "rows classes"],
) -> None:
    """predictions-SPLIT.npz: `ids` (UTF-8 bytes), `labels`, `groups`, `predictions` (int16) and `scores` (float32,
    softmax, (N, C)), a row a sample, in the order of the cache or data set. Plain arrays: read with allow_pickle=False."""
    buffer = io.BytesIO()
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
    held = _held(folder, split, ("ids", "labels", "groups", "predictions"))
    if held is None:
        return None
    ids = [each.decode() for each in held.pop("ids").tolist()]
    return Predicted(ids=ids, **{name: values.astype(np.int64) for name, values in held.items()})


def load_scores(folder: Path, split: str) -> Float[NDArray[np.float64], "rows classes"] | None:
    """The scores that `save_predictions` wrote; None where there are none. Raises RunError if the file is damaged."""
    held = _held(folder, split, ("scores",))
    return None if held is None else held["scores"].astype(np.float64)


def _held(folder: Path, split: str, names: Sequence[str]) -> dict[str, NDArray[Any]] | None:
    path = folder / f"predictions-{split}.npz"
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as held:
            return {name: held[name] for name in names}
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise RunError(
            where=str(path),
            found=f"a damaged file ({error})",
            wanted="a run folder as `bird distill` writes it",
            fix="run `bird evaluate` on the folder: it writes the file again",
        ) from None
