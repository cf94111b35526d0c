"""The local default: one Zarr v3 array a layer, beside the data set. `zarr.open(CACHE)["penultimate"]` reads it plainly.

Writing goes around zarr's own store: a shard is encoded in memory and published as one file, so that it is there
whole or not at all (see files.py), and a receipt with its hash follows. Layout: cache/README.md.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, final

import numpy as np
import zarr
from numpy.typing import NDArray

from bird_cache.errors import DamagedCacheError, NotACacheError, StaleCacheError
from bird_cache.files import TEMPORARY, digest, file_digest, publish, replace, storage_error, write_lock
from bird_cache.manifest import FileRecord, Manifest, Plan, Receipt, Summary
from bird_cache.numbers import from_storage, to_storage
from bird_cache.samples import OK, Samples
from bird_cache.store import FeatureStore, FeatureWriter, Finding, add_cells, audit_cells
from bird_cache.zarr_layout import (
    COMMITS,
    MANIFEST,
    SAMPLES,
    damaged,
    describe_array,
    encode_shard,
    ids_digest,
    read_manifest,
    read_receipts,
    receipt_name,
    record_of,
    render,
    render_group,
    same_bytes,
    shard_name,
)

__all__ = ["ZarrStore", "ZarrWriter", "open_writer"]


@final
class ZarrStore(FeatureStore):
    """A Zarr cache opened for reading. Sizes are checked at once, a shard's hash at the first touch."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest = read_manifest(path)
        self.samples = self._read_samples()
        self.receipts = read_receipts(path, self.manifest.plan, strict=self.manifest.complete)
        self._touched: set[tuple[str, int]] = set()
        self._arrays: dict[str, Any] = {}
        for receipt in self.receipts.values():
            for record in receipt.files.values():
                self._check_size(record, f"shard {receipt.shard}")

    def read(self, layer: str, start: int, stop: int) -> NDArray[np.generic]:
        """See FeatureStore.read."""
        plan = self.manifest.plan
        if layer not in plan.layers:
            raise KeyError(f"{self.path} has no layer {layer!r}; it has {', '.join(plan.layers)}")
        for shard in range(start // plan.shard_rows, (stop - 1) // plan.shard_rows + 1):
            self._touch(layer, shard)
        # zarr's default pipeline reads the same chunks two to four times slower than zarrs
        with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}):
            try:
                return np.asarray(self._array(layer)[start:stop])
            except (ValueError, RuntimeError, OSError) as error:
                raise self._damaged(f"rows {start}..{stop} of {layer} that do not decode ({error})") from error

    def check_shard(self, shard: int) -> list[Finding]:
        """See FeatureStore.check_shard."""
        plan = self.manifest.plan
        start, stop = plan.bounds(shard)
        if shard not in self.receipts:
            return [f"shard {shard} (rows {start}..{stop - 1}): no valid commit record"]
        receipt = self.receipts[shard]
        findings = []
        if receipt.ids != ids_digest(self.samples, start, stop):
            findings.append(f"shard {shard} (rows {start}..{stop - 1}): committed for other ids, or in another order")
        for layer, spec in plan.layers.items():
            try:
                stored = self.read(layer, start, stop)
            except DamagedCacheError as error:
                findings.append(f"shard {shard} (rows {start}..{stop - 1}): {error.found}")
                continue
            finite = np.isfinite(from_storage(stored, spec.dtype)).all(axis=tuple(range(1, stored.ndim)))
            expected = np.array([row not in receipt.failed for row in range(start, stop)])
            if not np.array_equal(finite, expected):
                rows = np.flatnonzero(finite != expected)[:10] + start
                findings.append(f"shard {shard}, {layer}: rows {rows.tolist()} are NaN against the receipt")
        return findings

    def check_metadata(self) -> list[Finding]:
        """See FeatureStore.check_metadata."""
        findings = []
        if render_group(self.manifest) != (self.path / MANIFEST).read_bytes():
            findings.append(f"{MANIFEST}: bytes differ from what its own content is written as")
        for record in self.manifest.files:
            if record.path != SAMPLES and file_digest(self.path / record.path) != record.xxh3:
                findings.append(f"{record.path}: altered since it was written")
        for receipt in self.receipts.values():
            if (self.path / receipt_name(receipt.shard)).read_bytes() != render(receipt):
                findings.append(f"{receipt_name(receipt.shard)}: bytes differ from what its own content is written as")
        summary = self.manifest.summary
        if self.manifest.complete and (
            summary is None or summary.cells != add_cells(r.audit for r in self.receipts.values())
        ):
            findings.append(f"{MANIFEST}: the summary is not the sum of the receipts")
        return findings

    def _array(self, layer: str) -> Any:
        if layer not in self._arrays:
            described = f"{layer}/zarr.json"
            record = next((record for record in self.manifest.files if record.path == described), None)
            if record is None or not same_bytes(self.path, record):
                raise self._damaged(f"{described} altered since it was written")
            self._arrays[layer] = zarr.open_array(self.path / layer, mode="r")
        return self._arrays[layer]

    def _read_samples(self) -> Samples:
        try:
            data = (self.path / SAMPLES).read_bytes()
            samples = Samples.from_parquet(data)
        except (OSError, ValueError) as error:
            raise self._damaged(f"{SAMPLES} that cannot be read ({error})") from error
        recorded = {record.path: record for record in self.manifest.files}.get(SAMPLES)
        if self.manifest.complete and (recorded is None or digest(data) != recorded.xxh3):
            raise self._damaged(f"{SAMPLES} altered since the cache was finished")
        if samples.identity() != self.manifest.identity or len(samples) != self.manifest.plan.rows:
            raise self._damaged(f"{SAMPLES} with other rows, labels or order than the manifest records")
        return samples

    def _touch(self, layer: str, shard: int) -> None:
        """Check a shard's bytes against its receipt, once: a shard copied over its neighbour decodes without a complaint."""
        if (layer, shard) in self._touched:
            return
        if shard not in self.receipts:
            start, stop = self.manifest.plan.bounds(shard)
            raise self._damaged(f"no commit record for shard {shard} (rows {start}..{stop - 1})")
        record = self.receipts[shard].files[layer]
        self._check_size(record, f"shard {shard}")
        if (
            record.path != shard_name(layer, shard, self.manifest.plan)
            or file_digest(self.path / record.path) != record.xxh3
        ):
            raise self._damaged(f"{record.path} (shard {shard}) with other bytes than were committed")
        self._touched.add((layer, shard))

    def _check_size(self, record: FileRecord, what: str) -> None:
        try:
            size = (self.path / record.path).stat().st_size
        except OSError:
            raise self._damaged(f"{record.path} ({what}) missing") from None
        if size != record.bytes:
            raise self._damaged(f"{record.path} ({what}) of {size:,} bytes instead of {record.bytes:,}")

    def _damaged(self, found: str) -> DamagedCacheError:
        return damaged(self.path, found)


@final
class ZarrWriter(FeatureWriter):
    """A Zarr cache opened for writing; made by `open_writer`, which holds the folder's lock."""

    def __init__(self, path: Path, plan: Plan, samples: Samples, manifest: Manifest) -> None:
        self.path, self.plan, self.samples, self.manifest = path, plan, samples, manifest
        self.receipts = {} if manifest.complete else read_receipts(path, plan, strict=False)

    def pending(self) -> list[int]:
        """See FeatureWriter.pending."""
        if self.manifest.complete:
            return []
        return [shard for shard in range(self.plan.shards) if shard not in self.receipts]

    def write_shard(self, shard: int, layers: Mapping[str, NDArray[np.float32]], failed: Mapping[int, str]) -> Receipt:
        """See FeatureWriter.write_shard."""
        start, stop = self.plan.bounds(shard)
        ids = self.samples.ids[start:stop].tolist()
        skip = np.array([row in failed for row in range(start, stop)])
        stored = {name: to_storage(layers[name], spec.dtype, ids, skip) for name, spec in self.plan.layers.items()}
        files = {}
        for name, spec in self.plan.layers.items():
            data = encode_shard(stored[name], spec, self.plan)
            record = FileRecord(path=shard_name(name, shard, self.plan), bytes=len(data), xxh3=digest(data))
            target = self.path / record.path
            target.parent.mkdir(parents=True, exist_ok=True)
            publish(target, data)
            if file_digest(target) != record.xxh3:
                raise damaged(self.path, f"{record.path} reading back other bytes than were written")
            files[name] = record
        first, spec = next(iter(self.plan.layers.items()))
        audit = audit_cells(self.samples, start, layers[first], from_storage(stored[first], spec.dtype), skip)
        receipt = Receipt(
            shard=shard,
            start=start,
            stop=stop,
            ids=ids_digest(self.samples, start, stop),
            files=files,
            failed=dict(failed),
            audit=audit,
        )
        replace(self.path / receipt_name(shard), render(receipt))
        self.receipts[shard] = receipt
        return receipt

    def finish(self) -> Manifest:
        """See FeatureWriter.finish. Damaged shards lose their receipts, so that the next run redoes them."""
        if self.manifest.complete:
            return self.manifest
        bad = []
        for receipt in self.receipts.values():
            for record in receipt.files.values():
                if not same_bytes(self.path, record):
                    bad.append(record.path)
                    (self.path / receipt_name(receipt.shard)).unlink(missing_ok=True)
        if bad:
            raise damaged(self.path, f"shards altered since they were committed: {', '.join(bad[:10])}")
        status = self.samples.status.copy()
        status[:] = OK
        for receipt in self.receipts.values():
            for row, reason in receipt.failed.items():
                status[row] = reason
        table = Samples(**{**vars(self.samples), "status": status}).to_parquet()
        replace(self.path / SAMPLES, table)
        failed = sum(len(receipt.failed) for receipt in self.receipts.values())
        self.manifest = self.manifest.model_copy(
            update={
                "complete": True,
                "files": (record_of(SAMPLES, table), *(f for f in self.manifest.files if f.path != SAMPLES)),
                "summary": Summary(
                    written=self.plan.rows - failed,
                    failed=failed,
                    cells=add_cells(self.receipts[shard].audit for shard in sorted(self.receipts)),
                ),
            }
        )
        replace(self.path / MANIFEST, render_group(self.manifest.checked()))
        return self.manifest


@contextlib.contextmanager
def open_writer(path: Path, plan: Plan, samples: Samples) -> Iterator[ZarrWriter]:
    """Start a cache in `path`, or resume the one that is there.

    Raises NotACacheError where the folder holds something else, StaleCacheError where its plan is another one,
    BusyCacheError while another process writes it.
    """
    try:
        refuse_foreign(path)
        (path / COMMITS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(path, error, 0) from error
    with write_lock(path):
        if (path / MANIFEST).exists():
            manifest = read_manifest(path)
            manifest.plan.require(plan, str(path))
            if manifest.identity != samples.identity():
                raise StaleCacheError(
                    where=str(path),
                    found="a sample table with other rows",
                    wanted="the rows of this data set",
                    fix="use the same data set and limit, or write to another folder with --out",
                )
        else:
            manifest = start_cache(path, plan, samples)
        writer = ZarrWriter(path, plan, samples, manifest)
        remove_uncommitted(path, writer)
        yield writer


def start_cache(path: Path, plan: Plan, samples: Samples) -> Manifest:
    """Write everything that is fixed before the first vector; the manifest (complete = false) comes last."""
    table = samples.to_parquet()
    replace(path / SAMPLES, table)
    files = []
    for name, spec in plan.layers.items():
        (path / name).mkdir(exist_ok=True)
        data = describe_array(spec, plan, plan.rows)
        replace(path / name / "zarr.json", data)
        files.append(record_of(f"{name}/zarr.json", data))
    manifest = Manifest(
        complete=False,
        fingerprint=plan.fingerprint,
        plan=plan,
        identity=samples.identity(),
        files=tuple(files),
    )
    replace(path / MANIFEST, render_group(manifest))
    return manifest


def refuse_foreign(path: Path) -> None:
    """Raise NotACacheError unless `path` is absent, an empty folder, or a cache of ours, started or finished."""
    if path.exists() and not path.is_dir():
        found = "a file"
    elif not path.exists() or (path / MANIFEST).exists():
        return
    else:
        foreign = sorted(
            e.name for e in path.iterdir() if e.name not in {COMMITS, SAMPLES, ".lock"} and TEMPORARY not in e.name
        )
        # An interrupted start leaves layer folders that hold nothing but their description.
        foreign = [
            name
            for name in foreign
            if {f.name for f in (path / name).glob("*")} - {"zarr.json"} or (path / name).is_file()
        ]
        if not foreign:
            return
        found = f"a folder with other things in it ({', '.join(foreign[:3])})"
    raise NotACacheError(
        where=str(path),
        found=found,
        wanted="a new or empty folder, or a cache to resume",
        fix="choose another --out",
    )


def remove_uncommitted(path: Path, writer: ZarrWriter) -> None:
    """Delete what an interrupted run left: temporaries, and shards published but never committed."""
    if writer.manifest.complete:
        return
    keep = {path / record.path for receipt in writer.receipts.values() for record in receipt.files.values()}
    for name in writer.plan.layers:
        for file in (path / name / "c").rglob("*"):
            if file.is_file() and file not in keep:
                file.unlink()
    for file in path.rglob(f"*{TEMPORARY}*"):
        file.unlink()
