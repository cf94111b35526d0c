"""What every feature store can do, whatever its layout on disk. `open_cache` finds out which one a folder holds."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bird_cache.errors import IncompleteCacheError, NotACacheError
from bird_cache.manifest import CellAudit, Manifest, Receipt
from bird_cache.numbers import from_storage
from bird_cache.samples import Samples

__all__ = [
    "FeatureStore",
    "FeatureWriter",
    "Finding",
    "add_cells",
    "audit_cells",
    "name_of_cell",
    "open_cache",
]

Finding = str
"""One damage found by `check_shard`: which file, what is wrong."""


class FeatureStore(ABC):
    """A cache opened for reading. Nothing in it is ever executed; what is read is checked against its receipt.

    Stores: Zarr (`bird_cache.zarr_store`). WebDataset shards are the place for the second one.
    """

    path: Path
    manifest: Manifest
    samples: Samples
    receipts: Mapping[int, Receipt]

    @abstractmethod
    def read(self, layer: str, start: int, stop: int) -> NDArray[np.generic]:
        """Rows start..stop of a layer as stored, shape (rows, views, *row shape).

        Raises DamagedCacheError, naming the shard, where bytes are missing or altered, KeyError for an unknown layer.
        """

    @abstractmethod
    def check_shard(self, shard: int) -> list[Finding]:
        """Everything wrong with one shard: missing, cut or altered bytes, NaN where none belongs. Reads all of it."""

    @abstractmethod
    def check_metadata(self) -> list[Finding]:
        """Everything wrong with the manifest, the receipts, the sample table and the layers' descriptions."""

    @property
    def fingerprint(self) -> str:
        """Hash of everything the vectors follow from."""
        return self.manifest.fingerprint

    def require_complete(self) -> None:
        """Raise IncompleteCacheError unless every row is accounted for."""
        if not self.manifest.complete:
            raise IncompleteCacheError(
                where=str(self.path),
                found=f"{len(self.receipts)} of {self.manifest.plan.shards} shards committed",
                wanted="a finished cache",
                fix="run the same `bird precompute` command again: it resumes",
            )

    def vectors(self, layer: str, rows: NDArray[np.int64], view: int = 0) -> NDArray[np.float32]:
        """The given rows of one view as float32, shape (len(rows), *row shape); read shard by shard, whatever the order."""
        plan = self.manifest.plan
        spec = plan.layers[layer]
        out = np.empty((len(rows), *spec.shape), np.float32)
        owner = rows // plan.shard_rows
        for shard in np.unique(owner).tolist():
            start, stop = plan.bounds(shard)
            mine = owner == shard
            out[mine] = from_storage(self.read(layer, start, stop)[rows[mine] - start, view], spec.dtype)
        return out

    def info(self) -> dict[str, Any]:
        """What the cache holds, as JSON values."""
        plan, summary = self.manifest.plan, self.manifest.summary
        written = sum(receipt.stop - receipt.start - len(receipt.failed) for receipt in self.receipts.values())
        failed = sum(len(receipt.failed) for receipt in self.receipts.values())
        cells = summary.cells if summary else add_cells(receipt.audit for receipt in self.receipts.values())
        named = {name_of_cell(plan.class_names, plan.group_names, key): cell for key, cell in sorted(cells.items())}
        return {
            "path": str(self.path),
            "fingerprint": self.fingerprint,
            "complete": self.manifest.complete,
            "rows": plan.rows,
            "written": written,
            "failed": failed,
            "groups": {name: {"rows": cell.rows, "failed": cell.failed} for name, cell in named.items()},
            "layers": {
                name: {
                    "shape": [plan.rows, plan.views, *layer.shape],
                    "dtype": layer.dtype,
                    "kind": layer.kind,
                }
                for name, layer in plan.layers.items()
            },
            "norms": {
                name: {
                    "mean": cell.norm_sum / (cell.rows - cell.failed) if cell.rows > cell.failed else None,
                    "min": cell.norm_min,
                    "max": cell.norm_max,
                    "rounding_max": cell.rounding_max,
                }
                for name, cell in named.items()
            },
            "splits": {split: int((self.samples.splits == split).sum()) for split in ("train", "meta", "test")},
            "shards": {"committed": len(self.receipts), "planned": plan.shards, "rows": plan.shard_rows},
            "causes": plan.causes,
            "notes": plan.notes,
        }


class FeatureWriter(ABC):
    """A cache opened for writing by one process. Resuming is opening it again."""

    @abstractmethod
    def pending(self) -> list[int]:
        """Shards without a commit record, in order."""

    @abstractmethod
    def write_shard(self, shard: int, layers: Mapping[str, NDArray[np.float32]], failed: Mapping[int, str]) -> Receipt:
        """Encode, publish, read back and commit one shard.

        `layers` maps each layer to float32 (rows of the shard, views, *row shape), `failed` the row numbers (of the
        whole cache) that have no vector to why. Raises FeatureError before anything is written, StorageError.
        """

    @abstractmethod
    def finish(self) -> Manifest:
        """Verify every receipt against its bytes, write the sample table's status, and the manifest, last."""


def open_cache(path: str | Path) -> FeatureStore:
    """Open the cache in a folder for reading, complete or not (`require_complete` tells).

    Raises NotACacheError, DamagedCacheError.
    """
    from bird_cache.zarr_store import ZarrStore

    folder = Path(path)
    if not folder.is_dir():
        raise NotACacheError(
            where=str(path),
            found="no such folder",
            wanted="a feature cache",
            fix="make one with `bird precompute --out`",
        )
    return ZarrStore(folder)


def add_cells(audits: Any) -> dict[str, CellAudit]:
    """Per-shard audits, added up by cell."""
    total: dict[str, CellAudit] = {}
    for audit in audits:
        for key, cell in audit.items():
            total[key] = total.get(key, CellAudit()) + cell
    return total


def audit_cells(
    samples: Samples,
    start: int,
    exact: NDArray[np.float32],
    stored: NDArray[np.float32],
    skip: NDArray[np.bool_],
) -> dict[str, CellAudit]:
    """Rows, failures, norms and rounding error of each (class, group) cell in one shard."""
    rows = np.arange(start, start + len(exact))
    flat, rounded = exact.reshape(len(exact), -1).astype(np.float64), stored.reshape(len(exact), -1)
    norms = np.linalg.norm(flat, axis=1)
    rounding = np.linalg.norm(flat - rounded, axis=1) / np.maximum(norms, np.finfo(np.float32).tiny)
    cells: dict[str, CellAudit] = {}
    for label, group in {*zip(samples.labels[rows].tolist(), samples.groups[rows].tolist(), strict=True)}:
        mine = (samples.labels[rows] == label) & (samples.groups[rows] == group)
        good = mine & ~skip
        cells[f"{label},{group}"] = CellAudit(
            rows=int(mine.sum()),
            failed=int((mine & skip).sum()),
            norm_sum=float(norms[good].sum()),
            norm_min=float(norms[good].min()) if good.any() else None,
            norm_max=float(norms[good].max()) if good.any() else None,
            rounding_max=float(rounding[good].max()) if good.any() else 0.0,
        )
    return cells


def name_of_cell(class_names: tuple[str, ...], group_names: tuple[str, ...], key: str) -> str:
    """ "3,1" -> "cat, gray"."""
    label, group = (int(part) for part in key.split(","))
    return f"{class_names[label]}, {group_names[group]}"
