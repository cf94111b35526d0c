"""kill -9 at any instant: nothing lost, doubled or wrong after the same command is run again."""

import random

import numpy as np
import pytest
from helpers.cachekit import ROWS, SHARD, plan, run_killed, write

from bird_cache.errors import CacheError
from bird_cache.store import open_cache
from bird_cache.verify import verify

KILLED = -9


def unbroken(tmp_path):
    write(tmp_path / "unbroken")
    return open_cache(tmp_path / "unbroken").vectors("penultimate", np.arange(ROWS))


def check(path, expected):
    """Resume, and compare with an unbroken cache, bit by bit. Returns the number of shards computed again."""
    computed = write(path)
    assert verify(path).findings == []
    store = open_cache(path)
    assert store.info()["written"] + store.info()["failed"] == ROWS
    np.testing.assert_array_equal(store.vectors("penultimate", np.arange(ROWS)), expected)
    return len(computed)


def kill_at_calls(tmp_path, calls):
    expected = unbroken(tmp_path)
    killed = 0
    for at_call, after in calls:
        path = tmp_path / f"{at_call}-{after}"
        if run_killed(path, at_call=at_call, after=after) == KILLED:
            killed += 1
            check(path, expected)
    return killed


def kill_at_random(tmp_path, rounds):
    expected = unbroken(tmp_path)
    rng = random.Random(0)
    for number in range(rounds):
        path = tmp_path / str(number)
        run_killed(path, seconds=0.05, kill_after=rng.uniform(0.3, 1.2))
        before = len(open_cache(path).receipts) if (path / "zarr.json").exists() else 0
        assert check(path, expected) == plan().shards - before, "a committed shard was computed again"


@pytest.mark.slow
def test_killed_around_system_calls(tmp_path):
    """Every seventh of the open, fsync, link, replace, unlink and mkdir calls, before or after it."""
    assert kill_at_calls(tmp_path, [(call, bool(call % 2)) for call in range(1, 100, 7)]) > 8


@pytest.mark.slow
def test_killed_at_random(tmp_path):
    kill_at_random(tmp_path, 5)


@pytest.mark.slow
@pytest.mark.parametrize("broken", ["receipt first", "in place"])
def test_broken_writers_are_caught(tmp_path, broken):
    """Negative controls: a writer that breaks a rule must be noticed within 60 kills."""
    assert run_killed(tmp_path / "unharmed", broken=broken) == 0, "without a kill it must look sound"
    assert verify(tmp_path / "unharmed").findings == []
    for at_call in range(10, 70):
        path = tmp_path / str(at_call)
        if run_killed(path, at_call=at_call, after=True, broken=broken) != KILLED:
            continue
        code = run_killed(path, broken=broken)  # resume with the same broken writer
        if code != 0 or verify(path).findings:
            return
    pytest.fail(f"the writer '{broken}' was never caught")


@pytest.mark.torture
def test_killed_around_every_system_call(tmp_path):
    assert kill_at_calls(tmp_path, [(call, after) for call in range(1, 101) for after in (False, True)]) > 100


@pytest.mark.torture
def test_killed_at_random_in_full(tmp_path):
    kill_at_random(tmp_path, 100)


def test_shard_is_what_a_kill_may_cost():
    assert plan().bounds(1) == (SHARD, 2 * SHARD)
    assert issubclass(CacheError, Exception)
