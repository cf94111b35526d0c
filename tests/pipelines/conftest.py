"""A small real teacher, trained here, and a small real cache of its features."""

from pathlib import Path

import pytest

import bird_pipelines
from bird_pipelines.config import resolve
from bird_pipelines.distilling.training import distill

LIMIT = 400


@pytest.fixture(scope="session")
def teacher(tmp_path_factory) -> Path:
    """A ShuffleNet trained for one epoch on a part of Digits-S."""
    folder = tmp_path_factory.mktemp("teacher") / "run"
    flags = {"dataset": "digits-s", "student": "shufflenetv2", "method": "baseline", "limit": LIMIT}
    distill(resolve({**flags, "epochs": 1, "batch_size": 32, "out": folder}))
    return folder


@pytest.fixture(scope="session")
def cache(teacher, tmp_path_factory) -> Path:
    """Its features of the same part of Digits-S, in shards of 64 rows."""
    folder = tmp_path_factory.mktemp("cache") / "cache"
    work = {"batch_size": 16, "workers": 1, "shard_rows": 64}
    bird_pipelines.precompute(teacher=f"run:{teacher}", dataset="digits-s", out=folder, limit=LIMIT, **work)
    return folder


@pytest.fixture(scope="session")
def flags(teacher):
    """The options of `bird precompute` that make the cache fixture."""
    data = ("--dataset", "digits-s", "--limit", LIMIT, "--shard-rows", 64, "--batch-size", 16, "--workers", 1)
    return ("--teacher", f"run:{teacher}", *data)
