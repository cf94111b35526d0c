"""Cached features in the order of training: nothing lost, doubled or swapped, wherever and however one resumes.

    stream = FeatureStream(open_cache(path), "train", batch_size=128, seed=0)
    for batch in stream.epoch(3, consumed=0):
        batch.features["penultimate"], batch.labels, batch.groups, batch.ids      # and batch.consumed: the place to resume

The order is a pure function of (seed, epoch) and of the cache; the state is (epoch, consumed). Ranks and workers take
their share of the same global sequence, and every vector is delivered with the key of the id it was stored under.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, final

import numpy as np
import xxhash
from numpy.typing import NDArray

from bird_cache.errors import CacheError, DamagedCacheError, StaleCacheError
from bird_cache.numbers import from_storage, storage_dtype
from bird_cache.order import EpochOrder, slices
from bird_cache.samples import OK
from bird_cache.store import FeatureStore
from bird_cache.summary import name_of_cell

__all__ = ["WINDOW_SHARDS", "FeatureStream", "ImageSource", "StreamBatch"]

WINDOW_SHARDS = 10
WHOLE_SET_BYTES = 4 << 30
"""splits whose vectors take no more are shuffled as a whole; it decides the order, so it depends on no machine"""

Ints = NDArray[np.int64]
ImageSource = Callable[[Sequence[str]], tuple[Sequence[str], Sequence[str], Any]]
"""ids asked -> the ids and content digests of what is given, and the images"""


@dataclasses.dataclass(frozen=True)
class StreamBatch:
    """One batch, or one rank's share of it. `features` maps each layer to float32 (batch, *shape) of each sample's view;
    `consumed` is how many samples of the epoch's global sequence are done after it."""

    rows: Ints
    ids: NDArray[np.object_]
    labels: Ints
    groups: Ints
    views: Ints
    features: Mapping[str, NDArray[np.float32]]
    images: Any
    consumed: int


class Held:
    """Rows of the layers in memory as they are stored, each with the key of its id."""

    def __init__(self, stream: FeatureStream, rows: Ints) -> None:
        """Load `rows` (ascending) shard by shard."""
        store, plan = stream.store, stream.store.manifest.plan
        self.rows, self.keys = rows, stream.keys[rows]
        self._adjoining = len(rows) > 0 and int(rows[-1] - rows[0]) == len(rows) - 1
        specs = {name: store.manifest.layers()[name] for name in stream.layers}
        self.layers = {
            name: np.empty((len(rows), plan.views, *spec.shape), storage_dtype(spec.dtype))
            for name, spec in specs.items()
        }
        for shard in np.unique(rows // plan.shard_rows).tolist():
            start, stop = plan.bounds(shard)
            first, end = np.searchsorted(rows, [start, stop])
            mine = rows[first:end]
            for name, array in self.layers.items():
                array[first:end] = store.read(name, int(mine[0]), int(mine[-1]) + 1)[mine - mine[0]]
        store.release()

    def take(self, rows: Ints) -> tuple[Ints, NDArray[np.uint64]]:
        """Positions of `rows` here, and the keys that are stored there."""
        positions = rows - self.rows[0] if self._adjoining else np.searchsorted(self.rows, rows)
        return positions, self.keys[positions]


@final
class FeatureStream:
    """The usable rows of one split, batch by batch, epoch by epoch. Rows that failed are left out and counted in `failed`
    by "class, group".

    `memory_bytes` bounds what is held: all of the split if it fits, else two groups of `window` shards (the current one,
    and the next one on its way). `window` None: the whole set is shuffled if its vectors take up to 4 GiB, else groups
    of 10 shards. `view` gives each row's view (rows, epoch) -> (rows,), default 0. `images` gives images by id, and what
    it gives is compared with what was cached, sample by sample. `rank` of `world` takes its share of every batch: two
    samples or more, but where one resumes with more ranks than before at the last few samples of an epoch.
    """

    def __init__(
        self,
        store: FeatureStore,
        split: str,
        *,
        layers: Sequence[str] = ("penultimate",),
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        memory_bytes: int = WHOLE_SET_BYTES,
        window: int | None = None,
        view: Callable[[Ints, int], Ints] | None = None,
        images: ImageSource | None = None,
    ) -> None:
        """Raises IncompleteCacheError, KeyError for an unknown layer, CacheError if not even two groups fit the bound,
        ValueError for a rank outside 0..world-1 or a batch smaller than two samples a rank."""
        store.require_complete()
        if not 0 <= rank < world or batch_size < 2 * world:
            raise ValueError(
                f"rank {rank} of {world}, batches of {batch_size}: wanted 0 <= rank < world, 2 samples a rank"
            )
        self.store, self.layers, self.seed, self.rank, self.world = store, tuple(layers), seed, rank, world
        self.batch_size, self._view, self._images = batch_size, view, images
        plan, samples = store.manifest.plan, store.samples
        specs = [store.manifest.layers()[name] for name in layers]
        self.row_bytes = sum(plan.views * int(np.prod(s.shape)) * storage_dtype(s.dtype).itemsize for s in specs)
        mine = samples.splits == split
        self.rows = np.flatnonzero(mine & (samples.status == OK))
        lost = np.flatnonzero(mine & (samples.status != OK))
        cells = Counter(f"{samples.labels[row]},{samples.groups[row]}" for row in lost.tolist())
        self.failed = {name_of_cell(plan.class_names, plan.group_names, key): n for key, n in sorted(cells.items())}
        self.keys = np.array([xxhash.xxh3_64_intdigest(id.encode()) for id in samples.ids.tolist()], np.uint64)
        small = len(self.rows) * self.row_bytes <= WHOLE_SET_BYTES
        self.window = window if window is not None or small else WINDOW_SHARDS
        self._held: Held | None = None
        if len(self.rows) * self.row_bytes <= memory_bytes:
            self._held = Held(self, self.rows)
        else:
            self._require_room(memory_bytes)

    def __len__(self) -> int:
        """Samples an epoch, of all ranks together."""
        return len(self.rows)

    def order(self, epoch: int) -> EpochOrder:
        """The order of one epoch."""
        shard_rows = self.store.manifest.plan.shard_rows
        return EpochOrder(self.rows, shard_rows, seed=self.seed, epoch=epoch, window=self.window)

    def epoch(self, epoch: int, consumed: int = 0, worker: int = 0, workers: int = 1) -> Iterator[StreamBatch]:
        """The batches of one epoch after its first `consumed` samples; of these every `workers`-th from number `worker`.

        Raises DamagedCacheError, StaleCacheError where a sample is not the one that its place says.
        """
        order = self.order(epoch)
        cuts = slices(len(order), self.batch_size, consumed, 2 * self.world)
        wanted = [cut for number, cut in enumerate(cuts) if number % workers == worker]
        held = self._everything(order) if self._held is not None else self._group_by_group(order, wanted)
        for start, stop in wanted:
            rows = order.between(start, stop)[self.rank :: self.world]
            yield self._batch(rows, epoch, stop, held(start, stop))

    def _batch(self, rows: Ints, epoch: int, consumed: int, held: Sequence[Held]) -> StreamBatch:
        samples, specs = self.store.samples, self.store.manifest.layers()
        views = np.zeros(len(rows), np.int64) if self._view is None else self._view(rows, epoch)
        features = {}
        for name in self.layers:
            stored = self._gather(name, rows, views, held)
            features[name] = from_storage(stored, specs[name].dtype)
        ids = samples.ids[rows]
        images = None if self._images is None else self._checked_images(rows, ids)
        return StreamBatch(rows, ids, samples.labels[rows], samples.groups[rows], views, features, images, consumed)

    def _gather(self, name: str, rows: Ints, views: Ints, held: Sequence[Held]) -> NDArray[np.generic]:
        """The stored vectors of `rows`, each compared by key with the id that was asked for."""
        if len(held) == 1:
            positions, keys = held[0].take(rows)
            self._require_keys(rows, keys)
            array = held[0].layers[name]
            return array[:, 0].take(positions, axis=0) if array.shape[1] == 1 else array[positions, views]
        out = np.empty((len(rows), *held[0].layers[name].shape[2:]), held[0].layers[name].dtype)
        for group in held:
            mine = np.isin(rows, group.rows)
            positions, keys = group.take(rows[mine])
            self._require_keys(rows[mine], keys)
            out[mine] = group.layers[name][positions, views[mine]]
        return out

    def _require_keys(self, rows: Ints, keys: NDArray[np.uint64]) -> None:
        if not np.array_equal(keys, self.keys[rows]):
            row = int(rows[np.flatnonzero(keys != self.keys[rows])[0]])
            raise DamagedCacheError(
                where=self.store.path,
                found=f"the vector of another sample at row {row}",
                wanted=f"the vector of {self.store.samples.ids[row]!r}",
                fix="see all of it with `bird cache verify`",
            )

    def _checked_images(self, rows: Ints, ids: NDArray[np.object_]) -> Any:
        assert self._images is not None
        given, digests, images = self._images(ids.tolist())
        for row, id, other, digest in zip(rows.tolist(), ids.tolist(), given, digests, strict=True):
            if other != id or digest != self.store.samples.digests[row]:
                raise StaleCacheError(
                    where=f"{self.store.path}, row {row}",
                    found=f"the image of {other!r} with digest {digest}",
                    wanted=f"the image of {id!r} with digest {self.store.samples.digests[row]}",
                    fix="point the stream at the data set that the cache was made from",
                )
        return images

    def _everything(self, order: EpochOrder) -> Callable[[int, int], Sequence[Held]]:
        assert self._held is not None
        whole = [self._held]
        return lambda start, stop: whole

    def _group_by_group(
        self, order: EpochOrder, wanted: Sequence[tuple[int, int]]
    ) -> Callable[[int, int], Sequence[Held]]:
        """Groups as they are needed, the next one loading meanwhile; never more than two."""
        pool = ThreadPoolExecutor(1, "groups")
        loading: dict[int, Future[Held]] = {}

        def load(number: int) -> Future[Held]:
            if number not in loading:
                loading[number] = pool.submit(lambda: Held(self, np.sort(order.group(number))))
            return loading[number]

        def held(start: int, stop: int) -> Sequence[Held]:
            first, last = order.group_at(start), order.group_at(stop - 1)
            for number in [number for number in loading if number < first]:
                del loading[number]
            found = [load(number).result() for number in range(first, last + 1)]
            if first == last and first + 1 < order.groups:
                load(first + 1)
            if wanted and stop == wanted[-1][1]:
                pool.shutdown(wait=False)
            return found

        return held

    def _require_room(self, memory_bytes: int) -> None:
        order = self.order(0)
        largest = int(np.diff(order.starts).max()) * self.row_bytes
        if order.groups == 1 or 2 * largest > memory_bytes:
            needed = 2 * largest if order.groups > 1 else largest
            raise CacheError(
                where=self.store.path,
                found=f"a bound of {memory_bytes:,} bytes for a shuffle that needs {needed:,}",
                wanted="room for the whole split, or for two groups of shards",
                fix=f"raise memory_bytes, or give a smaller window (shards shuffled together; now {self.window or 'all'})",
            )
