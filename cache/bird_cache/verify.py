"""`bird cache verify`: every byte of a cache against what was committed."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from bird_cache.errors import CacheError, NotACacheError
from bird_cache.store import open_cache

__all__ = ["Verification", "verify"]


class Verification(NamedTuple):
    """What was checked and what was found; `findings` is empty for a sound, complete cache."""

    fingerprint: str
    rows: int
    shards: int
    bytes: int
    findings: list[str]


def verify(path: Path, *, workers: int = 4, progress: Callable[[int, int], None] | None = None) -> Verification:
    """Check everything: manifest, receipts, sample table, every shard's bytes, order and NaN rows.

    `progress(done, total)` is called after each shard. Raises NotACacheError where there is no cache at all.
    """
    try:
        store = open_cache(path)
    except NotACacheError:
        raise
    except CacheError as error:
        return Verification("", 0, 0, 0, [error.found])
    plan = store.manifest.plan
    findings = store.check_metadata()
    if not store.manifest.complete:
        findings.append(f"unfinished: {len(store.receipts)} of {plan.shards} shards committed")
    with ThreadPoolExecutor(workers) as pool:
        for done, found in enumerate(pool.map(store.check_shard, sorted(store.receipts)), start=1):
            findings += found
            if progress:
                progress(done, len(store.receipts))
    size = sum(record.bytes for receipt in store.receipts.values() for record in receipt.files.values())
    return Verification(store.fingerprint, plan.rows, len(store.receipts), size, findings)
