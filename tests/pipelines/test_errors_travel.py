"""Every error of ours survives the way from one process to another."""

from __future__ import annotations

import copy
import importlib
import multiprocessing
import pickle
import pkgutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pytest

import bird
import bird_cache
import bird_pipelines
from bird.errors import BirdError, MissingWeightsError
from bird_cache.errors import CacheError, StorageError

SAID = {"where": "cache/000000.tar", "found": "nothing", "wanted": "a tar", "fix": "look"}


def ours() -> Iterator[type[Exception]]:
    """Every exception class that any of our modules defines."""
    for package in (bird, bird_cache, bird_pipelines):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if module.name.endswith("__main__"):
                continue
            for value in vars(importlib.import_module(module.name)).values():
                if isinstance(value, type) and issubclass(value, Exception) and value.__module__ == module.name:
                    yield value


def test_every_error_of_ours_survives_pickling(record_property: Any) -> None:
    classes = list(ours())
    assert {StorageError, MissingWeightsError} < {*classes}
    record_property("34 errors between processes", 2 * len(classes))
    for kind in classes:
        error = kind(**SAID) if issubclass(kind, (BirdError, CacheError)) else kind("a reason")
        error.add_note("and a note")
        for other in (pickle.loads(pickle.dumps(error)), copy.copy(error)):  # noqa: S301  # our own bytes
            assert type(other) is kind
            assert str(other) == str(error)
            assert other.__dict__ == error.__dict__


def fail() -> None:
    raise StorageError(**SAID)


def test_an_error_of_a_worker_process_arrives_as_itself() -> None:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        with pytest.raises(StorageError) as caught:
            pool.submit(fail).result(timeout=120)
        assert (caught.value.found, caught.value.fix) == ("nothing", "look")
