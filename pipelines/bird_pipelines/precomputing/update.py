"""A data set changed: what an earlier cache of the same teacher says of unchanged images is taken from there."""

from __future__ import annotations

from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from bird.datasets.base import Dataset
from bird_cache.manifest import Plan
from bird_cache.numbers import from_storage
from bird_cache.samples import Samples
from bird_cache.store import open_cache
from bird_pipelines.precomputing.plan import require_revision
from bird_pipelines.progress import tell

__all__ = ["Earlier", "sides_of"]


def sides_of(path: str, dataset: Dataset) -> dict[str, str] | None:
    """On which side of the split each image of an earlier cache of `dataset` was: digest -> split. None, and a line on
    stderr, where it was cached with other settings, which may draw other splits. Raises IncompleteCacheError."""
    store = open_cache(path)
    store.require_complete()
    described: Any = store.manifest.plan.causes.get("dataset")
    if not isinstance(described, dict) or (described.get("name"), described.get("settings")) != (
        dataset.name,
        dict(dataset.settings),
    ):
        tell(f"note: {path} was made with other settings of the data set: its rows may change their split")
        return None
    return dict(zip(store.samples.digests.tolist(), store.samples.splits.tolist(), strict=True))


@final
class Earlier:
    """A finished cache of the same teacher, preprocessing and layers over another state of the data set. A vector
    depends only on its image, so rows are found by the digest of the image, even after a renaming."""

    def __init__(self, path: str, plan: Plan, samples: Samples) -> None:
        """Raises IncompleteCacheError; StaleCacheError, naming the field, where more than the data set differs."""
        self.store = open_cache(path)
        self.store.require_complete()
        there = self.store.manifest.plan
        require_revision(there, plan, path)
        # All else must be equal, but not the files' layout, nor whether rows were dropped from it or added to it.
        causes = dict(plan.causes)
        causes |= {name: there.causes[name] for name in ("dataset", "generation") if name in there.causes}
        there.require(there.model_copy(update={"causes": causes}), path)
        self._layers = plan.layers
        usable = np.flatnonzero(self.store.usable(plan.layers))
        place = dict(zip(self.store.samples.digests[usable].tolist(), usable.tolist(), strict=True))
        self._row = np.array([place.get(digest, -1) for digest in samples.digests.tolist()], np.int64)
        self._doubtful = {row: what for each in self.store.receipts.values() for row, what in each.doubtful.items()}
        self.reused = f"{int((self._row >= 0).sum()):,} of {len(samples):,} rows"
        tell(f"note: {self.reused} are taken from {path}")

    def has(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of the new cache's rows need not be computed."""
        return np.asarray(self._row[rows] >= 0)

    def doubtful(self, rows: NDArray[np.int64]) -> dict[int, str]:
        """Those of the rows that it has and whose images carry little, and what they are."""
        if not self._doubtful:
            return {}
        pairs = zip(rows.tolist(), self._row[rows].tolist(), strict=True)
        return {row: self._doubtful[there] for row, there in pairs if there in self._doubtful}

    def take(self, rows: NDArray[np.int64]) -> dict[str, NDArray[np.generic]]:
        """The layers of some rows of the new cache, (rows, views, *shape): float32, or integers as they are."""
        return {
            name: from_storage(self.store.take(name, self._row[rows]), spec.dtype)
            for name, spec in self._layers.items()
        }
