"""Vectors from elsewhere into a cache, matched to a data set by id; and a cache's vectors out, for others."""

from __future__ import annotations

import shutil
import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bird.datasets import open_dataset
from bird.datasets.base import Dataset, SampleTable, prepare, require_test_cells
from bird.errors import DataError, UsageError
from bird_cache.errors import FeatureError, ImportedVectorsError
from bird_cache.files import digest, storage_error
from bird_cache.importers import Imported, read_vectors
from bird_cache.manifest import Kind, Layer, Plan, Store
from bird_cache.numbers import DTYPES, Dtype, from_storage
from bird_cache.samples import Samples
from bird_cache.store import open_cache
from bird_cache.summary import name_of_cell
from bird_cache.writer import open_writer
from bird_pipelines.caches import image_reader
from bird_pipelines.precompute import dataset_causes, samples_of, shard_and_chunk_rows
from bird_pipelines.progress import progress

__all__ = ["export", "import_vectors"]

LAYER, LOGITS, NO_VECTOR = "penultimate", "logits", "no vector"
KINDS: dict[str, Kind] = {
    "penultimate": "penultimate",
    "projection": "projection",
    "projection_l2": "projection_l2",
    "logits": "logits",
}
STORES: dict[str, Store] = {"zarr": "zarr", "webdataset": "webdataset"}
DTYPE_OF: dict[str, Dtype] = {dtype: dtype for dtype in DTYPES}
MATCHES: dict[str, Callable[[str], str]] = {"exact": lambda id: id, "stem": lambda id: Path(id).stem}
EXPORT_ROWS = 65_536


def import_vectors(
    vectors: Path,
    dataset: str,
    out: str,
    *,
    kind: str,
    provenance: str,
    ids: Path | None = None,
    logits: Path | None = None,
    match: str = "exact",
    data_root: Path | None = None,
    dtype: str = "float16",
    limit: int | None = None,
    settings: Mapping[str, Any] | None = None,
    max_failed: float = 0.01,
    store: str = "zarr",
) -> dict[str, Any]:
    """Write (or finish writing) a cache of imported vectors; returns what it holds, with the counts of the match.

    Samples without a vector become failed rows, counted per (class, group). Raises ImportedVectorsError for unusable
    files, UsageError, DataError where more than `max_failed` of the rows have none, FeatureError for NaN or overflow.
    """
    known: dict[str, Any] = {"--kind": KINDS, "--match": MATCHES, "--dtype": DTYPES, "--store": STORES}
    for name, value in {"--kind": kind, "--match": match, "--dtype": dtype, "--store": store}.items():
        if value not in known[name]:
            raise UsageError(where=name, found=repr(value), wanted=f"one of {', '.join(known[name])}", fix="choose one")
    given = {LAYER: read_vectors(vectors, ids)}
    refuse_wrong_kind(given[LAYER], kind, vectors)
    if logits is not None:
        given[LOGITS] = read_vectors(logits, ids)
        refuse_other_ids(given, logits)
    data = open_dataset(dataset, data_root, **(settings or {}))
    table = prepare(data, limit=limit)
    require_test_cells(data, table)
    place, extra = find_rows(table.ids, given[LAYER], MATCHES[match], vectors)
    origin = {name: part.content for name, part in given.items()}
    origin |= {"kind": kind, "match": match, "provenance": digest(provenance.encode())}
    spec = {LAYER: Layer(shape=(given[LAYER].dim,), dtype=DTYPE_OF[dtype], kind=KINDS[kind])}
    if LOGITS in given:
        spec[LOGITS] = Layer(shape=(given[LOGITS].dim,), dtype="float32", kind="logits")
    notes = {"teacher": f"imported: {vectors.name}", "provenance": provenance}
    plan = plan_import(data, table, spec, origin, dtype, STORES[store], notes)
    refuse_gaps(plan, table.labels, table.groups, place, max_failed)
    write_vectors(out, plan, samples_of(table), given, place, data, vectors.name)
    prepared = {"vectors given": len(given[LAYER].ids), "of no sample": extra}
    return open_cache(out).info() | {"prepared": prepared, "left_out": {}}


def plan_import(
    data: Dataset,
    table: SampleTable,
    layers: dict[str, Layer],
    origin: Mapping[str, str],
    dtype: str,
    store: Store,
    notes: dict[str, str],
) -> Plan:
    """Everything the cache's vectors follow from, and its layout."""
    shard_rows, chunk_rows = shard_and_chunk_rows(len(table), None, store)
    return Plan(
        causes={
            "imported": dict(origin),
            "dtype": dtype,
            "layers": [*layers],
            "views": "none",
            "dataset": dataset_causes(data, table),
        },
        layers=layers,
        rows=len(table),
        shard_rows=shard_rows,
        chunk_rows=chunk_rows,
        store=store,
        images=store == "webdataset",
        class_names=data.class_names,
        group_names=data.group_names,
        notes=notes,
    )


def write_vectors(
    out: str,
    plan: Plan,
    samples: Samples,
    given: Mapping[str, Imported],
    place: NDArray[np.int64],
    data: Dataset,
    name: str,
) -> None:
    """Write the shards that are missing. Rows without a vector (`place` < 0) fail."""
    image = image_reader(samples, data)
    with open_writer(out, plan, samples) as writer:
        pending = writer.pending()
        left = sum(stop - start for start, stop in map(plan.bounds, pending))
        with progress(f"import {name}", "vectors", plan.rows, plan.rows - left) as advance:
            for shard in pending:
                start, stop = plan.bounds(shard)
                rows = np.maximum(place[start:stop], 0)
                lost = {row: NO_VECTOR for row in range(start, stop) if place[row] < 0}
                arrays = {layer: part.take(rows)[:, None] for layer, part in given.items()}
                writer.write_shard(shard, arrays, lost, lambda row: image(samples.ids[row]))
                advance(stop - start)
        writer.finish()


def refuse_other_ids(given: Mapping[str, Imported], path: Path) -> None:
    """Raise ImportedVectorsError unless the logits belong to the same ids, in the same order, as the vectors."""
    if not np.array_equal(given[LOGITS].ids, given[LAYER].ids):
        raise ImportedVectorsError(
            where=str(path),
            found="other ids than the vectors have",
            wanted="the same, in the same order",
            fix="sort them",
        )


def find_rows(
    wanted: NDArray[np.object_], given: Imported, form: Callable[[str], str], path: Path
) -> tuple[NDArray[np.int64], int]:
    """For each wanted id the row of its vector, -1 where there is none; and how many vectors belong to no sample.

    Raises ImportedVectorsError where a form of an id fits several, or nothing fits at all.
    """
    names = [form(id) for id in given.ids.tolist()]
    doubled = [name for name, count in Counter(names).items() if count > 1]
    asked = [form(id) for id in wanted.tolist()]
    doubled += [name for name, count in Counter(asked).items() if count > 1]
    if doubled:
        found = f"{len(doubled)} names that fit several ids: {', '.join(map(repr, doubled[:10]))}"
        raise ImportedVectorsError(where=str(path), found=found, wanted="one id a name", fix="use --match exact")
    rows = {name: row for row, name in enumerate(names)}
    place = np.array([rows.get(name, -1) for name in asked], np.int64)
    if (place < 0).all():
        raise ImportedVectorsError(
            where=str(path),
            found=f"ids such as {', '.join(map(repr, given.ids[:3].tolist()))}, none of them a sample's",
            wanted=f"ids such as {', '.join(map(repr, wanted[:3].tolist()))}",
            fix="try --match stem, or rename them",
        )
    return place, len({*names} - {*asked})


def refuse_wrong_kind(given: Imported, kind: str, path: Path) -> None:
    """Vectors of length one are normalised projections, whatever they are called. Raises FeatureError."""
    rows = np.linspace(0, len(given.ids) - 1, min(1000, len(given.ids))).astype(np.int64)
    norms = np.linalg.norm(given.take(rows), axis=1)
    if kind in ("penultimate", "projection") and np.allclose(norms, 1.0, atol=1e-2):
        raise FeatureError(
            where=str(path),
            found="vectors that all have length 1",
            wanted=f"raw {kind} vectors",
            fix="say what they are: --kind projection_l2",
        )


def refuse_gaps(
    plan: Plan, labels: NDArray[np.int64], groups: NDArray[np.int64], place: NDArray[np.int64], max_failed: float
) -> None:
    """Raise DataError, with the counts per cell, where too many samples have no vector."""
    missing = np.flatnonzero(place < 0)
    if len(missing) <= max_failed * plan.rows:
        return
    cells = Counter(f"{labels[row]},{groups[row]}" for row in missing.tolist())
    counts = "; ".join(
        f"{name_of_cell(plan.class_names, plan.group_names, key)}: {n}" for key, n in sorted(cells.items())
    )
    raise DataError(
        where="import",
        found=f"no vector for {len(missing)} of {plan.rows} samples ({counts})",
        wanted=f"at most {max_failed:.1%}",
        fix="check the ids (--match stem compares file names), or allow more with --max-failed",
    )


def export(cache: str, out: Path, layer: str = LAYER) -> dict[str, Any]:
    """Write a layer's first view as img_emb/img_emb_N.npy and metadata/metadata_N.parquet (image_path = id, label, group,
    split, status) into the new folder `out`, which appears whole or not at all."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    store = open_cache(cache)
    store.require_complete()
    if layer not in (known := store.manifest.layers()):
        raise UsageError(where="--layer", found=repr(layer), wanted=f"one of {', '.join(known)}", fix="choose one")
    if out.exists():
        raise UsageError(where=str(out), found="something there already", wanted="a new folder", fix="choose another")
    dtype, samples, rows = known[layer].dtype, store.samples, store.manifest.plan.rows
    partial = out.with_name(f"{out.name}.partial-{uuid.uuid4().hex}")
    try:
        (partial / "img_emb").mkdir(parents=True)
        (partial / "metadata").mkdir()
        for number, start in enumerate(range(0, rows, EXPORT_ROWS)):
            piece = slice(start, min(start + EXPORT_ROWS, rows))
            stored = store.read(layer, piece.start, piece.stop)[:, 0]
            vectors = from_storage(stored, dtype) if dtype == "bfloat16" else stored
            np.save(partial / "img_emb" / f"img_emb_{number}.npy", vectors)
            columns: dict[str, Any] = {"image_path": samples.ids[piece].tolist(), "label": samples.labels[piece]}
            columns |= {"group": samples.groups[piece], "split": samples.splits[piece].tolist()}
            columns["status"] = samples.status[piece].tolist()
            pq.write_table(pa.table(columns), partial / "metadata" / f"metadata_{number}.parquet")
        partial.rename(out)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise storage_error(out, error, 0) from error
    return {"exported": str(out), "rows": rows, "layer": layer, "fingerprint": store.fingerprint}
