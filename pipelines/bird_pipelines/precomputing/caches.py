"""What can be done with caches beside making and reading them: convert, check against the live teacher, list."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bird.datasets import DATASETS, open_dataset
from bird.datasets.base import Dataset
from bird.datasets.own import is_object, open_own
from bird.errors import UsageError, unknown_name
from bird.own import find
from bird_cache.convert import convert
from bird_cache.errors import CacheError, NotACacheError, StaleCacheError
from bird_cache.folders import open_folder
from bird_cache.manifest import Compress, Store, flatten
from bird_cache.samples import OK, Samples
from bird_cache.store import FeatureStore, open_cache, read_manifest
from bird_cache.summary import name_of_cell
from bird_pipelines.config.cache import refuse_compress
from bird_pipelines.progress import progress

__all__ = ["compare_with_teacher", "convert_command", "dataset_of", "image_reader", "list_caches"]

LAYER = "penultimate"
COSINE = 0.999
COMPRESS: Mapping[str, Compress] = {"none": "none", "zstd": "zstd", "pcodec": "pcodec"}


def convert_command(
    source: str,
    target: str,
    store: str | None,
    data_root: Path | None,
    images: bool,
    compress: str | None = None,
    dataset: object = None,
) -> dict[str, Any]:
    """`bird cache convert`: see `bird_cache.convert.convert`; returns what the new cache holds. Without `store`, the
    other store than `source`'s is written. `dataset` is one of the user's own, whose images go into WebDataset shards."""
    if store not in (None, "zarr", "webdataset"):
        raise unknown_name("--store", store, ("zarr", "webdataset"))
    given = open_cache(source)
    kind: Store = "webdataset" if given.manifest.plan.store == "zarr" else "zarr"
    if store is not None:
        kind = "webdataset" if store == "webdataset" else "zarr"
    if compress is not None and compress not in COMPRESS:
        raise unknown_name("--compress", compress, COMPRESS)
    refuse_compress(kind, COMPRESS[compress or "none"])
    image = None
    if kind == "webdataset" and images and not given.manifest.plan.images:
        image = image_reader(given.samples, dataset_of(given, data_root, dataset))
    rows = given.manifest.plan.rows * (1 + len(given.manifest.parts))
    how = None if compress is None else COMPRESS[compress]
    with progress(f"convert to {kind}", "rows", rows, 0) as advance:
        convert(source, target, kind, image, advance, how)
    return open_cache(target).info()


def dataset_of(store: FeatureStore, data_root: Path | None, given: object = None) -> Dataset:
    """The data set whose features a cache holds, opened again; `given` is one of the user's own, the object or a reference.
    Raises UsageError where it is missing or not wanted, StaleCacheError for another one."""
    described: Any = store.manifest.plan.causes["dataset"]
    own = described.get("own")
    if given is None and own is None:
        return open_dataset(described["name"], data_root, **described["settings"])
    if given is None or own is None:
        raise UsageError(
            where=f"data set {described['name']}",
            found="a data set of your own, which a cache cannot open by itself" if own else "--dataset",
            wanted="that data set again: its images are read" if own else "none: the cache names its data set",
            fix=f"--dataset FILE.py:{own['attribute']}, as for `bird precompute`" if own else "leave it out",
        )
    part = find("dataset", given, DATASETS)
    if not part.same(own):
        raise StaleCacheError(
            where=part.where,
            found=part.label,
            wanted=f"{described['name']}, as the cache has it",
            fix="give the data set that the cache was made from, from an unchanged file",
        )
    return open_own(part, data_root, {} if is_object(part) else described["settings"])


def image_reader(samples: Samples, dataset: Dataset) -> Callable[[str], bytes | None]:
    """Encoded source by id; None where it cannot be read; StaleCacheError where it is another image than was planned."""
    digests = dict(zip(samples.ids.tolist(), samples.digests.tolist(), strict=True))

    def read(id: str) -> bytes | None:
        try:
            data = dataset.read(id)
        except (KeyError, OSError):
            return None
        if dataset.digest(id, data) != digests[id]:
            raise StaleCacheError(
                where=f"{dataset.name}, sample {id}",
                found="another image",
                wanted="the image whose features are in the cache",
                fix="point --data-root at the data set that the cache was made from",
            )
        return data

    return read


def compare_with_teacher(
    cache: str, teacher: object, sample: int, *, data_root: Path | None, dataset: object = None, **asked: Any
) -> dict[str, Any]:
    """Compute `sample` rows again, spread over the (class, group) cells, and compare them with the cached ones: cosine per
    cell, and `findings` for every cell below .999; `proof` is how the teacher compares with its own library today.
    `asked` holds the teacher's options as given to `bird precompute`; `teacher` and `dataset` may be the user's own.

    Raises UsageError for a service, StaleCacheError, naming every field, where the teacher's weights, configuration, view or
    reading are not those that the cache was made with.
    """
    from bird.teachers import Service
    from bird_pipelines.config import resolve_precompute
    from bird_pipelines.precomputing.teacher import open_teacher

    store = open_cache(cache)
    causes: Any = store.manifest.plan.causes
    config = causes["teacher"].get("config")  # older caches have none
    named = {
        "teacher": teacher,
        "dataset": causes["dataset"]["name"],
        "out": cache,
        "precision": causes.get("precision", "fp32"),
    }
    live = open_teacher(resolve_precompute({**named, **asked}))
    if isinstance(live, Service):
        raise UsageError(
            where="--teacher",
            found="a service",
            wanted="a teacher that runs here",
            fix="`bird precompute` looks at a service's test images again by itself",
        )
    if live.weights_digest != causes["teacher"]["weights"]:
        raise StaleCacheError(
            where=cache,
            found=f"teacher.weights = {causes['teacher']['weights']}" + _commit(store.manifest.plan.notes),
            wanted=f"teacher.weights = {live.weights_digest}" + _commit(live.notes),
            fix="compare with the teacher that the cache was made with",
        )
    made = {"preprocessing": causes["preprocessing"]} | ({"teacher.config": config} if config else {})
    now = {"preprocessing": dict(live.preprocessing), "teacher.config": dict(live.config)}
    there, here = (flatten({name: each[name] for name in made}) for each in (made, now))
    if other := [name for name in sorted({*there, *here}) if there.get(name) != here.get(name)]:
        raise StaleCacheError(
            where=cache,
            found="; ".join(f"{name} = {here.get(name)} now" for name in other),
            wanted="; ".join(f"{name} = {there.get(name)}" for name in other),
            fix="compare with the options that the cache was made with, such as --image-size or --mean; where a later "
            "version of this program reads the teacher in another way, write the cache again",
        )
    images, rows = dataset_of(store, data_root, dataset), spread(store, sample)
    cached = store.vectors(LAYER, rows)
    cosines = np.empty(len(rows))
    for position, row in enumerate(rows.tolist()):
        view = live.preprocess(images.image(store.samples.ids[row]))
        answer: Any = live.features(view[None])
        vector = (answer[LAYER] if isinstance(answer, dict) else answer)[0].double().numpy()
        scale = float(np.linalg.norm(vector)) * float(np.linalg.norm(cached[position]))
        cosines[position] = float(vector @ cached[position]) / max(scale, 1e-30)
    return _by_cell(store, rows, cosines) | {"proof": _proof(store.manifest.plan.notes, dict(live.notes))}


def _proof(then: dict[str, str], now: dict[str, str]) -> dict[str, str]:
    """What was compared with the teacher's own library now, and what it was then where that is another."""
    return {
        name: value if then.get(name, value) == value else f"{value} (when the cache was made: {then[name]})"
        for name, value in now.items()
    }


def _commit(notes: Mapping[str, str]) -> str:
    """Where on the hub weights came from, in brackets; nothing where nobody knows."""
    return f" ({notes['revision']})" if "revision" in notes else ""


def spread(store: FeatureStore, count: int) -> np.ndarray:
    """About `count` usable rows, the same number from every (class, group) cell, chosen by the images' digests."""
    samples = store.samples
    usable = np.flatnonzero(samples.status == OK)
    cells: dict[tuple[int, int], list[int]] = {}
    for row in usable[np.argsort(samples.digests[usable], kind="stable")].tolist():
        cells.setdefault((int(samples.labels[row]), int(samples.groups[row])), []).append(row)
    each = -(-count // max(1, len(cells)))
    return np.sort(np.array([row for rows in cells.values() for row in rows[:each]], np.int64))


def _by_cell(store: FeatureStore, rows: np.ndarray, cosines: np.ndarray) -> dict[str, Any]:
    plan, samples = store.manifest.plan, store.samples
    keys = np.array([f"{samples.labels[row]},{samples.groups[row]}" for row in rows])
    cells, findings = {}, []
    for key in sorted({*keys.tolist()}):
        name, mine = name_of_cell(plan.class_names, plan.group_names, key), cosines[keys == key]
        cells[name] = {"rows": len(mine), "cosine_mean": float(mine.mean()), "cosine_min": float(mine.min())}
        if not mine.min() >= COSINE:
            findings.append(f"{name}: cosine {mine.min():.5f} between cached and live vectors, below {COSINE}")
    return {"compared": len(rows), "cells": cells, "findings": findings}


def list_caches(folder: str) -> dict[str, Any]:
    """The caches in a folder and in the folders below it: path -> what their manifests say. Raises NotACacheError
    where there is no such folder."""
    root = open_folder(folder)
    if not root.exists():
        raise NotACacheError(where=folder, found="no such folder", wanted="a folder with caches", fix="check the path")
    found = {}
    for manifest in ("zarr.json", "manifest.json"):
        for path in sorted(path for path in root.files() if path == manifest or path.endswith(f"/{manifest}")):
            where = f"{folder.rstrip('/')}/{path.removesuffix(manifest)}".rstrip("/")
            if (line := _line(where)) is not None:
                found[where] = line
    return found


def _line(where: str) -> dict[str, Any] | None:
    try:
        _, manifest = read_manifest(open_folder(where))
    except NotACacheError:  # a layer's own zarr.json, or another program's
        return None
    except CacheError as error:
        return {"state": error.found}
    plan = manifest.plan
    return {
        "state": "complete" if manifest.complete else "unfinished",
        "store": plan.store,
        "rows": plan.rows,
        "layers": ", ".join(manifest.layers()),
        "teacher": plan.notes.get("teacher", ""),
        "fingerprint": manifest.fingerprint[:12],
    }
