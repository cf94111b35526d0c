"""File systems that lack what this cache would like: locks, fsync of folders, hard links, memory maps."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bird_cache import files
from bird_cache.errors import BusyCacheError, StorageError
from bird_cache.files import publish, replace, write_lock
from bird_cache.folders import LocalFolder, open_folder
from bird_cache.manifest import LeftOut, Plan, Receipt, Store, open_sealed, seal
from bird_cache.store import open_cache
from bird_cache.testing import example_plan, write_example
from bird_cache.verify import verify


def refusing(code: int) -> object:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    return refuse


@pytest.fixture(autouse=True)
def untold() -> Iterator[None]:
    files.told.clear()
    yield
    files.told.clear()


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_without_locks_a_file_keeps_others_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, code: int, record_property: Any
) -> None:
    record_property("28 names, encodings and refusing systems", 1)
    monkeypatch.setattr(fcntl, "flock", refusing(code))
    with write_lock(tmp_path), pytest.raises(BusyCacheError, match="no file locks"), write_lock(tmp_path):
        pass
    assert [record.message for record in caplog.records] == [
        f"{tmp_path}: this file system has no file locks; .lock-owner keeps other writers out"
    ]
    assert open_folder(tmp_path).files() == []
    with write_lock(tmp_path):  # let go of
        pass


def test_the_lock_file_of_a_dead_process_is_taken_over_and_that_of_another_host_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property: Any
) -> None:
    record_property("28 names, encodings and refusing systems", 3)
    monkeypatch.setattr(fcntl, "flock", refusing(errno.ENOLCK))
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for owner in (f"{socket.gethostname()} {dead.pid}", f"{socket.gethostname()} {os.getpid()}"):
        (tmp_path / ".lock-owner").write_text(owner)
        with write_lock(tmp_path):
            pass
    (tmp_path / ".lock-owner").write_text(f"another-host {dead.pid}")
    with pytest.raises(BusyCacheError, match=r"of process \d+ on another-host") as caught, write_lock(tmp_path):
        pass
    assert f"delete {tmp_path / '.lock-owner'}" in caught.value.fix


def test_the_temporaries_of_living_writers_stay(tmp_path: Path, record_property: Any) -> None:
    """A lock may not reach the other writer: two mounts of one folder, on one host or on two."""
    record_property("28 names, encodings and refusing systems", 5)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    here, old = socket.gethostname(), time.time() - 2 * files.FORGOTTEN_SECONDS
    kept = [f"a.partial-{here}-{os.getppid()}-1f", "b.partial-another-host-1-1f"]
    gone = [f"c.partial-{here}-{dead.pid}-1f", "d.partial-another-host-2-1f", "e.partial-1f"]
    for name in kept + gone:
        (tmp_path / name).write_bytes(b"{")
    os.utime(tmp_path / gone[1], (old, old))
    with write_lock(tmp_path):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", *kept]


def test_a_lock_that_fails_otherwise_is_a_storage_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property: Any
) -> None:
    record_property("28 names, encodings and refusing systems", 1)
    monkeypatch.setattr(fcntl, "flock", refusing(errno.EIO))
    with pytest.raises(StorageError, match="the disk or its connection fails"), write_lock(tmp_path):
        pass


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP])
def test_without_fsync_of_folders_the_work_goes_on_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, code: int, record_property: Any
) -> None:
    record_property("28 names, encodings and refusing systems", 1)
    real = os.fsync

    def files_only(descriptor: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(code, os.strerror(code))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", files_only)
    for name in ("a", "b"):
        replace(tmp_path / name, b"bytes")
    assert (tmp_path / "b").read_bytes() == b"bytes"
    assert ["no fsync of folders" in record.message for record in caplog.records] == [True]


@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOTSUP, errno.EIO])  # vfat, s3fs, rclone mount
def test_without_hard_links_the_first_writer_still_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, code: int, record_property: Any
) -> None:
    record_property("28 names, encodings and refusing systems", 1)
    monkeypatch.setattr(os, "link", refusing(code))
    publish(tmp_path / "a", b"first")
    with pytest.raises(FileExistsError):
        publish(tmp_path / "a", b"second")
    assert (tmp_path / "a").read_bytes() == b"first"
    assert ["no hard links" in record.message for record in caplog.records] == [True]
    assert "only writers on this machine are kept out" in caplog.text
    assert "s3://" in caplog.text


@pytest.mark.parametrize("store", ["zarr", "webdataset"])
def test_a_cache_in_a_folder_whose_name_is_not_utf8(tmp_path: Path, store: Store, record_property: Any) -> None:
    record_property("28 names, encodings and refusing systems", 1)
    where = Path(os.fsdecode(os.fsencode(tmp_path) + b"/M\xfcnster"))
    try:
        where.mkdir()
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    write_example(str(where), example_plan(store))
    assert verify(where).findings == []
    assert open_cache(where).manifest.complete


@pytest.mark.parametrize("store", ["zarr", "webdataset"])
def test_a_manifest_and_table_that_another_host_has_just_replaced_are_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: Store, record_property: Callable[[str, object], None]
) -> None:
    """sshfs and s3fs: for a moment the new bytes have the old size."""
    write_example(str(tmp_path), example_plan(store))
    real_read, real_view, asked = LocalFolder.read, LocalFolder.view, [0, 0]

    def read(folder: LocalFolder, path: str) -> bytes:
        asked[0] += path.endswith(".json")
        data = real_read(folder, path)
        return data[:200] if asked[0] <= 2 and path.endswith(("zarr.json", "manifest.json")) else data

    def view(folder: LocalFolder, path: str) -> memoryview:
        asked[1] += path == "samples.parquet"
        data = real_view(folder, path)
        return data[:200] if asked[1] <= 2 and path == "samples.parquet" else data

    monkeypatch.setattr(LocalFolder, "read", read)
    monkeypatch.setattr(LocalFolder, "view", view)
    assert open_cache(tmp_path).manifest.complete
    assert min(asked) > 2
    record_property("23 old sizes of files that another host has just replaced", 2)


def test_without_memory_maps_files_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property: Any
) -> None:
    record_property("28 names, encodings and refusing systems", 1)
    (tmp_path / "a").write_bytes(b"bytes")
    monkeypatch.setattr(mmap, "mmap", refusing(errno.ENODEV))
    assert bytes(open_folder(tmp_path).view("a")) == b"bytes"


@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        (errno.EROFS, "for reading only"),
        (errno.EACCES, "permissions"),
        (errno.EMFILE, "ulimit"),
        (errno.ENOSPC, "make room"),
    ],
)
def test_the_remedy_fits_the_refusal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, remedy: str, record_property: Any
) -> None:
    record_property("29 remedies", 1)
    monkeypatch.setattr(os, "replace", refusing(code))
    with pytest.raises(StorageError, match=remedy):
        replace(tmp_path / "a", b"bytes")


def test_fields_that_are_newer_than_a_cache_are_written_only_where_they_say_something() -> None:
    """So that `verify`, which writes every record once more, still finds an older cache sound."""
    receipt = Receipt(shard=0, start=0, stop=1, ids="", files={}, failed={}, audit={})
    assert "doubtful" not in seal(receipt)
    assert open_sealed(Receipt, seal(receipt)) == receipt
    told = receipt.model_copy(update={"doubtful": {0: "nearly black"}})
    assert open_sealed(Receipt, seal(told)) == told
    plan = example_plan("zarr")
    assert "left_out" not in plan.model_dump()
    lost = (LeftOut(reason="missing file", label=0, group=1, split="train", rows=3),)
    told_plan = plan.model_copy(update={"left_out": lost})
    assert Plan.model_validate_json(told_plan.model_dump_json()) == told_plan
    assert told_plan.fingerprint == plan.fingerprint
