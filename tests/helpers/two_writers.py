"""Two writers of one plan whose teachers differ: in their last bits, as 1 thread and 2 do, or altogether. One of them is
killed before or after an operation on the folder."""

import fcntl
import multiprocessing
import os
import signal

import numpy as np

from bird_cache import writer
from bird_cache.folders import LocalFolder
from bird_cache.object_folder import ObjectFolder
from bird_cache.testing import FAILED, LAYER, example_image, example_plan, example_samples, example_vectors
from bird_cache.verify import verify
from bird_cache.writer import open_writer

OPERATIONS = ("publish", "replace", "remove", "read", "view", "digest")
TEACHERS = {"first": lambda x: x, "last bits": lambda x: x * (1 + 2.0**-9), "altogether": lambda x: x + 1}


def unlocked():
    """A mount whose locks do not reach another host."""
    fcntl.flock = lambda *_: None


def write_as(where, store, teacher, opened=lambda: None):
    """Write or resume the example with one of the teachers."""
    plan = example_plan(store)
    with open_writer(where, plan, example_samples()) as it:
        opened()
        for shard in it.pending():
            start, stop = plan.bounds(shard)
            lost = {row: reason for row, reason in FAILED.items() if start <= row < stop}
            it.write_shard(shard, {LAYER: TEACHERS[teacher](example_vectors(start, stop))}, lost, example_image)
        it.finish()


def child(where, store, teacher, at, after, broken, pipe, environment):
    """Runs in a process of its own: opens the cache, says so, waits, writes, and kills itself around operation `at`."""
    os.environ.update(environment)  # a server of processes has that of its start
    unlocked()
    if broken:
        writer.settle = replacing
        writer.FeatureWriter._committed = lambda *_: None

    def go():
        pipe.send("opened")
        pipe.recv()
        count = 0

        def wrap(call):
            def counted(*args):
                nonlocal count
                count += 1
                if count == at and not after:
                    os.kill(os.getpid(), signal.SIGKILL)
                result = call(*args)
                if count == at and after:
                    os.kill(os.getpid(), signal.SIGKILL)
                return result

            return counted

        for name in OPERATIONS:
            for kind in (LocalFolder, ObjectFolder):
                setattr(kind, name, wrap(getattr(kind, name)))

    write_as(where, store, teacher, go)


def replacing(folder, path, data):
    """What this project did once: the last writer wins."""
    try:
        folder.publish(path, data)
    except FileExistsError:
        if folder.digest(path) != writer.digest(data):
            folder.replace(path, data)


def killed(where, store, teacher, at, after, meanwhile, broken=False):
    """Start the second writer, do `meanwhile` once it has opened the cache, let it go on; its exit code."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["helpers.two_writers", "zarr"])
    here, there = context.Pipe()
    given = (where, store, teacher, at, after, broken, there, {**os.environ})
    process = context.Process(target=child, args=given)
    process.start()
    there.close()
    here.recv()
    meanwhile(lambda: here.send("go"))
    process.join()
    return process.exitcode


def is_of_one_of(where, teachers):
    """Whether the cache is sound and every shard holds, in all its rows, what one of the teachers says."""
    from bird_cache.store import open_cache

    assert verify(where).findings == []
    cache = open_cache(where)
    cache.require_complete()
    plan = cache.manifest.plan
    for shard in range(plan.shards):
        start, stop = plan.bounds(shard)
        found = cache.read(LAYER, start, stop).astype(np.float32)
        good = ~np.isin(np.arange(start, stop), list(FAILED))
        said = [TEACHERS[teacher](example_vectors(start, stop)).astype(np.float16) for teacher in teachers]
        assert any(np.array_equal(found[good], each[good]) for each in said), f"shard {shard} is of no teacher"
