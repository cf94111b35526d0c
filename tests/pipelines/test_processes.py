"""Several processes on one folder: workers of a coordinator, and slices at once."""

import dataclasses
import random
import re
import signal
import time

import psutil
import pytest
from helpers.shell import bird, panel
from helpers.workers import (
    begun,
    bytes_of,
    ended,
    full_disk,
    kill,
    moved,
    order_for,
    receipts,
    start,
    until,
    workers_of,
)

from bird.errors import TeacherError
from bird_cache import worker as cache_worker
from bird_cache.errors import StaleCacheError, StorageError
from bird_cache.store import open_cache
from bird_cache.verify import verify
from bird_cache.writer import open_writer
from bird_pipelines.precomputing.engines import coordinator
from bird_pipelines.precomputing.engines.coordinator import Coordinator
from bird_pipelines.precomputing.engines.processes import Processes
from bird_pipelines.precomputing.engines.worker import Worker


@pytest.mark.slow
def test_processes_write_what_one_writes_even_if_one_is_killed(flags, expected, tmp_path):
    where = tmp_path / "cache"
    process = start("precompute", *flags, "--out", where, "--processes", 2)
    assert until(lambda: receipts(where) >= 1, process), process.communicate()[1]
    kill(random.Random(0).choice(workers_of(process)).pid)
    ended(process)
    assert bytes_of(where) == expected


@pytest.mark.slow
def test_workers_end_with_their_coordinator_and_another_engine_finishes(flags, expected, tmp_path):
    """By kill -9 of the coordinator; then by Ctrl-C, which keeps what is committed."""
    where = tmp_path / "cache"
    process = start("precompute", *flags, "--out", where, "--processes", 2)
    assert until(lambda: receipts(where) >= 1, process), process.communicate()[1]
    workers = workers_of(process)
    process.kill()
    ended(process, -9)
    assert len(workers) == 2
    assert until(lambda: not any(worker.is_running() for worker in workers), seconds=60)
    process = start("precompute", *flags, "--out", where, "--processes", 2)
    assert until(lambda: len(workers_of(process)) == 2, process), process.communicate()[1]
    process.send_signal(signal.SIGINT)
    assert "resume" in ended(process, 130)
    assert 1 <= receipts(where) < 7
    bird("precompute", *flags, "--out", where)
    assert bytes_of(where) == expected


@pytest.mark.slow
def test_a_disk_that_is_full_for_one_worker_ends_the_run_and_loses_nothing(flags, expected, tmp_path):
    where = tmp_path / "cache"
    process = start("precompute", *flags, "--out", where, "--processes", 2)
    assert until(lambda: len(workers_of(process)) == 2, process), process.communicate()[1]
    full_disk(workers_of(process)[0].pid)
    said = ended(process, 1)
    assert said.count("╭") == 1
    for part in ("StorageError", "worker on", "File too large while writing 131,096 bytes", "make room"):
        assert part in said
    bird("precompute", *flags, "--out", where)
    assert bytes_of(where) == expected


@pytest.mark.slow
def test_a_process_that_hangs_with_its_teacher_is_replaced(flags, teacher, expected, tmp_path, monkeypatch):
    """It is alone and stopped before its first shard: nothing can be compared with it."""
    monkeypatch.setattr(coordinator, "READY_SECONDS", 1.0)
    where = tmp_path / "cache"
    begun(flags, where)
    store = open_cache(where)
    with (
        open_writer(where, store.manifest.plan, store.samples) as writer,
        Processes(order_for(where, teacher, limit=400)) as workers,
    ):
        first = psutil.Process(workers.children[0].process.pid)
        first.suspend()

        def stop():
            if workers.children[0].process.pid != first.pid:  # the next one may take its time
                monkeypatch.setattr(coordinator, "READY_SECONDS", 600.0)
            return False

        Coordinator(writer, workers, lambda *_: None, 0.01).run(stop)
        writer.finish()
        assert workers.children[0].worked, "its batches were heard of"
    assert not first.is_running()
    assert bytes_of(where) == expected


@pytest.mark.slow
def test_two_slices_at_once_in_one_folder(flags, expected, tmp_path):
    """Neither is refused, the last one finishes the cache, and each counts its own rows."""
    where = tmp_path / "cache"
    slices = [start("precompute", *flags, "--out", where, "--slice", f"{number}/2") for number in (1, 2)]
    said = [ended(process) for process in slices]
    assert bytes_of(where) == expected
    plan = open_cache(where).manifest.plan
    for number, text in enumerate(said):
        rows = sum(stop - first for first, stop in map(plan.bounds, range(number, plan.shards, 2)))
        assert re.findall(r"([\d,]+) of ([\d,]+) images", text)[-1] == (str(rows), str(rows))


def test_a_worker_with_other_weights_is_refused_before_it_writes(flags, teacher, tmp_path):
    from bird_pipelines.config import resolve
    from bird_pipelines.distilling.training import distill

    other, where = tmp_path / "other", tmp_path / "cache"
    there = {"dataset": "digits-s", "student": "shufflenetv2", "method": "baseline", "limit": 60}
    distill(resolve({**there, "epochs": 1, "batch_size": 32, "seed": 1, "out": other}))
    before = begun(flags, where)
    with pytest.raises(StaleCacheError, match=r"worker on .*teacher\.weights"):
        Worker(order_for(where, other, limit=400))
    with pytest.raises(StaleCacheError, match=r"worker on .*precision = bf16"):
        Worker(order_for(where, teacher, limit=400, precision="bf16"))
    with pytest.raises(TeacherError, match="worker on"):
        Worker(order_for(where, tmp_path / "nowhere", limit=400))
    assert bytes_of(where) == before
    Worker(order_for(where, teacher, limit=400)).write_shards([0, 6])
    assert receipts(where) == 2


def test_a_worker_that_does_not_see_the_folder_says_so(flags, teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(cache_worker, "SEEN_SECONDS", 0.2)
    where = tmp_path / "cache"
    begun(flags, where)
    order = order_for(where, teacher)
    with pytest.raises(StorageError, match=r"worker on .*no such folder.*all hosts share"):
        Worker(moved(order, tmp_path / "elsewhere"))
    with pytest.raises(StorageError, match="fingerprint"):
        Worker(dataclasses.replace(order, fingerprint="0" * 64))
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--actors", 2), "--actors"),
        (("--engine", "ray", "--processes", 2), "--processes"),
        (("--engine", "slurm", "--address", "auto"), "--address"),
        (("--set", "partition=gpu"), "--set"),
        (("--processes", 2, "--slice", "1/2"), "--slice"),
        (("--engine", "spark"), "--engine"),
        (("--processes", 0), "processes"),
    ],
)
def test_options_that_do_not_go_together(flags, tmp_path, options, said):
    done = bird("precompute", *flags, "--out", tmp_path / "cache", *options, code=2)
    assert said in done.stderr
    assert not (tmp_path / "cache").exists()


def test_a_service_has_one_process(flags, tmp_path):
    there = ("--dataset", "digits-s", "--out", tmp_path / "cache", "--processes", 2)
    assert "one process" in panel(bird("precompute", "--teacher", "http://127.0.0.1:9/v1", *there, code=2))


@pytest.mark.torture
def test_processes_killed_in_full(flags, expected, tmp_path, record_property):
    """20 kills of workers at random instants: nothing lost, doubled or wrong."""
    kills, rng = 0, random.Random(0)
    while kills < 20:
        where = tmp_path / f"{kills}"
        process = start("precompute", *flags, "--out", where, "--processes", 2)
        for _ in range(2):  # of one shard three would end the run
            if until(lambda it=process: len(workers_of(it)) == 2, process):
                time.sleep(rng.uniform(0, 6))
                for worker in workers_of(process)[:1]:
                    kill(worker.pid)
                    kills += 1
        ended(process)
        assert bytes_of(where) == expected
        assert verify(where).findings == []
    record_property("35 workers of one cache killed", kills)
