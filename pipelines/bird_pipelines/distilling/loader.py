"""A feature stream behind torch's DataLoader: the same batches in the same order for any number of workers."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from typing import Any, final

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from bird_cache.stream import FeatureStream, StreamBatch

__all__ = ["StreamLoader"]


@final
class StreamLoader:
    """Epochs of a stream, made by `workers` processes that live as long as this does; by this process where there are
    none. Vectors that the stream holds whole are shared with them; a bounded stream holds its bound once a worker.

    Worker w makes the batches w, w + workers, ..., and they are handed out in turn.
    """

    def __init__(self, stream: FeatureStream, *, workers: int = 0) -> None:
        self._place = multiprocessing.get_context("fork").RawArray("q", 2)
        self._batches: DataLoader[Any] = DataLoader(
            _Epoch(stream, self._place),
            batch_size=None,
            num_workers=workers,
            multiprocessing_context="fork" if workers else None,
            worker_init_fn=_one_thread if workers else None,
            persistent_workers=workers > 0,
        )

    def epoch(self, epoch: int, consumed: int = 0) -> Iterator[StreamBatch]:
        """The batches of one epoch after its first `consumed` samples; an epoch begun before is over. Raises what
        FeatureStream.epoch raises."""
        self._place[:] = [epoch, consumed]
        return iter(self._batches)


@final
class _Epoch(IterableDataset[StreamBatch]):
    """The epoch that `place`, shared with the workers, says: (epoch, consumed)."""

    def __init__(self, stream: FeatureStream, place: Sequence[int]) -> None:
        self._stream, self._place = stream, place

    def __iter__(self) -> Iterator[StreamBatch]:
        worker = get_worker_info()
        number, of = (0, 1) if worker is None else (worker.id, worker.num_workers)
        epoch, consumed = self._place
        return self._stream.epoch(epoch, consumed, number, of)


def _one_thread(worker: int) -> None:
    torch.set_num_threads(1)
