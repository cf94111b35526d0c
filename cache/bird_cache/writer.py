"""A cache opened for writing: shard by shard, each committed by a receipt, and the manifest last.

`open_writer` starts a cache or resumes one; `open_part` adds layers to a finished one. Resuming is opening it again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from bird_cache.errors import NotACacheError, StaleCacheError
from bird_cache.files import canonical_json, digest
from bird_cache.folders import Folder, open_folder, same_bytes, settle
from bird_cache.layout import COMMITS, SAMPLES, Layout, Source, receipt_name
from bird_cache.manifest import CellAudit, FileRecord, Layer, Manifest, Part, Plan, Receipt, seal
from bird_cache.numbers import from_storage, refuse_flat, to_storage
from bird_cache.samples import Samples
from bird_cache.store import FeatureStore, damaged, find_layout, ids_digest, layout_of, read_manifest, read_receipts
from bird_cache.summary import audit_cells, norms_of, summarise

__all__ = ["FeatureWriter", "open_part", "open_writer"]

VECTORS = ("penultimate", "projection", "projection_l2")  # a zero logit or map may be meant, a zero embedding is not


@final
class FeatureWriter:
    """One writer of a cache, or of one part of it; made by `open_writer` and `open_part`, which hold the folder."""

    def __init__(self, folder: Folder, layout: Layout, manifest: Manifest, samples: Samples, part: str) -> None:
        self.folder, self.layout, self.manifest, self.samples, self.part = folder, layout, manifest, samples, part
        self.plan = manifest.plan_of(part)
        self.receipts = {} if self.complete else read_receipts(folder, layout, manifest, part, strict=False)

    @property
    def complete(self) -> bool:
        """Whether there is nothing left to write."""
        return self.manifest.parts[self.part].complete if self.part else self.manifest.complete

    def pending(self) -> list[int]:
        """Shards without a commit record, in order."""
        return [] if self.complete else [shard for shard in range(self.plan.shards) if shard not in self.receipts]

    def write_shard(
        self,
        shard: int,
        layers: Mapping[str, NDArray[Any]],
        failed: Mapping[int, str],
        source: Source | None = None,
        doubtful: Mapping[int, str] | None = None,
    ) -> Receipt:
        """Encode, publish, read back and commit one shard.

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
        start, stop = self.plan.bounds(shard)
        paths, files = self.layout.paths(self.plan, self.part, shard), {}
        for key, data in self.layout.encode(self.plan, shard, stored, self.samples, failed, source).items():
            record = FileRecord(path=paths[key], bytes=len(data), xxh3=digest(data))
            settle(self.folder, record.path, data)
            if self.folder.digest(record.path) != record.xxh3:
                raise damaged(self.folder, f"{record.path} reading back other bytes than were written")
            files[key] = record
        receipt = Receipt(
            shard=shard,
            start=start,
            stop=stop,
            ids=ids_digest(self.samples, start, stop),
            files=files,
            failed=dict(failed),
            audit=dict(audit),
            doubtful=dict(doubtful or {}),
        )
        self.folder.replace(receipt_name(shard, self.part), render(receipt))
        self.receipts[shard] = receipt
        return receipt

    def finish(self) -> Manifest:
        """Verify every receipt against its bytes, write the sample table's status, and the manifest, last.

        Raises DamagedCacheError; damaged shards lose their receipts, so that the next run redoes them.
        """
        if self.complete:
            return self.manifest
        bad = []
        for receipt in self.receipts.values():
            for record in receipt.files.values():
                if not same_bytes(self.folder, record.path, record.bytes, record.xxh3):
                    bad.append(record.path)
                    self.folder.remove(receipt_name(receipt.shard, self.part))
        if bad:
            raise damaged(self.folder, f"shards altered since they were committed: {', '.join(bad[:10])}")
        summary = summarise(self.receipts[shard].audit for shard in sorted(self.receipts))
        if self.part:
            done = self.manifest.parts[self.part].model_copy(update={"complete": True, "summary": summary})
            update: dict[str, Any] = {"parts": {**self.manifest.parts, self.part: done}}
        else:
            table = self._table_with_status()
            files = tuple(record for record in self.manifest.files if record.path != SAMPLES)
            update = {"complete": True, "summary": summary, "files": (record_of(SAMPLES, table), *files)}
        self.manifest = self.manifest.model_copy(update=update)
        self.folder.replace(self.layout.manifest_path, self.layout.render(self.manifest.checked()))
        return self.manifest

    def _table_with_status(self) -> bytes:
        failed = {row: reason for receipt in self.receipts.values() for row, reason in receipt.failed.items()}
        table = self.samples.with_status(failed).to_parquet()
        self.folder.replace(SAMPLES, table)
        return table


@contextlib.contextmanager
def open_writer(where: str | Path, plan: Plan, samples: Samples) -> Iterator[FeatureWriter]:
    """Start the cache of `plan`, or resume the one that is there.

    Raises NotACacheError where the folder holds something else, StaleCacheError where its plan is another one,
    BusyCacheError while another process writes it, StorageError.
    """
    folder = open_folder(where)
    refuse_foreign(folder, plan)
    with folder.lock() as alone:
        if find_layout(folder) is not None:
            layout, manifest = read_manifest(folder)
            manifest.plan.require(plan, folder.name)
            if manifest.identity != samples.identity():
                raise StaleCacheError(
                    where=folder.name,
                    found="a sample table with other rows",
                    wanted="the rows of this data set",
                    fix="use the same data set and limit, or write to another folder with --out",
                )
        else:
            layout, manifest = start_cache(folder, plan, samples)
        writer = FeatureWriter(folder, layout, manifest, samples, "")
        if alone:
            remove_uncommitted(writer)
        yield writer


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
    with store.folder.lock() as alone:
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
            store.folder.replace(layout.manifest_path, layout.render(manifest))
        writer = FeatureWriter(store.folder, layout, manifest, store.samples, part)
        if alone:
            remove_uncommitted(writer)
        yield writer


def start_cache(folder: Folder, plan: Plan, samples: Samples) -> tuple[Layout, Manifest]:
    """Write everything that is fixed before the first vector; the manifest (complete = false) comes last."""
    layout = layout_of(plan.store)
    table, described = samples.to_parquet(), layout.describe(plan)
    for path, data in {SAMPLES: table, **described}.items():
        folder.replace(path, data)
    manifest = Manifest(
        complete=False,
        fingerprint=plan.fingerprint,
        plan=plan,
        identity=samples.identity(),
        files=tuple(record_of(path, data) for path, data in described.items()),
    )
    folder.replace(layout.manifest_path, layout.render(manifest))
    return layout, manifest


def refuse_foreign(folder: Folder, plan: Plan) -> None:
    """Raise NotACacheError unless the folder is absent, empty, or holds a cache of ours, started or finished."""
    if folder.local is not None and folder.local.exists() and not folder.local.is_dir():
        found = "a file"
    elif not folder.exists() or find_layout(folder) is not None:
        return
    else:
        # An interrupted start leaves the sample table and the layers' descriptions.
        started = {SAMPLES, *layout_of(plan.store).describe(plan)}
        foreign = [path for path in folder.files() if path not in started and not path.startswith(f"{COMMITS}/")]
        if not foreign:
            return
        found = f"a folder with other things in it ({', '.join(foreign[:3])})"
    raise NotACacheError(
        where=folder.name,
        found=found,
        wanted="a new or empty folder, or a cache to resume",
        fix="choose another --out",
    )


def remove_uncommitted(writer: FeatureWriter) -> None:
    """Delete what an interrupted run published but never committed."""
    if writer.complete:
        return
    for shard in writer.pending():
        for path in writer.layout.paths(writer.plan, writer.part, shard).values():
            writer.folder.remove(path)


def record_of(path: str, data: bytes) -> FileRecord:
    """The record of a file that holds `data`."""
    return FileRecord(path=path, bytes=len(data), xxh3=digest(data))


def render(receipt: Receipt) -> bytes:
    """A receipt's file."""
    return canonical_json(seal(receipt)) + b"\n"
