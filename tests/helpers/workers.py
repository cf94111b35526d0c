"""Caches that workers write: what to compare, and whom to kill."""

import contextlib
import dataclasses
import os
import pickle
import signal
import subprocess
import time
from pathlib import Path

import psutil
from helpers.shell import BIRD, ENVIRONMENT, bird

from bird_cache.store import open_cache
from bird_pipelines.config import resolve_precompute
from bird_pipelines.precomputing.engines.base import Order


def bytes_of(where):
    """All of a cache, but for its lock: path inside -> bytes."""
    files = (path for path in sorted(where.rglob("*")) if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(where)): path.read_bytes() for path in files}


def start(*args, **environment):
    """`bird ARGS` in the background, in a session of its own, with the token of a Ray that this process started."""
    of_ray = {name: value for name, value in os.environ.items() if name.startswith("RAY_")}
    return subprocess.Popen(
        [*BIRD, *map(str, args)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**ENVIRONMENT, **of_ray, **environment},
        text=True,
        start_new_session=True,
    )


def ended(process, *codes, seconds=600):
    """What the process has said on stderr; its exit code must be one of `codes` (0 where none is given)."""
    said = process.communicate(timeout=seconds)[1]
    assert process.returncode in (codes or (0,)), f"exit {process.returncode}: {said}"
    assert "Traceback" not in said
    return said


def until(holds, process=None, seconds=240):
    """Wait until `holds()`; whether it did before the process ended."""
    end = time.monotonic() + seconds
    while not holds():
        if process is not None and process.poll() is not None:
            return False
        assert time.monotonic() < end, "the moment never came"
        time.sleep(0.005)
    return True


def receipts(where):
    """How many shards are committed."""
    return len([*where.glob("commits/*.json")])


def workers_of(process):
    """The worker processes of `--processes N`."""
    with contextlib.suppress(psutil.NoSuchProcess):
        children = psutil.Process(process.pid).children(recursive=True)
        return [child for child in children if "spawn_main" in " ".join(child.cmdline())]
    return []


def kill(pid):
    """SIGKILL, if it is still there."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def full_disk(pid):
    """From now on no file of this process may grow beyond 100,000 bytes, as if its disk were full: a shard is larger."""
    psutil.Process(pid).rlimit(psutil.RLIMIT_FSIZE, (100_000, 100_000))


def order_for(where, teacher, **config):
    """The order for workers of the cache that is begun in `where`."""
    asked = {"teacher": f"run:{teacher}", "dataset": "digits-s", "out": where, "batch_size": 16, "workers": 1, **config}
    plan = open_cache(where).manifest.plan
    return Order(
        packed=pickle.dumps(resolve_precompute(asked)),
        fingerprint=plan.fingerprint,
        part="",
        shards=[*range(plan.shards)],
        max_failed=0.01,
        threads=1,
        folder=str(Path.cwd()),
    )


def moved(order, out):
    """The same order for another folder."""
    return dataclasses.replace(order, packed=pickle.dumps(dataclasses.replace(order.config, out=str(out))))


def begun(flags, where):
    """A cache with one of its seven shards."""
    bird("precompute", *flags, "--out", where, "--slice", "7/7")
    assert receipts(where) == 1
    return bytes_of(where)
