"""A cache opened for reading: a folder, a layout, and what was committed there. `open_cache` is where a reader starts."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar, final

import numpy as np
from numpy.typing import NDArray

from bird_cache.errors import DamagedCacheError, IncompleteCacheError, NotACacheError, RequestError
from bird_cache.files import digest
from bird_cache.folders import open_folder
from bird_cache.layout import SAMPLES, Layout, receipt_name
from bird_cache.manifest import FileRecord, Manifest, Plan, Receipt, open_sealed
from bird_cache.numbers import from_storage
from bird_cache.samples import OK, Samples
from bird_cache.storage import Folder
from bird_cache.summary import as_html, describe
from bird_cache.table import TableFile
from bird_cache.vectors import Vectors

__all__ = [
    "FeatureStore",
    "damaged",
    "descriptions",
    "find_layout",
    "layout_of",
    "open_cache",
    "read_manifest",
    "read_receipt",
    "read_receipts",
    "require_list",
    "write_manifest",
]

DOWNLOADS_HELD = 2
MOMENTS = (0.1, 0.4, 0.8)
"""seconds; the kernel keeps what such mounts say of a file for one"""
T = TypeVar("T")


@final
class FeatureStore:
    """A cache opened for reading. Nothing in it is ever executed. Sizes are checked at once; a shard's hash, and that
    it was committed for the ids that samples.parquet lists, at the first touch."""

    def __init__(self, folder: Folder, *, strict: bool = True) -> None:
        """Open what is in `folder`. With `strict`, a finished cache that lacks anything is refused; without, it is
        opened for what can be found (`verify` and `repair` look at it)."""
        self.folder, self.path = folder, folder.name
        self.layout, self.manifest = read_manifest(folder)
        self.samples = self._read_samples()
        self.parts = ("", *self.manifest.parts)
        self.part_receipts = {
            part: read_receipts(folder, self.layout, self.manifest, part, strict=strict and self._finished(part))
            for part in self.parts
        }
        self._views: OrderedDict[str, memoryview] = OrderedDict()
        self._touched: set[str] = set()
        self._guard = threading.Lock()
        if strict and folder.local is not None:
            for receipts in self.part_receipts.values():
                for receipt in receipts.values():
                    for record in receipt.files.values():
                        self._check_size(record, receipt)

    def __len__(self) -> int:
        """How many rows there are, those that failed among them."""
        return self.manifest.plan.rows

    def __contains__(self, layer: object) -> bool:
        return layer in self.manifest.layers()

    __iter__ = None  # layers by name, rows by number: neither is what everybody expects

    def __getitem__(self, layer: str | tuple[str, int]) -> Vectors:
        """A layer as an array: `cache["penultimate"]`, or `cache["penultimate", 2]` for the view number 2. Raises KeyError
        naming the layers there are, IndexError."""
        return Vectors(self, layer) if isinstance(layer, str) else Vectors(self, *layer)

    @property
    def receipts(self) -> Mapping[int, Receipt]:
        """The commit records of the cache's own layers, by shard."""
        return self.part_receipts[""]

    @property
    def fingerprint(self) -> str:
        """Hash of everything the cache's own vectors follow from."""
        return self.manifest.fingerprint

    def require_complete(self) -> None:
        """Raise IncompleteCacheError unless every row is accounted for."""
        if not self.manifest.complete:
            raise IncompleteCacheError(
                where=self.path,
                found=f"{len(self.receipts)} of {self.manifest.plan.shards} shards committed",
                wanted="a finished cache",
                fix="run the same `bird precompute` command again: it resumes",
            )

    def read(self, layer: str, start: int, stop: int) -> NDArray[np.generic]:
        """Rows start..stop of a layer as stored, shape (rows, views, *row shape).

        Raises DamagedCacheError, naming the shard, where bytes are missing or altered; KeyError for an unknown layer.
        """
        size = self.manifest.plan.shard_rows
        pieces = []
        for shard in range(start // size, (stop - 1) // size + 1):
            first, last = self.manifest.plan.bounds(shard)
            pieces.append(self._decode(layer, shard, slice(max(start, first) - first, min(stop, last) - first)))
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def take(self, layer: str, rows: NDArray[np.int64]) -> NDArray[np.generic]:
        """The given rows of a layer as stored, in the given order, shape (len(rows), views, *row shape). Raises what
        `read` raises."""
        plan, spec = self.manifest.plan, self.manifest.layers()[layer]
        owner = rows // plan.shard_rows
        shards = np.unique(owner).tolist()
        if len(shards) == 1:
            return self._decode(layer, shards[0], rows - shards[0] * plan.shard_rows)
        out: NDArray[np.generic] | None = None
        for shard in shards:
            mine = owner == shard
            found = self._decode(layer, shard, rows[mine] - shard * plan.shard_rows)
            if out is None:
                out = np.empty((len(rows), plan.views, *spec.shape), found.dtype)
            out[mine] = found
        return out if out is not None else np.empty((0, plan.views, *spec.shape))

    def vectors(self, layer: str, rows: NDArray[np.int64], view: int = 0) -> NDArray[np.float32]:
        """The given rows of one view as float32, shape (len(rows), *row shape), whatever the order. Raises what `read`
        raises."""
        spec = self.manifest.layers()[layer]
        out = np.empty((len(rows), *spec.shape), np.float32)
        owner = rows // self.manifest.plan.shard_rows
        for shard in np.unique(owner).tolist():
            mine = owner == shard
            start, _ = self.manifest.plan.bounds(shard)
            out[mine] = from_storage(self._decode(layer, shard, rows[mine] - start)[:, view], spec.dtype)
        return out

    def usable(self, layers: Iterable[str]) -> NDArray[np.bool_]:
        """Which rows have a vector in every one of `layers`; layers added later fail on their own."""
        usable = self.samples.having("status", OK)
        for part in {self.manifest.part_of(name) for name in layers}:
            for receipt in self.part_receipts[part].values():
                usable[list(receipt.failed)] = False
        return usable

    def sources(self, shard: int) -> list[bytes | None]:
        """The encoded image of each row of a shard, where the store holds images."""
        return self.layout.sources(self.view("", shard, self.layout.file_key("")), self.manifest.plan, shard)

    def view(self, part: str, shard: int, key: str) -> memoryview:
        """The bytes of one file of a shard, found to be what was committed. Raises DamagedCacheError."""
        plan = self.manifest.plan_of(part)
        start, stop = plan.bounds(shard)
        what = f"shard {shard} (rows {start}..{stop - 1})"
        receipt = self.part_receipts[part].get(shard)
        if receipt is None:
            raise damaged(self.folder, f"no commit record for {what}")
        record = receipt.files[key]
        with self._guard:
            held = self._views.get(record.path)
        if held is None:
            try:
                held = self.folder.view(record.path)
            except OSError as error:
                raise damaged(self.folder, f"{record.path}, {what}, missing or unreadable ({error})") from None
            if record.path not in self._touched or self.folder.local is None:
                if len(held) != record.bytes or digest(held) != record.xxh3:
                    raise damaged(self.folder, f"{record.path}, {what}, with other bytes than were committed")
                if receipt.ids != self.samples.ids_digest(start, stop):
                    raise damaged(self.folder, f"{what} committed for other ids, or in another order")
            with self._guard:
                self._touched.add(record.path)
                self._views[record.path] = held
                while self.folder.local is None and len(self._views) > DOWNLOADS_HELD:
                    self._views.popitem(last=False)
        return held

    def release(self) -> None:
        """Let go of the files that are mapped or downloaded; the next read opens them again."""
        with self._guard:
            self._views.clear()

    def info(self) -> dict[str, Any]:
        """What the cache holds, as JSON values."""
        return describe(self.path, self.fingerprint, self.manifest, self.part_receipts, self.samples)

    def _repr_html_(self) -> str:
        """A short table for a notebook."""
        return as_html(self.path, self.fingerprint, self.manifest)

    def _decode(self, layer: str, shard: int, rows: slice | NDArray[np.int64]) -> NDArray[np.generic]:
        part = self.manifest.part_of(layer)
        data = self.view(part, shard, self.layout.file_key(layer))
        try:
            return self.layout.decode(data, self.manifest.plan_of(part), layer, shard, rows)
        except (ValueError, TypeError, IndexError) as error:
            raise damaged(self.folder, f"shard {shard} of {layer}, which does not decode ({error})") from error

    def _finished(self, part: str) -> bool:
        return self.manifest.parts[part].complete if part else self.manifest.complete

    def _read_samples(self) -> Samples:
        recorded = {record.path: record for record in self.manifest.files}.get(SAMPLES)
        try:
            if recorded is not None:
                _settled(self.folder, self._size_of_samples, lambda size: size == recorded.bytes)
            local = self.folder.local
            file = TableFile(local / SAMPLES if local is not None else self.folder.read(SAMPLES))
            if self.manifest.complete and (recorded is None or file.digest() != recorded.xxh3):
                raise damaged(self.folder, f"{SAMPLES} altered since the cache was finished")
            samples = Samples.of_file(file)
        except (OSError, ValueError) as error:
            raise damaged(self.folder, f"{SAMPLES} that cannot be read ({error})") from error
        if samples.identity() != self.manifest.identity or len(samples) != self.manifest.plan.rows:
            raise damaged(self.folder, f"{SAMPLES} with other rows, labels or order than the manifest records")
        return samples

    def _size_of_samples(self) -> int | None:
        """Of the open file: sshfs asks the other host only when a file is opened, and else says for 20 s what it was."""
        return self.folder.size(SAMPLES) if self.folder.local is None else len(self.folder.view(SAMPLES))

    def _check_size(self, record: FileRecord, receipt: Receipt) -> None:
        size = self.folder.size(record.path)
        if size != record.bytes:
            found = "missing" if size is None else f"of {size:,} bytes instead of {record.bytes:,}"
            raise damaged(
                self.folder, f"{record.path} (shard {receipt.shard}, rows {receipt.start}..{receipt.stop - 1}) {found}"
            )


def open_cache(path: str | Path) -> FeatureStore:
    """Open the cache in a folder, or under an s3://, gs://, az:// or file:// URL, for reading, complete or not
    (`require_complete` tells). Which layout it has is found out.

    Raises NotACacheError, DamagedCacheError, StorageError.
    """
    return FeatureStore(open_folder(path))


def layout_of(store: str) -> Layout:
    """The layout of that name: "zarr" or "webdataset"."""
    if store == "zarr":  # zarr takes a quarter of a second to import
        from bird_cache.zarr_layout import ZarrLayout

        return ZarrLayout()
    from bird_cache.wds_layout import WebDatasetLayout

    return WebDatasetLayout()


def find_layout(folder: Folder) -> Layout | None:
    """The layout of the cache in a folder, told by its manifest's name; None where there is none."""
    for name, manifest_path in (("zarr", "zarr.json"), ("webdataset", "manifest.json")):
        if folder.size(manifest_path) is not None:
            return layout_of(name)
    return None


def read_manifest(folder: Folder) -> tuple[Layout, Manifest]:
    """The layout and manifest of the cache in a folder. Raises NotACacheError, DamagedCacheError."""

    def not_a_cache(found: str) -> NotACacheError:
        return NotACacheError(
            where=folder.name,
            found=found,
            wanted="a feature cache",
            fix="make one with `bird precompute --out`, or choose another path",
        )

    layout = find_layout(folder)
    if layout is None:
        raise not_a_cache("no manifest (zarr.json or manifest.json)" if folder.exists() else "no such folder")
    try:
        data = _settled(folder, lambda: folder.read(layout.manifest_path), _is_json)
        sealed = layout.parse(data)
        if sealed is not None:
            return layout, open_sealed(Manifest, sealed).checked()
    except (ValueError, AttributeError, TypeError) as error:
        raise damaged(folder, f"a manifest that cannot be trusted ({error})") from error
    raise not_a_cache(f"another program's {layout.manifest_path}")


def descriptions(folder: Folder, manifest: Manifest) -> dict[str, bytes]:
    """The descriptions of the layers that can be read, as they lie in the cache: path -> bytes. Those that are missing are
    left out."""
    records = [*manifest.files, *(each for part in manifest.parts.values() if part.complete for each in part.files)]
    found = {}
    for record in records:
        if record.path != SAMPLES:
            with contextlib.suppress(FileNotFoundError):
                found[record.path] = folder.read(record.path)
    return found


def write_manifest(folder: Folder, layout: Layout, manifest: Manifest) -> None:
    """Put a manifest in the place of the one that is there."""
    there = folder.read(layout.manifest_path)
    folder.replace(layout.manifest_path, layout.render(manifest, descriptions(folder, manifest), there))


def _settled(folder: Folder, read: Callable[[], T], is_whole: Callable[[T], bool]) -> T:
    """What `read` gives once it is whole, or at last. Of a file that another host has just replaced, mounts such as sshfs
    and s3fs give the new bytes with the old size for a moment."""
    found = read()
    for pause in MOMENTS if folder.local is not None else ():
        if is_whole(found):
            break
        time.sleep(pause)
        found = read()
    return found


def _is_json(data: bytes) -> bool:
    try:
        json.loads(data)
    except ValueError:
        return False
    return True


def read_receipts(folder: Folder, layout: Layout, manifest: Manifest, part: str, *, strict: bool) -> dict[int, Receipt]:
    """The valid commit records of a part. With `strict`, one that is missing or invalid raises DamagedCacheError."""
    plan = manifest.plan_of(part)

    def attempt(shard: int) -> Receipt | Exception:
        try:
            return read_receipt(folder, layout, plan, part, shard)
        except (OSError, ValueError) as error:
            return error

    with ThreadPoolExecutor(1 if folder.local is not None else 16) as pool:
        found = list(pool.map(attempt, range(plan.shards)))
    for shard, outcome in enumerate(found):
        if strict and isinstance(outcome, Exception):
            start, stop = plan.bounds(shard)
            name = receipt_name(shard, part)
            raise damaged(folder, f"{name} (rows {start}..{stop - 1}) missing or altered ({outcome})") from outcome
    return {shard: outcome for shard, outcome in enumerate(found) if isinstance(outcome, Receipt)}


def read_receipt(folder: Folder, layout: Layout, plan: Plan, part: str, shard: int) -> Receipt:
    """The valid commit record of one shard. Raises FileNotFoundError where there is none, OSError, ValueError where it is
    not valid."""
    try:
        receipt = open_sealed(Receipt, json.loads(folder.read(receipt_name(shard, part))))
    except (AttributeError, TypeError) as error:
        raise ValueError(str(error)) from error
    if receipt.shard != shard or (receipt.start, receipt.stop) != plan.bounds(shard):
        raise ValueError("a receipt for other rows")
    if {key: record.path for key, record in receipt.files.items()} != layout.paths(plan, part, shard):
        raise ValueError("a receipt for other files")
    return receipt


def damaged(folder: Folder, found: str) -> DamagedCacheError:
    """The error for a cache whose bytes are not what was committed."""
    return DamagedCacheError(
        where=folder.name,
        found=found,
        wanted="the bytes that were committed",
        fix="see all of it with `bird cache verify`; then restore the file, or `bird cache repair` and precompute again",
    )


def require_list(store: FeatureStore, what: str, names: Collection[str]) -> None:
    """Raise RequestError for a text in the place of a list: it would be taken letter by letter."""
    if isinstance(names, str):
        raise RequestError(
            where=store.path, found=f"the text {names!r}", wanted=f"a list of {what}", fix=f"give [{names!r}]"
        )
