"""A feature stream behind torch's DataLoader: the same batches in the same order for any number of workers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, final

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from bird_cache.stream import FeatureStream, StreamBatch

__all__ = ["StreamDataset", "stream_loader"]


@final
class StreamDataset(IterableDataset[StreamBatch]):
    """One epoch of a stream from a place on. Vectors that the stream holds are shared with forked workers."""

    def __init__(self, stream: FeatureStream, epoch: int, consumed: int = 0) -> None:
        self._stream, self._epoch, self._consumed = stream, epoch, consumed

    def __iter__(self) -> Iterator[StreamBatch]:
        worker = get_worker_info()
        number, of = (0, 1) if worker is None else (worker.id, worker.num_workers)
        return self._stream.epoch(self._epoch, self._consumed, number, of)


def stream_loader(stream: FeatureStream, epoch: int, consumed: int = 0, *, workers: int = 0) -> DataLoader[Any]:
    """A DataLoader over one epoch after its first `consumed` samples. Worker w makes the batches w, w + workers, ...,
    and the loader hands them out in turn."""
    dataset = StreamDataset(stream, epoch, consumed)
    context = "fork" if workers else None
    setup = _one_thread if workers else None
    return DataLoader(
        dataset, batch_size=None, num_workers=workers, multiprocessing_context=context, worker_init_fn=setup
    )


def _one_thread(worker: int) -> None:
    torch.set_num_threads(1)
