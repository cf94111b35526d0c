"""A cache from vectors that are in memory, or that a function of yours computes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from bird_cache.errors import RequestError
from bird_cache.manifest import Kind, Layer, Manifest, Plan, Store
from bird_cache.numbers import Dtype
from bird_cache.samples import PENDING, Samples
from bird_cache.summary import SPLITS
from bird_cache.writer import open_writer

__all__ = ["shard_and_chunk_rows", "write_cache"]

LARGEST_SHARD: dict[Store, int] = {"zarr": 65_536, "webdataset": 8192}  # rows; a tar is made in memory, with its images
SMALL_CACHE = 20_000  # rows; below, smaller chunks waste less of the last one
LAYER = "penultimate"
HASHED_ROWS = 4096

Ints = NDArray[np.int64]
Compute = Callable[[Ints], NDArray[Any]]
"""row numbers, as the samples were given -> their vectors (len(rows), d)"""


def write_cache(
    where: str | Path,
    vectors: NDArray[Any] | Compute,
    *,
    ids: Sequence[str],
    labels: Sequence[Any],
    groups: Sequence[Any],
    splits: Sequence[str],
    made_by: Mapping[str, Any],
    class_names: Sequence[str] | None = None,
    group_names: Sequence[str] | None = None,
    digests: Sequence[str] | None = None,
    failed: Mapping[str, str] | None = None,
    kind: Kind = "penultimate",
    dtype: Dtype = "float16",
    dataset: str = "own",
    advance: Callable[[int], None] = lambda rows: None,
) -> Manifest:
    """Write a finished cache to a new folder or URL; the same call resumes one that was interrupted.

    `vectors` is an array (n, d), which may be mapped, or a function that is asked for some rows at a time, and only for
    those that are not written yet. `labels` and `groups` are names, or numbers of `class_names` and `group_names` (group
    -1: unknown). `splits` are train, meta or test. `made_by` says what the vectors follow from (model, weights,
    preprocessing), as JSON values: it goes into the fingerprint. `digests` are xxh3-128 of the images; without them a
    student that reads images refuses the cache. `failed` maps ids without a vector to why. Rows are stored train first,
    then meta, then test.

    Raises RequestError for samples that contradict each other, FeatureError for NaN, infinite, constant or too large
    vectors, StaleCacheError where another cache is there, StorageError.
    """
    columns = {"ids": ids, "labels": labels, "groups": groups, "splits": splits, "digests": digests or [""] * len(ids)}
    _require_samples(where, columns)
    label, classes = _numbered(where, "labels", labels, class_names, lowest=0)
    group, group_words = _numbered(where, "groups", groups, group_names, lowest=-1)
    order = np.argsort([SPLITS.index(split) for split in splits], kind="stable")
    text = [_text(columns[name])[order] for name in ("ids", "splits", "digests")]
    samples = Samples(text[0], label[order], group[order], text[1], text[2], _text([PENDING] * len(ids)))
    compute = vectors if callable(vectors) else lambda rows: vectors[rows]
    width = _width(where, compute(order[:1]))
    causes: dict[str, Any] = {"made_by": dict(made_by), "dtype": dtype, "layers": [LAYER], "views": "none"}
    causes["dataset"] = {"name": dataset, "settings": {}, "rows": len(ids), "identity": samples.identity()}
    if not callable(vectors):
        causes["vectors"] = _digest(vectors)
    spec = Layer(shape=(width,), dtype=dtype, kind=kind)
    plan = _plan(causes, spec, samples, classes, group_words, str(made_by.get("model", "unknown")))
    lost = {row: failed[id] for row, id in enumerate(samples.ids.tolist()) if id in failed} if failed else {}
    with open_writer(where, plan, samples, alone=True) as writer:
        for shard in writer.pending():
            start, stop = plan.bounds(shard)
            found = np.asarray(compute(order[start:stop]), np.float32)
            if found.shape != (stop - start, width):
                raise _refuse(where, f"vectors of shape {found.shape}", f"({stop - start}, {width})", "correct them")
            writer.write_shard(shard, {LAYER: found[:, None]}, {r: lost[r] for r in range(start, stop) if r in lost})
            advance(stop - start)
        return writer.finish()


def _plan(
    causes: dict[str, Any], spec: Layer, samples: Samples, classes: tuple[str, ...], groups: tuple[str, ...], model: str
) -> Plan:
    shard_rows, chunk_rows = shard_and_chunk_rows(len(samples), None, "zarr")
    return Plan(
        causes=causes,
        layers={LAYER: spec},
        rows=len(samples),
        shard_rows=shard_rows,
        chunk_rows=chunk_rows,
        class_names=classes,
        group_names=groups,
        notes={"teacher": model},
    )


def shard_and_chunk_rows(rows: int, shard_rows: int | None, store: Store) -> tuple[int, int]:
    """Rows a shard and a chunk. By default about 64 shards, so that a kill costs under 2 % of the work, but not so many
    rows that files become unwieldy."""
    if shard_rows is None:
        shard_rows = min(max(1024, 1 << (rows // 64).bit_length()), LARGEST_SHARD[store])
    chunk_rows = min(1024 if rows >= SMALL_CACHE else 256, shard_rows)
    return shard_rows - shard_rows % chunk_rows, chunk_rows


def _require_samples(where: str | Path, columns: Mapping[str, Sequence[Any]]) -> None:
    """Raise RequestError unless there is one of each for every sample, ids are names, and splits are known."""
    lengths = {name: len(column) for name, column in columns.items()}
    if len({*lengths.values()}) != 1 or not len(columns["ids"]):
        found = ", ".join(f"{count:,} {name}" for name, count in lengths.items())
        raise _refuse(where, found, "one of each for every sample, one sample at least", "check their lengths")
    ids = [*columns["ids"]]
    if wrong := [id for id in ids if not isinstance(id, str) or not id][:3]:
        raise _refuse(where, f"ids such as {wrong}", "names in text", "make them text: str(id)")
    if len({*ids}) != len(ids):
        raise _refuse(
            where, f"{len(ids) - len({*ids}):,} ids that are there twice", "every id once", "remove the copies"
        )
    if unknown := sorted({*map(str, columns["splits"])} - {*SPLITS}):
        raise _refuse(where, f"splits {', '.join(unknown)}", "train, meta or test", "val and dev are meta here")


def _numbered(
    where: str | Path, what: str, values: Sequence[Any], names: Sequence[str] | None, *, lowest: int
) -> tuple[Ints, tuple[str, ...]]:
    """Each value's number, and the names that they count; sorted where none are given. Raises RequestError."""
    given = np.asarray(values)
    if given.dtype.kind in "iu":
        number = given.astype(np.int64)
        known = tuple(names) if names is not None else tuple(str(each) for each in range(int(number.max()) + 1))
    else:
        words = [str(value) for value in given.tolist()]
        known = tuple(names) if names is not None else tuple(sorted({*words}))
        place = {name: at for at, name in enumerate(known)}
        number = np.array([place.get(word, lowest - 1) for word in words], np.int64)
    wrong = np.flatnonzero((number < lowest) | (number >= len(known)))
    if given.ndim != 1 or len(wrong):
        found = f"{what} such as {given[wrong[0]]!s}" if len(wrong) else f"{what} of {given.ndim} axes"
        raise _refuse(where, found, f"numbers or names of {', '.join(known[:20])}", "check them, or their names")
    return number, known


def _width(where: str | Path, first: NDArray[Any]) -> int:
    shape = np.shape(first)
    if len(shape) != 2 or shape[0] != 1 or shape[1] < 1:
        raise _refuse(where, f"vectors of shape {shape} for one row", "(1, d)", "give one vector a sample")
    return int(shape[1])


def _digest(vectors: NDArray[Any]) -> str:
    """xxh3-128 of an array: type, shape and bytes, block by block."""
    state = xxhash.xxh3_128(f"{vectors.dtype.str} {vectors.shape}".encode())
    for start in range(0, len(vectors), HASHED_ROWS):
        state.update(np.ascontiguousarray(vectors[start : start + HASHED_ROWS]).view(np.uint8).data)
    return state.hexdigest()


def _text(values: Sequence[str]) -> NDArray[np.object_]:
    column = np.empty(len(values), object)
    column[:] = [*map(str, values)]
    return column


def _refuse(where: str | Path, found: str, wanted: str, fix: str) -> RequestError:
    return RequestError(where=str(where), found=found, wanted=wanted, fix=fix)
