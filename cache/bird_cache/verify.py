"""`bird cache verify`: every byte of a cache against what was committed; `repair` lets go of what does not hold."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, final

import numpy as np

from bird_cache.errors import CacheError, DamagedCacheError, NotACacheError
from bird_cache.files import digest
from bird_cache.folders import open_folder
from bird_cache.layout import SAMPLES, receipt_name
from bird_cache.manifest import CellAudit, Receipt
from bird_cache.numbers import absent
from bird_cache.storage import same_bytes
from bird_cache.store import FeatureStore, descriptions, write_manifest
from bird_cache.summary import audit_cells, norms_of, summarise
from bird_cache.writer import drop, render

__all__ = ["Verification", "repair", "verify"]

NORM_TOLERANCE = 1e-3  # sums in another order on another processor


@final
class Verification(NamedTuple):
    """What was checked and what was found; `findings` is empty for a sound, complete cache."""

    fingerprint: str
    rows: int
    shards: int
    bytes: int
    findings: list[str]


def verify(path: str | Path, *, workers: int = 4, progress: Callable[[int, int], None] | None = None) -> Verification:
    """Check everything: manifest, receipts, sample table, every shard's bytes, ids and order, NaN rows and norms.

    `progress(done, total)` is called after each shard. Raises NotACacheError where there is no cache at all.
    """
    try:
        store = FeatureStore(open_folder(path), strict=False)
    except NotACacheError:
        raise
    except CacheError as error:
        return Verification("", 0, 0, 0, [error.found])
    plan, findings = store.manifest.plan, check_metadata(store)
    if not store.manifest.complete:
        findings.append(f"unfinished: {len(store.receipts)} of {plan.shards} shards committed")
    shards = [(part, shard) for part in store.parts for shard in range(plan.shards) if _expected(store, part, shard)]
    with ThreadPoolExecutor(workers) as pool:
        for done, found in enumerate(pool.map(lambda which: check_shard(store, *which), shards), start=1):
            findings += found
            if progress:
                progress(done, len(shards))
    sizes = (f.bytes for receipts in store.part_receipts.values() for r in receipts.values() for f in r.files.values())
    return Verification(store.fingerprint, plan.rows, len(store.receipts), sum(sizes), findings)


def repair(path: str | Path, *, workers: int = 4) -> list[str]:
    """Drop the commit records of damaged shards, so that the same `bird precompute` writes just those again, and
    restore the layers' descriptions; returns what was done. Vectors are never invented.

    Raises NotACacheError; DamagedCacheError where the manifest or samples.parquet is what is damaged.
    """
    folder = open_folder(path)
    store = FeatureStore(folder, strict=False)
    done = []
    with folder.lock():
        for part in store.parts:
            plan = store.manifest.plan_of(part)
            done += [f"{name} written again" for name in _restore_descriptions(store, part)]
            with ThreadPoolExecutor(workers) as pool:
                found = list(pool.map(lambda shard, part=part: check_shard(store, part, shard), range(plan.shards)))
            bad = [shard for shard in range(plan.shards) if found[shard] and _expected(store, part, shard)]
            if bad:
                _reopen(store, part)
            for shard in bad:
                drop(folder, store.layout, plan, part, shard)
                start, stop = plan.bounds(shard)
                done.append(
                    f"shard {shard}{f' of {part}' if part else ''} (rows {start}..{stop - 1}) is to be computed again"
                )
        manifest, path = store.manifest, store.layout.manifest_path
        if store.layout.check_manifest(folder.read(path), manifest, descriptions(folder, manifest)):
            write_manifest(folder, store.layout, manifest)
            done.append(f"{path} written again")
    return done


def _restore_descriptions(store: FeatureStore, part: str) -> list[str]:
    """Write the layers' descriptions that are missing or altered again, as they were recorded; returns which."""
    plan, said = store.manifest.plan_of(part), store.manifest.parts[part] if part else store.manifest
    done = []
    for record in said.files:
        if record.path == SAMPLES or same_bytes(store.folder, record.path, record.bytes, record.xxh3):
            continue
        forms = (store.layout.describe(plan), store.layout.older_descriptions(plan))
        for data in (form[record.path] for form in forms if record.path in form):
            if digest(data) == record.xxh3:
                store.folder.replace(record.path, data)
                done.append(record.path)
                break
    return done


def check_shard(store: FeatureStore, part: str, shard: int) -> list[str]:
    """Everything wrong with one shard. Reads all of it."""
    plan = store.manifest.plan_of(part)
    start, stop = plan.bounds(shard)
    where = f"shard {shard} (rows {start}..{stop - 1})"
    receipt = store.part_receipts[part].get(shard)
    if receipt is None:
        return [f"{where}: no valid commit record ({receipt_name(shard, part)})"]
    findings = []
    if store.folder.read(receipt_name(shard, part)) != render(receipt):
        findings.append(f"{receipt_name(shard, part)}: bytes differ from what its own content is written as")
    try:
        for key in receipt.files:
            data = store.view(part, shard, key)
            findings += [f"{where}: {wrong}" for wrong in store.layout.check(data, plan, receipt, store.samples)]
        for layer, spec in plan.layers.items():
            data = store.view(part, shard, store.layout.file_key(layer))
            step = plan.chunk_rows if plan.store == "zarr" else stop - start  # what is decoded without a copy
            cuts = [slice(row, min(row + step, stop - start)) for row in range(0, stop - start, step)]
            pieces = (store.layout.decode(data, plan, layer, shard, cut) for cut in cuts)
            look = norms_of if layer == plan.audited else absent
            found = np.concatenate([look(piece, spec.dtype) for piece in pieces])
            missing = ~np.isfinite(found) if layer == plan.audited else found
            expected = np.zeros(stop - start, bool)
            expected[[row - start for row in receipt.failed]] = True
            if not np.array_equal(missing, expected):
                rows = np.flatnonzero(missing != expected)[:10] + start
                findings.append(f"{where}, {layer}: rows {rows.tolist()} are NaN against the receipt")
            elif layer == plan.audited:
                cells = audit_cells(store.samples, start, found, np.zeros_like(found), expected)
                findings += [f"{where}, {layer}: {wrong}" for wrong in _other_norms(cells, receipt)]
    except DamagedCacheError as error:
        findings.append(error.found)
    except ValueError as error:
        findings.append(f"{where}: does not decode ({error})")
    return findings


def check_metadata(store: FeatureStore) -> list[str]:
    """Everything wrong with the manifest, the sums it holds, and the layers' descriptions."""
    manifest, path = store.manifest, store.layout.manifest_path
    findings = []
    described = descriptions(store.folder, manifest)
    if wrong := store.layout.check_manifest(store.folder.read(path), manifest, described):
        findings.append(f"{path}: {wrong}")
    for part in store.parts:
        said = manifest.parts[part] if part else manifest
        for record in said.files:
            if record.path != SAMPLES and not same_bytes(store.folder, record.path, record.bytes, record.xxh3):
                findings.append(f"{record.path}: missing, or altered since it was written")
        receipts = store.part_receipts[part]
        whole = said.complete and len(receipts) == manifest.plan.shards
        if whole and said.summary != summarise(receipts[shard].audit for shard in sorted(receipts)):
            findings.append(f"{path}: the summary is not the sum of the receipts")
    return findings


def _expected(store: FeatureStore, part: str, shard: int) -> bool:
    """Whether a shard must be there: it has a receipt, or its part is finished."""
    said = store.manifest.parts[part] if part else store.manifest
    return said.complete or shard in store.part_receipts[part]


def _reopen(store: FeatureStore, part: str) -> None:
    """Take back the manifest's word that a part is complete, before any receipt goes."""
    undone = {"complete": False, "summary": None}
    manifest = store.manifest
    if part:
        parts = {**manifest.parts, part: manifest.parts[part].model_copy(update=undone)}
        manifest = manifest.model_copy(update={"parts": parts})
    else:
        manifest = manifest.model_copy(update=undone)
    write_manifest(store.folder, store.layout, manifest)
    store.manifest = manifest


def _other_norms(cells: dict[str, CellAudit], receipt: Receipt) -> list[str]:
    def differs(a: float | None, b: float | None) -> bool:
        return a != b if a is None or b is None else abs(a - b) > NORM_TOLERANCE * abs(b) + 1e-6

    wrong = []
    for key in sorted({*cells, *receipt.audit}):
        mine, said = cells.get(key, CellAudit()), receipt.audit.get(key, CellAudit())
        if (mine.rows, mine.failed) != (said.rows, said.failed):
            wrong.append(
                f"cell {key} has {mine.rows} rows, {mine.failed} failed; its receipt says {said.rows}, {said.failed}"
            )
        elif any(differs(getattr(mine, name), getattr(said, name)) for name in ("norm_sum", "norm_min", "norm_max")):
            wrong.append(f"cell {key} has other norms than its receipt says")
    return wrong
