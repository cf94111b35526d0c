"""Logits for a teacher that gives only features: of a head that is fitted to them, for a run, or stored in the cache with a
fingerprint of their own (`bird cache fit-head`)."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bird.devices import choose_device, threads
from bird.students import Student
from bird_cache.errors import CacheError, StaleCacheError
from bird_cache.manifest import Layer
from bird_cache.order import batches, shuffled
from bird_cache.samples import OK
from bird_cache.store import open_cache
from bird_cache.writer import open_part
from bird_pipelines.config import Source, Training, Weights
from bird_pipelines.distilling.data import LOGITS, RunData, cache_dataset, load_data
from bird_pipelines.distilling.learners import make_learner
from bird_pipelines.distilling.requirements import make_method
from bird_pipelines.distilling.scoring import logits_of
from bird_pipelines.progress import progress

__all__ = ["features_only", "fit_head", "fit_teacher_head", "teacher_logits"]

PART = "head"
HEAD = Training(lr=1e-3, batch_size=128)


def teacher_logits(data: RunData, training: Training, device: torch.device) -> Tensor:
    """The teacher's logits of all rows: the cache's, or those of a head that is fitted here as `training` says."""
    if data.logits is not None:
        return data.logits
    head = fit_teacher_head(data, training.head_epochs, device, balanced=training.head == "balanced")
    return logits_of(head, features_only(data), np.arange(len(data.table)), device)


def fit_teacher_head(data: RunData, epochs: int, device: torch.device, *, balanced: bool = False) -> Student:
    """A head for a teacher that has none: adapter and linear layer, trained with CE on the cached train features (the
    Baseline row of the foundation models); a `balanced` one with inverse frequencies of the cells as weights. The same for
    every student seed."""
    data = features_only(data)
    method = make_method("reweight" if balanced else "baseline", Weights(average=0.0), data)
    method.prepare(data.cell_counts("train"))
    learner, rows = make_learner("adapter", HEAD, data, device, method), data.rows("train")
    with progress("teacher head", "samples", epochs * len(rows)) as advance:
        for epoch in range(epochs):
            for picked in batches(shuffled(rows, 0, epoch), HEAD.batch_size):
                batch = data.batch(picked, device)
                method.step(learner, batch, lambda: batch, warm=False)  # noqa: B023  (neither draws a meta batch)
                advance(len(picked))
    return learner.model.student


def features_only(data: RunData) -> RunData:
    """The same data for a student that reads no image."""
    return dataclasses.replace(data, images=None)


def fit_head(cache: str, *, epochs: int = 10, device: str = "auto") -> dict[str, Any]:
    """Train an adapter and head with CE on the cached train features, and add its logits for every row as the layer
    `logits`; returns what the cache holds. Nothing is done where they are there.

    Raises StaleCacheError where the cache holds logits of another origin, the cache's errors.
    """
    store = open_cache(cache)
    store.require_complete()
    if LOGITS in store.manifest.layers():
        if store.manifest.part_of(LOGITS) == PART and _settings(store.manifest.parts[PART].causes) == {
            "epochs": epochs
        }:
            return store.info()
        raise another_origin(cache)
    source = Source(dataset=cache_dataset(cache), cache=cache)
    data, where = features_only(load_data(source, "adapter")), choose_device(device)
    with threads(1):
        head = fit_teacher_head(data, epochs, where)
        logits = logits_of(head, data, np.arange(len(data.table)), where).numpy()
    weights = hashlib.sha256()
    for name, value in sorted(head.state_dict().items()):
        weights.update(name.encode() + value.cpu().contiguous().numpy().tobytes())
    layer = Layer(shape=(logits.shape[1],), dtype="float32", kind="logits")
    causes = {"head": {"epochs": epochs, "fit": "adapter + linear, CE on train, Adam 1e-3, batch 128, seed 0"}}
    with open_part(cache, PART, {LOGITS: layer}, {**causes, "weights": f"sha256:{weights.hexdigest()}"}) as writer:
        whole = np.zeros((len(store.samples), 1, logits.shape[1]), np.float32)
        whole[store.samples.status == OK] = logits[:, None]
        whole = np.repeat(whole, store.manifest.plan.views, axis=1)
        for shard in writer.pending():
            start, stop = writer.plan.bounds(shard)
            writer.write_shard(shard, {LOGITS: whole[start:stop]}, store.receipts[shard].failed)
        writer.finish()
    return open_cache(cache).info()


def _settings(causes: Any) -> dict[str, Any]:
    return {"epochs": causes.get("head", {}).get("epochs")}


def another_origin(cache: str) -> CacheError:
    """The error for a cache that has logits already."""
    return StaleCacheError(
        where=cache,
        found="a layer `logits` of another origin",
        wanted="a cache without logits, or with those of the same fit",
        fix="use the logits that are there",
    )
