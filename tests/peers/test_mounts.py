"""Two writers on mounted folders, and on a store that ignores put-if-absent: sshfs, s3fs, rclone mount, s3rver, for real.

They need FUSE, root, and the programs (Debian: sshfs openssh-server s3fs rclone; npm: s3rver, which BIRD_S3RVER may name).
"""

import contextlib
import multiprocessing
import os
import subprocess
import time

import pytest
from helpers.s3 import new_bucket
from helpers.two_writers import is_of_one_of, killed, write_as
from peers.mounts import lacking, moto, s3rver, two_mounts

from bird_cache import files, object_folder
from bird_cache.errors import BusyCacheError, DamagedCacheError
from bird_cache.testing import example_plan, example_samples
from bird_cache.verify import repair, verify
from bird_cache.writer import open_writer

pytestmark = pytest.mark.peers
STORES = ("zarr", "webdataset")
NEEDS = {"sshfs": ("sshfs", "/usr/sbin/sshd"), "s3fs": ("s3fs",), "rclone": ("rclone",)}


@pytest.fixture(params=list(NEEDS), scope="module")
def kind(request):
    if absent := lacking(*NEEDS[request.param], "/dev/fuse"):
        pytest.skip(absent)
    if os.getuid():
        pytest.skip("mounts are made by root here")
    return request.param


@pytest.fixture(scope="module")
def endpoint():
    with moto() as address:
        yield address


@pytest.fixture
def mounts(kind, tmp_path, endpoint, monkeypatch):
    files.told.clear()
    bucket = new_bucket(endpoint, monkeypatch, "S3RVER").removeprefix("s3://")
    with contextlib.ExitStack() as stack:
        try:
            made = stack.enter_context(two_mounts(kind, tmp_path, endpoint, bucket))
        except subprocess.CalledProcessError as error:
            pytest.skip(f"cannot mount here: {error}")
        yield made


@pytest.mark.parametrize("store", STORES)
def test_a_cache_on_a_mount(mounts, kind, store, caplog):
    """Written and read, also after kills; a second writer of the same mount is kept out; what the mount lacks is told."""
    where = str(mounts[0] / "cache")
    write_as(where, store, "first")
    is_of_one_of(where, ["first"])
    told = [record.message for record in caplog.records if "no hard links" in record.message]
    assert len(told) == (kind != "sshfs")
    assert all("s3://" in line for line in told)
    with open_writer(f"{where}2", example_plan(store), example_samples()):
        with pytest.raises(BusyCacheError), open_writer(f"{where}2", example_plan(store), example_samples()):
            pass
        code = killed(f"{where}3", store, "first", 6, False, lambda go: go())
    assert code == -9
    for number in (2, 3):
        write_as(f"{where}{number}", store, "first")
        is_of_one_of(f"{where}{number}", ["first"])


def run(where, store, teacher, said):
    try:
        write_as(where, store, teacher)
        said.put("done")
    except DamagedCacheError:
        said.put("damaged")


@pytest.mark.parametrize("teacher", ["last bits", "altogether"])
@pytest.mark.parametrize("store", STORES)
def test_two_hosts_at_once(mounts, kind, store, teacher):
    """sshfs has links, so the first writer wins. Without links, of which both have warned, they may replace each other's
    files, and even say done: `verify` finds it, and `repair` and the same command restore the cache."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    for mount, of in zip(mounts, ("first", teacher), strict=True):
        context.Process(target=run, args=(str(mount / "cache"), store, of, queue)).start()
    said = [queue.get(timeout=60) for _ in mounts]
    print(kind, store, teacher, said)
    time.sleep(2)  # until what is known of the folder is forgotten
    if found := verify(mounts[0] / "cache").findings:
        print(found)
        assert kind != "sshfs"
        repair(mounts[0] / "cache")
        write_as(str(mounts[0] / "cache"), store, "first")
    assert kind != "sshfs" or said == ["done", "done"]
    is_of_one_of(str(mounts[0] / "cache"), ["first", teacher])


@pytest.mark.parametrize("store", STORES)
def test_s3rver_has_one_writer(tmp_path, monkeypatch, store, caplog):
    if absent := lacking(os.environ.get("BIRD_S3RVER", "s3rver")):
        pytest.skip(absent)
    monkeypatch.setattr(object_folder, "OWNER_SECONDS", 0.1)
    files.told.clear()
    with s3rver(tmp_path) as endpoint:
        root = new_bucket(endpoint, monkeypatch, "S3RVER")
        with open_writer(f"{root}/cache", example_plan(store), example_samples()):
            assert ["ignores put-if-absent" in record.message for record in caplog.records] == [True]
            with (
                pytest.raises(BusyCacheError, match=r"\.lock-owner"),
                open_writer(f"{root}/cache", example_plan(store), example_samples()),
            ):
                pass
        for at in (2, 4, 6, 8):
            assert killed(f"{root}/{at}", store, "altogether", at, False, lambda go: go()) == -9
            write_as(f"{root}/{at}", store, "first")
            is_of_one_of(f"{root}/{at}", ["first", "altogether"])
