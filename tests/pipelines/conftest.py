"""A small real teacher, trained here, and a small real cache of its features."""

from pathlib import Path

import pytest

from bird_pipelines.config import resolve
from bird_pipelines.precompute import precompute_command
from bird_pipelines.training import distill

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
    given = {"data_root": None, "weights": None, "dtype": "float16", "precision": "fp32", "image_size": None}
    work = {"batch_size": 16, "workers": 1, "device": "auto", "shard_rows": 64, "max_failed": 0.01}
    precompute_command(
        f"run:{teacher}", "digits-s", folder, limit=LIMIT, settings={}, keep_conflicts=False, **given, **work
    )
    return folder


@pytest.fixture(scope="session")
def flags(teacher):
    """The options of `bird precompute` that make the cache fixture."""
    data = ("--dataset", "digits-s", "--limit", LIMIT, "--shard-rows", 64, "--batch-size", 16, "--workers", 1)
    return ("--teacher", f"run:{teacher}", *data)
