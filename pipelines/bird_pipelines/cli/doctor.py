"""`bird doctor`: what this installation can do, found out by doing it."""

from __future__ import annotations

import os
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

__all__ = ["diagnose"]

PACKAGES = (
    "bird-distill",
    "bird-cache",
    "torch",
    "torchvision",
    "transformers",
    "open_clip_torch",
    "onnxruntime",
    "zarr",
    "zarrs",
)


def diagnose() -> dict[str, dict[str, str]]:
    """{"versions": ..., "machine": ..., "checks": name -> "ok" or what is wrong}."""
    return {
        "versions": {name: _version(name) for name in PACKAGES},
        "machine": _machine(),
        "checks": _checks(),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"


def _machine() -> dict[str, str]:
    import torch

    return {
        "cores": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
        "torch threads": str(torch.get_num_threads()),
        "cuda": torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none",
        "offline hub": os.environ.get("HF_HUB_OFFLINE", "0"),
    }


def _checks() -> dict[str, str]:
    return {name: _attempt(check) for name, check in {"cache": _cache, "feedback": _feedback}.items()}


def _attempt(check: object) -> str:
    assert callable(check)
    try:
        check()
        return "ok"
    except Exception as error:  # a doctor reports whatever it finds
        return f"{type(error).__name__}: {error}"


def _cache() -> None:
    """Write a small cache, read it back, verify it."""
    from bird_cache.manifest import Layer, Plan
    from bird_cache.samples import PENDING, Samples
    from bird_cache.store import open_cache
    from bird_cache.verify import verify
    from bird_cache.writer import open_writer

    rows = 300
    names = np.array([f"sample-{row}" for row in range(rows)], dtype=object)
    same = np.full(rows, "train", dtype=object)
    samples = Samples(
        names,
        np.zeros(rows, np.int64),
        np.zeros(rows, np.int64),
        same,
        names,
        np.full(rows, PENDING, dtype=object),
    )
    layers = {"penultimate": Layer(shape=(8,), dtype="float16", kind="penultimate")}
    plan = Plan(
        causes={},
        layers=layers,
        rows=rows,
        shard_rows=128,
        chunk_rows=64,
        class_names=("a",),
        group_names=("b",),
    )
    vectors = np.random.default_rng(0).standard_normal((rows, 1, 8)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cache"
        with open_writer(path, plan, samples) as writer:
            for shard in writer.pending():
                start, stop = plan.bounds(shard)
                writer.write_shard(shard, {"penultimate": vectors[start:stop]}, {})
            writer.finish()
        if findings := verify(path).findings:
            raise RuntimeError("; ".join(findings))
        got = open_cache(path).vectors("penultimate", np.arange(rows))
        if not np.array_equal(got, vectors[:, 0].astype(np.float16).astype(np.float32)):
            raise RuntimeError("read other numbers than were written")


def _feedback() -> None:
    """One BIRD step of an adapter on random numbers."""
    import torch

    from bird.methods import Batch, Hyperparameters, SingleLearner, build_method
    from bird.students import build_student

    student = build_student("adapter", classes=2, feature_mean=torch.zeros(8), feature_std=torch.ones(8), seed=0)
    learner = SingleLearner(student, teacher_dim=8, lr=1e-3, mu2=1e-3, seed=0)
    features = torch.randn(8, 8, generator=torch.Generator().manual_seed(0))
    batch = Batch(features, torch.arange(8) % 2, torch.arange(8) // 4, features)
    losses = build_method("bird", Hyperparameters(), 2).step(learner, batch, lambda: batch, warm=True)
    if not all(torch.isfinite(value) for value in losses.values()):
        raise RuntimeError("a loss that is not finite")
