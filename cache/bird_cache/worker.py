"""A cache opened by one of many workers. A coordinator has begun it and says which shards to write.

A worker takes no lock and clears nothing. It commits a shard by the same steps as a single writer
(`bird_cache.writer.FeatureWriter.write_shard`): the first bytes win, so that a shard that is computed twice does no harm.
"""

from __future__ import annotations

import time
from pathlib import Path

from bird_cache.errors import CacheError, DamagedCacheError, StaleCacheError, StorageError
from bird_cache.folders import open_folder
from bird_cache.layout import SAMPLES
from bird_cache.samples import Samples
from bird_cache.storage import Folder
from bird_cache.store import damaged, read_manifest
from bird_cache.table import TableFile
from bird_cache.writer import FeatureWriter

__all__ = ["open_worker", "require_sharing"]

SEEN_SECONDS = 10.0
"""how long a mount may need to show what another host has written"""


def open_worker(where: str | Path, fingerprint: str, part: str = "") -> FeatureWriter:
    """Open the cache (or the layers that were begun as `part`) whose plan has this fingerprint, to write some of its shards.

    Raises StorageError where this host does not see that cache, or where its store keeps no two writers apart;
    DamagedCacheError.
    """
    folder = open_folder(where)
    require_sharing(folder)
    end = time.monotonic() + SEEN_SECONDS
    while True:
        try:
            return _opened(folder, fingerprint, part)
        except (CacheError, KeyError) as error:
            if time.monotonic() >= end:
                raise _unseen(folder, error) from error
            time.sleep(SEEN_SECONDS / 20)


def require_sharing(folder: Folder) -> None:
    """Raise StorageError for a store that keeps no two writers apart."""
    if not folder.shares():
        raise StorageError(
            where=folder.name,
            found="a store that ignores put-if-absent (If-None-Match)",
            wanted="a store on which several writers can work",
            fix="let one process write there, or choose another --out",
        )


def _opened(folder: Folder, fingerprint: str, part: str) -> FeatureWriter:
    layout, manifest = read_manifest(folder)
    if (found := manifest.plan_of(part).fingerprint) != fingerprint:
        raise StaleCacheError(
            where=folder.name,
            found=f"a cache with the fingerprint {found[:12]}",
            wanted=f"that of the coordinator, {fingerprint[:12]}",
            fix="give a folder that all hosts share",
        )
    try:
        samples = Samples.of_file(TableFile(folder.local / SAMPLES if folder.local else folder.read(SAMPLES)))
    except (OSError, ValueError) as error:
        raise damaged(folder, f"{SAMPLES} that cannot be read ({error})") from error
    if samples.identity() != manifest.identity:
        raise damaged(folder, f"{SAMPLES} with other rows, labels or order than the manifest records")
    return FeatureWriter(folder, layout, manifest, samples, part, look=False)


def _unseen(folder: Folder, error: Exception) -> Exception:
    """What a worker says that does not see the coordinator's cache: the error itself where that is another one."""
    if isinstance(error, DamagedCacheError | StorageError):
        return error
    found = error.found if isinstance(error, CacheError) else "no such layers"
    return StorageError(
        where=folder.name,
        found=found,
        wanted="the cache that the coordinator began there",
        fix="give a folder that all hosts share under the same path, or an s3://, gs:// or az:// URL",
    )
