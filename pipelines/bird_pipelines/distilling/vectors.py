"""The teacher's vectors of a run's rows: held in memory where they fit, else read from the cache's files batch by batch."""

from __future__ import annotations

from typing import final

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from bird.errors import UsageError
from bird_cache.numbers import from_storage
from bird_cache.store import FeatureStore

__all__ = ["LAYER", "Features", "features_of", "moments_of", "pick"]

LAYER = "penultimate"
BLOCK_ROWS = 8192


@final
class MappedFeatures:
    """Rows of a cache on disk, mapped: what is read stays in memory only as long as the system has room for it. Checked
    like every read of a cache. Indexed like a tensor of float32, (rows, d) or, with stored views, (rows, views, d)."""

    def __init__(self, store: FeatureStore, rows: NDArray[np.int64]) -> None:
        self._store, self._rows, self._spec = store, rows, store.manifest.layers()[LAYER]
        views = store.manifest.plan.views
        self._views = views > 1
        self.shape = torch.Size((len(rows), *((views,) if self._views else ()), *self._spec.shape))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Tensor) -> Tensor:
        """The rows of an index tensor of any shape. Raises DamagedCacheError."""
        wanted = self._rows[index.numpy().reshape(-1)]
        found = torch.from_numpy(from_storage(self._store.take(LAYER, wanted), self._spec.dtype))
        return (found if self._views else found[:, 0]).reshape(*index.shape, *self.shape[1:])


Features = Float[Tensor, "rows *view dim"] | MappedFeatures


def features_of(store: FeatureStore, rows: NDArray[np.int64], memory_bytes: float) -> Features:
    """The penultimate vectors of the given rows of a complete cache; those that take more than `memory_bytes` as float32
    are mapped. Raises UsageError where they would have to be, and the cache is not on this machine."""
    mapped = MappedFeatures(store, rows)
    size = 4 * int(np.prod(mapped.shape))
    if size <= memory_bytes:
        return mapped[torch.arange(len(rows))]
    if store.folder.local is None:
        raise UsageError(
            where=store.path,
            found=f"{size / 2**30:.1f} GiB of vectors that are not on this machine",
            wanted=f"at most the {memory_bytes / 2**30:.1f} GiB of --memory-gb",
            fix="raise it, or copy the cache to a disk with `bird cache convert`",
        )
    return mapped


def pick(features: Features, index: Tensor, view: Tensor | None) -> Tensor:
    """The vectors of the rows `index`, each in its `view` (default: the first), (len(index), d)."""
    if len(features.shape) == 2:
        return features[index]
    which = torch.zeros_like(index) if view is None else view
    if isinstance(features, Tensor):
        return features[index, which]
    return features[index][torch.arange(len(index)), which]


def moments_of(features: Features, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (biased) of the given rows, each (d,), summed in double, in blocks; a constant feature has
    deviation 1."""
    blocks = [torch.from_numpy(rows[start : start + BLOCK_ROWS]) for start in range(0, len(rows), BLOCK_ROWS)]
    values = len(rows) * int(np.prod(features.shape[1:-1]))
    mean, squares = (torch.zeros(features.shape[-1], dtype=torch.float64) for _ in range(2))
    for block in blocks:
        mean += features[block].double().flatten(0, -2).sum(0) / values
    for block in blocks:
        squares += (features[block].double().flatten(0, -2) - mean).square_().sum(0) / values
    std = squares.sqrt()
    return mean.float(), torch.where(std > 1e-8, std, 1.0).float()
