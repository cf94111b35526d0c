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
from bird_cache.numbers import absent, from_storage, storage_dtype
from bird_cache.order import EpochOrder, slices
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
    """One batch, or one rank's share of it. `features` maps each layer to (batch, *shape) of each sample's view, float32
    unless they were asked for as stored; `consumed` is how many samples of the epoch's global sequence are done after it."""

    rows: Ints
    ids: NDArray[np.object_]
    labels: Ints
    groups: Ints
    views: Ints
    features: Mapping[str, NDArray[Any]]
    images: Any
    consumed: int


@final
class Held:
    """Rows of the layers in memory as they are stored, each with the key of its id."""

    def __init__(self, stream: FeatureStream, rows: Ints) -> None:
        """Load `rows` (ascending) shard by shard. Raises DamagedCacheError where a row holds no vector."""
        store, plan = stream.store, stream.store.manifest.plan
        self.keys, self._shard_rows = stream.keys[rows], plan.shard_rows
        shards = np.unique(rows // plan.shard_rows)
        self._slot = np.full(plan.shards, -1)
        self._slot[shards] = np.arange(len(shards))
        self._places = np.zeros(len(shards) * plan.shard_rows, np.int32)
        self._places[self._at(rows)] = np.arange(len(rows))
        specs = {name: store.manifest.layers()[name] for name in stream.layers}
        self.layers = {
            name: np.empty((len(rows), plan.views, *spec.shape), storage_dtype(spec.dtype))
            for name, spec in specs.items()
        }
        step = plan.chunk_rows if plan.store == "zarr" else plan.shard_rows  # what is read without a copy
        for piece in np.unique(rows // step).tolist():
            first, end = np.searchsorted(rows, [piece * step, (piece + 1) * step])
            mine = rows[first:end]
            for name, array in self.layers.items():
                stored = store.read(name, int(mine[0]), int(mine[-1]) + 1)
                array[first:end] = stored if len(stored) == len(mine) else stored[mine - mine[0]]
        stream.require_vectors(rows, self.layers)
        store.release()

    def holds(self, rows: Ints) -> NDArray[np.bool_]:
        """Which of `rows` are of the shards held here."""
        return np.asarray(self._slot[rows // self._shard_rows] >= 0)

    def take(self, rows: Ints) -> tuple[NDArray[np.int32], NDArray[np.uint64]]:
        """Positions of `rows` here, and the keys that are stored there."""
        positions = self._places[self._at(rows)]
        return positions, self.keys[positions]

    def _at(self, rows: Ints) -> Ints:
        return self._slot[rows // self._shard_rows] * self._shard_rows + rows % self._shard_rows


@final
class FeatureStream:
    """The usable rows of one split, batch by batch, epoch by epoch. Rows that failed in any of the `layers` are left out
    and counted in `failed` by "class, group".

    `memory_bytes` bounds the vectors held by a process: all of the split if it fits, else two groups of `window` shards
    (the current one, and the next one on its way; more where a batch spans more). `window` None: the whole set is
    shuffled if its vectors take up to 4 GiB, else groups of 10 shards. `view` gives each row's view (rows, epoch) ->
    (rows,), default 0. `images` gives images by id, and what it gives is compared with what was cached, sample by sample.
    `rank` of `world` takes its share of every batch: two samples or more. Without `widen`, vectors come as they are
    stored (bfloat16 as its bits): half the bytes from a worker, and torch makes float32 of float16 faster than numpy can.
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
        widen: bool = True,
    ) -> None:
        """Raises IncompleteCacheError, KeyError for an unknown layer, CacheError if not even two groups fit the bound,
        DamagedCacheError where a vector is missing or altered, ValueError for a rank outside 0..world-1 or a batch smaller
        than two samples a rank."""
        store.require_complete()
        if not 0 <= rank < world or batch_size < 2 * world:
            raise ValueError(
                f"rank {rank} of {world}, batches of {batch_size}: wanted 0 <= rank < world, 2 samples a rank"
            )
        self.store, self.layers, self.seed, self.rank, self.world = store, tuple(layers), seed, rank, world
        self.batch_size, self._view, self._images, self._widen = batch_size, view, images, widen
        plan, samples = store.manifest.plan, store.samples
        specs = [store.manifest.layers()[name] for name in layers]
        self.row_bytes = sum(plan.views * int(np.prod(s.shape)) * storage_dtype(s.dtype).itemsize for s in specs)
        mine = samples.splits == split
        usable = store.usable(self.layers)
        self.rows, lost = np.flatnonzero(mine & usable), np.flatnonzero(mine & ~usable)
        cells = Counter(f"{samples.labels[row]},{samples.groups[row]}" for row in lost.tolist())
        self.failed = {name_of_cell(plan.class_names, plan.group_names, key): n for key, n in sorted(cells.items())}
        self.keys = np.array([xxhash.xxh3_64_intdigest(id.encode()) for id in samples.ids.tolist()], np.uint64)
        small = len(self.rows) * self.row_bytes <= WHOLE_SET_BYTES
        self.window = window if window is not None or small else WINDOW_SHARDS
        self._seen = np.zeros(plan.rows, bool)
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

        Raises DamagedCacheError, StaleCacheError where a sample is not the one that its place says; ValueError where too
        few samples are left to give every rank two.
        """
        order = self.order(epoch)
        left = len(order) - consumed
        if left < 0 or (self.world > 1 and 0 < left < 2 * self.world):
            raise ValueError(
                f"{left} of {len(order)} samples left in epoch {epoch} for {self.world} ranks: wanted none, or two a rank; "
                "resume this epoch with fewer ranks"
            )
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
            # finite: `require_vectors` found them so
            features[name] = from_storage(stored, specs[name].dtype, finite=True) if self._widen else stored
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
            mine = group.holds(rows)
            positions, keys = group.take(rows[mine])
            self._require_keys(rows[mine], keys)
            out[mine] = group.layers[name][positions, views[mine]]
        return out

    def require_vectors(self, rows: Ints, layers: Mapping[str, NDArray[np.generic]]) -> None:
        """Raise DamagedCacheError, naming the first, where one of `rows` has a NaN or an infinity for a vector. Each row
        is looked at once: what is read later was found to be the same bytes."""
        new = np.flatnonzero(~self._seen[rows])
        for name, array in layers.items() if len(new) else ():
            empty = absent(array if len(new) == len(rows) else array[new], self.store.manifest.layers()[name].dtype)
            if empty.any():
                row = int(rows[new[np.flatnonzero(empty)[0]]])
                raise DamagedCacheError(
                    where=self.store.path,
                    found=f"NaN or infinity in {name} of {self.store.samples.ids[row]!r} (row {row}), which did not fail",
                    wanted="a finite vector for every sample that did not fail",
                    fix="see all of it with `bird cache verify`",
                )
        self._seen[rows] = True

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
        """Raise CacheError unless two groups fit, in whatever epoch, and those that a batch covers whole between them."""
        sizes = np.unique(self.rows // self.store.manifest.plan.shard_rows, return_counts=True)[1]
        sizes.sort()
        window = self.window or len(sizes)
        largest, smallest = int(sizes[-window:].sum()), int(sizes[:window].sum())
        between = self.batch_size + 2 * self.world - 4  # of a batch that the rest joined, all but its first and last
        covered = between if between >= smallest else 0
        needed = min(2 * largest + covered, len(self.rows)) * self.row_bytes
        if needed > memory_bytes:
            raise CacheError(
                where=self.store.path,
                found=f"a bound of {memory_bytes:,} bytes for a shuffle that needs {needed:,}",
                wanted="room for the whole split, or for two groups of shards and all that a batch spans",
                fix=f"raise memory_bytes, or give a smaller window (shards shuffled together; now {self.window or 'all'})",
            )
