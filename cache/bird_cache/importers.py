"""Vectors that somebody else computed, in the files that people keep them in. Nothing in them is executed.

vectors.npy + ids.txt | ids.csv       one row a sample, in the order of the ids
vectors.parquet                       a column of ids, and a column of lists (or one numeric column a dimension)
a folder of clip-retrieval            img_emb/img_emb_*.npy and metadata/metadata_*.parquet
"""

from __future__ import annotations

import csv
import dataclasses
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bird_cache.errors import ImportedVectorsError
from bird_cache.files import canonical_json, digest, file_digest

__all__ = ["Imported", "read_vectors"]

ID_COLUMNS = ("id", "image_path", "key", "path")


@dataclasses.dataclass(frozen=True)
class Imported:
    """`blocks` joined hold one row for each of `ids`; they are mapped, not read, where the file allows it. `content` is
    the digest of the ids and of the files' bytes."""

    ids: NDArray[np.object_]
    blocks: Sequence[NDArray[Any]]
    content: str

    @property
    def dim(self) -> int:
        """Width of a vector."""
        return int(self.blocks[0].shape[1])

    def take(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """The given rows as float32, (rows, dim)."""
        out = np.empty((len(rows), self.dim), np.float32)
        first = 0
        for block in self.blocks:
            mine = (rows >= first) & (rows < first + len(block))
            out[mine] = block[rows[mine] - first]
            first += len(block)
        return out


def read_vectors(path: Path, ids: Path | None = None) -> Imported:
    """The vectors in `path`, with the ids beside them. Raises ImportedVectorsError for files of another kind, damaged,
    hostile or contradictory, and for ids that are missing, doubled, or equal but for their unicode form."""
    if path.is_dir():
        found = _clip_retrieval(path)
    elif path.suffix == ".parquet":
        found = _parquet(path)
    elif path.suffix == ".npy":
        if ids is None:
            raise _refuse(path, "no ids", "the samples' ids, in the vectors' order", "give --ids FILE (.txt or .csv)")
        found = Imported(_read_ids(ids), [_npy(path)], digest(canonical_json([file_digest(path), file_digest(ids)])))
    else:
        raise _refuse(path, "a file of another kind", ".npy, .parquet, or a clip-retrieval folder", "convert it")
    rows = sum(len(block) for block in found.blocks)
    if rows != len(found.ids):
        raise _refuse(path, f"{rows:,} vectors for {len(found.ids):,} ids", "one vector an id", "check the two files")
    _check_ids(path, found.ids)
    return found


def _npy(path: Path) -> NDArray[Any]:
    """A mapped .npy of numbers, (n, d). What its header claims is compared with the file's size before anything else."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # numpy's reader of headers fails in many ways
        found = f"a file that is not a plain .npy of numbers ({str(error)[:120]})"
        raise _refuse(path, found, "float vectors, (n, d)", "save them with numpy.save") from None
    if array.ndim != 2 or array.dtype.kind != "f" or not array.size:
        raise _refuse(path, f"{array.dtype} of shape {array.shape}", "float vectors, (n, d)", "save them so")
    return array  # type: ignore[no-any-return]


def _read_ids(path: Path) -> NDArray[np.object_]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise _refuse(path, str(error), "UTF-8 text", "check the file") from None
    if "\0" in text:
        raise _refuse(path, "a NUL character", "one id a line", "check the file")
    if path.suffix == ".csv":
        rows = list(csv.DictReader(text.splitlines()))
        column = next((name for name in ID_COLUMNS if rows and name in rows[0]), None)
        if column is None:
            raise _refuse(
                path, "no column of ids", f"one of {', '.join(ID_COLUMNS)}", "name the column in its first line"
            )
        return _strings([row[column] for row in rows])
    return _strings(text.splitlines())


def _parquet(path: Path) -> Imported:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise _refuse(
            path, f"no Parquet table ({str(error).splitlines()[0][:120]})", "a Parquet file", "check it"
        ) from None
    column = next((name for name in ID_COLUMNS if name in table.column_names), None)
    if column is None:
        raise _refuse(path, f"columns {table.column_names[:8]}", f"ids in one of {', '.join(ID_COLUMNS)}", "rename it")
    if table[column].null_count:
        raise _refuse(path, f"{table[column].null_count} rows without an id", "an id for every vector", "fill them in")
    lists = [name for name in table.column_names if _is_list(table.schema.field(name).type)]
    numbers = [name for name in table.column_names if pa.types.is_floating(table.schema.field(name).type)]
    if len(lists) == 1:
        vectors = table[lists[0]].combine_chunks()
        flat = vectors.flatten().to_numpy(zero_copy_only=False)
        if len(table) == 0 or vectors.null_count or len(flat) % len(table):
            raise _refuse(path, f"vectors of several widths in {lists[0]}", "one width for all", "check the column")
        block = flat.reshape(len(table), -1)
        widths = pc.list_value_length(vectors).to_numpy(zero_copy_only=False)  # of every row: one other shifts all
        if (widths != block.shape[1]).any():
            raise _refuse(path, f"vectors of several widths in {lists[0]}", "one width for all", "check the column")
    elif not lists and numbers:
        block = np.stack([table[name].to_numpy() for name in numbers], axis=1)
    else:
        raise _refuse(path, f"list columns {lists}", "one column of lists, or numeric columns", "leave the others out")
    if block.dtype.kind != "f":
        raise _refuse(path, f"vectors of {block.dtype}", "floating point numbers", "check the column")
    ids = _strings([str(value) for value in table[column].to_pylist()])
    return Imported(ids, [block], file_digest(path))


def _is_list(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _clip_retrieval(path: Path) -> Imported:
    import pyarrow as pa
    import pyarrow.parquet as pq

    vectors = {_number(file): file for file in path.glob("img_emb/img_emb_*.npy")}
    tables = {_number(file): file for file in path.glob("metadata/metadata_*.parquet")}
    if not vectors or vectors.keys() != tables.keys():
        found = f"{len(vectors)} files img_emb/img_emb_*.npy and {len(tables)} files metadata/metadata_*.parquet"
        raise _refuse(path, found, "the output of clip-retrieval inference, both for every number", "check the folder")
    ids: list[str] = []
    blocks: list[NDArray[Any]] = []
    for number in sorted(vectors):
        block = _npy(vectors[number])
        try:
            table = pq.read_table(tables[number])
        except (OSError, pa.ArrowException) as error:
            raise _refuse(tables[number], f"no Parquet table ({error})", "a Parquet file", "check it") from None
        column = next((name for name in ID_COLUMNS if name in table.column_names), None)
        if column is None or len(table) != len(block) or (blocks and block.shape[1] != blocks[0].shape[1]):
            found = f"{len(table)} rows with columns {table.column_names[:6]} beside vectors of shape {block.shape}"
            raise _refuse(tables[number], found, "one row with image_path for every vector", "check the two files")
        ids += [str(value) for value in table[column].to_pylist()]
        blocks.append(block)
    files = [file_digest(file) for number in sorted(vectors) for file in (vectors[number], tables[number])]
    return Imported(_strings(ids), blocks, digest(canonical_json(files)))


def _number(file: Path) -> int:
    digits = file.stem.rpartition("_")[2]
    return int(digits) if digits.isdigit() else -1


def _check_ids(path: Path, ids: NDArray[np.object_]) -> None:
    empty = [position for position, id in enumerate(ids.tolist()) if not id]
    if empty:
        raise _refuse(path, f"empty ids at rows {empty[:10]}", "an id for every vector", "fill them in")
    for what, names in (("", ids.tolist()), (" after unicode normalisation", [_normal(id) for id in ids.tolist()])):
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            listed = ", ".join(map(repr, twice[:10]))
            raise _refuse(
                path, f"{len(twice)} ids more than once{what}: {listed}", "every id once", "remove the copies"
            )


def _normal(id: str) -> str:
    return unicodedata.normalize("NFC", id)


def _strings(values: Sequence[str]) -> NDArray[np.object_]:
    out = np.empty(len(values), dtype=object)
    out[:] = values
    return out


def _refuse(path: Path, found: str, wanted: str, fix: str) -> ImportedVectorsError:
    return ImportedVectorsError(where=str(path), found=found, wanted=wanted, fix=fix)
