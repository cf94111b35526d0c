"""The nearest rows of a cache by cosine, exactly: near-duplicates across splits, and what lies around a sample.

The similarity of two rows is defined to the bit: products and sums in float64, from the first feature to the last,
s = x.y / sqrt(x.x * y.y), cut to [-1, 1]; two equal vectors have 1. The order is by similarity, then by row. A product of
float32 matrices only finds the candidates: all rows within its error bound, so that none is missed. Memory is bounded.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple, final

import numpy as np
from numpy.typing import NDArray

from bird_cache.errors import MissingCodecError, RequestError
from bird_cache.store import FeatureStore, open_cache, require_list
from bird_cache.summary import SPLITS, name_of_cell

__all__ = ["Found", "index_of", "near_duplicates", "nearest", "nearest_to", "similarity"]

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
MEMORY_BYTES = 1 << 28
LISTED = 20
QUANTILES = (0.5, 0.9, 0.99, 0.999)
ROUNDING = 2.0**-23  # twice that of float32, a feature


@final
class Found(NamedTuple):
    """The nearest rows of each query, nearest first: `rows` and `similarity` (queries, k); -1 and NaN where there are
    fewer."""

    rows: Ints
    similarity: Floats


def nearest(
    store: FeatureStore | str | Path,
    queries: NDArray[Any],
    k: int = 10,
    *,
    layer: str = "penultimate",
    split: str | None = None,
    besides: Ints | None = None,
    index: Any = None,
    memory_bytes: int = MEMORY_BYTES,
    advance: Callable[[int], None] = lambda queries: None,
) -> Found:
    """The `k` rows of a split (None: of all) with the largest cosine to each of `queries`, (n, d). `store` is an open cache
    or its folder, here and below. Arrays of several axes are laid out as vectors. Rows without a vector, or of length 0,
    are not among them; `besides` is one row a query that is not to be found, -1: none.

    `index` is an index of the same rows by `index_of`: faster for many queries, but it may miss rows; what it finds has its
    exact similarity. Raises RequestError for queries of another width, not finite or of length 0, and for an unknown layer
    or split; DamagedCacheError.
    """
    store = _opened(store)
    asked = _checked(store, queries, layer)
    if k < 1:
        raise RequestError(where="k", found=str(k), wanted="1 or more", fix="ask for one neighbour at least")
    rows, besides = _rows(store, layer, split), np.full(len(asked), -1) if besides is None else besides
    if index is not None:
        return _by_index(store, layer, index, asked, k, besides, memory_bytes)
    width = asked.shape[1]
    base_rows = max(1, memory_bytes // (4 * 12 * width))
    step = max(1, memory_bytes // (2 * 9 * min(base_rows, len(rows))))
    found = Found(np.full((len(asked), k), -1), np.full((len(asked), k), np.nan))
    for start in range(0, len(asked), step):
        part = slice(start, start + step)
        best = Found(found.rows[part], found.similarity[part])
        unit = _normalised(asked[part])
        for first in range(0, len(rows), base_rows):
            here = rows[first : first + base_rows]
            base = _vectors(store, layer, here)
            picked = _candidates(unit, base, here, besides[part], best.similarity[:, -1], k, width)
            scores = similarity(asked[part], base, *picked, memory_bytes=memory_bytes)
            best = _merged(best, picked[0], here[picked[1]], scores)
        found.rows[part], found.similarity[part] = best
        advance(len(best.rows))
    return found


def index_of(
    store: FeatureStore, *, layer: str = "penultimate", split: str | None = None, memory_bytes: int = MEMORY_BYTES
) -> Any:
    """An HNSW index of usearch (extra [search]) of the usable rows of a split (None: of all), in memory: the normalised
    vectors in float32, and some 200 bytes a row. Raises MissingCodecError, RequestError for an unknown layer or split."""
    try:
        from usearch.index import Index
    except ImportError as error:
        fix = "pip install 'bird-cache[search]', or search exactly"
        raise MissingCodecError(
            where="approximate search", found="no package usearch", wanted="the package that has the index", fix=fix
        ) from error
    rows, width = _rows(store, layer, split), int(np.prod(store[layer].shape[1:]))
    index = Index(ndim=width, metric="ip", dtype="f32")
    step = max(1, memory_bytes // (4 * 12 * width))
    for first in range(0, len(rows), step):
        here = rows[first : first + step]
        vectors = _vectors(store, layer, here)
        there = vectors.any(axis=1)
        index.add(here[there], _normalised(vectors[there]), threads=1)
    return index


def nearest_to(
    store: FeatureStore | str | Path, ids: Collection[str], k: int = 10, **options: Any
) -> dict[str, list[dict[str, Any]]]:
    """What lies nearest to some samples of the cache, themselves left out: id -> its neighbours, each with id, similarity,
    row, split, class and group. `options` are those of `nearest`. Raises what `nearest` raises, RequestError for ids that
    are not there or have no vector."""
    layer: str = options.get("layer", "penultimate")
    store = _opened(store)
    require_list(store, "ids", ids)
    _require_layer(store, layer)
    asked = {*ids}
    place = {id: row for row, id in enumerate(store.samples.ids.tolist()) if id in asked}
    usable = store.usable([layer])
    if missing := [id for id in ids if id not in place or not usable[place[id]]]:
        said = f"no vector of {', '.join(map(repr, missing[:10]))}"
        fix = "compare with the columns id and status of its samples.parquet"
        raise RequestError(where=store.path, found=said, wanted="ids of its rows", fix=fix)
    rows = np.array([place[id] for id in ids], np.int64)
    found = nearest(store, _vectors(store, layer, rows), k, besides=rows, **options)
    return {
        id: [
            {**_described(store, row), "similarity": score} for row, score in zip(mine, scores, strict=True) if row >= 0
        ]
        for id, mine, scores in zip(ids, found.rows.tolist(), found.similarity.tolist(), strict=True)
    }


def near_duplicates(
    store: FeatureStore | str | Path,
    threshold: float,
    *,
    layer: str = "penultimate",
    listed: int = LISTED,
    memory_bytes: int = MEMORY_BYTES,
    approximate: bool = False,
    advance: Callable[[int], None] = lambda rows: None,
) -> dict[str, Any]:
    """Rows of test and meta that have a near-duplicate among the rows that come before: meta in train, test in train, test
    in meta. A row has one if the similarity of its nearest row there is at least `threshold`.

    For each pair of splits: how many rows, how many with a near-duplicate, and of how many the nearest one is of another
    class or group; the same by class and group; quantiles of the nearest similarity, by which a threshold can be chosen;
    and the first few, nearest first. `approximate` searches by `index_of`. Raises what `nearest` raises, RequestError for
    a cache of one split.
    """
    if not -1 <= threshold <= 1:
        raise RequestError(
            where="threshold", found=f"{threshold:g}", wanted="a cosine from -1 to 1", fix="such as 0.98"
        )
    store = _opened(store)
    there = {split: rows for split in SPLITS if len(rows := _usable(store, layer, split))}
    pairs = [(late, early) for early in there for late in there if SPLITS.index(late) > SPLITS.index(early)]
    if not pairs:
        said = f"rows of {' and '.join(there) or 'no split'} alone"
        raise RequestError(where=store.path, found=said, wanted="two splits to compare", fix="use a whole cache")
    comparisons, indices = [], {}
    step = max(1, memory_bytes // (8 * 4 * int(np.prod(store[layer].shape[1:]))))
    for late, early in pairs:
        if approximate and early not in indices:
            indices[early] = index_of(store, layer=layer, split=early, memory_bytes=memory_bytes)
        rows = there[late]
        pieces = [
            nearest(
                store,
                _vectors(store, layer, rows[start : start + step]),
                1,
                layer=layer,
                split=early,
                index=indices.get(early),
                memory_bytes=memory_bytes,
                advance=advance,
            )
            for start in range(0, len(rows), step)
        ]
        found = Found(*(np.concatenate(columns)[:, 0] for columns in zip(*pieces, strict=True)))
        comparisons.append(_compared(store, (late, early), rows, found, threshold, listed))
    return {
        "cache": store.path,
        "layer": layer,
        "threshold": threshold,
        "exact": not approximate,
        "splits": comparisons,
    }


def similarity(
    queries: NDArray[Any], base: NDArray[Any], one: Ints, other: Ints, *, memory_bytes: int = MEMORY_BYTES
) -> Floats:
    """The cosine, (pairs,) in -1..1, of queries[one] and base[other], rows of (n, d), as it is defined above: the same bits
    on every machine."""
    out = np.empty(len(one))
    step = max(1, memory_bytes // (8 * 8 * queries.shape[1]))
    for start in range(0, len(one), step):
        part = slice(start, start + step)
        x, y = queries[one[part]].astype(np.float64), base[other[part]].astype(np.float64)
        xy, xx, yy = (np.add.accumulate(product, axis=1)[:, -1] for product in (x * y, x * x, y * y))
        out[part] = np.clip(xy / np.sqrt(xx * yy), -1, 1)
    return out


def _candidates(
    unit: NDArray[np.float32], base: NDArray[np.float32], rows: Ints, besides: Ints, reached: Floats, k: int, width: int
) -> tuple[Ints, Ints]:
    """Pairs of a query and a row of `base` that may be among the k best: nothing outside can be, whatever the rounding."""
    close = unit @ _normalised(base).T
    close[:, ~base.any(axis=1)] = -np.inf
    place = np.minimum(np.searchsorted(rows, besides), len(rows) - 1)
    mine = np.flatnonzero(rows[place] == besides)
    close[mine, place[mine]] = -np.inf
    bound = (width + 8) * ROUNDING
    least = np.where(np.isnan(reached), -np.inf, reached) - bound
    if len(rows) > k:
        kth = close.max(axis=1) if k == 1 else np.partition(close, len(rows) - k, axis=1)[:, len(rows) - k]
        least = np.maximum(least, kth - 2 * bound)
    which, place = np.nonzero((close >= least[:, None]) & (close > -np.inf))
    return which, place


def _merged(best: Found, which: Ints, rows: Ints, scores: Floats) -> Found:
    """The best k of those known and those new, for each query."""
    count, k = best.rows.shape
    query = np.concatenate([np.repeat(np.arange(count), k), which])
    row, score = np.concatenate([best.rows.ravel(), rows]), np.concatenate([best.similarity.ravel(), scores])
    there = np.flatnonzero(row >= 0)
    order = there[np.lexsort((row[there], -score[there], query[there]))]
    query = query[order]
    rank = np.arange(len(order)) - np.searchsorted(query, query)
    order, query, rank = (each[rank < k] for each in (order, query, rank))
    merged = Found(np.full((count, k), -1), np.full((count, k), np.nan))
    merged.rows[query, rank], merged.similarity[query, rank] = row[order], score[order]
    return merged


def _by_index(
    store: FeatureStore, layer: str, index: Any, asked: NDArray[Any], k: int, besides: Ints, memory_bytes: int
) -> Found:
    """What an index finds, scored exactly."""
    matches = index.search(_normalised(asked), min(k + 1, len(index)), threads=1)
    keys = np.asarray(matches.keys).astype(np.int64).reshape(len(asked), -1)
    which, place = np.nonzero(keys != besides[:, None])
    found = keys[which, place]
    scores = similarity(asked, _vectors(store, layer, found), which, np.arange(len(found)), memory_bytes=memory_bytes)
    none = Found(np.full((len(asked), k), -1), np.full((len(asked), k), np.nan))
    return _merged(none, which, found, scores)


def _opened(store: FeatureStore | str | Path) -> FeatureStore:
    return open_cache(store) if isinstance(store, str | Path) else store


def _normalised(vectors: NDArray[Any]) -> NDArray[np.float32]:
    """Rows of length 1; those of length 0 stay."""
    length = np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64))
    return (vectors / np.where(length > 0, length, 1)[:, None]).astype(np.float32)


def _vectors(store: FeatureStore, layer: str, rows: Ints) -> NDArray[np.float32]:
    """Rows as vectors. A mapped file is let go: what was read of it counts as memory."""
    found = store.vectors(layer, rows).reshape(len(rows), -1)
    if store.folder.local is not None:
        store.release()
    return found


def _require_layer(store: FeatureStore, layer: str) -> None:
    if layer not in store:
        wanted = f"one of {', '.join(store.manifest.layers())}"
        raise RequestError(where=store.path, found=f"no layer {layer!r}", wanted=wanted, fix="name one of them")


def _usable(store: FeatureStore, layer: str, split: str | None) -> Ints:
    _require_layer(store, layer)
    usable = store.usable([layer])
    return np.flatnonzero(usable if split is None else usable & store.samples.having("split", split))


def _rows(store: FeatureStore, layer: str, split: str | None) -> Ints:
    """The rows to search in. Raises RequestError where there is none."""
    rows = _usable(store, layer, split)
    if not len(rows):
        known = ", ".join(sorted(store.samples.counts("split")))
        found = "no usable row" if split is None else f"no usable row of split {split!r}"
        raise RequestError(where=store.path, found=found, wanted="one at least", fix=f"its splits are {known}")
    return rows


def _checked(store: FeatureStore, queries: NDArray[Any], layer: str) -> NDArray[Any]:
    """The queries as (n, d). Raises RequestError."""
    _require_layer(store, layer)
    store.require_complete()
    asked, width = np.asarray(queries), int(np.prod(store[layer].shape[1:]))
    asked = asked.reshape(len(asked), -1) if asked.ndim > 1 else asked[None]
    found = None
    if asked.shape[1] != width or asked.dtype.kind != "f":
        found, wanted = f"queries of {asked.dtype}, shape {asked.shape}", f"float vectors of width {width}"
    elif not np.isfinite(asked).all() or not asked.any(axis=1).all():
        found, wanted = "a query that is NaN, infinite or zero", "vectors with a direction"
    if found is not None:
        raise RequestError(where=store.path, found=found, wanted=wanted, fix="ask with vectors of the same teacher")
    return asked if asked.dtype == np.float64 else asked.astype(np.float32)


def _described(store: FeatureStore, row: int) -> dict[str, Any]:
    """A row in words."""
    samples, plan, here = store.samples, store.manifest.plan, slice(row, row + 1)
    label, group = (int(samples.numbers(name, here)[0]) for name in ("label", "group"))
    text = {name: samples.text(name, row, row + 1)[0] for name in ("id", "split")}
    cell = name_of_cell(plan.class_names, plan.group_names, f"{label},{group}")
    return {**text, "row": row, "cell": cell}


def _compared(
    store: FeatureStore,
    splits: tuple[str, str],
    rows: Ints,
    near: Found,
    threshold: float,
    listed: int,
) -> dict[str, Any]:
    """One pair of splits, in numbers."""
    found, scores = near
    samples, plan = store.samples, store.manifest.plan
    label, group = (samples.numbers(name, rows) for name in ("label", "group"))
    close = scores >= threshold
    other = {
        "of_another_class": close & (label != samples.numbers("label", found)),
        "of_another_group": close & (group != samples.numbers("group", found)),
    }

    def counted(mine: NDArray[np.bool_]) -> dict[str, int]:
        counts = {"rows": mine, "near_duplicates": mine & close, **{name: mine & each for name, each in other.items()}}
        return {name: int(each.sum()) for name, each in counts.items()}

    cells = {
        name_of_cell(plan.class_names, plan.group_names, f"{c},{g}"): counted((label == c) & (group == g))
        for c, g in sorted({*zip(label.tolist(), group.tolist(), strict=True)})
    }
    order = np.lexsort((rows, -scores))[: min(listed, int(close.sum()))].tolist()
    first = []
    for at in order:
        of = _described(store, int(rows[at]))
        first.append({**of, "nearest": _described(store, int(found[at])), "similarity": float(scores[at])})
    quantiles = dict(zip(map(str, QUANTILES), np.quantile(scores, QUANTILES).tolist(), strict=True))
    whole = counted(np.ones(len(rows), bool))
    return {"of": splits[0], "in": splits[1], **whole, "cells": cells, "quantiles": quantiles, "first": first}
