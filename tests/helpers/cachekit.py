"""A small cache with known contents, a writer of it that can be killed at any system call, and broken writers."""

import multiprocessing
import os
import signal
import time

import numpy as np

from bird_cache import folders, writer
from bird_cache.manifest import Layer, Plan
from bird_cache.samples import PENDING, Samples
from bird_cache.writer import open_writer

ROWS, DIM, SHARD, CHUNK = 600, 16, 128, 64
FAILED = {7: "undecodable", 130: "undecodable", 131: "undecodable"}


def strings(values):
    out = np.empty(len(values), dtype=object)
    out[:] = values
    return out


def samples(rows=ROWS):
    number = np.arange(rows)
    splits = strings([("train", "meta", "test")[i % 3] for i in range(rows)])
    ids = strings([f"sample-{i}" for i in range(rows)])
    return Samples(
        ids,
        number % 3,
        number % 2,
        splits,
        strings([f"{i:032x}" for i in range(rows)]),
        strings([PENDING] * rows),
    )


def plan(rows=ROWS, dtype="float16", shard_rows=SHARD, chunk_rows=CHUNK, **causes):
    return Plan(
        causes={
            "teacher": {"weights": "sha256:1"},
            "preprocessing": {"size": 32, "mean": [0.5]},
            "dtype": dtype,
            **causes,
        },
        layers={"penultimate": Layer(shape=(DIM,), dtype=dtype, kind="penultimate")},
        rows=rows,
        shard_rows=shard_rows,
        chunk_rows=chunk_rows,
        class_names=("a", "b", "c"),
        group_names=("g", "h"),
    )


def vectors(start, stop):
    """What the "teacher" says of rows start..stop: a pure function of the row. Shape (rows, 1, DIM)."""
    row, column = np.arange(start, stop)[:, None], np.arange(DIM)[None, :]
    return np.sin(row * 1.7 + column * 0.3).astype(np.float32)[:, None, :]


def lost(start, stop):
    return {row: reason for row, reason in FAILED.items() if start <= row < stop}


def write(path, the_plan=None, rows=ROWS, before_shard=lambda shard: None):
    """Write or resume the cache in `path`; returns the shards that were computed."""
    the_plan = the_plan or plan(rows)
    computed = []
    with open_writer(path, the_plan, samples(rows)) as writer:
        for shard in writer.pending():
            before_shard(shard)
            start, stop = the_plan.bounds(shard)
            writer.write_shard(shard, {"penultimate": vectors(start, stop)}, lost(start, stop))
            computed.append(shard)
        writer.finish()
    return computed


def made_up(where, labels, groups, splits, features, class_names, group_names):
    """A finished cache of made-up vectors (rows, d) in `where`, which calls itself one of Digits-S."""
    rows = len(labels)
    ids, digests = (strings([form.format(i) for i in range(rows)]) for form in ("s{}", "{:032x}"))
    table = Samples(ids, np.asarray(labels), np.asarray(groups), strings(splits), digests, strings([PENDING] * rows))
    the_plan = Plan(
        causes={"teacher": "made up", "dataset": {"name": "digits-s", "settings": {}}},
        layers={"penultimate": Layer(shape=features.shape[1:], dtype="float32", kind="penultimate")},
        rows=rows,
        shard_rows=256,
        chunk_rows=64,
        class_names=class_names,
        group_names=group_names,
    )
    with open_writer(where, the_plan, table) as writer:
        for shard in writer.pending():
            start, stop = the_plan.bounds(shard)
            writer.write_shard(shard, {"penultimate": features[start:stop, None].astype(np.float32)}, {})
        writer.finish()
    return where


# ---- being killed -----------------------------------------------------------------------------------------------

CALLS = ("open", "fsync", "link", "replace", "unlink", "mkdir")


def killed_child(path, at_call, after, broken, seconds):
    """Runs in a process of its own: writes the cache and kills itself around system call number `at_call`."""
    count = 0

    def wrap(call):
        def counted(*args, **kwargs):
            nonlocal count
            count += 1
            if count == at_call and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            result = call(*args, **kwargs)
            if count == at_call and after:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return counted

    if at_call:
        for name in CALLS:
            setattr(os, name, wrap(getattr(os, name)))
    if broken:
        writer.FeatureWriter.write_shard = BROKEN[broken]
    write(path, before_shard=lambda shard: time.sleep(seconds))


def run_killed(path, at_call=0, after=False, broken="", seconds=0.0, kill_after=None):
    """Run the writer in a child; returns its exit code (-9: it was killed)."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["helpers.cachekit"])
    child = context.Process(target=killed_child, args=(path, at_call, after, broken, seconds))
    child.start()
    if kill_after is not None:
        child.join(kill_after)
        if child.is_alive():
            os.kill(child.pid, signal.SIGKILL)
    child.join()
    return child.exitcode


# ---- negative controls: writers that break one rule each ----------------------------------------------------------

RIGHT = writer.FeatureWriter.write_shard


def receipt_first(self, *args, **kwargs):
    """Commits before the bytes are there."""
    held = []
    real_settle, real_digest = writer.settle, folders.LocalFolder.digest
    writer.settle = lambda folder, path, data: held.append((folder, path, data))
    folders.LocalFolder.digest = lambda folder, path: writer.digest(held[-1][2])
    receipt = RIGHT(self, *args, **kwargs)
    writer.settle, folders.LocalFolder.digest = real_settle, real_digest
    for folder, path, data in held:
        real_settle(folder, path, data)
    return receipt


def in_place(self, *args, **kwargs):
    """Writes the final name directly, piece by piece, and takes a file that is there for a finished one."""

    def slowly(folder, path, data):
        target = folder.local / path
        if target.exists():
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(target, "wb", buffering=0) as file:
            for start in range(0, len(data), 512):
                file.write(data[start : start + 512])
                os.fsync(file.fileno())

    writer.settle = slowly
    return RIGHT(self, *args, **kwargs)


BROKEN = {"receipt first": receipt_first, "in place": in_place}
