"""A cache opened for writing: shard by shard, each committed by a receipt, and the manifest last.

`open_writer` starts a cache or resumes one; `open_part` adds layers to a finished one. Resuming is opening it again.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, final

import numpy as np
from numpy.typing import NDArray

from bird_cache.errors import StaleCacheError
from bird_cache.files import canonical_json, digest
from bird_cache.folders import open_folder
from bird_cache.layout import SAMPLES, Layout, Source, receipt_name
from bird_cache.manifest import CellAudit, FileRecord, Layer, Manifest, Part, Plan, Receipt, seal
from bird_cache.numbers import alike, from_storage, refuse_flat, to_storage
from bird_cache.samples import Samples
from bird_cache.start import record_of, refuse_foreign, start_cache, taken_back
from bird_cache.storage import Folder, same_bytes, settle
from bird_cache.store import (
    FeatureStore,
    damaged,
    find_layout,
    read_manifest,
    read_receipt,
    read_receipts,
    write_manifest,
)
from bird_cache.summary import audit_cells, norms_of, summarise

__all__ = ["FeatureWriter", "drop", "open_part", "open_writer", "render"]

ATTEMPTS = 3
GRACE_SECONDS = 2.0
GRACE_BYTES_A_SECOND = 1 << 24
"""a living writer reads its shard back between its bytes and its receipt: so long others wait for the receipt"""
VECTORS = ("penultimate", "projection", "projection_l2")  # a zero logit or map may be meant, a zero embedding is not


@final
class Work(NamedTuple):
    """A shard to be written: what `FeatureWriter.write_stored` was given, and where its files go."""

    shard: int
    stored: Mapping[str, NDArray[np.generic]]
    failed: Mapping[int, str]
    source: Source | None
    paths: Mapping[str, str]


@final
class FeatureWriter:
    """One writer of a cache, or of one part of it; made by `open_writer` and `open_part`, which hold the folder. That others
    are kept out is not relied upon: a lock may not reach another host, and object storage has none."""

    def __init__(
        self, folder: Folder, layout: Layout, manifest: Manifest, samples: Samples, part: str, *, look: bool = True
    ) -> None:
        """Without `look` nothing is known yet of what others have committed."""
        self.folder, self.layout, self.manifest, self.samples, self.part = folder, layout, manifest, samples, part
        self.plan = manifest.plan_of(part)
        known = self.complete or not look
        self.receipts = {} if known else read_receipts(folder, layout, manifest, part, strict=False)

    @property
    def complete(self) -> bool:
        """Whether there is nothing left to write."""
        return self.manifest.parts[self.part].complete if self.part else self.manifest.complete

    def pending(self) -> list[int]:
        """Shards without a commit record, in order."""
        return [] if self.complete else [shard for shard in range(self.plan.shards) if shard not in self.receipts]

    def committed(self, shard: int) -> Receipt | None:
        """The receipt of a shard, whoever wrote it; None where there is none yet."""
        return self.receipts.get(shard) or self._committed(shard)

    def write_shard(
        self,
        shard: int,
        layers: Mapping[str, NDArray[Any]],
        failed: Mapping[int, str],
        source: Source | None = None,
        doubtful: Mapping[int, str] | None = None,
    ) -> Receipt:
        """Encode, publish, read back and commit one shard; or return the receipt of another writer who was first. A shard
        with a valid receipt is never replaced.

        `layers` maps each layer to float32 (rows of the shard, views, *row shape), `failed` the row numbers (of the
        whole cache) that have no vector to why; `source` gives the images where the store holds them; `doubtful` maps
        the rows whose images carry little to what they are. Raises FeatureError before anything is written, StorageError.
        """
        start, stop = self.plan.bounds(shard)
        ids = self.samples.text("id", start, stop)
        skip = np.zeros(stop - start, bool)
        skip[[row - start for row in failed if start <= row < stop]] = True
        for name, spec in self.plan.layers.items():
            if spec.kind in VECTORS:
                refuse_flat(layers[name], ids, skip)
        stored = {name: to_storage(layers[name], spec.dtype, ids, skip) for name, spec in self.plan.layers.items()}
        first = self.plan.audited
        dtype, kept = self.plan.layers[first].dtype, stored[first]
        norms = norms_of(kept, dtype)
        error = norms_of(layers[first].astype(np.float32) - from_storage(kept, dtype), "float32")
        audit = audit_cells(self.samples, start, norms, error / np.maximum(norms, np.finfo(np.float32).tiny), skip)
        return self.write_stored(shard, stored, failed, audit, source, doubtful)

    def write_stored(
        self,
        shard: int,
        stored: Mapping[str, NDArray[np.generic]],
        failed: Mapping[int, str],
        audit: Mapping[str, CellAudit],
        source: Source | None = None,
        doubtful: Mapping[int, str] | None = None,
    ) -> Receipt:
        """`write_shard` for vectors that are in their stored form already, with their audit: nothing is rounded again."""
        if self._committed(shard) is not None:
            return self.receipts[shard]
        work = Work(shard, stored, failed, source, self.layout.paths(self.plan, self.part, shard))
        kept, files = dict(stored), {}
        displaced: dict[str, bytes] = {}
        for key, data in self._encode(work).items():
            placed = self._place(work, key, data, displaced)
            if placed is None:
                return self._give_way(self.receipts[shard], displaced)
            files[key], found = placed
            kept |= found
        start, stop = self.plan.bounds(shard)
        receipt = Receipt(
            shard=shard,
            start=start,
            stop=stop,
            ids=self.samples.ids_digest(start, stop),
            files=files,
            failed=dict(failed),
            audit=self._audit_of(work, kept, audit),
            doubtful=dict(doubtful or {}),
        )
        return self._commit(receipt, displaced)

    def _encode(self, work: Work) -> dict[str, bytes]:
        return self.layout.encode(self.plan, work.shard, work.stored, self.samples, work.failed, work.source)

    def _committed(self, shard: int) -> Receipt | None:
        """The receipt of whoever was first, if anybody was; it is this writer's from then on."""
        try:
            receipt = read_receipt(self.folder, self.layout, self.plan, self.part, shard)
        except (OSError, ValueError):
            return None
        self.receipts[shard] = receipt
        return receipt

    def _place(
        self, work: Work, key: str, data: bytes, displaced: dict[str, bytes]
    ) -> tuple[FileRecord, dict[str, NDArray[np.generic]]] | None:
        """One file of a shard, from the moment on that it is there and was read back: its record, and the vectors in it
        where they are another writer's. None where another writer has committed the shard.

        Who is first wins: bytes of another writer that hold the same vectors, but for their last bits, are taken as they
        are. Only others are replaced, only while they have no receipt, and what they were is kept in `displaced`, by digest.
        """
        path = work.paths[key]
        for _ in range(ATTEMPTS):
            found: dict[str, NDArray[np.generic]] = {}
            try:
                settle(self.folder, path, data)
            except FileExistsError:
                if self._committed(work.shard) is not None:
                    return None
                held = bytes(self.folder.view(path))
                if (same := self._same_vectors(work, key, held)) is not None:
                    data, found = held, same
                elif self._beaten(work.shard, len(held)):
                    return None
                else:
                    displaced[digest(held)] = held
                    self.folder.replace(path, data)
            record = record_of(path, data)
            if self.folder.digest(path) == record.xxh3:
                return record, found
        if self._committed(work.shard) is not None:
            return None
        raise damaged(self.folder, f"{path} reading back other bytes than were written")

    def _same_vectors(self, work: Work, key: str, held: bytes) -> dict[str, NDArray[np.generic]] | None:
        """The layers in another writer's file, if they are `stored` but for their last bits, and the file is to the byte
        what this writer makes of them."""
        layers = [name for name in self.plan.layers if self.layout.file_key(name) == key]
        try:
            found = {
                name: self.layout.decode(memoryview(held), self.plan, name, work.shard, slice(None)) for name in layers
            }
        except (ValueError, TypeError, IndexError):
            return None
        if not all(alike(found[name], work.stored[name], self.plan.layers[name].dtype) for name in layers):
            return None
        theirs = work._replace(stored={**work.stored, **found})
        return found if self._encode(theirs)[key] == held else None

    def _beaten(self, shard: int, size: int) -> bool:
        """Whether another writer commits the shard within the time that a living one needs between its bytes and its
        receipt."""
        end = time.monotonic() + GRACE_SECONDS + size / GRACE_BYTES_A_SECOND
        while self._committed(shard) is None:
            if time.monotonic() >= end:
                return False
            time.sleep(GRACE_SECONDS / 20)
        return True

    def _audit_of(
        self, work: Work, kept: Mapping[str, NDArray[np.generic]], audit: Mapping[str, CellAudit]
    ) -> dict[str, CellAudit]:
        """The audit of what is there: where that is another writer's, with the norms of its vectors."""
        name = self.plan.audited
        if kept[name] is work.stored[name]:
            return dict(audit)
        start, stop = self.plan.bounds(work.shard)
        skip = np.zeros(stop - start, bool)
        skip[[row - start for row in work.failed]] = True
        norms = norms_of(kept[name], self.plan.layers[name].dtype)
        cells = audit_cells(self.samples, start, norms, np.zeros_like(norms), skip)
        rounding = {key: cell.rounding_max for key, cell in audit.items()}  # of the same size in theirs
        return {key: cell.model_copy(update={"rounding_max": rounding.get(key, 0.0)}) for key, cell in cells.items()}

    def _commit(self, receipt: Receipt, displaced: Mapping[str, bytes]) -> Receipt:
        """Put the receipt where none is; where another writer was first, its receipt counts."""
        name = receipt_name(receipt.shard, self.part)
        try:
            self.folder.publish(name, render(receipt))
        except FileExistsError:
            if (theirs := self._committed(receipt.shard)) is not None:
                return self._give_way(theirs, displaced)
            self.folder.replace(name, render(receipt))  # what was there is no receipt
        self.receipts[receipt.shard] = receipt
        return receipt

    def _give_way(self, theirs: Receipt, displaced: Mapping[str, bytes]) -> Receipt:
        """Put back what this writer took away from a shard that another one has committed meanwhile."""
        for record in theirs.files.values():
            held = displaced.get(record.xxh3)
            if held is not None and self.folder.digest(record.path) != record.xxh3:
                self.folder.replace(record.path, held)
        return theirs

    def finish(self) -> Manifest:
        """Verify every receipt against its bytes, write the sample table's status, and the manifest, last.

        Raises DamagedCacheError; damaged shards lose their receipts, so that the next run redoes them.
        """
        self.manifest = read_manifest(self.folder)[1]  # another writer may have finished it, or added to it
        if self.complete:
            return self.manifest
        self._require_sound()
        self.folder.tidy()  # workers may have been killed since the folder was opened
        summary = summarise(self.receipts[shard].audit for shard in sorted(self.receipts))
        if self.part:
            done = self.manifest.parts[self.part].model_copy(update={"complete": True, "summary": summary})
            update: dict[str, Any] = {"parts": {**self.manifest.parts, self.part: done}}
        else:
            table = self._table_with_status()
            files = tuple(record for record in self.manifest.files if record.path != SAMPLES)
            update = {"complete": True, "summary": summary, "files": (record_of(SAMPLES, table), *files)}
        self.manifest = self.manifest.model_copy(update=update)
        write_manifest(self.folder, self.layout, self.manifest.checked())
        return self.manifest

    def _require_sound(self) -> None:
        bad = []
        for shard, receipt in list(self.receipts.items()):
            if self._is_sound(receipt):
                continue
            theirs = self._committed(shard)
            if theirs is None or theirs == receipt or not self._is_sound(theirs):
                bad += [record.path for record in receipt.files.values()]
                drop(self.folder, self.layout, self.plan, self.part, shard)
                del self.receipts[shard]
        if bad:
            raise damaged(self.folder, f"shards altered since they were committed: {', '.join(bad[:10])}")

    def _is_sound(self, receipt: Receipt) -> bool:
        return all(same_bytes(self.folder, each.path, each.bytes, each.xxh3) for each in receipt.files.values())

    def _table_with_status(self) -> bytes:
        failed = {row: reason for receipt in self.receipts.values() for row, reason in receipt.failed.items()}
        table = self.samples.with_status(failed).to_parquet()
        self.folder.replace(SAMPLES, table)
        return table


@contextlib.contextmanager
def open_writer(where: str | Path, plan: Plan, samples: Samples, *, alone: bool = False) -> Iterator[FeatureWriter]:
    """Start the cache of `plan`, or resume the one that is there. `alone` says that no workers write beside this process:
    where it began the cache and fails before it wrote any vector, nothing is left in a local folder.

    Raises NotACacheError where the folder holds something else, StaleCacheError where its plan is another one,
    BusyCacheError while another process writes it, StorageError.
    """
    folder = open_folder(where)
    refuse_foreign(folder, plan)
    with contextlib.ExitStack() as held:
        held.enter_context(folder.lock())
        if find_layout(folder) is None:
            start_cache(folder, plan, samples)
            if alone:
                held.enter_context(taken_back(folder, plan))
        layout, manifest = read_manifest(folder)
        manifest.plan.require(plan, folder.name)
        if manifest.identity != samples.identity():
            raise StaleCacheError(
                where=folder.name,
                found="a sample table with other rows",
                wanted="the rows of this data set",
                fix="use the same data set and limit, or write to another folder",
            )
        yield FeatureWriter(folder, layout, manifest, samples, "")


@contextlib.contextmanager
def open_part(
    where: str | Path, part: str, layers: Mapping[str, Layer], causes: Mapping[str, Any]
) -> Iterator[FeatureWriter]:
    """Add `layers` to a finished cache as `part`, or go on adding them. What follows from `causes` and the cache's own
    fingerprint has a fingerprint of its own; the cache's stays.

    Raises IncompleteCacheError, StaleCacheError for a part of that name with other causes, BusyCacheError, StorageError.
    """
    store = FeatureStore(open_folder(where))
    store.require_complete()
    with store.folder.lock():
        layout, manifest = read_manifest(store.folder)
        all_causes = {**causes, "base": manifest.fingerprint}
        plan = manifest.plan.model_copy(update={"causes": all_causes, "layers": dict(layers)})
        if part in manifest.parts:
            manifest.plan_of(part).require(plan, f"{store.folder.name}, layers {part}")
        else:
            described = layout.describe(plan)
            for path, data in described.items():
                store.folder.replace(path, data)
            started = Part(
                complete=False,
                fingerprint=plan.fingerprint,
                causes=all_causes,
                layers=dict(layers),
                files=tuple(record_of(path, data) for path, data in described.items()),
            )
            manifest = manifest.model_copy(update={"parts": {**manifest.parts, part: started}})
            write_manifest(store.folder, layout, manifest)
        yield FeatureWriter(store.folder, layout, manifest, store.samples, part)


def drop(folder: Folder, layout: Layout, plan: Plan, part: str, shard: int) -> None:
    """Let go of a damaged shard: first its receipt, then its bytes, which nobody must take for another writer's."""
    folder.remove(receipt_name(shard, part))
    for path in layout.paths(plan, part, shard).values():
        folder.remove(path)


def render(receipt: Receipt) -> bytes:
    """A receipt's file."""
    return canonical_json(seal(receipt)) + b"\n"
