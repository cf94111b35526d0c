"""samples.parquet as a file, written and read in blocks of bounded size: however many rows, a block is all that is held."""

from __future__ import annotations

import contextlib
import io
import os
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, final

import numpy as np
import xxhash
from numpy.typing import NDArray

from bird_cache.errors import DamagedCacheError
from bird_cache.files import canonical_json

__all__ = ["GROUP_ROWS", "UNIQUE", "TableFile", "as_integers", "joined", "json_of", "of_integers", "to_parquet"]

COLUMNS = ("row", "id", "label", "group", "split", "digest", "status")
INTEGERS = ("row", "label", "group")
FEW_VALUES = ["split", "status"]
"""columns that are read as a dictionary of their values and each row's place in it"""
UNIQUE = ("id", "digest")
"""columns that are not kept when a table is opened, but read again where they are wanted"""
GROUP_ROWS = 1 << 14
"""rows of a row group: what is read and decoded to know one id"""
GROUPS_HELD = 8
HASHED_BYTES = 1 << 20


@final
class TableFile:
    """samples.parquet, open. A column that is read is free of nulls and of the type it should be, or ValueError."""

    def __init__(self, source: Path | bytes) -> None:
        """Open a file, or its bytes. Raises ValueError where it is no table of samples, FileNotFoundError."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.name = str(source) if isinstance(source, Path) else "samples.parquet"
        with _reading():  # a file of Arrow's own: it reads by position, so that threads and forked workers may share it
            self._file = pa.OSFile(os.fsencode(source)) if isinstance(source, Path) else pa.BufferReader(source)
            self._metadata = pq.ParquetFile(self._file).metadata
            sizes = [self._metadata.row_group(number).num_rows for number in range(self._metadata.num_row_groups)]
        self._starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        # Caches written before had row groups of a million rows: read over and over for a few ids each, they would cost
        # more than to be held.
        self._held_most = GROUPS_HELD if max(sizes, default=0) <= 4 * GROUP_ROWS else len(sizes) * len(UNIQUE)
        self._held: OrderedDict[tuple[str, int], Any] = OrderedDict()
        self._sums: dict[tuple[str, int], int] = {}
        self._guard = threading.Lock()

    def __len__(self) -> int:
        return int(self._starts[-1])

    def digest(self) -> str:
        """xxh3-128 of the file's bytes."""
        state = xxhash.xxh3_128()
        self._file.seek(0)
        while block := self._file.read(HASHED_BYTES):
            state.update(block)
        return state.hexdigest()

    def blocks(self, name: str) -> Iterator[Any]:
        """A column from its first row to its last, in blocks, as Arrow arrays. Raises ValueError."""
        for number in range(len(self._starts) - 1):
            yield from self._group(name, number)

    def rows(self, name: str, start: int, stop: int) -> Any:
        """The rows start..stop of a column of text as an Arrow array. Raises DamagedCacheError where the file is not what
        it was when `blocks` read it."""
        pieces = []
        while start < stop:
            number = int(np.searchsorted(self._starts, start, side="right")) - 1
            first, end = (int(row) for row in self._starts[number : number + 2])
            pieces.append(self._whole_group(name, number).slice(start - first, min(stop, end) - start))
            start = end
        return joined(pieces)

    def _whole_group(self, name: str, number: int) -> Any:
        """A row group of a column, with offsets of 64 bits; the last few are held."""
        import pyarrow as pa

        with self._guard:
            held = self._held.get((name, number))
        if held is None:
            try:
                held = joined([block.cast(pa.large_string()) for block in self._group(name, number)])
            except (OSError, ValueError) as error:
                raise DamagedCacheError(
                    where=self.name,
                    found=f"a table that was altered while it was open ({error})",
                    wanted="the bytes that were there when it was opened",
                    fix="see all of it with `bird cache verify`",
                ) from error
            with self._guard:
                self._held[name, number] = held
                while len(self._held) > self._held_most:
                    self._held.popitem(last=False)
        return held

    def _group(self, name: str, number: int) -> Iterator[Any]:
        """A row group of a column, in blocks. Of text that may be read again a sum is kept, and compared ever after."""
        import pyarrow.parquet as pq

        count, state = 0, xxhash.xxh3_64()
        with _reading():
            reader = pq.ParquetFile(self._file, metadata=self._metadata, read_dictionary=FEW_VALUES)
            for batch in reader.iter_batches(GROUP_ROWS, row_groups=[number], columns=[name], use_threads=False):
                if batch.num_columns != 1:
                    raise ValueError(f"{batch.num_columns} columns called {name}")
                column = _checked(batch.column(0), name)
                count += len(column)
                if name in UNIQUE:
                    for part in _bytes_and_lengths(column):
                        state.update(part)
                if len(column):
                    yield column
        if count != self._starts[number + 1] - self._starts[number]:
            raise ValueError(f"{count:,} rows where its end says {self._starts[number + 1] - self._starts[number]:,}")
        if name in UNIQUE and self._sums.setdefault((name, number), state.intdigest()) != state.intdigest():
            raise ValueError(f"other values of {name}")


def to_parquet(blocks: Iterable[Mapping[str, Any]]) -> bytes:
    """A table of samples from its blocks of GROUP_ROWS rows, each an Arrow array a column."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([(name, pa.int64() if name in INTEGERS else pa.string()) for name in COLUMNS])
    sink = io.BytesIO()
    writer = pq.ParquetWriter(
        sink,
        schema,
        compression="zstd",
        use_dictionary=[
            "label",
            "group",
            *FEW_VALUES,
        ],  # a dictionary of values that come once is a second copy of them
        column_encoding={"row": "DELTA_BINARY_PACKED"},
    )
    with writer:
        for block in blocks:
            writer.write_batch(pa.record_batch([block[name] for name in COLUMNS], schema=schema))
    return sink.getvalue()


def json_of(column: Any) -> list[bytes | memoryview]:
    """The canonical JSON of the values of an Arrow array, joined by commas, in pieces; without making Python objects of
    them where nothing is to be escaped."""
    import pyarrow as pa

    plain = column.cast(pa.string())
    if pa.types.is_integer(column.type):
        return [_joined(plain, b",")]
    quoted = _joined(plain, b'","')
    data = np.frombuffer(quoted, np.uint8)
    quotes = np.count_nonzero(data == ord('"'))
    if (data < 0x20).any() or (data == ord("\\")).any() or quotes != 2 * (len(plain) - 1):
        return [canonical_json(plain.to_pylist())[1:-1]]
    return [b'"', quoted, b'"']


def joined(pieces: list[Any]) -> Any:
    """Arrow arrays of text, with offsets of 64 bits, as one."""
    import pyarrow as pa

    return pieces[0] if len(pieces) == 1 else pa.concat_arrays([pa.nulls(0, pa.large_string()), *pieces])


def as_integers(column: Any) -> NDArray[np.int64]:
    """An Arrow array of int64 as numpy; `to_numpy` would import pandas."""
    data = column.buffers()[1]
    return np.frombuffer(data, np.int64)[column.offset : column.offset + len(column)] if data else np.empty(0, np.int64)


def of_integers(values: NDArray[np.signedinteger[Any]]) -> Any:
    """Integers of 32 or 64 bits as an Arrow array; `pa.array` would import pandas."""
    import pyarrow as pa

    kind = pa.int32() if values.dtype == np.int32 else pa.int64()
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(np.ascontiguousarray(values))])


@contextlib.contextmanager
def _reading() -> Iterator[None]:
    """Arrow's errors as ValueError; it is for the reader of a table to say which table."""
    import pyarrow as pa

    try:
        yield
    except FileNotFoundError:
        raise
    except (pa.ArrowException, KeyError, OSError) as error:
        raise ValueError(f"not a table of samples: {error}") from error


def _checked(column: Any, name: str) -> Any:
    """A column's values, as int64 or as text. Raises ValueError."""
    import pyarrow as pa

    if column.null_count:
        raise ValueError(f"{column.null_count} rows without a value of {name}")
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if name in INTEGERS:
        if not pa.types.is_integer(column.type):
            raise ValueError(f"{kind} where integers belong")
        return column.cast(pa.int64())
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise ValueError(f"column {name} holds {kind}, not text")
    if name not in FEW_VALUES:
        return column.cast(pa.string())
    column = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    if column.dictionary.null_count:
        raise ValueError(f"no value of {name} where there should be one")
    return column


def _bytes_and_lengths(column: Any) -> tuple[memoryview, bytes]:
    """What tells an array of strings from another: their text without a break, and how long each is."""
    _, offsets, data = column.buffers()
    ends = np.frombuffer(offsets, np.int32)[column.offset : column.offset + len(column) + 1]
    text = memoryview(data if data is not None else b"")
    return text[int(ends[0]) : int(ends[-1])], np.diff(ends).tobytes()


def _joined(strings: Any, separator: bytes) -> memoryview:
    """The text of an array of strings, joined."""
    import pyarrow as pa
    import pyarrow.compute as pc

    offsets = of_integers(np.array([0, len(strings)], np.int32))
    listed = pa.ListArray.from_arrays(offsets, strings)
    between = pa.StringArray.from_buffers(
        1, pa.py_buffer(np.array([0, len(separator)], np.int32)), pa.py_buffer(separator)
    )
    return memoryview(pc.binary_join(listed, between[0])[0].as_buffer())
