"""A layer as an array that is read where it is touched: `cache["penultimate"][100:200]`."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, final

import numpy as np
from numpy.typing import NDArray

from bird_cache.numbers import from_storage

if TYPE_CHECKING:
    from bird_cache.store import FeatureStore

__all__ = ["BLOCK_BYTES", "Vectors"]

BLOCK_BYTES = 1 << 26


@final
class Vectors:
    """One view of a layer, shape (rows, *row shape). A row, a slice, a list or array of rows, or a mask gives a numpy array:
    float32 whatever is stored (integers as they are), NaN where a row failed. `np.asarray` reads all of it."""

    def __init__(self, store: FeatureStore, layer: str, view: int = 0) -> None:
        """Raises KeyError naming the layers there are, IndexError for a view that is not stored."""
        store.manifest.part_of(layer)
        views = store.manifest.plan.views
        if not 0 <= view < views:
            raise IndexError(f"no view {view} of {layer}; there are {views}, counted from 0")
        self.store, self.layer, self.view = store, layer, view
        self._spec = store.manifest.layers()[layer]

    @property
    def shape(self) -> tuple[int, ...]:
        """(rows, *row shape)."""
        return (self.store.manifest.plan.rows, *self._spec.shape)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """What reading gives: float32, or int32 for boxes."""
        return np.dtype("int32" if self._spec.dtype == "int32" else "float32")

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, which: Any) -> NDArray[Any]:
        """The rows `which`: (*row shape) of one, else (rows, *row shape). Raises IndexError, DamagedCacheError."""
        if isinstance(which, tuple):
            raise IndexError(f"{len(which)} indices; wanted rows alone: pick from the array that they give")
        if isinstance(which, slice):
            rows = range(*which.indices(len(self)))
            if rows.step == 1 and rows:
                return self._widened(self.store.read(self.layer, rows.start, rows.stop))
            return self._take(np.arange(rows.start, rows.stop, rows.step))
        if np.ndim(which) == 0 and not isinstance(which, bool | np.bool_):
            one: NDArray[Any] = self._take(self._checked(np.array([operator.index(which)])))[0]
            return one
        return self._take(self._checked(np.asarray(which)))

    def __iter__(self) -> Iterator[NDArray[Any]]:
        for _, block in self.blocks():
            yield from block

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError("vectors are read from files: an array of them is always a copy")
        return self[:].astype(dtype or self.dtype, copy=False)

    def __repr__(self) -> str:
        return f"Vectors({self.layer}, view {self.view}, shape {self.shape}, stored as {self._spec.dtype})"

    def blocks(self, memory_bytes: int = BLOCK_BYTES) -> Iterator[tuple[int, NDArray[Any]]]:
        """The rows from first to last in blocks of about `memory_bytes`: the first row's number, and the block."""
        step = max(1, memory_bytes // (4 * max(1, int(np.prod(self.shape[1:])))))
        for start in range(0, len(self), step):
            yield start, self[start : start + step]

    def _checked(self, which: NDArray[Any]) -> NDArray[np.int64]:
        """Row numbers from 0 up, of row numbers that may count from the end, or of a mask. Raises IndexError."""
        if which.dtype == bool:
            if which.shape != (len(self),):
                raise IndexError(f"a mask of shape {which.shape}; wanted ({len(self)},)")
            return np.flatnonzero(which)
        if which.ndim != 1 or (which.dtype.kind not in "iu" and which.size):
            raise IndexError(f"{which.dtype} of shape {which.shape}; wanted row numbers, one axis")
        rows = which.astype(np.int64)
        if ((rows < -len(self)) | (rows >= len(self))).any():
            wrong = rows[(rows < -len(self)) | (rows >= len(self))][0]
            raise IndexError(f"no row {wrong}; there are {len(self):,}")
        return np.where(rows < 0, rows + len(self), rows)

    def _take(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        if not len(rows):
            return np.empty((0, *self.shape[1:]), self.dtype)
        return self._widened(self.store.take(self.layer, rows))

    def _widened(self, stored: NDArray[np.generic]) -> NDArray[Any]:
        values = from_storage(stored[:, self.view], self._spec.dtype)
        return values if values.flags.writeable else values.copy()
