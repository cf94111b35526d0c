"""A small real teacher, trained here, and a small real cache of its features."""

from pathlib import Path

import pytest
from helpers.shell import bird

LIMIT = 400


@pytest.fixture(scope="session")
def teacher(tmp_path_factory) -> Path:
    """A ShuffleNet trained for one epoch on a part of Digits-S."""
    folder = tmp_path_factory.mktemp("teacher") / "run"
    flags = (
        "--dataset",
        "digits-s",
        "--student",
        "shufflenetv2",
        "--limit",
        LIMIT,
        "--epochs",
        1,
        "--batch-size",
        32,
    )
    bird("train", *flags, "--out", folder)
    return folder


@pytest.fixture(scope="session")
def cache(teacher, tmp_path_factory) -> Path:
    """Its features of the same part of Digits-S, in shards of 64 rows."""
    folder = tmp_path_factory.mktemp("cache") / "cache"
    bird("precompute", *precompute_flags(teacher), "--out", folder)
    return folder


def precompute_flags(teacher):
    """The options the cache fixture is made with."""
    flags = (
        "--dataset",
        "digits-s",
        "--limit",
        LIMIT,
        "--shard-rows",
        64,
        "--batch-size",
        16,
        "--workers",
        1,
    )
    return ("--teacher", f"run:{teacher}", *flags)


@pytest.fixture(scope="session")
def flags(teacher):
    """The same, for a test."""
    return precompute_flags(teacher)
