"""samples.parquet, the ordering contract: row i of every layer is sample i of this table."""

from __future__ import annotations

import dataclasses
import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bird_cache.files import canonical_json, digest

__all__ = ["OK", "PENDING", "Samples"]

OK, PENDING = "ok", "pending"


@dataclasses.dataclass(frozen=True)
class Samples:
    """One entry per row. `ids` are stable names, never positions; `digests` hash each image's encoded source;
    `status` is "ok", "pending" before the row is written, or why it failed."""

    ids: NDArray[np.object_]
    labels: NDArray[np.int64]
    groups: NDArray[np.int64]
    splits: NDArray[np.object_]
    digests: NDArray[np.object_]
    status: NDArray[np.object_]

    def __len__(self) -> int:
        return len(self.ids)

    def identity(self) -> str:
        """Digest of everything but the status: what the cache's rows are, in order."""
        columns = (self.ids, self.labels, self.groups, self.splits, self.digests)
        return digest(b"[" + b",".join(_json_list(column.tolist()) for column in columns) + b"]")

    def to_parquet(self) -> bytes:
        """The table as Parquet."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        strings = {"id": self.ids, "split": self.splits, "digest": self.digests, "status": self.status}
        columns = {name: pa.array(values.tolist(), pa.string()) for name, values in strings.items()}
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

        try:
            table = pq.read_table(pa.BufferReader(data))
            columns = {name: table[name].to_numpy(zero_copy_only=False) for name in table.column_names}
            if not np.array_equal(columns["row"], np.arange(len(columns["row"]))):
                raise ValueError("rows are not numbered 0, 1, 2, ...")
            text = {name: columns[name].astype(object) for name in ("id", "split", "digest", "status")}
            numbers = {name: columns[name].astype(np.int64) for name in ("label", "group")}
        except (pa.ArrowException, KeyError, OSError) as error:
            raise ValueError(f"not a table of samples: {error}") from error
        return Samples(text["id"], numbers["label"], numbers["group"], text["split"], text["digest"], text["status"])


def _json_list(values: list[Any]) -> bytes:
    """`canonical_json` of a list of integers, or of strings. Where nothing is to be escaped, it is joined several times
    faster: of a large cache's opening this was half."""
    if not values or not isinstance(values[0], str):
        return str(values).replace(" ", "").encode()
    text = "".join(values)
    if text.isprintable() and '"' not in text and "\\" not in text:
        return ('["' + '","'.join(values) + '"]').encode()
    return canonical_json(values)
