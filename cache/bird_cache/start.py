"""How a cache begins: what a folder may hold before, and what is written before the first vector."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from bird_cache.errors import NotACacheError
from bird_cache.files import digest
from bird_cache.layout import COMMITS, SAMPLES
from bird_cache.manifest import FileRecord, Manifest, Plan
from bird_cache.samples import Samples
from bird_cache.storage import Folder, settle
from bird_cache.store import find_layout, layout_of

__all__ = ["record_of", "refuse_foreign", "start_cache", "taken_back"]


def start_cache(folder: Folder, plan: Plan, samples: Samples) -> None:
    """Write everything that is fixed before the first vector; the manifest (complete = false) comes last. Where another
    writer starts at the same time, the first manifest counts."""
    layout = layout_of(plan.store)
    table, described = samples.to_parquet(), layout.describe(plan)
    for path, data in {SAMPLES: table, **described}.items():
        try:
            settle(folder, path, data)
        except FileExistsError:
            if find_layout(folder) is not None:
                return
            folder.replace(path, data)  # left by an interrupted start
    manifest = Manifest(
        complete=False,
        fingerprint=plan.fingerprint,
        plan=plan,
        identity=samples.identity(),
        files=tuple(record_of(path, data) for path, data in described.items()),
    )
    with contextlib.suppress(FileExistsError):
        folder.publish(layout.manifest_path, layout.render(manifest, described))


def refuse_foreign(folder: Folder, plan: Plan | None = None) -> None:
    """Raise NotACacheError unless the folder is absent, empty, or holds a cache of ours, started or finished. Before there
    is a `plan`, a sample table is a start."""
    if folder.local is not None and folder.local.exists() and not folder.local.is_dir():
        found = "a file"
    elif not folder.exists() or find_layout(folder) is not None:
        return
    else:
        # An interrupted start leaves the sample table and the layers' descriptions.
        started, files = {SAMPLES, *(layout_of(plan.store).describe(plan) if plan else ())}, folder.files()
        foreign = [path for path in files if path not in started and not path.startswith(f"{COMMITS}/")]
        if not foreign or (plan is None and SAMPLES in files):
            return
        if find_layout(folder) is not None:  # another writer has begun it in this instant
            return
        found = f"a folder with other things in it ({', '.join(foreign[:3])})"
    raise NotACacheError(
        where=folder.name,
        found=found,
        wanted="a new or empty folder, or a cache to resume",
        fix="choose another --out",
    )


@contextlib.contextmanager
def taken_back(folder: Folder, plan: Plan) -> Iterator[None]:
    """Take away what `start_cache` wrote where the block raises before anything else was written, so that another plan can
    begin there. Only for who began the cache, holds the folder, and has no workers; only in a local folder, for in object
    storage others may write the same cache."""
    try:
        yield
    except BaseException:
        layout = layout_of(plan.store)
        begun = [layout.manifest_path, *layout.describe(plan), SAMPLES]  # the manifest first: the rest is no cache
        if folder.local is not None and {*folder.files()} == {*begun}:
            for path in begun:
                with contextlib.suppress(OSError):  # the folder holds more; or the error that is raised is the disk's
                    folder.remove(path)
                    (folder.local / path).parent.rmdir()
        raise


def record_of(path: str, data: bytes) -> FileRecord:
    """The record of a file that holds `data`."""
    return FileRecord(path=path, bytes=len(data), xxh3=digest(data))
