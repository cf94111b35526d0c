"""From one store to another, and from several partial caches to one: vectors move as they are stored, bit by bit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from bird_cache.errors import StaleCacheError
from bird_cache.layout import Source
from bird_cache.manifest import Compress, Manifest, Store
from bird_cache.store import FeatureStore, open_cache
from bird_cache.writer import FeatureWriter, open_part, open_writer

__all__ = ["convert", "merge"]


def convert(
    source: str | Path,
    target: str | Path,
    store: Store,
    image: Callable[[str], bytes | None] | None = None,
    advance: Callable[[int], None] = lambda rows: None,
    compress: Compress | None = None,
) -> Manifest:
    """Write the finished cache `source` to `target` as `store`, with every part; the same call resumes.

    Fingerprints, ids, vectors and audits stay what they are; converting back gives the same files. `image` gives a
    sample's encoded source by id, for WebDataset shards; without it they take the images that `source` holds, if any.
    `advance` is told the rows of each shard done. `compress` is how a Zarr store is compressed; None: as `source` is.
    Raises IncompleteCacheError, DamagedCacheError, StorageError.
    """
    given = open_cache(source)
    given.require_complete()
    images = store == "webdataset" and (image is not None or given.manifest.plan.images)
    plan = given.manifest.plan.model_copy(update={"store": store, "images": images})
    plan = plan.model_copy(update={"compress": (compress or plan.compress) if store == "zarr" else "none"})
    with open_writer(target, plan, given.samples) as writer:
        copy_shards(given, writer, writer.pending(), advance, image)
        manifest = writer.finish()
    for part, added in given.manifest.parts.items():
        if added.complete:
            causes = {name: value for name, value in added.causes.items() if name != "base"}
            with open_part(target, part, added.layers, causes) as writer:
                copy_shards(given, writer, writer.pending(), advance)
                manifest = writer.finish()
    return manifest


def merge(sources: Sequence[str | Path], target: str | Path) -> tuple[int, int]:
    """Join caches of one plan whose shards were computed apart (`bird precompute --slice`) into `target`, and finish it
    if every shard is there; returns how many are, and of how many.

    Raises StaleCacheError, naming the field, for caches of different plans, or where two hold a shard with different
    bytes.
    """
    stores = [open_cache(source) for source in sources]
    first = stores[0]
    for other in stores[1:]:
        first.manifest.plan.require(other.manifest.plan, f"{first.path} against {other.path}")
        _require_same_rows(first, other)
        for shard in {*first.receipts} & {*other.receipts}:
            if first.receipts[shard].files != other.receipts[shard].files:
                raise _differ(first, other, f"shard {shard} in both, with different bytes", "every shard computed once")
    with open_writer(target, first.manifest.plan, first.samples) as writer:
        for store in stores:
            copy_shards(store, writer, [shard for shard in writer.pending() if shard in store.receipts])
        missing = len(writer.pending())
        if not missing:
            writer.finish()
    return first.manifest.plan.shards - missing, first.manifest.plan.shards


def copy_shards(
    given: FeatureStore,
    writer: FeatureWriter,
    shards: Sequence[int],
    advance: Callable[[int], None] = lambda rows: None,
    image: Callable[[str], bytes | None] | None = None,
) -> None:
    """Write the given shards of a writer's part with the vectors, failures and audits of `given`."""
    receipts = given.part_receipts[writer.part]
    for shard in shards:
        start, stop = writer.plan.bounds(shard)
        stored = {layer: given.read(layer, start, stop) for layer in writer.plan.layers}
        source = _source(given, writer, shard, image)
        receipt = receipts[shard]
        writer.write_stored(shard, stored, receipt.failed, receipt.audit, source, receipt.doubtful)
        advance(stop - start)


def _source(
    given: FeatureStore, writer: FeatureWriter, shard: int, image: Callable[[str], bytes | None] | None
) -> Source | None:
    if not writer.plan.images or writer.part:
        return None
    start, stop = writer.plan.bounds(shard)
    if image is not None:
        ids = given.samples.text("id", start, stop)
        return lambda row: image(ids[row - start])
    held = given.sources(shard)
    return lambda row: held[row - start]


def _require_same_rows(first: FeatureStore, other: FeatureStore) -> None:
    if first.manifest.identity != other.manifest.identity:
        raise _differ(first, other, "sample tables with different rows", "the same rows in the same order")


def _differ(first: FeatureStore, other: FeatureStore, found: str, wanted: str) -> StaleCacheError:
    fix = "merge caches that one command made with different --slice"
    return StaleCacheError(where=f"{first.path} and {other.path}", found=found, wanted=wanted, fix=fix)
