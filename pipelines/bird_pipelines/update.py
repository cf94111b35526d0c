"""A data set changed: what an earlier cache of the same teacher says of unchanged images is taken from there."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bird_cache.manifest import Plan
from bird_cache.numbers import from_storage
from bird_cache.samples import Samples
from bird_cache.store import open_cache
from bird_pipelines.planning import require_revision

__all__ = ["Earlier"]


class Earlier:
    """A finished cache of the same teacher, preprocessing and layers over another state of the data set. A vector
    follows from its image alone, so rows are found by the digests of their images, whatever they are called now."""

    def __init__(self, path: str, plan: Plan, samples: Samples) -> None:
        """Raises IncompleteCacheError; StaleCacheError, naming the field, where more than the data set differs."""
        self.store = open_cache(path)
        self.store.require_complete()
        there = self.store.manifest.plan
        require_revision(there, plan, path)
        causes = {
            **plan.causes,
            "dataset": there.causes["dataset"],
        }  # all else must be equal, but not the files' layout
        there.require(there.model_copy(update={"causes": causes}), path)
        self._layers = plan.layers
        usable = np.flatnonzero(self.store.usable(plan.layers))
        place = dict(zip(self.store.samples.digests[usable].tolist(), usable.tolist(), strict=True))
        self._row = np.array([place.get(digest, -1) for digest in samples.digests.tolist()], np.int64)

    def has(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of the new cache's rows need not be computed."""
        return np.asarray(self._row[rows] >= 0)

    def take(self, rows: NDArray[np.int64]) -> dict[str, NDArray[np.generic]]:
        """The layers of some rows of the new cache, (rows, views, *shape): float32, or integers as they are."""
        return {
            name: from_storage(self.store.take(name, self._row[rows]), spec.dtype)
            for name, spec in self._layers.items()
        }
