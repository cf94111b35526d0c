"""What goes wrong with disks, files and neighbours: nothing of it may be silent. Short forms here, full counts by
`make torture`, which prints how many times each fault was tried."""

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest

from bird_cache.errors import BusyCacheError, CacheError, NotACacheError
from bird_cache.folders import open_folder
from bird_cache.store import open_cache
from bird_cache.testing import (
    LAYER,
    ROWS,
    example_plan,
    files_of,
    noticed,
    write_example,
)
from bird_cache.verify import repair, verify

STORES = ("zarr", "webdataset")
WRITE = "import sys; from bird_cache.testing import *; write_example(sys.argv[1], example_plan(sys.argv[2]))"


@pytest.fixture(params=STORES)
def example(request, tmp_path):
    """A sound cache and what it holds: (where, store, path -> bytes)."""
    where = str(tmp_path / "cache")
    write_example(where, example_plan(request.param))
    return where, request.param, dict(files_of(where))


def read_all(where):
    """What an ordinary reader gets; None if it refuses."""
    try:
        return open_cache(where).read(LAYER, 0, ROWS).tobytes()
    except CacheError:
        return None


def shards_of(clean):
    return [path for path in clean if path.endswith((".tar", "/0/0"))]


def member_edges(data):
    """Where the members of a tar begin; for other files, the chunks' borders."""
    return list(range(0, len(data), 512))


# ---- truncation, flips, swaps ------------------------------------------------------------------------------------


def try_truncations(example, edges):
    where, store, clean = example
    folder, tried = open_folder(where), 0
    right = read_all(where)
    for path in shards_of(clean):
        data = clean[path]
        cuts = {0, 1, len(data) - 1, *(len(data) * share // 100 for share in (25, 50, 75, 99)), *edges(data)}
        for cut in sorted(cut for cut in cuts if cut < len(data)):
            folder.replace(path, data[:cut])
            assert read_all(where) is None, f"{path} cut at {cut} was read"
            tried += 1
        assert noticed(where)
        folder.replace(path, data)
    assert read_all(where) == right
    folder.replace(shards_of(clean)[1], b"")
    repair(where)
    assert write_example(where, example_plan(store)) == [1]
    assert files_of(where) == clean
    return tried


def test_truncated_shards_are_refused(example):
    assert try_truncations(example, lambda data: member_edges(data)[::40]) > 15


@pytest.mark.torture
def test_truncated_shards_in_full(example, record_property):
    record_property("5 truncated shard or tar", try_truncations(example, member_edges))


def try_flips(example, count):
    where, _, clean = example
    folder, rng = open_folder(where), np.random.default_rng(count)
    right, paths = read_all(where), sorted(clean)
    for number in range(count):
        path = paths[number % len(paths)]
        data, bit = clean[path], int(rng.integers(8 * len(clean[path])))
        flipped = data[: bit // 8] + bytes([data[bit // 8] ^ (1 << bit % 8)]) + data[bit // 8 + 1 :]
        folder.replace(path, flipped)
        assert noticed(where), f"{path}, bit {bit}: verify is silent"
        assert read_all(where) in (None, right), f"{path}, bit {bit}: other vectors were read"
        folder.replace(path, data)
    assert not noticed(where)
    return count


def test_bit_flips_are_found(example):
    try_flips(example, 40)


@pytest.mark.torture
def test_bit_flips_in_full(example, record_property):
    record_property("6 bit flip", try_flips(example, 1000))


def test_missing_empty_swapped_and_stale_shards_are_refused(example, tmp_path, record_property):
    where, store, clean = example
    folder, tried, shards = open_folder(where), 0, shards_of(clean)
    write_example(str(tmp_path / "stale"), example_plan(store, teacher={"weights": "sha256:old"}, dtype="float32"))
    stale = files_of(str(tmp_path / "stale"))
    for number, path in enumerate(shards):
        other = shards[(number + 1) % len(shards)]
        for wrong in (None, b"", clean[other], stale.get(path, b"?"), bytes(len(clean[path]))):
            folder.remove(path) if wrong is None else folder.replace(path, wrong)
            assert read_all(where) is None
            assert noticed(where)
            tried += 1
        folder.replace(path, clean[path])
    receipt = "commits/000001.json"
    for wrong in (None, b"", b"{}", clean["commits/000000.json"], stale[receipt]):
        folder.remove(receipt) if wrong is None else folder.replace(receipt, wrong)
        assert read_all(where) is None
        tried += 1
    record_property("7 missing, empty, swapped, stale shard", tried)


# ---- a refusing disk ---------------------------------------------------------------------------------------------


def write_with(where, store, *wrapper):
    command = [*wrapper, sys.executable, "-c", WRITE, where, store]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def try_refusals(tmp_path, store, faults):
    if shutil.which("strace") is None:
        pytest.skip("no strace on this machine: system calls cannot be made to fail")
    write_example(str(tmp_path / "right"), example_plan(store))
    right, failed = files_of(str(tmp_path / "right")), 0
    for number, fault in enumerate(faults):
        where = str(tmp_path / f"{number}")
        done = write_with(where, store, "strace", "-f", "-qq", "-o", "/dev/null", "-e", f"inject={fault}")
        if done.returncode:
            failed += 1
            assert "StorageError" in done.stderr, f"{fault}: {done.stderr[-500:]}"
        write_example(where, example_plan(store))
        assert files_of(where) == right, fault
        assert verify(where).findings == []
    return failed


def faults(calls):
    return [f"{call}:error={error}:when={n}" for call, error, n in calls]


@pytest.mark.slow
@pytest.mark.parametrize("store", STORES)
def test_a_refusing_disk_is_one_message_and_nothing_bad_stays(tmp_path, store):
    calls = [("fsync", "EIO", 2), ("fsync", "ENOSPC", 9), ("link", "ENOSPC", 2)]
    assert try_refusals(tmp_path, store, faults(calls)) == 3


@pytest.mark.torture
@pytest.mark.parametrize("store", STORES)
def test_a_refusing_disk_in_full(tmp_path, store, record_property):
    calls = [
        (call, error, n) for call in ("fsync", "link", "rename") for error in ("EIO", "ENOSPC") for n in range(1, 7)
    ]
    tried = try_refusals(tmp_path, store, faults(calls))
    assert tried > 20
    record_property("4 disk full, EIO", tried)


def test_a_full_disk_names_the_path_and_the_bytes(tmp_path, record_property):
    record_property("20 surroundings", 1)
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", small], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a small file system here: {mounted.stderr.decode()[:80]}")
    try:
        done = write_with(str(small / "cache"), "webdataset")
        assert done.returncode
        assert "StorageError" in done.stderr
        assert "bytes" in done.stderr
        subprocess.run(["mount", "-o", "remount,size=1m", small], check=True)
        write_example(str(small / "cache"), example_plan("webdataset"))
        assert verify(small / "cache").findings == []
    finally:
        subprocess.run(["umount", small], check=True)


# ---- neighbours --------------------------------------------------------------------------------------------------


def write_or_be_refused(where, store):
    try:
        write_example(where, example_plan(store))
    except BusyCacheError:
        sys.exit(7)


def two_writers(tmp_path, store, rounds):
    write_example(str(tmp_path / "right"), example_plan(store))
    right = files_of(str(tmp_path / "right"))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["bird_cache.testing", "zarr"])
    for number in range(rounds):
        where = str(tmp_path / f"{number}")
        pair = [context.Process(target=write_or_be_refused, args=(where, store)) for _ in range(2)]
        for process in pair:
            process.start()
        for process in pair:
            process.join()
        assert {process.exitcode for process in pair} <= {0, 7}
        assert any(process.exitcode == 0 for process in pair)
        assert files_of(where) == right
    return rounds


@pytest.mark.parametrize("store", STORES)
def test_two_writers_at_once(tmp_path, store):
    two_writers(tmp_path, store, 2)


@pytest.mark.torture
@pytest.mark.parametrize("store", STORES)
def test_two_writers_at_once_in_full(tmp_path, store, record_property):
    record_property("8 two coordinators", two_writers(tmp_path, store, 50))


def read_beside_writer(tmp_path, store, opens):
    plan, done = example_plan(store), 0
    right = str(tmp_path / "right")
    write_example(right, plan)
    expected = read_all(right)
    while done < opens:
        where = str(tmp_path / f"{done}")
        thread = threading.Thread(target=write_example, args=(where, plan))
        thread.start()
        while thread.is_alive() or done % 2:
            try:
                cache = open_cache(where)
            except NotACacheError:  # the manifest is not there yet
                continue
            finally:
                done += 1
            if cache.manifest.complete:
                assert cache.read(LAYER, 0, ROWS).tobytes() == expected
            for shard in cache.receipts:
                cache.view("", shard, cache.layout.file_key(LAYER))
        thread.join()
        shutil.rmtree(where)
    return done


@pytest.mark.parametrize("store", STORES)
def test_a_reader_beside_a_writer_sees_whole_generations(tmp_path, store):
    read_beside_writer(tmp_path, store, 50)


@pytest.mark.torture
@pytest.mark.parametrize("store", STORES)
def test_a_reader_beside_a_writer_in_full(tmp_path, store, record_property):
    record_property("9 reader beside a writer", read_beside_writer(tmp_path, store, 5000))


# ---- surroundings ------------------------------------------------------------------------------------------------


def test_a_linked_folder_a_strict_umask_and_a_clock_that_went_back(tmp_path, record_property):
    record_property("20 surroundings", 3)
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    before = os.umask(0o077)
    try:
        write_example(str(tmp_path / "link" / "cache"), example_plan("zarr"))
    finally:
        os.umask(before)
    for path in (tmp_path / "real" / "cache").rglob("*"):
        os.utime(path, (0, 0))
    assert verify(tmp_path / "real" / "cache").findings == []


def test_a_file_system_without_links(tmp_path, monkeypatch, record_property):
    record_property("20 surroundings", 1)
    import errno

    def refuse(*_):
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    write_example(str(tmp_path / "cache"), example_plan("webdataset"))
    assert verify(tmp_path / "cache").findings == []


def as_nobody(do):
    """Run `do` in a process of another user than root, whom permissions bind; what it raised, or None."""
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        try:
            os.setgid(65534)
            os.setuid(65534)
            do()
        except BaseException as error:
            os.write(writer, f"{type(error).__name__} {error}".encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    os.close(writer)
    with os.fdopen(reader, "rb") as said:
        return said.read().decode() or None


PLACES = ["read-only folder", "read-only parent", "a file in the way", "a name too long", "a loop of links", "a NUL"]


@pytest.mark.parametrize("place", PLACES)
def test_places_that_cannot_be_written_are_one_message(tmp_path, place, record_property):
    record_property("20 surroundings", 1)
    write_example(str(tmp_path / "first"), example_plan("zarr"))  # so that all is imported
    where = tmp_path / "cache"
    if place == "read-only parent":
        tmp_path.chmod(0o555)
    elif place == "read-only folder":
        where.mkdir(mode=0o555)
    elif place == "a file in the way":
        where.write_text("mine")
    elif place == "a loop of links":
        where.symlink_to(where)
    where = {"a name too long": tmp_path / ("n" * 300), "a NUL": tmp_path / "a\0b"}.get(place, where)
    if place.startswith("read-only") and os.getuid() == 0:
        for path in (tmp_path, *list(tmp_path.parents)[:3]):
            path.chmod(path.stat().st_mode | 0o055)
        said = as_nobody(lambda: write_example(str(where), example_plan("zarr")))
        assert said is not None
        assert said.startswith("StorageError"), said
        assert str(where) in said
        return
    with pytest.raises(CacheError):
        write_example(str(where), example_plan("zarr"))
    if place == "a file in the way":
        assert where.read_text() == "mine"


@pytest.mark.parametrize("store", STORES)
def test_absurd_manifests_are_refused_before_any_allocation(tmp_path, store, record_property):
    record_property("12 hostile files", 5)
    from bird_cache.files import canonical_json, digest

    where = tmp_path / "cache"
    write_example(str(where), example_plan(store))
    path = where / ("zarr.json" if store == "zarr" else "manifest.json")
    for field, value in (("rows", 10**15), ("views", 10**9), ("shard_rows", 0), ("rows", -1), ("rows", "many")):
        whole = json.loads(path.read_bytes())
        holder = whole["attributes"] if store == "zarr" else whole
        body = {name: part for name, part in holder["bird_cache"].items() if name != "checksum"}
        body["plan"][field] = value
        holder["bird_cache"] = {**body, "checksum": digest(canonical_json(body))}
        kept = path.read_bytes()
        path.write_text(json.dumps(whole))
        assert read_all(where) is None
        path.write_bytes(kept)
    assert read_all(where) is not None
