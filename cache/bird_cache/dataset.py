"""A cache for a training loop of your own: rows by number, or the batches of an epoch. Made for torch's DataLoader, which
takes anything that has these methods; torch itself is imported by whoever uses it.

    loader = DataLoader(CacheDataset("cache", "train"), batch_size=128, shuffle=True)

    class Train(IterableDataset):
        def __iter__(self):
            return batches(stream, epoch=0, worker=get_worker_info())

    loader = DataLoader(Train(), batch_size=None, num_workers=2)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, final

import numpy as np

from bird_cache.errors import RequestError
from bird_cache.store import FeatureStore, open_cache
from bird_cache.stream import FeatureStream

__all__ = ["CacheDataset", "batches"]


@final
class CacheDataset:
    """The usable rows of a split (None: of all), each a dict: `features` (d,) float32, `label`, `group`, `row` and `id`.
    `rows` are their numbers in the cache.

    A worker that does not share this process's memory opens the cache again: what is sent to it is the address.
    """

    def __init__(
        self, cache: str | Path, split: str | None = None, *, layer: str = "penultimate", view: int = 0
    ) -> None:
        """Raises IncompleteCacheError and what `open_cache` raises, RequestError for a split without a usable row, KeyError
        for an unknown layer."""
        self._given = (cache, split, layer, view)
        self.store: FeatureStore = open_cache(cache)
        self.store.require_complete()
        self._vectors = self.store[layer, view]
        usable = self.store.usable([layer])
        if split is not None:
            usable &= self.store.samples.having("split", split)
        self.rows = np.flatnonzero(usable)
        if not len(self.rows):
            found, wanted = f"no usable row of split {split!r}", "one at least"
            known = ", ".join(sorted(self.store.samples.counts("split")))
            raise RequestError(where=self.store.path, found=found, wanted=wanted, fix=f"its splits are {known}")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> dict[str, Any]:
        return self.__getitems__([number])[0]

    def __getitems__(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """Several at once, which is how torch asks for a batch."""
        rows, samples = self.rows[np.asarray(numbers, np.int64)], self.store.samples
        columns = (samples.numbers(name, rows).tolist() for name in ("label", "group"))
        ids = [samples.text("id", row, row + 1)[0] for row in rows.tolist()]
        names = ("features", "label", "group", "row", "id")
        found = zip(self._vectors[rows], *columns, rows.tolist(), ids, strict=True)
        return [dict(zip(names, each, strict=True)) for each in found]

    def __reduce__(self) -> tuple[Any, ...]:
        return _opened, self._given


def _opened(cache: str | Path, split: str | None, layer: str, view: int) -> CacheDataset:
    return CacheDataset(cache, split, layer=layer, view=view)


def batches(stream: FeatureStream, epoch: int = 0, consumed: int = 0, worker: Any = None) -> Iterator[dict[str, Any]]:
    """The shuffled batches of one epoch as dicts: each layer's vectors under its name, `label`, `group`, `row`, `id`, and
    `consumed`, the place to resume. `worker` is what torch.utils.data.get_worker_info() says: it has `id` and `num_workers`,
    and each worker makes its share. Raises what FeatureStream.epoch raises."""
    number, of = (0, 1) if worker is None else (worker.id, worker.num_workers)
    for batch in stream.epoch(epoch, consumed, number, of):
        columns = {"label": batch.labels, "group": batch.groups, "row": batch.rows, "id": batch.ids.tolist()}
        yield {**batch.features, **columns, "consumed": batch.consumed}
