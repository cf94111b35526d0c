"""A new generation of a cache: rows dropped, chosen or added, without the teacher.

drop(cache, target, ids)             a take-down: these rows are gone from vectors, table, images and receipts
subset(cache, target, splits=...)    only these rows
append(cache, addition, target)      the rows of both, of one teacher; every row stays on its side of the split

The earlier cache is only read. The new one is complete when its manifest says so, as any cache; the same call resumes
one that was interrupted. Its fingerprint is another: its causes say under `generation` what was done to which cache.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple, final
from urllib.parse import unquote, urlsplit

import numpy as np
from numpy.typing import NDArray

from bird_cache.errors import RequestError, StaleCacheError
from bird_cache.manifest import LeftOut, Manifest, Part, flatten
from bird_cache.picked import Advance, Picked, write
from bird_cache.store import FeatureStore, open_cache, require_list
from bird_cache.summary import SPLITS, name_of_cell

__all__ = ["Generation", "append", "drop", "subset"]

Ints = NDArray[np.int64]
DROPPED, NOT_CHOSEN = "dropped", "not in the subset"
OF_THE_ROWS = ("dataset.rows", "dataset.identity", "generation", "vectors", "failed", "imported")
"""causes that tell one set of rows from another, not one teacher from another"""
OF_THE_TEACHER = ("imported.kind", "imported.provenance")


@final
class Generation(NamedTuple):
    """What was made: where, its fingerprint and that of the cache it comes from, rows before and now; `changed` counts the
    rows that went or came, and `emptied` lists the cells of a split that have lost their last row. Layers that were added to
    only one of two caches are `layers_left_out`."""

    path: str
    fingerprint: str
    earlier: str
    rows_before: int
    rows: int
    changed: dict[str, int]
    emptied: tuple[str, ...] = ()
    layers_left_out: tuple[str, ...] = ()


def drop(
    cache: str | Path, target: str | Path, ids: Collection[str], advance: Advance = lambda rows: None
) -> Generation:
    """Write `cache` without the rows of `ids` to `target`, a new folder or URL; the same call resumes.

    Nothing of the rows is in the new cache but how many of each class, group and split there were. Delete the earlier one
    when this is done. Raises RequestError for ids that are not there, for no id, and where no row with a vector is left;
    what `open_cache` and `open_writer` raise.
    """
    store = _complete(cache)
    gone = np.isin(np.arange(len(store)), _rows_of(store, ids))
    return _keep(store, ~gone, target, "drop", DROPPED, advance)


def subset(
    cache: str | Path,
    target: str | Path,
    *,
    ids: Collection[str] | None = None,
    splits: Collection[str] | None = None,
    classes: Collection[str] | None = None,
    groups: Collection[str] | None = None,
    advance: Advance = lambda rows: None,
) -> Generation:
    """Write only the rows of `cache` that are in all that is given (ids, splits, names of classes and groups) to `target`, a
    new folder or URL; the same call resumes. Raises what `drop` raises, RequestError for a name that is not there."""
    store = _complete(cache)
    kept = np.ones(len(store), bool)
    if ids is not None:
        kept &= np.isin(np.arange(len(store)), _rows_of(store, ids))
    if splits is not None:
        _require_known(store, "split", splits, sorted(store.samples.counts("split")))
        kept &= np.any([store.samples.having("split", split) for split in splits], axis=0)
    plan = store.manifest.plan
    for what, names, known in (("label", classes, plan.class_names), ("group", groups, plan.group_names)):
        if names is not None:
            _require_known(store, "class" if what == "label" else what, names, known)
            kept &= np.isin(store.samples.numbers(what, slice(None)), [known.index(name) for name in names])
    return _keep(store, kept, target, "subset", NOT_CHOSEN, advance)


def append(
    cache: str | Path, addition: str | Path, target: str | Path, advance: Advance = lambda rows: None
) -> Generation:
    """Write the rows of `cache`, and after them in each split those of `addition`, to `target`, a new folder or URL; the
    same call resumes. The layout is that of `cache`.

    Raises StaleCacheError, naming the field, where the two are not of one teacher, data set and settings; RequestError where
    they share an id, or an image that is on two sides of the split; what `open_cache` and `open_writer` raise.
    """
    first, other = _complete(cache), _complete(addition)
    _require_one_origin(first, other)
    _require_apart(first, other)
    if first.manifest.plan.images and not other.manifest.plan.images:
        fix = "put them in: bird cache convert --store webdataset"
        raise RequestError(where=other.path, found="shards without images", wanted="images, as in the other", fix=fix)
    of = np.repeat([0, 1], [len(first), len(other)])
    rows = np.concatenate([np.arange(len(first)), np.arange(len(other))])
    splits = np.concatenate([first.samples.splits, other.samples.splits])
    rank = {split: place for place, split in enumerate(SPLITS)}
    order = np.argsort([rank.get(split, len(SPLITS)) for split in splits.tolist()], kind="stable")
    picked = Picked((first, other), of[order], rows[order])
    left_out = [each.manifest.plan.left_out for each in (first, other)]
    counted = None if left_out == [None, None] else _added(*(each or () for each in left_out))
    parts = {name: part for name, part in _parts(first).items() if _same_part(part, _parts(other).get(name))}
    missing = {name for each in (first, other) for part in _parts(each).values() for name in part.layers}
    layers = {name for part in parts.values() for name in part.layers}
    for store in (first, other):
        _require_elsewhere(store, target)
    manifest = write(picked, target, "append", counted, parts, advance)
    cells, lost = _cells(other, np.arange(len(other))), tuple(sorted(missing - layers))
    return Generation(str(target), manifest.fingerprint, first.fingerprint, len(first), len(rows), cells, (), lost)


def _keep(
    store: FeatureStore, kept: NDArray[np.bool_], target: str | Path, by: str, reason: str, advance: Advance
) -> Generation:
    rows, gone = np.flatnonzero(kept), np.flatnonzero(~kept)
    if not (kept & store.usable(store.manifest.plan.layers)).any():
        found = f"{'all' if not len(rows) else 'every vector of'} its {len(store):,} rows to be left out"
        raise RequestError(where=store.path, found=found, wanted="a row that stays", fix="delete the cache instead")
    if not len(gone):
        fix = "ask for fewer rows, or use the cache as it is"
        raise RequestError(where=store.path, found="no row to be left out", wanted="one at least", fix=fix)
    counts = Counter(zip(*_columns(store, gone), strict=True))
    lost = LeftOut.of({(reason, label, group, split): n for (label, group, split), n in sorted(counts.items())})
    counted = _added(store.manifest.plan.left_out or (), lost)
    picked = Picked((store,), np.zeros(len(rows), np.int64), rows)
    emptied = {*counts} - {*zip(*_columns(store, rows), strict=True)}
    names = tuple(sorted(f"{split}: {_name(store, label, group)}" for label, group, split in emptied))
    _require_elsewhere(store, target)
    manifest = write(picked, target, by, counted, _parts(store), advance)
    before, now, cells = len(store), len(rows), _cells(store, gone)
    return Generation(str(target), manifest.fingerprint, store.fingerprint, before, now, cells, names)


def _complete(cache: str | Path) -> FeatureStore:
    store = open_cache(cache)
    store.require_complete()
    return store


def _parts(store: FeatureStore) -> dict[str, Part]:
    return {name: part for name, part in store.manifest.parts.items() if part.complete}


def _same_part(part: Part, other: Part | None) -> bool:
    """Whether both caches have the same added layers of the same origin."""
    if other is None or part.layers != other.layers:
        return False
    mine, theirs = (
        {key: value for key, value in each.causes.items() if key not in ("base", "generation", "dataset")}
        for each in (part, other)
    )
    return mine == theirs


def _rows_of(store: FeatureStore, ids: Collection[str]) -> Ints:
    """Their rows. Raises RequestError for ids that are not there."""
    require_list(store, "ids", ids)
    wanted = {*ids}
    if not wanted:
        raise RequestError(where=store.path, found="no id", wanted="one at least", fix="name the rows by their ids")
    place = {id: row for row, id in enumerate(store.samples.ids.tolist()) if id in wanted}
    if missing := sorted(wanted - place.keys()):
        found = f"no row of {len(missing):,} of {len(wanted):,} ids: {', '.join(map(repr, missing[:10]))}"
        fix = "compare with the column id of its samples.parquet"
        raise RequestError(where=store.path, found=found, wanted="ids of its rows", fix=fix)
    return np.array(sorted(place.values()), np.int64)


def _require_known(store: FeatureStore, what: str, names: Collection[str], known: Sequence[str]) -> None:
    require_list(store, f"{what} names", names)
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        found = f"no {what} {', '.join(map(repr, unknown))}" if unknown else f"no {what} named"
        raise RequestError(where=store.path, found=found, wanted=f"some of {', '.join(known)}", fix="name one of them")


def _require_elsewhere(store: FeatureStore, target: str | Path) -> None:
    """Raise RequestError where the new cache would lie in the earlier one."""
    earlier, new = (_place(where) for where in (store.path, target))
    if new == earlier or new.startswith(f"{earlier}/"):
        fix = "choose a new folder, and delete the earlier cache when this is done"
        raise RequestError(where=str(target), found="the earlier cache", wanted="another place", fix=fix)


def _place(where: str | Path) -> str:
    """A path without links and detours, or a URL."""
    split = urlsplit(str(where)) if "://" in str(where) else None
    if split is not None and split.scheme != "file":
        return str(where).rstrip("/")
    return str(Path(unquote(split.path) if split is not None else where).resolve())


def _require_one_origin(first: FeatureStore, other: FeatureStore) -> None:
    """Raise StaleCacheError, naming the first field that differs, unless the vectors of both follow from the same causes."""
    mine, theirs = (_origin_of(store.manifest) for store in (first, other))
    for field in sorted({*mine, *theirs}):
        if mine.get(field) != theirs.get(field):
            raise StaleCacheError(
                where=f"{other.path} beside {first.path}",
                found=f"{field} = {theirs.get(field, 'absent')}",
                wanted=f"{field} = {mine.get(field, 'absent')}",
                fix="append a cache of the same teacher, view, precision and data set",
            )


def _origin_of(manifest: Manifest) -> dict[str, Any]:
    """What must be equal: by name."""
    plan = manifest.plan
    fields: dict[str, Any] = {
        field: value
        for field, value in flatten(plan.causes).items()
        if field in OF_THE_TEACHER or not any(field == each or field.startswith(f"{each}.") for each in OF_THE_ROWS)
    }
    layers = {f"layer {name}": spec for name, spec in plan.layers.items()}
    return {**fields, **layers, "views": plan.views, "classes": plan.class_names, "groups": plan.group_names}


def _require_apart(first: FeatureStore, other: FeatureStore) -> None:
    """Raise RequestError where both have a row of one id, or one image on two sides of the split."""
    there = {*first.samples.ids.tolist()}
    if both := [id for id in other.samples.ids.tolist() if id in there]:
        found = f"{len(both):,} ids that {first.path} has too: {', '.join(map(repr, both[:10]))}"
        fix = "leave them out first (bird cache drop), or rename them"
        raise RequestError(where=other.path, found=found, wanted="other rows", fix=fix)
    sides = dict(zip(first.samples.digests.tolist(), first.samples.splits.tolist(), strict=True))
    columns = (other.samples.ids, other.samples.digests, other.samples.splits)
    torn = [
        id
        for id, digest, split in zip(*(column.tolist() for column in columns), strict=True)
        if digest and sides.get(digest, split) != split
    ]
    if torn:
        found = f"{len(torn):,} images that {first.path} has in another split: {', '.join(map(repr, torn[:10]))}"
        fix = "leave them out first (bird cache drop)"
        raise RequestError(where=other.path, found=found, wanted="an image on one side of the split", fix=fix)


def _columns(store: FeatureStore, rows: Ints) -> tuple[list[int], list[int], list[str]]:
    """Labels, groups and splits of some rows."""
    samples = store.samples
    labels, groups = (samples.numbers(name, rows).tolist() for name in ("label", "group"))
    return labels, groups, samples.splits[rows].tolist()


def _cells(store: FeatureStore, rows: Ints) -> dict[str, int]:
    """How many of some rows are of each class and group, by name."""
    labels, groups, _ = _columns(store, rows)
    counts = Counter(zip(labels, groups, strict=True))
    return {_name(store, *cell): count for cell, count in sorted(counts.items())}


def _name(store: FeatureStore, label: int, group: int) -> str:
    plan = store.manifest.plan
    return name_of_cell(plan.class_names, plan.group_names, f"{label},{group}")


def _added(*parts: Sequence[LeftOut]) -> tuple[LeftOut, ...]:
    """Counts of what was left out, each kind once."""
    counts: Counter[tuple[str, int, int, str]] = Counter()
    for each in (each for part in parts for each in part):
        counts[each.reason, each.label, each.group, each.split] += each.rows
    return LeftOut.of(counts)
