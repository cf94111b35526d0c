"""A cache from vectors that are in memory, or that a function of yours computes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import xxhash
from numpy.typing import ArrayLike, NDArray

from bird_cache.errors import RequestError
from bird_cache.files import canonical_json, digest
from bird_cache.manifest import Kind, Layer, Manifest, Plan, Store
from bird_cache.numbers import DTYPES, Dtype
from bird_cache.samples import OK, PENDING, Samples
from bird_cache.summary import SPLITS
from bird_cache.writer import open_writer

__all__ = ["shard_and_chunk_rows", "write_cache"]

LARGEST_SHARD: dict[Store, int] = {"zarr": 65_536, "webdataset": 8192}  # rows; a tar is made in memory, with its images
SMALL_CACHE = 20_000  # rows; below, smaller chunks waste less of the last one
LAYER = "penultimate"
HASHED_ROWS = 4096
MOST = 200  # classes or groups, as of a data set
EMPTY = {"", "nan", "-nan", "<na>", "nat", "null", "none"}  # as a cast to text writes a missing value
NO_NUMBERS = "cOSUTMm"  # numpy's kinds: complex, objects, text, times

Ints = NDArray[np.int64]
Compute = Callable[[Ints], NDArray[Any]]
"""row numbers, as the samples were given -> their vectors (len(rows), d)"""


def write_cache(
    where: str | Path,
    vectors: ArrayLike | Compute,
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
    student that reads images refuses the cache. `failed` maps ids without a vector to why: it goes into the fingerprint,
    too. Rows are stored train first, then meta, then test.

    Raises RequestError for samples that contradict each other, and for one or more than 200 classes or groups (all groups
    unknown is fine); FeatureError for NaN, infinite, constant or too large vectors; StaleCacheError where another cache is
    there; StorageError.
    """
    columns = {"ids": ids, "labels": labels, "groups": groups, "splits": splits}
    _require_samples(where, columns if digests is None else {**columns, "digests": digests})
    _require_settings(where, dtype, kind)
    label, classes = _numbered(where, "labels", labels, class_names, lowest=0)
    group, group_words = _numbered(where, "groups", groups, group_names, lowest=-1)
    order = np.argsort([SPLITS.index(split) for split in splits], kind="stable")
    text = [_text(column)[order] for column in (ids, splits, [""] * len(ids) if digests is None else digests)]
    samples = Samples(text[0], label[order], group[order], text[1], text[2], _text([PENDING] * len(ids)))
    compute, causes = _computing(where, vectors, len(ids))
    lost = _lost(where, samples, failed or {})
    width = _width(where, compute(order[:1]))
    causes |= {"made_by": _json(where, made_by), "dtype": dtype, "layers": [LAYER], "views": "none"}
    causes["dataset"] = {"name": dataset, "settings": {}, "rows": len(ids), "identity": samples.identity()}
    if failed:
        causes["failed"] = f"{len(failed):,} ids, {digest(canonical_json(dict(failed)))}"  # a drop leaves no id in it
    spec = Layer(shape=(width,), dtype=dtype, kind=kind)
    plan = _plan(causes, spec, samples, classes, group_words, str(made_by.get("model", "unknown")))
    with open_writer(where, plan, samples, alone=True) as writer:
        for shard in writer.pending():
            start, stop = plan.bounds(shard)
            found = compute(order[start:stop])
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
    if wrong := [name for name, column in columns.items() if not _is_list(column)]:
        raise _refuse(where, f"no list of {', '.join(wrong)}", "one value a sample", "give lists or arrays")
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


def _is_list(column: object) -> bool:
    return hasattr(column, "__len__") and hasattr(column, "__getitem__") and not isinstance(column, str | bytes | dict)


def _require_settings(where: str | Path, dtype: str, kind: str) -> None:
    for name, value, known in (("dtype", dtype, DTYPES), ("kind", kind, get_args(Kind))):
        if value not in known:
            raise _refuse(where, f"{name} {value!r}", f"one of {', '.join(known)}", "choose one of them")


def _json(where: str | Path, made_by: Mapping[str, Any]) -> dict[str, Any]:
    """`made_by` as JSON values. Raises RequestError."""
    wanted, fix = "names and JSON values (text, numbers, lists, mappings)", 'such as {"model": "my-model"}'
    if not isinstance(made_by, Mapping):
        raise _refuse(where, f"made_by = {made_by!r}", wanted, fix)
    try:
        values: dict[str, Any] = json.loads(canonical_json(dict(made_by)))
    except (TypeError, ValueError) as error:
        raise _refuse(where, f"made_by that is not JSON ({error})", wanted, fix) from None
    return values


def _lost(where: str | Path, samples: Samples, failed: Mapping[str, str]) -> dict[int, str]:
    """The rows without a vector, and why. Raises RequestError for ids that are not there, and without a reason."""
    fix = 'such as {"image-7": "too dark"}'
    if not isinstance(failed, Mapping):
        raise _refuse(where, "failed that is no mapping", "ids and why each has no vector", fix)
    row = {id: row for row, id in enumerate(samples.ids.tolist())}
    if missing := [id for id in failed if id not in row]:
        shown = ", ".join(map(repr, missing[:10]))
        raise _refuse(
            where, f"{len(missing):,} ids in failed that are not in ids: {shown}", "some of ids", "check them"
        )
    if mute := [id for id, why in failed.items() if not isinstance(why, str) or why.strip() in ("", OK, PENDING)]:
        raise _refuse(where, f"failed without a reason: {', '.join(mute[:10])}", "why each has no vector", fix)
    return {row[id]: why for id, why in failed.items()}


def _numbered(
    where: str | Path, what: str, values: Sequence[Any], names: Sequence[str] | None, *, lowest: int
) -> tuple[Ints, tuple[str, ...]]:
    """Each value's number, and the names that they count; sorted where none are given. Raises RequestError."""
    given = _array(where, values, what)
    if given.ndim != 1:
        raise _refuse(where, f"{what} of {given.ndim} axes", "one value a sample", "check them")
    if names is not None and not _is_list(names):
        raise _refuse(where, f"names of {what} = {names!r}", "a list of names", "give a list")
    _require_filled(where, what, values, names)
    known = tuple(map(str, names)) if names is not None else None
    if given.dtype.kind in "iu" or (given.dtype.kind == "f" and (given == np.floor(given)).all()):
        number = given.astype(np.int64)
        counted = int(number.max()) + 1
        known = known if known is not None else tuple(map(str, range(min(counted, MOST + 1))))
    else:
        words = [str(value) for value in given.tolist()]
        known = known if known is not None else tuple(sorted({*words}))
        place = {name: at for at, name in enumerate(known)}
        number = np.array([place.get(word, lowest - 1) for word in words], np.int64)
        counted = len(known)
    if counted > MOST and (names is None or len(known) > MOST):
        raise _refuse(where, f"{counted:,} {what}", f"at most {MOST}", "put them into few, or give other values")
    if len(wrong := np.flatnonzero((number < lowest) | (number >= len(known)))):
        wanted = f"numbers or names of {', '.join(known[:20])}"
        raise _refuse(where, f"{what} such as {given[wrong[0]]!s}", wanted, "check them, or their names")
    if len(known) == 1:
        raise _refuse(where, f"{what} that are all {known[0]}", "two at least", "check them, or name them all")
    return number, known


def _require_filled(where: str | Path, what: str, values: Sequence[Any], names: Sequence[str] | None) -> None:
    """Raise RequestError for missing values, also as a cast to text writes them. A name that is given is one."""
    meant = {*names} if names is not None else set()
    empty = [value for value in values if str(value).strip().lower() in EMPTY and value not in meant]
    if empty:
        fix = "leave these samples out" if what == "labels" else "number the groups: -1 means unknown"
        found = f"{len(empty):,} of {len(values):,} {what} that are missing, such as {empty[0]!r}"
        raise _refuse(where, found, "a name or a number for every sample", fix)


def _computing(
    where: str | Path, vectors: ArrayLike | Compute, rows: int
) -> tuple[Callable[[Ints], NDArray[np.float32]], dict[str, Any]]:
    """What gives the vectors of some rows, and the cause that tells an array from others. Raises RequestError."""
    if callable(vectors):
        return lambda rows: _float32(where, vectors(rows)), {}
    mapped = isinstance(getattr(vectors, "dtype", None), np.dtype)
    array: Any = vectors if mapped else _array(where, vectors)
    _require_numbers(where, array)
    if len(array.shape) != 2 or array.shape[1] < 1:
        raise _refuse(where, f"vectors of shape {tuple(array.shape)}", "(n, d)", "give one vector a sample")
    if len(array) != rows:
        raise _refuse(where, f"{len(array):,} vectors, {rows:,} ids", "one vector an id", "check both")
    return lambda rows: _float32(where, array[rows]), {"vectors": _digest(array)}


def _array(where: str | Path, values: Any, what: str = "vectors") -> NDArray[Any]:
    try:
        return np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:  # rows of several lengths; a tensor that is elsewhere
        raise _refuse(
            where, f"{what} that are no array ({error})", "one value or vector a sample", "correct them"
        ) from None


def _require_numbers(where: str | Path, array: NDArray[Any]) -> None:
    if array.dtype.kind in NO_NUMBERS or array.dtype.names:
        raise _refuse(where, f"vectors of {array.dtype}", "real numbers", "make them float32")


def _float32(where: str | Path, values: Any) -> NDArray[np.float32]:
    array = _array(where, values)
    _require_numbers(where, array)
    return array.astype(np.float32, copy=False)


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
