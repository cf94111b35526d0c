"""Vectors from elsewhere into a cache, matched to a data set by id; and a cache's vectors out, for others."""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from bird.datasets import open_dataset
from bird.datasets.base import Dataset, SampleTable, prepare
from bird.datasets.own import open_own
from bird.errors import DataError, UsageError, unknown_name
from bird_cache.create import shard_and_chunk_rows
from bird_cache.errors import FeatureError, ImportedVectorsError
from bird_cache.files import digest, storage_error
from bird_cache.importers import Imported, read_vectors
from bird_cache.manifest import Kind, Layer, LeftOut, Plan, Store
from bird_cache.numbers import DTYPES, Dtype, from_storage
from bird_cache.samples import Samples
from bird_cache.store import FeatureStore, open_cache
from bird_cache.summary import name_of_cell
from bird_cache.writer import open_writer
from bird_pipelines.config.reading import own_parts
from bird_pipelines.precomputing.caches import image_reader
from bird_pipelines.precomputing.extraction import need_room
from bird_pipelines.precomputing.plan import dataset_causes, factors_of, require_cells, samples_of
from bird_pipelines.progress import Interrupted, progress, stop_requests, tell_remarks

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
EXPORT_ROWS = 65_536
CHECK_ROWS = 4096
UNIT = 1e-2  # how far from 1 the length of a normalised vector may be: float16 rounds it by less


Matcher = Callable[[list[str], list[str]], list[list[int]]]
"""For each wanted id, the rows of the given ids that fit it."""


def rows_by(form: Callable[[str], str]) -> Matcher:
    """Ids fit where their forms are equal."""

    def match(wanted: list[str], given: list[str]) -> list[list[int]]:
        rows = defaultdict(list)
        for row, id in enumerate(given):
            rows[form(id)].append(row)
        return [rows.get(form(id), []) for id in wanted]

    return match


def rows_by_suffix(wanted: list[str], given: list[str]) -> list[list[int]]:
    """Ids fit where one, as a path, is the end of the other: a/b/c.png and b/c.png."""
    whole, ends = defaultdict(list), defaultdict(list)
    for row, id in enumerate(given):
        whole[id.strip("/")].append(row)
        for end in _ends(id):
            ends[end].append(row)
    return [
        sorted({*ends.get(id.strip("/"), []), *(row for end in _ends(id) for row in whole.get(end, []))})
        for id in wanted
    ]


def _ends(id: str) -> list[str]:
    parts = id.strip("/").split("/")
    return ["/".join(parts[first:]) for first in range(len(parts))]


MATCHES: dict[str, Matcher] = {
    "exact": rows_by(lambda id: id),
    "stem": rows_by(lambda id: Path(id).stem),
    "path-suffix": rows_by_suffix,
}


def import_vectors(
    vectors: Path,
    dataset: str,
    out: str,
    *,
    kind: str,
    provenance: str,
    ids: Path | None = None,
    logits: Path | None = None,
    id_column: str | None = None,
    vector_column: str | None = None,
    match: str = "exact",
    data_root: Path | None = None,
    dtype: str = "float16",
    limit: int | None = None,
    settings: Mapping[str, Any] | None = None,
    keep_conflicts: bool = False,
    max_failed: float = 0.01,
    teacher_name: str | None = None,
    store: str = "zarr",
) -> dict[str, Any]:
    """Write (or finish writing) a cache of imported vectors; returns what it holds, with the counts of the match.

    Samples without a vector become failed rows, counted per (class, group). Raises ImportedVectorsError for unusable
    files, UsageError, DataError where more than `max_failed` of the rows have none or a whole cell of a split has none,
    FeatureError for NaN, constant vectors, overflow, or another kind than they are; StorageError; Interrupted.
    """
    known: dict[str, Any] = {"--kind": KINDS, "--match": MATCHES, "--dtype": DTYPES, "--store": STORES}
    for name, value in {"--kind": kind, "--match": match, "--dtype": dtype, "--store": store}.items():
        if value not in known[name]:
            raise unknown_name(name, value, known[name])
    if not provenance.strip():
        fix = "say it in words: nobody can find out later"
        raise UsageError(where="--provenance", found="no text", wanted="model, version and who ran it", fix=fix)
    given = read_layers(vectors, logits, ids, id_column, vector_column)
    part = own_parts({"dataset": dataset}).get("dataset")
    data = open_own(part, data_root, settings or {}) if part else open_dataset(dataset, data_root, **(settings or {}))
    table = prepare(data, limit=limit, keep_conflicts=keep_conflicts, max_problem_share=max_failed)
    require_cells(data, table)
    tell_remarks(data.remarks)
    place = find_rows(table.ids, given[LAYER], MATCHES[match], vectors)
    refuse_gaps(data, table, place, max_failed)
    refuse_unusable(table, given[LAYER], place, kind, vectors)
    origin = {name: part.content for name, part in given.items()}
    origin |= {"kind": kind, "match": match, "provenance": digest(provenance.encode())}
    spec = {LAYER: Layer(shape=(given[LAYER].dim,), dtype=DTYPE_OF[dtype], kind=KINDS[kind])}
    if LOGITS in given:
        spec[LOGITS] = Layer(shape=(given[LOGITS].dim,), dtype="float32", kind="logits")
    notes = {"teacher": teacher_name or f"imported: {vectors.name}", "provenance": provenance}
    notes["source"] = given[LAYER].source
    plan = plan_import(data, table, spec, origin, dtype, STORES[store], notes)
    write_vectors(out, plan, samples_of(table), given, place, data, vectors.name)
    unusable = {problem.id: problem.reason for problem in table.problems}
    prepared = dict(table.notes) | counts_of(given[LAYER], place)
    return open_cache(out).info() | {"prepared": prepared, "left_out": unusable}


def counts_of(given: Imported, place: NDArray[np.int64]) -> dict[str, int]:
    """What became of the vectors."""
    listed, failed, matched = len(given.ids), int(given.absent.sum()), int((place >= 0).sum())
    counts = {"vectors listed": listed, "failed at their source": failed, "matched": matched}
    return counts | {"of no sample": listed - failed - matched}


def read_layers(
    vectors: Path, logits: Path | None, ids: Path | None, id_column: str | None, vector_column: str | None
) -> dict[str, Imported]:
    """The vectors and, where there are some, the logits: of the same ids in the same order, or ImportedVectorsError.
    `ids` serves whichever of the two is a .npy."""
    files = {LAYER: vectors} | ({LOGITS: logits} if logits is not None else {})
    plain = {name: path.suffix == ".npy" and not path.is_dir() for name, path in files.items()}
    if ids is not None and not any(plain.values()):
        fix = "leave --ids out"
        raise UsageError(where="--ids", found=str(ids), wanted="ids of a .npy; other files hold theirs", fix=fix)
    given = {
        name: read_vectors(path, ids if plain[name] else None, id_column=id_column, vector_column=vector_column)
        for name, path in files.items()
    }
    if LOGITS in given and not np.array_equal(given[LOGITS].ids, given[LAYER].ids):
        found = "other ids than the vectors have"
        raise ImportedVectorsError(
            where=str(logits), found=found, wanted="the same, in the same order", fix="sort them"
        )
    return given


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
        factors=factors_of(data),
        notes=notes,
        left_out=LeftOut.of(table.left_out),
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
    """Write the shards that are missing. Rows without a vector (`place` < 0) fail. Raises Interrupted between shards."""
    image = image_reader(samples, data)
    with open_writer(out, plan, samples, alone=True) as writer, stop_requests() as stop:
        pending = writer.pending()
        left = sum(end - start for start, end in map(plan.bounds, pending))
        need_room(writer.folder, plan, left)
        with progress(f"import {name}", "vectors", plan.rows, plan.rows - left) as advance:
            for shard in pending:
                if stop():
                    raise Interrupted
                start, end = plan.bounds(shard)
                rows = np.maximum(place[start:end], 0)
                lost = {row: NO_VECTOR for row in range(start, end) if place[row] < 0}
                arrays = {layer: part.take(rows)[:, None] for layer, part in given.items()}
                writer.write_shard(shard, arrays, lost, lambda row: image(samples.ids[row]))
                advance(end - start)
        writer.finish()


def find_rows(wanted: NDArray[np.object_], given: Imported, matcher: Matcher, path: Path) -> NDArray[np.int64]:
    """For each wanted id the row of its vector, -1 where there is none.

    Raises ImportedVectorsError where an id fits several vectors or a vector several ids, or nothing fits at all.
    """
    asked = wanted.tolist()
    fits = matcher(asked, given.ids.tolist())
    users = Counter(row for rows in fits for row in rows)
    doubtful = [
        id for id, rows in zip(asked, fits, strict=True) if len(rows) > 1 or any(users[row] > 1 for row in rows)
    ]
    if doubtful:
        found = f"{len(doubtful)} samples that share vectors or fit several: {', '.join(map(repr, doubtful[:10]))}"
        raise ImportedVectorsError(where=str(path), found=found, wanted="one vector a sample", fix="use --match exact")
    place = np.array([rows[0] if rows and not given.absent[rows[0]] else -1 for rows in fits], np.int64)
    if (place < 0).all():
        raise ImportedVectorsError(
            where=str(path),
            found=f"ids such as {', '.join(map(repr, given.ids[:3].tolist()))}, none of them a sample's",
            wanted=f"ids such as {', '.join(map(repr, wanted[:3].tolist()))}",
            fix="try --match stem or path-suffix, or rename them",
        )
    return place


def refuse_gaps(data: Dataset, table: SampleTable, place: NDArray[np.int64], max_failed: float) -> None:
    """Raise DataError, with the counts per cell, where too many samples have no vector, or a cell of a split keeps none:
    a cell that an import emptied is a bias of its making, whatever the share."""
    columns = (table.splits.tolist(), table.labels.tolist(), table.groups.tolist())
    cells = list(zip(*columns, strict=True))
    missing = Counter(cell for cell, row in zip(cells, place.tolist(), strict=True) if row < 0)
    rows = Counter(cells)
    emptied = [cell for cell, count in missing.items() if count == rows[cell]]
    if missing.total() <= max_failed * len(table) and not emptied:
        return
    counts = "; ".join(
        f"{split} {name_of_cell(data.class_names, data.group_names, f'{label},{group}')}: {count} of {rows[cell]}"
        for cell, count in sorted(missing.items())
        for split, label, group in [cell]
    )
    too_many = missing.total() > max_failed * len(table)
    raise DataError(
        where="import",
        found=f"no vector for {missing.total()} of {len(table)} samples ({counts})",
        wanted=f"at most {max_failed:.1%}" if too_many else "a vector in every class and group of every split",
        fix="check the ids (--match stem compares file names)"
        + (", or allow more with --max-failed" if too_many else "; --max-failed does not allow empty cells"),
    )


def refuse_unusable(table: SampleTable, given: Imported, place: NDArray[np.int64], kind: str, path: Path) -> None:
    """Look at every vector that will be stored, before anything is. Raises FeatureError, naming the ids, for NaN, zero or
    constant vectors, for the same vector everywhere, and for lengths that contradict `kind`."""
    rows = np.flatnonzero(place >= 0)
    first = given.take(place[rows[:1]])
    not_finite, flat, same, lengths = [], [], True, []
    for start in range(0, len(rows), CHECK_ROWS):
        part = rows[start : start + CHECK_ROWS]
        vectors = given.take(place[part])
        not_finite += part[~np.isfinite(vectors).all(axis=1)].tolist()
        flat += part[(vectors == vectors[:, :1]).all(axis=1)].tolist()
        same = same and bool((vectors == first).all())
        lengths.append(np.linalg.norm(vectors.astype(np.float64), axis=1))
    norms = np.concatenate(lengths)
    unit = bool((np.abs(norms - 1) < UNIT).all())

    def wrong(found: str, wanted: str, fix: str, at: list[int]) -> FeatureError:
        names = f" for {len(at)} samples: {', '.join(table.ids[at[:10]].tolist())}" if at else ""
        return FeatureError(where=str(path), found=found + names, wanted=wanted, fix=fix)

    if not_finite:
        raise wrong("NaN or infinite vectors", "finite vectors", "compute these again", not_finite)
    if flat and given.dim > 1 and kind != LOGITS:
        fix = "compute these again, or leave them out and see --max-failed"
        raise wrong("vectors that are zero or constant", "vectors that say something of their image", fix, flat)
    if same and len(rows) > 1:
        raise wrong("one and the same vector", "a vector for each image", "check how they were made", rows.tolist())
    if unit and kind in ("penultimate", "projection"):
        fix = "say what they are: --kind projection_l2"
        raise wrong("vectors that all have length 1", f"raw {kind} vectors", fix, [])
    if kind == "projection_l2" and not unit:
        fix = "say what they are: --kind projection or penultimate"
        raise wrong(f"lengths from {norms.min():.3g} to {norms.max():.3g}", "vectors of length 1", fix, [])


def export(cache: str, out: Path, layer: str = LAYER) -> dict[str, Any]:
    """Write a layer's first view as img_emb/img_emb_N.npy and metadata/metadata_N.parquet (image_path = id, label, group,
    split, status; N has as many digits as the largest) into the new folder `out`, which appears whole or not at all.

    float16 and float32 stay as they are, bfloat16 becomes float32. Raises UsageError where `out` exists or the layer
    does not, what reading the cache raises, StorageError.
    """
    store = open_cache(cache)
    store.require_complete()
    if layer not in (known := store.manifest.layers()):
        raise unknown_name("--layer", layer, known)
    if out.exists() or out.is_symlink():
        raise UsageError(where=str(out), found="something there already", wanted="a new folder", fix="choose another")
    rows = store.manifest.plan.rows
    partial = out.with_name(f"{out.name}.partial-{uuid.uuid4().hex}")
    try:
        for name in ("img_emb", "metadata"):
            (partial / name).mkdir(parents=True)
        with progress(f"export {layer}", "vectors", rows) as advance:
            starts = range(0, rows, EXPORT_ROWS)
            digits = len(str(len(starts) - 1))  # clip-retrieval's readers take the files in the order of their names
            for number, start in enumerate(starts):
                piece = slice(start, min(start + EXPORT_ROWS, rows))
                export_piece(store, layer, piece, partial, f"{number:0{digits}d}")
                advance(piece.stop - piece.start)
        partial.rename(out)
    except OSError as error:
        raise storage_error(out, error, 0) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return {"exported": str(out), "rows": rows, "layer": layer, "fingerprint": store.fingerprint}


def export_piece(store: FeatureStore, layer: str, piece: slice, folder: Path, number: str) -> None:
    """One pair of files, of the rows `piece`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    dtype, samples = store.manifest.layers()[layer].dtype, store.samples
    stored = store.read(layer, piece.start, piece.stop)[:, 0]
    vectors = from_storage(stored, dtype) if dtype == "bfloat16" else stored
    columns: dict[str, Any] = {"image_path": samples.ids[piece].tolist(), "label": samples.labels[piece]}
    columns |= {"group": samples.groups[piece], "split": samples.splits[piece].tolist()}
    columns["status"] = samples.status[piece].tolist()
    with synced(folder / "img_emb" / f"img_emb_{number}.npy") as file:
        np.save(file, vectors, allow_pickle=False)
    with synced(folder / "metadata" / f"metadata_{number}.parquet") as file:
        pq.write_table(pa.table(columns), file)


@contextlib.contextmanager
def synced(path: Path) -> Iterator[BinaryIO]:
    """A new file that is on the disk when the block ends."""
    with open(path, "xb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
