"""Two writers of one cache that keep nobody out: in object storage, and on mounts whose locks do not reach other hosts."""

import contextlib
import fcntl
import itertools

import pytest
from helpers.s3 import bucket, careless_bucket, careless_server, server  # noqa: F401  (fixtures)
from helpers.two_writers import is_of_one_of, killed, unlocked, write_as

from bird_cache import files, object_folder
from bird_cache.errors import BusyCacheError
from bird_cache.folders import LocalFolder, open_folder
from bird_cache.store import open_cache
from bird_cache.testing import LAYER, example_image, example_plan, example_samples, example_vectors, files_of
from bird_cache.verify import verify
from bird_cache.writer import open_writer

STORES = ("zarr", "webdataset")
UNEQUAL = ("last bits", "altogether")
NUMBER = itertools.count()


@pytest.fixture(params=["local", "s3"])
def places(request, tmp_path, monkeypatch):
    """A function that gives an address at which nothing is yet; nobody is kept out there."""
    monkeypatch.setattr(fcntl, "flock", fcntl.flock)
    unlocked()
    root = str(tmp_path) if request.param == "local" else request.getfixturevalue("bucket")
    return lambda: f"{root}/{next(NUMBER)}"


def after_the_first(go, where, store):
    """The first writer finishes, then the second goes on."""
    write_as(where, store, "first")
    go()


def beside_the_first(go, where, store):
    """Both write at once."""
    go()
    with contextlib.suppress(BusyCacheError):
        write_as(where, store, "first")


def try_kills(places, store, teacher, points, order, broken=False):
    tried = 0
    for at, after in points:
        where = places()
        code = killed(where, store, teacher, at, after, lambda go, w=where: order(go, w, store), broken)
        tried += code == -9
        assert code in (0, -9)
        if order is after_the_first:
            is_of_one_of(where, ["first"])
        else:
            write_as(where, store, "first")
            is_of_one_of(where, ["first", teacher])
    return tried


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("teacher", UNEQUAL)
def test_a_finished_cache_outlives_a_second_writer_that_dies(places, store, teacher, record_property):
    """Whose teacher differs, between its shard and its receipt or anywhere else."""
    points = [(at, False) for at in range(2, 6)]
    tried = try_kills(places, store, teacher, points, after_the_first)
    assert tried > 1
    record_property("21 two writers of unequal bits, one killed", tried)


@pytest.mark.parametrize("order", [after_the_first, beside_the_first])
@pytest.mark.parametrize("teacher", UNEQUAL)
@pytest.mark.parametrize("store", STORES)
@pytest.mark.torture
def test_two_writers_of_unequal_bits_in_full(places, store, teacher, order, record_property):
    last = 8 if order is after_the_first else 25  # operations: where all is done there is little to be killed at
    points = [(at, after) for at in range(1, last + 1) for after in (False, True)]
    tried = try_kills(places, store, teacher, points, order)
    assert tried > 3
    record_property("21 two writers of unequal bits, one killed", tried)


def test_a_writer_that_replaces_committed_bytes_is_caught(places):
    """Negative control: what this project did once."""
    with pytest.raises(AssertionError):
        try_kills(places, "zarr", "altogether", [(at, True) for at in range(1, 12)], after_the_first, broken=True)


@pytest.mark.parametrize("teacher", UNEQUAL)
@pytest.mark.parametrize("store", STORES)
def test_the_bytes_of_a_dead_writer_are_taken_or_replaced(places, store, teacher):
    """Killed between its shard and its receipt: who comes next takes the vectors that are its own but for their last bits,
    with the audit of what is there, and replaces any others."""
    where, left = places(), None
    for at in range(2, 9):
        where = places()
        assert killed(where, store, teacher, at, False, lambda go: go()) == -9
        folder = open_folder(where)
        left = next((path for path in folder.files() if path.endswith((".tar", "/0/0"))), None)
        if left is not None and folder.size("commits/000000.json") is None:
            break
    held = folder.read(left)
    write_as(where, store, "first")
    is_of_one_of(where, ["first", teacher])
    assert (open_folder(where).read(left) == held) == (teacher == "last bits")


@pytest.mark.parametrize("layers", [(LAYER,), (LAYER, "logits")])
@pytest.mark.parametrize("store", STORES)
def test_what_was_replaced_in_the_instant_of_its_commit_is_put_back(tmp_path, monkeypatch, store, layers):
    unlocked_here(monkeypatch)
    where, plan = str(tmp_path / "cache"), example_plan(store)
    plan = plan.model_copy(update={"layers": dict.fromkeys(layers, plan.layers[LAYER])})
    lost, right = {7: "undecodable"}, dict.fromkeys(layers, example_vectors(0, 64))
    with open_writer(where, plan, example_samples()) as first, open_writer(where, plan, example_samples()) as second:
        real_publish, real_replace = LocalFolder.publish, LocalFolder.replace

        def only_bytes(folder, name, data):
            if name.startswith("commits/"):
                raise InterruptedError
            real_publish(folder, name, data)

        monkeypatch.setattr(LocalFolder, "publish", only_bytes)
        with pytest.raises(InterruptedError):  # it halts before its receipt
            first.write_shard(0, right, lost, example_image)
        monkeypatch.setattr(LocalFolder, "publish", real_publish)

        def commit_first(folder, name, data):
            monkeypatch.setattr(LocalFolder, "replace", real_replace)
            first.write_shard(0, right, lost, example_image)  # and goes on at the wrong time
            real_replace(folder, name, data)

        monkeypatch.setattr(LocalFolder, "replace", commit_first)
        wrong = dict.fromkeys(layers, example_vectors(0, 64) + 1)
        kept = second.write_shard(0, wrong, lost, example_image)
        assert kept == first.receipts[0]
        for record in kept.files.values():
            assert second.folder.digest(record.path) == record.xxh3
    found = [finding for finding in verify(where).findings if "unfinished" not in finding]
    assert found == []


def unlocked_here(monkeypatch):
    monkeypatch.setattr(fcntl, "flock", lambda *_: None)


def test_a_writer_that_comes_late_to_an_end_adopts_it(places):
    """Both open an empty cache; the first finishes it and adds to it; the second has nothing to do and changes nothing."""
    where, plan = places(), example_plan("zarr")
    with open_writer(where, plan, example_samples()) as late:
        write_as(where, "zarr", "first")
        before = files_of(where)
        for shard in late.pending():
            start, stop = plan.bounds(shard)
            late.write_shard(shard, {LAYER: example_vectors(start, stop) + 1}, {})
        assert late.finish().complete
    assert files_of(where) == before


# ---- stores that ignore put-if-absent ------------------------------------------------------------------------------


def test_a_store_that_ignores_put_if_absent_has_one_writer(careless_bucket, caplog, monkeypatch, record_property):  # noqa: F811  # a fixture
    record_property("22 a store without put-if-absent", 1)
    monkeypatch.setattr(object_folder, "OWNER_SECONDS", 0.1)
    files.told.clear()
    where, plan = f"{careless_bucket}/cache", example_plan("zarr")
    with open_writer(where, plan, example_samples()) as first:
        assert ["ignores put-if-absent" in record.message for record in caplog.records] == [True]
        with (
            pytest.raises(BusyCacheError, match=r"delete s3://.*/cache/\.lock-owner"),
            open_writer(where, plan, example_samples()),
        ):
            pass
        first.write_shard(0, {LAYER: example_vectors(0, 64)}, {7: "undecodable"})
    write_as(where, "zarr", "first")
    assert open_folder(where).files() == [*files_of(where)]
    assert ".lock-owner" not in files_of(where)
    assert verify(where).findings == []
    assert open_cache(where).manifest.complete


def test_the_name_of_a_dead_writer_is_taken_over_there(careless_bucket, monkeypatch):  # noqa: F811  # a fixture
    import socket
    import subprocess
    import sys

    monkeypatch.setattr(object_folder, "OWNER_SECONDS", 0.1)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    where = f"{careless_bucket}/cache"
    open_folder(where).replace(".lock-owner", f"{socket.gethostname()} {dead.pid}".encode())
    write_as(where, "zarr", "first")
    open_folder(where).replace(".lock-owner", b"another-host 1")
    with pytest.raises(BusyCacheError, match="process 1 on another-host"):
        write_as(where, "zarr", "first")


def test_put_if_absent_is_looked_at_and_leaves_nothing(bucket):  # noqa: F811  # a fixture
    where = f"{bucket}/cache"
    with (
        open_writer(where, example_plan("zarr"), example_samples()),
        open_writer(where, example_plan("zarr"), example_samples()),
    ):
        pass
    assert not [path for path in raw_names(bucket) if "probe" in path or "lock" in path]


def raw_names(bucket):  # noqa: F811  # a fixture
    """Every object in a bucket."""
    import os

    import boto3

    client = boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"], region_name="us-east-1")
    return [entry["Key"] for entry in client.list_objects_v2(Bucket=bucket.removeprefix("s3://"))["Contents"]]
