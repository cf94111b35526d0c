"""What a cache holds, in numbers that a person can check: rows, failures and norms of every (class, group) cell."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bird_cache.manifest import CellAudit, LeftOut, Manifest, Plan, Receipt, Summary
from bird_cache.numbers import BLOCK_ROWS, Dtype, from_storage
from bird_cache.samples import OK, PENDING, Samples

__all__ = [
    "SPLITS",
    "accounted",
    "add_cells",
    "as_html",
    "audit_cells",
    "cells_by_split",
    "describe",
    "name_of_cell",
    "norms_of",
    "summarise",
]

SPLITS = ("train", "meta", "test")


def describe(
    path: str,
    fingerprint: str,
    manifest: Manifest,
    receipts: Mapping[str, Mapping[int, Receipt]],
    samples: Samples,
) -> dict[str, Any]:
    """What a cache holds, as JSON values. `receipts` are those of each part, "" for the vectors that it began with."""
    plan, summary, own = manifest.plan, manifest.summary, receipts[""]
    written = sum(receipt.stop - receipt.start - len(receipt.failed) for receipt in own.values())
    failed = sum(len(receipt.failed) for receipt in own.values())
    cells = summary.cells if summary else add_cells(receipt.audit for receipt in own.values())
    splits = samples.counts("split")
    named = {name_of_cell(plan.class_names, plan.group_names, key): cell for key, cell in sorted(cells.items())}
    return {
        "path": path,
        "store": plan.store,
        "compress": plan.compress,
        "fingerprint": fingerprint,
        "complete": manifest.complete,
        "rows": plan.rows,
        "written": written,
        "failed": failed,
        "doubtful": doubtful_by_cell(plan, own, samples),
        "accounted": accounted(plan.rows, plan.left_out, plan.class_names, plan.group_names),
        "groups": {name: {"rows": cell.rows, "failed": cell.failed} for name, cell in named.items()},
        "layers": {
            name: {"shape": [plan.rows, plan.views, *layer.shape], "dtype": layer.dtype, "kind": layer.kind}
            for name, layer in manifest.layers().items()
        },
        "parts": {
            name: {"layers": [*part.layers], "fingerprint": part.fingerprint, "complete": part.complete}
            for name, part in manifest.parts.items()
        },
        "norms": {name: _norms(cell) for name, cell in named.items()},
        "splits": {split: splits.get(split, 0) for split in SPLITS},
        "cells": cells_by_split(samples, plan.class_names, plan.group_names),
        "shards": {"committed": len(own), "planned": plan.shards, "rows": plan.shard_rows},
        "bytes": sum(f.bytes for rs in receipts.values() for r in rs.values() for f in r.files.values()),
        "causes": plan.causes,
        "notes": plan.notes,
    }


def as_html(path: str, fingerprint: str, manifest: Manifest) -> str:
    """A cache as a short table for a notebook; no row is read."""
    plan = manifest.plan
    layers = {
        name: f"{plan.rows:,} x {' x '.join(map(str, (plan.views, *layer.shape)))}, {layer.dtype}"
        for name, layer in manifest.layers().items()
    }
    lines = {"state": "complete" if manifest.complete else "unfinished", "teacher": plan.notes.get("teacher"), **layers}
    lines |= {"classes": ", ".join(plan.class_names), "groups": ", ".join(plan.group_names), "fingerprint": fingerprint}
    rows = "".join(
        f"<tr><th style='text-align:left'>{escape(name)}</th><td>{escape(str(value))}</td></tr>"
        for name, value in lines.items()
    )
    return f"<table><caption>cache {escape(path)}</caption>{rows}</table>"


def accounted(
    rows: int, left_out: tuple[LeftOut, ...] | None, class_names: tuple[str, ...], group_names: tuple[str, ...]
) -> dict[str, Any] | None:
    """How many samples were listed, and those that have no row by reason, (class, group) and split; None where the cache
    does not record it. listed = rows + left out."""
    if left_out is None:
        return None
    lines = [
        {
            "reason": each.reason,
            "cell": f"{_name(class_names, each.label)}, {_name(group_names, each.group)}",
            "split": each.split,
            "rows": each.rows,
        }
        for each in left_out
    ]
    return {"listed": rows + sum(each.rows for each in left_out), "left_out": lines}


def _name(names: tuple[str, ...], number: int) -> str:
    return names[number] if number >= 0 else "unknown"


def doubtful_by_cell(plan: Plan, receipts: Mapping[int, Receipt], samples: Samples) -> dict[str, dict[str, int]]:
    """How many images carry little, by what they are and by (class, group)."""
    found = {row: what for each in receipts.values() for row, what in each.doubtful.items()}
    counts: dict[str, dict[str, int]] = {}
    if found:
        rows = np.array(sorted(found))
        labels, groups = samples.labels[rows].tolist(), samples.groups[rows].tolist()
        for row, label, group in zip(rows.tolist(), labels, groups, strict=True):
            cell = name_of_cell(plan.class_names, plan.group_names, f"{label},{group}")
            mine = counts.setdefault(found[row], {})
            mine[cell] = mine.get(cell, 0) + 1
    return counts


def cells_by_split(
    samples: Samples, class_names: tuple[str, ...], group_names: tuple[str, ...]
) -> dict[str, dict[str, int]]:
    """Rows of each (class, group) cell in each split, but those that failed; cells without a row are there, as 0."""
    usable = samples.having("status", OK) | samples.having("status", PENDING)
    counts: dict[str, dict[str, int]] = {}
    for split in SPLITS:
        rows = np.flatnonzero(usable & samples.having("split", split))
        labels, groups = samples.numbers("label", rows), samples.numbers("group", rows)
        named = (labels >= 0) & (labels < len(class_names)) & (groups >= 0) & (groups < len(group_names))
        codes = labels[named] * len(group_names) + groups[named]
        sizes = np.bincount(codes, minlength=len(class_names) * len(group_names)).tolist()
        cells = [(c, g) for c in range(len(class_names)) for g in range(len(group_names))]
        counts[split] = {
            name_of_cell(class_names, group_names, f"{c},{g}"): size for (c, g), size in zip(cells, sizes, strict=True)
        }
        unknown = np.bincount(labels[(labels >= 0) & (groups < 0)], minlength=len(class_names)).tolist()
        counts[split] |= {name_of_cell(class_names, group_names, f"{c},-1"): n for c, n in enumerate(unknown) if n}
    return counts


def _norms(cell: CellAudit) -> dict[str, float | None]:
    return {
        "mean": cell.norm_sum / (cell.rows - cell.failed) if cell.rows > cell.failed else None,
        "min": cell.norm_min,
        "max": cell.norm_max,
        "rounding_max": cell.rounding_max if cell.rows > cell.failed else None,
    }


def summarise(audits: Iterable[Mapping[str, CellAudit]]) -> Summary:
    """The audits of all shards as the manifest keeps them."""
    cells = add_cells(audits)
    failed = sum(cell.failed for cell in cells.values())
    return Summary(written=sum(cell.rows for cell in cells.values()) - failed, failed=failed, cells=cells)


def add_cells(audits: Iterable[Mapping[str, CellAudit]]) -> dict[str, CellAudit]:
    """Per-shard audits, added up by cell."""
    total: dict[str, CellAudit] = {}
    for audit in audits:
        for key, cell in audit.items():
            total[key] = total.get(key, CellAudit()) + cell
    return total


def audit_cells(
    samples: Samples,
    start: int,
    norms: NDArray[np.float64],
    rounding: NDArray[np.float64],
    skip: NDArray[np.bool_],
) -> dict[str, CellAudit]:
    """Rows, failures, norms and relative rounding error of each (class, group) cell in one shard, from those of its rows
    (n,), of which `skip` (n,) failed."""
    rows = slice(start, start + len(norms))
    pairs = np.stack([samples.numbers("label", rows), samples.numbers("group", rows)], axis=1)
    lowest = pairs.min(axis=0, initial=0)
    width = int(pairs[:, 1].max(initial=0) - lowest[1]) + 1
    codes = (pairs[:, 0] - lowest[0]) * width + pairs[:, 1] - lowest[1]
    cells: dict[str, CellAudit] = {}
    for code in np.unique(codes).tolist():
        label, group = code // width + int(lowest[0]), code % width + int(lowest[1])
        mine = codes == code
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


def norms_of(stored: NDArray[np.generic], dtype: Dtype) -> NDArray[np.float64]:
    """L2 norm of each stored row, whatever its shape; computed in blocks that stay in the processor's cache."""
    flat = stored.reshape(len(stored), -1)
    norms = np.empty(len(flat))
    for start in range(0, len(flat), BLOCK_ROWS):
        block = from_storage(flat[start : start + BLOCK_ROWS], dtype).astype(np.float32, copy=False)
        with np.errstate(over="ignore"):
            norms[start : start + BLOCK_ROWS] = np.sqrt(np.einsum("ij,ij->i", block, block))
    if (large := np.isinf(norms)).any():  # squares beyond float32
        norms[large] = np.linalg.norm(from_storage(flat[large], dtype).astype(np.float64), axis=1)
    return norms


def name_of_cell(class_names: tuple[str, ...], group_names: tuple[str, ...], key: str) -> str:
    """ "3,1" -> "cat, gray"; "3,-1" -> "cat, unknown"."""
    label, group = (int(part) for part in key.split(","))
    return f"{class_names[label]}, {_name(group_names, group)}"
