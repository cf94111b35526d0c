"""The images that a student looks at: decoded once and held where they fit in memory, each checked to be the cached one."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from numpy.typing import NDArray
from torch import Tensor

from bird.datasets.base import Dataset, SampleTable
from bird.errors import ImageError
from bird.images import carries_little
from bird.stored_views import view_of
from bird.student_views import center_view
from bird_cache.errors import StaleCacheError

__all__ = ["Images"]

IMAGES_IN_MEMORY_BYTES = 4 << 30


class Images:
    """The deterministic view of every sample, uint8 (3, size, size), decoded once and held if that fits in memory."""

    def __init__(self, dataset: Dataset, table: SampleTable, size: int, workers: int) -> None:
        self._dataset, self._table, self._size = dataset, table, size
        # One torch thread each: for the small tensors of an image a pool of threads costs eight times the work itself.
        self._pool = ThreadPoolExecutor(workers, "decode", initializer=torch.set_num_threads, initargs=(1,))
        hold = len(table) * 3 * size * size <= IMAGES_IN_MEMORY_BYTES
        self._held = torch.empty((len(table), 3, size, size), dtype=torch.uint8) if hold else None
        self._ready = np.zeros(len(table), dtype=bool)
        self.white_level: Any = dataset.settings.get("white_level")
        self.doubtful: dict[int, str] = {}
        """rows, of those that were decoded, whose images carry little, and what they are"""

    def get(self, rows: NDArray[np.int64]) -> UInt8[Tensor, "batch 3 size size"]:
        """The images of the given rows. Raises ImageError, OSError, and StaleCacheError for an image that is not
        the one whose features were cached."""
        if self._held is None:
            return self._decode(rows)
        if len(missing := np.unique(rows[~self._ready[rows]])):
            self._decode(missing, self._held.numpy(), missing)
            self._ready[missing] = True
        return self._held[torch.from_numpy(rows)]

    def boxed(self, rows: NDArray[np.int64], boxes: NDArray[np.int32]) -> UInt8[Tensor, "batch 3 size size"]:
        """Stored views of the images of the given rows: decoded anew, cut and resized as the boxes say."""
        return self._decode(rows, boxes=boxes)

    def failures(self) -> dict[int, str]:
        """Decode everything once: the rows that cannot be decoded, and why."""

        def attempt(row: int) -> str | None:
            try:
                self.get(np.array([row]))
            except (ImageError, OSError) as error:
                return str(getattr(error, "found", error))
            return None

        reasons = list(self._pool.map(attempt, range(len(self._table))))
        return {row: reason for row, reason in enumerate(reasons) if reason is not None}

    def _decode(
        self,
        rows: NDArray[np.int64],
        into: NDArray[np.uint8] | None = None,
        places: NDArray[np.int64] | None = None,
        boxes: NDArray[np.int32] | None = None,
    ) -> Tensor:
        """The views of the given rows, one after the other, or `into` an array where `places` says. (An array, since the
        threads do not know whether their caller is in inference mode.)"""
        out = np.empty((len(rows), 3, self._size, self._size), np.uint8) if into is None else into

        def put(position: int) -> None:
            view = self._one(int(rows[position]), None if boxes is None else boxes[position])
            out[position if places is None else int(places[position])] = view.numpy()

        if len(rows) == 1:  # `failures` is in the pool itself
            put(0)
        else:
            list(self._pool.map(put, range(len(rows))))
        return torch.from_numpy(out)

    def _one(self, row: int, box: NDArray[np.int32] | None = None) -> Tensor:
        id = self._table.ids[row]
        try:
            data = self._dataset.read(id)
        except KeyError:
            raise self._another_image(id, "no such sample") from None
        if self._dataset.digest(id, data) != self._table.digests[row]:
            raise self._another_image(id, "another image")
        image = self._dataset.decode(id, data)
        if (little := carries_little(image)) is not None:
            self.doubtful[row] = little
        return center_view(image, self._size) if box is None else view_of(image, box, self._size)

    def _another_image(self, id: str, found: str) -> StaleCacheError:
        return StaleCacheError(
            where=f"{self._dataset.name}, sample {id}",
            found=found,
            wanted="the image whose features are in the cache",
            fix="point --data-root at the data set that the cache was made from, or precompute again",
        )
