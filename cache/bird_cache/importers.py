"""Vectors that somebody else computed, in the files that people keep them in. Nothing in them is executed.

vectors.npy + ids.txt | ids.csv       one row a sample, in the order of the ids
vectors.parquet                       a column of ids, and a column of lists (or one numbered column a dimension)
a folder of clip-retrieval            img_emb/img_emb_*.npy and metadata/metadata_*.parquet

.npy files are mapped. Parquet is decoded once, batch by batch, into an unnamed temporary file (TMPDIR says where), which
is mapped: rows can then be taken in any order, and memory stays bounded however well the file was compressed.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import os
import re
import shutil
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from bird_cache.errors import ImportedVectorsError, StorageError
from bird_cache.files import canonical_json, digest, file_digest, storage_error
from bird_cache.lists import flattened, inner, is_list, is_nested

__all__ = ["Imported", "read_ids", "read_vectors"]

ID_COLUMNS = ("id", "image_path", "key", "path")
PRESENT = ("ok", "success")
"""what a `status` column says of a row whose vector counts: ours, and img2dataset's"""
WIDEST = 1 << 20
BATCH_BYTES = 1 << 24
ID_BATCH_ROWS = 1 << 14
NAME_IT = "name it with --id-column"


@final
@dataclasses.dataclass(frozen=True)
class Imported:
    """`blocks` joined hold one row for each of `ids`; they are mapped, not read. `absent` marks the rows that the files
    themselves call failed. `content` is the digest of the ids and of the files' bytes; `source` says in words what was
    read, and what was made of it."""

    ids: NDArray[np.object_]
    blocks: Sequence[NDArray[Any]]
    absent: NDArray[np.bool_]
    content: str
    source: str

    @property
    def dim(self) -> int:
        """Width of a vector."""
        return int(self.blocks[0].shape[1])

    def take(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """The given rows as float32, (rows, dim); what float32 cannot hold becomes infinite."""
        out = np.empty((len(rows), self.dim), np.float32)
        first = 0
        for block in self.blocks:
            mine = (rows >= first) & (rows < first + len(block))
            with np.errstate(over="ignore"):
                out[mine] = block[rows[mine] - first]
            first += len(block)
        return out


def read_vectors(
    path: Path, ids: Path | None = None, *, id_column: str | None = None, vector_column: str | None = None
) -> Imported:
    """The vectors in `path`, with the ids beside them (`ids` is for .npy only, the other forms hold their own).

    `id_column` names the column of ids where it is not one of ID_COLUMNS; `vector_column` the column of lists, or the
    prefix of numbered columns, where a table holds several. Raises ImportedVectorsError for files of another kind,
    damaged, hostile or contradictory, and for ids that are missing, doubled, or equal but for their unicode form;
    StorageError where the temporary file does not fit.
    """
    if not path.exists():
        raise _refuse(path, "nothing there", "a file or folder of vectors", "check the path")
    if ids is not None and (path.is_dir() or path.suffix != ".npy"):
        raise _refuse(path, f"ids of its own, and {ids} beside them", "one source of ids", "leave --ids out")
    if path.is_dir():
        found = _clip_retrieval(path, id_column)
    elif path.suffix == ".parquet":
        found = _parquet(path, id_column, vector_column)
    elif path.suffix == ".npy":
        if ids is None:
            raise _refuse(path, "no ids", "the samples' ids, in the vectors' order", "give --ids FILE (.txt or .csv)")
        names, block = read_ids(ids, id_column, fix=NAME_IT), _npy(path)
        _check_ids(ids, names)
        found = _imported(names, [block], [file_digest(path)], f".npy of {block.dtype}, ids from {ids.name}")
    else:
        raise _refuse(path, "a file of another kind", ".npy, .parquet, or a clip-retrieval folder", "convert it")
    rows = sum(len(block) for block in found.blocks)
    if rows != len(found.ids):
        raise _refuse(path, f"{rows:,} vectors for {len(found.ids):,} ids", "one vector an id", "check the two files")
    return found


def _imported(
    ids: list[str], blocks: list[NDArray[Any]], files: Sequence[str], source: str, absent: Sequence[bool] = ()
) -> Imported:
    names = np.empty(len(ids), dtype=object)
    names[:] = ids
    failed = np.array(absent, bool) if len(absent) else np.zeros(len(ids), bool)
    content = digest(canonical_json([ids, np.flatnonzero(failed).tolist(), *files]))
    return Imported(names, blocks, failed, content, source)


def _npy(path: Path) -> NDArray[Any]:
    """A mapped .npy of numbers, (n, d). Only a header is parsed: what it claims must fit into the file, and objects
    (pickles) cannot be mapped at all."""
    try:
        with np.errstate(over="raise"):  # the bytes of an absurd shape, counted
            array = np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # numpy's reader of headers fails in many ways
        found = f"a file that is not a plain .npy of numbers ({str(error)[:120]})"
        raise _refuse(path, found, "float vectors, (n, d)", "save them with numpy.save") from None
    if array.ndim != 2 or array.dtype.kind != "f" or not array.size:
        raise _refuse(path, f"{array.dtype} of shape {array.shape}", "float vectors, (n, d)", "save them so")
    return array


def read_ids(path: Path, id_column: str | None = None, *, fix: str = "name that column id") -> list[str]:
    """Ids in a text file, one a line, or in a column of a .csv; `fix` is what to do where no column is known to hold them.
    Raises ImportedVectorsError."""
    try:
        text = path.read_text(encoding="utf-8-sig")  # spreadsheets put a mark before the first id
    except FileNotFoundError:
        raise _refuse(path, "no such file", ".txt (one id a line) or .csv", "check the path") from None
    except (OSError, UnicodeDecodeError) as error:
        raise _refuse(path, str(error), "UTF-8 text", "check the file") from None
    if path.suffix != ".csv":
        return text.removesuffix("\n").split("\n")  # splitlines would also cut at characters that an id may hold
    try:
        header, *rows = csv.reader(io.StringIO(text), strict=True)
    except (csv.Error, ValueError) as error:
        raise _refuse(path, f"no table ({error})", "comma-separated values under a header", "check the file") from None
    place = header.index(_id_column(path, header, id_column, fix))
    return [row[place] if place < len(row) else "" for row in rows if row]


def _id_column(path: Path, columns: Sequence[str], wanted: str | None, fix: str = NAME_IT) -> str:
    """The column that holds the ids: the wanted one, else the first of ID_COLUMNS that is there."""
    known = [wanted] if wanted is not None else ID_COLUMNS
    column = next((name for name in known if name in columns), None)
    if column is None or columns.count(column) > 1:
        found = f"columns {', '.join(columns[:8])}"
        raise _refuse(path, found, f"ids in just one column {' or '.join(known)}", fix)
    return column


def _parquet(path: Path, id_column: str | None, vector_column: str | None) -> Imported:
    table = _Table(path)
    ids_in = _id_column(path, table.columns, id_column)
    names = _vector_columns(table, ids_in, vector_column)
    ids = table.ids(ids_in)
    _check_ids(path, ids)
    block = _spooled(table, names, len(ids))
    columns = names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"
    kind = table.schema.field(names[0]).type
    columns += f" ({kind}, laid out as {block.shape[1]} numbers)" if is_nested(kind) else ""
    source = f"Parquet of {block.dtype}, columns {ids_in}{table.said(ids_in)} and {columns}"
    return _imported(ids, [block], [file_digest(path), *names], source)


@final
class _Table:
    """A Parquet file that is read a batch at a time; every failure is an ImportedVectorsError."""

    def __init__(self, path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.path, self.failures = path, (OSError, pa.ArrowException)
        try:
            self.file = pq.ParquetFile(pa.OSFile(os.fsencode(path)), pre_buffer=False)
            self.schema, self.metadata = self.file.schema_arrow, self.file.metadata
        except self.failures as error:
            raise self.damaged(error) from None
        self.columns: list[str] = list(self.schema.names)

    def damaged(self, error: Exception) -> ImportedVectorsError:
        said = f"no readable Parquet table ({(str(error).splitlines() or [''])[0][:120]})"
        return _refuse(self.path, said, "a Parquet file", "check it")

    def batches(self, columns: list[str], rows: int) -> Iterator[Any]:
        try:
            yield from self.file.iter_batches(rows, columns=columns, use_threads=False)
        except self.failures as error:
            raise self.damaged(error) from None

    def is_text(self, column: str) -> bool:
        import pyarrow as pa

        kind = self.schema.field(column).type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        return any(is_it(kind) for is_it in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view))

    def said(self, column: str) -> str:
        """What was made of the ids, where they were not text."""
        return "" if self.is_text(column) else f" ({self.schema.field(column).type}, taken as text)"

    def ids(self, column: str) -> list[str]:
        """A column as text. Integers are turned into it; anything else, and a missing id, is refused."""
        import pyarrow as pa
        import pyarrow.compute as pc

        if not self.is_text(column) and not pa.types.is_integer(kind := self.schema.field(column).type):
            fix = f"choose another --id-column, or save {column} as text (pyarrow: column.cast('string'))"
            raise _refuse(self.path, f"ids of type {kind} in {column}", "text or integers", fix)
        ids: list[str] = []
        seen: set[str] = set()
        for batch in self.batches([column], ID_BATCH_ROWS):
            try:
                values = pc.cast(batch.column(0), pa.string()).to_pylist()
            except (*self.failures, UnicodeDecodeError) as error:
                raise self.damaged(error) from None
            ids += [value or "" for value in values]
            seen.update(ids[-len(values) :] if values else ())
            if len(seen) < len(ids):
                break  # to be refused: a small file can promise billions of equal ids
        return ids


def _vector_columns(table: _Table, ids: str, wanted: str | None) -> list[str]:
    """The column of lists, or the numbered columns in the order of their numbers. A lone list wins over numbers."""
    import pyarrow as pa

    fields = [table.schema.field(place) for place in range(len(table.columns))]
    lists = {field.name: [field.name] for field in fields if is_list(field.type)}
    numbered: dict[str, dict[int, str]] = {}
    for field in fields:
        parts = re.fullmatch(r"(.*?)([0-9]{1,9})", field.name)
        if parts and field.name != ids and pa.types.is_floating(field.type):
            numbered.setdefault(parts[1], {})[int(parts[2])] = field.name
    families = {prefix: [names[number] for number in sorted(names)] for prefix, names in numbered.items()}
    choices = (
        {wanted: (lists | families)[wanted]} if wanted in lists | families else {} if wanted else lists or families
    )
    if len(choices) != 1:
        types = ", ".join(f"{field.name} ({field.type})" for field in fields[:8])
        found = f"columns {types}, of which {len(choices)} could hold the vectors"
        hint = "one column of lists of numbers, or float columns f0, f1, ..."
        fix = "name it (or the prefix) with --vector-column"
        if not choices and wanted is None:
            fix = "save the vectors as lists of float32, or as .npy with --ids"
        elif not choices:
            fix = f"there are {', '.join(map(repr, lists | families)) or 'none'}: {fix}"
        raise _refuse(table.path, found, hint, fix)
    key, names = next(iter(choices.items()))
    if any(table.columns.count(name) > 1 for name in names):
        raise _refuse(table.path, f"two columns of one name in {key}", "each name once", "rename them")
    if key in families and key not in lists and max(numbered[key]) - min(numbered[key]) + 1 != len(names):
        raise _refuse(table.path, f"{len(names)} columns {names[0]} to {names[-1]}", "no number missing", "add them")
    return names


def _spooled(table: _Table, names: list[str], rows: int) -> NDArray[Any]:
    """The columns as one mapped array (rows, width) in a temporary file that vanishes with the process."""
    width, dtype = _width_and_dtype(table, names)
    row_bytes = width * dtype.itemsize
    folder = Path(tempfile.gettempdir())
    if (free := shutil.disk_usage(folder).free) < rows * row_bytes:
        raise StorageError(
            where=str(folder),
            found=f"{free:,} bytes free",
            wanted=f"{rows * row_bytes:,} bytes for {rows:,} vectors of {table.path.name}",
            fix="make room, or point TMPDIR to a disk that has it",
        )
    with tempfile.TemporaryFile() as file:
        done = 0
        for batch in table.batches(names, max(1, BATCH_BYTES // row_bytes)):
            block = _block(table.path, batch, names, width, done)
            try:
                file.write(np.ascontiguousarray(block, dtype).data)
            except OSError as error:
                raise storage_error(folder, error, rows * row_bytes) from error
            done += len(block)
        file.flush()
        if done != rows or not rows:
            raise _refuse(table.path, f"{done:,} vectors for {rows:,} ids", "one vector an id", "check the file")
        return np.memmap(file, dtype, "r", shape=(rows, width))


def _width_and_dtype(table: _Table, names: list[str]) -> tuple[int, np.dtype[Any]]:
    """What the file's description says, before a value is decoded."""
    import pyarrow as pa

    kind = table.schema.field(names[0]).type
    value, fixed = inner(kind)
    if not pa.types.is_floating(value):
        fix = "choose another --vector-column, or save them as float32"
        raise _refuse(table.path, f"vectors of {value} in {names[0]}", "floating point numbers", fix)
    if not is_list(kind):
        width, rest = len(names), 0
    elif fixed is not None:
        width, rest = fixed, 0
    else:
        groups = (table.metadata.row_group(number) for number in range(table.metadata.num_row_groups))
        columns = (group.column(place) for group in groups for place in range(group.num_columns))
        values = sum(column.num_values for column in columns if column.path_in_schema.startswith(f"{names[0]}."))
        width, rest = divmod(values, max(1, table.metadata.num_rows))
    if rest or not 1 <= width <= WIDEST:
        found = f"vectors of several widths in {names[0]}" if rest else f"vectors of width {width}"
        raise _refuse(table.path, found, f"one width for all, from 1 to {WIDEST:,}", "check the column")
    return width, np.result_type(*(_numpy_dtype(table, name) for name in names))


def _numpy_dtype(table: _Table, name: str) -> np.dtype[Any]:
    dtype: np.dtype[Any] = np.dtype(inner(table.schema.field(name).type)[0].to_pandas_dtype())
    return dtype


def _block(path: Path, batch: Any, names: list[str], width: int, first: int) -> NDArray[Any]:
    """One batch as (rows, width), every vector's width checked: a short one would shift all that follow."""
    column = batch.column(names[0])
    if not is_list(column.type):
        return np.stack([batch.column(name).to_numpy(zero_copy_only=False) for name in names], axis=1)
    try:
        return flattened(column, width, first)
    except ValueError as error:
        found = f"vectors of several widths in {names[0]}: rows {error}"
        raise _refuse(path, found, f"one width for all (here {width})", "check the column") from None


def _clip_retrieval(path: Path, id_column: str | None) -> Imported:
    vectors, tables = _numbered(path, "img_emb/img_emb_*.npy"), _numbered(path, "metadata/metadata_*.parquet")
    if not vectors or vectors.keys() != tables.keys():
        found = f"{len(vectors)} files img_emb/img_emb_*.npy and {len(tables)} files metadata/metadata_*.parquet"
        raise _refuse(path, found, "the output of clip-retrieval inference, both for every number", "check the folder")
    ids: list[str] = []
    absent: list[bool] = []
    blocks: list[NDArray[Any]] = []
    said = ""
    for number in sorted(vectors):
        block, table = _npy(vectors[number]), _Table(tables[number])
        if table.metadata.num_rows != len(block) or (blocks and block.shape[1] != blocks[0].shape[1]):
            found = f"{table.metadata.num_rows:,} rows beside vectors of shape {block.shape}"
            raise _refuse(tables[number], found, "one row for every vector, one width for all", "check the two files")
        column = _id_column(tables[number], table.columns, id_column)
        ids += table.ids(column)
        absent += _absent(table)
        blocks.append(block)
        said = table.said(column)
    _check_ids(path, ids)
    files = [file_digest(vectors[number]) for number in sorted(vectors)]
    source = f"clip-retrieval, {len(blocks)} files of {blocks[0].dtype}, column {column}{said}"
    return _imported(ids, blocks, files, source, absent)


def _numbered(path: Path, pattern: str) -> dict[int, Path]:
    files = sorted(path.glob(pattern))
    digits = [file.stem.rpartition("_")[2] for file in files]
    if not all(map(str.isdecimal, digits)) or len({*map(int, digits)}) < len(files):
        raise _refuse(path, f"{len(files)} files {pattern}", "one of each number", "rename or remove the others")
    return {int(digit): file for digit, file in zip(digits, files, strict=True)}


def _absent(table: _Table) -> Iterable[bool]:
    """Which rows a text column `status`, if there is one, calls failed."""
    if table.columns.count("status") != 1 or not table.is_text("status"):
        return [False] * table.metadata.num_rows
    batches = table.batches(["status"], ID_BATCH_ROWS)
    return [value not in PRESENT for batch in batches for value in batch.column(0).to_pylist()]


def _check_ids(path: Path, ids: list[str]) -> None:
    for what, wrong in (("no id", [not id for id in ids]), ("a NUL character in the id", ["\0" in id for id in ids])):
        if any(wrong):
            found = f"{what} at rows {np.flatnonzero(wrong)[:10].tolist()}"
            raise _refuse(path, found, "a name in text for every vector", "fill them in")
    for what, names in (("", ids), (" after unicode normalisation", [unicodedata.normalize("NFC", id) for id in ids])):
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            listed = ", ".join(map(repr, twice[:10]))
            found = f"{len(twice)} ids more than once{what}: {listed}"
            raise _refuse(path, found, "every id once", "remove the copies")


def _refuse(path: Path, found: str, wanted: str, fix: str) -> ImportedVectorsError:
    return ImportedVectorsError(where=str(path), found=found, wanted=wanted, fix=fix)
