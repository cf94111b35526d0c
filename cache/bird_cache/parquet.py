"""A whole cache as one Parquet file, for programs that read tables: names, labels and vectors side by side."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from bird_cache.errors import RequestError
from bird_cache.files import TEMPORARY, storage_error
from bird_cache.manifest import Plan
from bird_cache.numbers import Dtype, from_storage
from bird_cache.store import FeatureStore, open_cache
from bird_cache.table import GROUP_ROWS, of_integers
from bird_cache.vectors import BLOCK_BYTES

__all__ = ["to_parquet"]

TEXT = ("id", "class_name", "group_name", "split", "digest", "status")
NUMBERS = ("row", "label", "group")


def to_parquet(
    cache: str | Path, out: str | Path, layers: Sequence[str] | None = None, view: int = 0
) -> dict[str, Any]:
    """Write one row a sample to the file `out`, which appears whole or not at all: row, id, label, class_name, group,
    group_name, split, digest, status, and each layer as a list of one length; returns what was written.

    Vectors keep their bits: lists of float16 or float32; bfloat16 becomes float32, which holds the same numbers. A row
    that failed is NaN, and `status` says why. Arrays of several axes are laid out one after the other. Raises RequestError
    where `out` exists, for a layer or a view that does not; IncompleteCacheError, DamagedCacheError, StorageError.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    store, target = open_cache(cache), Path(out)
    store.require_complete()
    names = _layers(store, layers, view)
    if target.exists() or target.is_symlink():
        raise RequestError(where=str(out), found="something there already", wanted="a new file", fix="choose another")
    plan, specs = store.manifest.plan, store.manifest.layers()
    width = {name: int(np.prod(specs[name].shape)) for name in names}
    kinds = {name: pa.list_(_kind(specs[name].dtype), width[name]) for name in names}
    columns = [*[(name, pa.int64()) for name in NUMBERS], *[(name, pa.string()) for name in TEXT], *kinds.items()]
    about = {"bird_cache.fingerprint": store.fingerprint, "bird_cache.view": str(view)}
    schema = pa.schema(columns, metadata=about)
    step = max(1, min(GROUP_ROWS, BLOCK_BYTES // (4 * max(1, sum(width.values())))))
    with (
        _appearing(target) as file,
        # no statistics of vectors: those of pyarrow leave NaN out, and DuckDB would find no row that failed
        pq.ParquetWriter(
            file,
            schema,
            compression="zstd",
            use_dictionary=[*TEXT[1:4], "status"],
            write_statistics=[*NUMBERS, *TEXT],
        ) as writer,
    ):
        for start in range(0, plan.rows, step):
            stop = min(start + step, plan.rows)
            block = _described(store, plan, start, stop)
            for name in names:
                stored = store.read(name, start, stop)[:, view]
                values = from_storage(stored, "bfloat16") if specs[name].dtype == "bfloat16" else stored
                block[name] = pa.FixedSizeListArray.from_arrays(_flat(values, _kind(specs[name].dtype)), width[name])
            writer.write_batch(pa.record_batch([block[name] for name in schema.names], schema=schema))
    return {"written": str(out), "rows": plan.rows, "layers": names, "fingerprint": store.fingerprint}


def _layers(store: FeatureStore, layers: Sequence[str] | None, view: int) -> list[str]:
    """The layers to write. Raises RequestError."""
    known, views = store.manifest.layers(), store.manifest.plan.views
    unknown = [name for name in layers or () if name not in known]
    if unknown:
        found = f"no layer {', '.join(map(repr, unknown))}"
        raise RequestError(where=store.path, found=found, wanted=f"some of {', '.join(known)}", fix="name one of them")
    if not 0 <= view < views:
        raise RequestError(where=store.path, found=f"view {view}", wanted=f"0 to {views - 1}", fix="name one of them")
    taken = sorted({*known} & {*TEXT, *NUMBERS})
    if taken:
        found = f"a layer called {taken[0]}, as a column of every table is"
        raise RequestError(where=store.path, found=found, wanted="another name", fix="leave it out")
    return [*(layers or known)]


def _kind(dtype: Dtype) -> Any:
    import pyarrow as pa

    return {"float16": pa.float16(), "int32": pa.int32()}.get(dtype, pa.float32())


def _flat(values: NDArray[Any], kind: Any) -> Any:
    """Numbers as an Arrow array; `pa.array` would import pandas."""
    import pyarrow as pa

    return pa.Array.from_buffers(kind, values.size, [None, pa.py_buffer(np.ascontiguousarray(values))])


def _described(store: FeatureStore, plan: Plan, start: int, stop: int) -> dict[str, Any]:
    """The columns beside the vectors."""
    import pyarrow as pa

    samples, rows = store.samples, slice(start, stop)
    block = {name: samples.arrow(name, start, stop).cast(pa.string()) for name in ("id", "split", "digest", "status")}
    block["row"] = of_integers(np.arange(start, stop))
    for name, words in (("label", plan.class_names), ("group", plan.group_names)):
        numbers = samples.numbers(name, rows)
        block[name] = of_integers(numbers)
        named = [words[number] if 0 <= number < len(words) else None for number in numbers.tolist()]
        block["class_name" if name == "label" else "group_name"] = pa.array(named, pa.string())
    return block


@contextlib.contextmanager
def _appearing(target: Path) -> Iterator[BinaryIO]:
    """A file that is there under its name, on the disk, when the block ends well. Raises StorageError."""
    partial = target.with_name(f"{target.name}{TEMPORARY}{uuid.uuid4().hex}")
    try:
        with open(partial, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, target)
    except OSError as error:
        raise storage_error(target, error, 0) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
