"""samples.parquet, the ordering contract: row i of every layer is sample i of this table."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from bird_cache.files import canonical_json, digest, digest_of_pieces

__all__ = ["OK", "PENDING", "Samples"]

OK, PENDING = "ok", "pending"
TEXT = ("id", "split", "digest", "status")
FEW_VALUES = ["split", "status"]
"""columns that are held as a dictionary of their values"""
BLOCK_ROWS = 1 << 16


@final
class Samples:
    """One entry per row. `ids` are stable names, never positions; `digests` hash each image's encoded source;
    `status` is "ok", "pending" before the row is written, or why it failed.

    A column of text that was read from Parquet becomes Python strings only when it is asked for: of opening a large cache
    that was most.
    """

    def __init__(
        self,
        ids: NDArray[np.object_],
        labels: NDArray[np.int64],
        groups: NDArray[np.int64],
        splits: NDArray[np.object_],
        digests: NDArray[np.object_],
        status: NDArray[np.object_],
    ) -> None:
        self.labels, self.groups = labels, groups
        self._strings = {"id": ids, "split": splits, "digest": digests, "status": status}
        self._arrow: dict[str, Any] = {}

    @property
    def ids(self) -> NDArray[np.object_]:
        """Stable names."""
        return self._text("id")

    @property
    def splits(self) -> NDArray[np.object_]:
        """train, meta or test."""
        return self._text("split")

    @property
    def digests(self) -> NDArray[np.object_]:
        """xxh3-128 of each sample's encoded source, in hex."""
        return self._text("digest")

    @property
    def status(self) -> NDArray[np.object_]:
        """ "ok", "pending", or why a row has no vector."""
        return self._text("status")

    def __len__(self) -> int:
        return len(self.labels)

    def with_status(self, status: NDArray[np.object_]) -> Samples:
        """The same samples with another status."""
        return Samples(self.ids, self.labels, self.groups, self.splits, self.digests, status)

    def counts(self, column: str) -> dict[str, int]:
        """How many rows have each value of a column of text."""
        if column in self._arrow:
            found = self._arrow[column].value_counts()
            return dict(zip(found.field(0).to_pylist(), found.field(1).to_pylist(), strict=True))
        names, counts = np.unique(self._text(column).astype(str), return_counts=True)
        return dict(zip(names.tolist(), counts.tolist(), strict=True))

    def identity(self) -> str:
        """Digest of everything but the status: what the cache's rows are, in order. It is that of the canonical JSON of
        the list of the five columns, made piece by piece."""

        def pieces() -> Iterator[bytes | memoryview]:
            for number, name in enumerate(("id", "label", "group", "split", "digest")):
                yield b",[" if number else b"[["
                yield from self._items(name, 0, len(self))
                yield b"]"
            yield b"]"

        return digest_of_pieces(pieces())

    def ids_digest(self, start: int, stop: int) -> str:
        """Digest of the canonical JSON of the ids of rows start..stop, in order."""
        if "id" not in self._arrow:
            return digest(canonical_json(self.ids[start:stop].tolist()))
        return digest_of_pieces([b"[", *self._items("id", start, stop), b"]"])

    def to_parquet(self) -> bytes:
        """The table as Parquet."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns = {name: pa.array(self._text(name).tolist(), pa.string()) for name in TEXT}
        columns |= {
            "row": pa.array(np.arange(len(self))),
            "label": pa.array(self.labels),
            "group": pa.array(self.groups),
        }
        order = ("row", "id", "label", "group", "split", "digest", "status")
        sink = io.BytesIO()
        pq.write_table(pa.table({name: columns[name] for name in order}), sink, compression="zstd")
        return sink.getvalue()

    @staticmethod
    def from_parquet(data: bytes) -> Samples:
        """The table from Parquet. Raises ValueError where it is not one, or its rows are out of order."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:  # not read_table: it imports pandas, which takes a second
            file = pq.ParquetFile(pa.BufferReader(data), read_dictionary=FEW_VALUES)

            def column(name: str) -> Any:  # one at a time: as chunks and as a whole, no two columns are held at once
                return file.read(columns=[name])[name]

            if not np.array_equal(_integers(column("row")), np.arange(file.metadata.num_rows)):
                raise ValueError("rows are not numbered 0, 1, 2, ...")
            numbers = [_integers(column(name)) for name in ("label", "group")]
            arrow = {name: _text_of(_whole(column(name)), name) for name in TEXT}
        except (pa.ArrowException, KeyError, OSError) as error:
            raise ValueError(f"not a table of samples: {error}") from error
        samples = Samples(*([np.empty(0, object)] + numbers + [np.empty(0, object)] * 3))
        samples._strings, samples._arrow = {}, arrow
        return samples

    def _text(self, name: str) -> NDArray[np.object_]:
        if name not in self._strings:
            column = self._arrow[name]
            if hasattr(column, "dictionary"):
                words = np.array([*column.dictionary.to_pylist(), ""], object)[:-1]
                self._strings[name] = words[column.indices.to_numpy()]
            else:
                self._strings[name] = column.to_numpy(zero_copy_only=False).astype(object)
        return self._strings[name]

    def _items(self, name: str, start: int, stop: int) -> Iterator[bytes | memoryview]:
        """The canonical JSON of a column's values, joined by commas, in pieces."""
        numbers = {"label": self.labels, "group": self.groups}
        for first in range(start, stop, BLOCK_ROWS):
            rows = slice(first, min(first + BLOCK_ROWS, stop))
            if first > start:
                yield b","
            if name in numbers:
                yield _json_of_integers(numbers[name][rows])
            elif name in self._arrow:
                yield from _json_of_arrow(self._arrow[name].slice(first, rows.stop - first))
            else:
                yield _json_of_strings(self._strings[name][rows].tolist())


def _whole(column: Any) -> Any:
    """A column as one array. Offsets of 32 bits hold up to 2 GiB of text."""
    import pyarrow as pa

    if column.null_count:
        raise ValueError(f"{column.null_count} rows without a value")
    if column.nbytes > 1 << 30 and pa.types.is_string(column.type):
        column = column.cast(pa.large_string())
    chunks = column.unify_dictionaries().combine_chunks()
    return chunks.combine_chunks() if isinstance(chunks, pa.ChunkedArray) else chunks


def _integers(column: Any) -> NDArray[np.int64]:
    """A column of integers, as numpy; `to_numpy` would import pandas. Raises ValueError."""
    import pyarrow as pa

    if not pa.types.is_integer(column.type):
        raise ValueError(f"{column.type} where integers belong")
    whole = _whole(column).cast(pa.int64())
    data = whole.buffers()[1]
    return np.frombuffer(data, np.int64)[whole.offset : whole.offset + len(whole)] if data else np.empty(0, np.int64)


def _text_of(column: Any, name: str) -> Any:
    """The column, if it is text. Raises ValueError."""
    import pyarrow as pa

    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise ValueError(f"column {name} holds {kind}, not text")
    return column


def _json_of_integers(values: NDArray[np.int64]) -> bytes | memoryview:
    """Integers as JSON, joined by commas."""
    import pyarrow as pa

    return _joined(_plain(values, pa.int64()).cast(pa.string()), b",")


def _plain(values: NDArray[Any], kind: Any) -> Any:
    """Numbers as an Arrow array; `pa.array` would import pandas."""
    import pyarrow as pa

    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(np.ascontiguousarray(values))])


def _joined(strings: Any, separator: bytes) -> memoryview:
    """The text of an array of strings, joined."""
    import pyarrow as pa
    import pyarrow.compute as pc

    offsets = _plain(np.array([0, len(strings)], np.int32), pa.int32())
    listed = pa.ListArray.from_arrays(offsets, strings)
    between = pa.StringArray.from_buffers(
        1, pa.py_buffer(np.array([0, len(separator)], np.int32)), pa.py_buffer(separator)
    )
    return memoryview(pc.binary_join(listed, between[0])[0].as_buffer())


def _json_of_arrow(column: Any) -> Iterator[bytes | memoryview]:
    """Strings as JSON, joined by commas, without making Python objects of them where nothing is to be escaped."""
    import pyarrow as pa

    plain = column.cast(pa.string())
    joined = _joined(plain, b'","')
    data = np.frombuffer(joined, np.uint8)
    if (data < 0x20).any() or (data == ord("\\")).any() or (data == ord('"')).sum() != 2 * (len(plain) - 1):
        yield canonical_json(plain.to_pylist())[1:-1]
    else:
        yield from (b'"', joined, b'"')


def _json_of_strings(values: list[str]) -> bytes:
    """Strings as JSON, joined by commas. Where nothing is to be escaped, several times faster than the encoder."""
    text = "".join(values)
    if text.isprintable() and '"' not in text and "\\" not in text:
        return ('"' + '","'.join(values) + '"').encode()
    return canonical_json(values)[1:-1]
