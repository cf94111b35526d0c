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
from bird_cache.order import EpochOrder, shards_of, slices
from bird_cache.samples import Samples
from bird_cache.store import FeatureStore
from bird_cache.summary import name_of_cell
from bird_cache.table import GROUP_ROWS, joined, of_integers

__all__ = ["WINDOW_SHARDS", "FeatureStream", "ImageSource", "StreamBatch"]

WINDOW_SHARDS = 10
WHOLE_SET_BYTES = 4 << 30
"""splits whose vectors take no more are shuffled as a whole; it decides the order, so it depends on no machine"""

Ints = NDArray[np.int64]
ImageSource = Callable[[Sequence[str]], tuple[Sequence[str], Sequence[str], Any]]
"""ids asked -> the ids and content digests of what is given, and the images"""


@final
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
    """Rows of the layers in memory as they are stored, each with the key of its id, and its text (the id, and the digest
    where there are images to compare)."""

    def __init__(self, stream: FeatureStream, rows: Ints) -> None:
        """Load `rows` (ascending) shard by shard. Raises DamagedCacheError where a row holds no vector."""
        store, plan = stream.store, stream.store.manifest.plan
        self.keys, self._shard_rows = stream.keys[rows], plan.shard_rows
        shards, bounds = shards_of(rows, plan.shard_rows)
        self._slot = np.full(plan.shards, -1)
        self._slot[shards] = np.arange(len(shards))
        self._places = np.zeros(len(shards) * plan.shard_rows, np.int32)
        specs = {name: store.manifest.layers()[name] for name in stream.layers}
        self.layers = {
            name: np.empty((len(rows), plan.views, *spec.shape), storage_dtype(spec.dtype))
            for name, spec in specs.items()
        }
        text: dict[str, list[Any]] = {name: [] for name in stream.text}
        for first, end in bounds.tolist():
            mine = rows[first:end]
            self._places[self._at(mine)] = np.arange(first, end)
            self._load(store, mine, slice(first, end))
            for name, pieces in text.items():
                pieces.append(store.samples.pick(name, mine))
        self._text = {name: joined(pieces) for name, pieces in text.items()}
        stream.require_vectors(rows, self.layers)

    def _load(self, store: FeatureStore, rows: Ints, here: slice) -> None:
        """The vectors of one shard's rows. Its file is let go at once: mapped, what was read of it counts as memory."""
        plan = store.manifest.plan
        step = plan.chunk_rows if plan.store == "zarr" else plan.shard_rows  # what is read without a copy
        for first, end in shards_of(rows, step)[1].tolist():
            mine = rows[first:end]
            for name, array in self.layers.items():
                stored = store.read(name, int(mine[0]), int(mine[-1]) + 1)
                array[here][first:end] = stored if len(stored) == len(mine) else stored[mine - mine[0]]
        store.release()

    def holds(self, rows: Ints) -> NDArray[np.bool_]:
        """Which of `rows` are of the shards held here."""
        return np.asarray(self._slot[rows // self._shard_rows] >= 0)

    def find(self, rows: Ints) -> tuple[NDArray[np.int32], NDArray[np.uint64]]:
        """Positions of `rows` here, and the keys that are stored there."""
        positions = self._places[self._at(rows)]
        return positions, self.keys[positions]

    def vectors(self, name: str, positions: NDArray[np.int32], views: Ints) -> NDArray[np.generic]:
        """The stored vectors of a layer at some positions, each of its view."""
        array = self.layers[name]
        return array[:, 0].take(positions, axis=0) if array.shape[1] == 1 else array[positions, views]

    def text(self, name: str, positions: NDArray[np.int32]) -> list[str]:
        """The ids or digests at some positions."""
        return self._text[name].take(of_integers(positions)).to_pylist()  # type: ignore[no-any-return]  # pyarrow is untyped

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
        self.text = ("id",) if images is None else ("id", "digest")
        plan, samples = store.manifest.plan, store.samples
        specs = [store.manifest.layers()[name] for name in layers]
        self.row_bytes = sum(plan.views * int(np.prod(s.shape)) * storage_dtype(s.dtype).itemsize for s in specs)
        mine = samples.having("split", split)
        usable = store.usable(self.layers)
        self.rows, lost = np.flatnonzero(mine & usable), np.flatnonzero(mine & ~usable)
        of_lost = (samples.numbers(name, lost).tolist() for name in ("label", "group"))
        cells = Counter(f"{label},{group}" for label, group in zip(*of_lost, strict=True))
        self.failed = {name_of_cell(plan.class_names, plan.group_names, key): n for key, n in sorted(cells.items())}
        self.keys = keys_of(samples)
        small = len(self.rows) * self.row_bytes <= WHOLE_SET_BYTES
        self.window = window if window is not None or small else WINDOW_SHARDS
        self._seen = np.zeros(plan.shards, bool)
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
        found = self._find(rows, held)
        features = {}
        for name in self.layers:
            stored = _gather(name, found, views)
            # finite: `require_vectors` found them so
            features[name] = from_storage(stored, specs[name].dtype, finite=True) if self._widen else stored
        ids = _text("id", found, len(rows))
        images = None if self._images is None else self._checked_images(rows, ids, _text("digest", found, len(rows)))
        labels, groups = samples.numbers("label", rows), samples.numbers("group", rows)
        return StreamBatch(rows, ids, labels, groups, views, features, images, consumed)

    def _find(self, rows: Ints, held: Sequence[Held]) -> list[Found]:
        """Where `rows` are held, each compared by key with the id that was asked for."""
        found: list[Found] = []
        for group in held:
            mine = np.arange(len(rows)) if len(held) == 1 else np.flatnonzero(group.holds(rows))
            positions, keys = group.find(rows[mine])
            self._require_keys(rows[mine], keys)
            found.append((group, mine, positions))
        return found

    def require_vectors(self, rows: Ints, layers: Mapping[str, NDArray[np.generic]]) -> None:
        """Raise DamagedCacheError, naming the first, where one of `rows` has a NaN or an infinity for a vector. Each
        shard is looked at once: what is read later was found to be the same bytes, and it is read for the same rows."""
        shards = rows // self.store.manifest.plan.shard_rows
        new = np.flatnonzero(~self._seen[shards])
        for name, array in layers.items() if len(new) else ():
            empty = absent(array if len(new) == len(rows) else array[new], self.store.manifest.layers()[name].dtype)
            if empty.any():
                row = int(rows[new[np.flatnonzero(empty)[0]]])
                raise DamagedCacheError(
                    where=self.store.path,
                    found=f"NaN or infinity in {name} of {self._id(row)!r} (row {row}), which did not fail",
                    wanted="a finite vector for every sample that did not fail",
                    fix="see all of it with `bird cache verify`",
                )
        self._seen[shards] = True

    def _require_keys(self, rows: Ints, keys: NDArray[np.uint64]) -> None:
        if not np.array_equal(keys, self.keys[rows]):
            row = int(rows[np.flatnonzero(keys != self.keys[rows])[0]])
            raise DamagedCacheError(
                where=self.store.path,
                found=f"the vector of another sample at row {row}",
                wanted=f"the vector of {self._id(row)!r}",
                fix="see all of it with `bird cache verify`",
            )

    def _id(self, row: int) -> str:
        return self.store.samples.text("id", row, row + 1)[0]

    def _checked_images(self, rows: Ints, ids: NDArray[np.object_], cached: NDArray[np.object_]) -> Any:
        assert self._images is not None
        given, digests, images = self._images(ids.tolist())
        wanted = zip(rows.tolist(), ids.tolist(), cached.tolist(), strict=True)
        for (row, id, known), other, digest in zip(wanted, given, digests, strict=True):
            if other != id or digest != known:
                raise StaleCacheError(
                    where=f"{self.store.path}, row {row}",
                    found=f"the image of {other!r} with digest {digest}",
                    wanted=f"the image of {id!r} with digest {known}",
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
                loading[number] = pool.submit(lambda: Held(self, order.members(number)))
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
        sizes = np.sort(np.diff(shards_of(self.rows, self.store.manifest.plan.shard_rows)[1])[:, 0])
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


Found = tuple[Held, Ints, NDArray[np.int32]]
"""a group, which samples of a batch it holds, and where"""


def keys_of(samples: Samples) -> NDArray[np.uint64]:
    """The key of each row: a hash of its id."""
    keys = np.empty(len(samples), np.uint64)
    for start in range(0, len(samples), GROUP_ROWS):
        ids = samples.text("id", start, start + GROUP_ROWS)
        hashes = map(xxhash.xxh3_64_intdigest, map(str.encode, ids))
        keys[start : start + len(ids)] = np.fromiter(hashes, np.uint64, len(ids))
    return keys


def _gather(name: str, found: Sequence[Found], views: Ints) -> NDArray[np.generic]:
    """The stored vectors of a batch."""
    if len(found) == 1:
        return found[0][0].vectors(name, found[0][2], views)
    like = found[0][0].layers[name]
    out = np.empty((len(views), *like.shape[2:]), like.dtype)
    for group, mine, positions in found:
        out[mine] = group.vectors(name, positions, views[mine])
    return out


def _text(name: str, found: Sequence[Found], count: int) -> NDArray[np.object_]:
    """The ids or digests of a batch."""
    out = np.empty(count, object)
    for group, mine, positions in found:
        out[mine] = group.text(name, positions)
    return out
