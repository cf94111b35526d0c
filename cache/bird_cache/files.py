"""Bytes that reach the disk whole or not at all, and the canonical form of what is hashed."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path

import xxhash

from bird_cache.errors import BusyCacheError, StorageError

__all__ = [
    "TEMPORARY",
    "canonical_json",
    "digest",
    "digest_of_pieces",
    "file_digest",
    "publish",
    "replace",
    "write_lock",
]

TEMPORARY = ".partial-"
NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


def canonical_json(value: object) -> bytes:
    """One spelling per value: sorted keys, no spaces, NaN refused. What is hashed is this."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def digest(data: bytes | memoryview) -> str:
    """xxh3-128 of `data`, in hex: finds accidents, does not resist forgers."""
    return xxhash.xxh3_128_hexdigest(data)


def digest_of_pieces(pieces: Iterable[bytes | memoryview]) -> str:
    """`digest` of the pieces one after the other."""
    state = xxhash.xxh3_128()
    for piece in pieces:
        state.update(piece)
    return state.hexdigest()


def file_digest(path: Path, block_bytes: int = 1 << 22) -> str:
    """xxh3-128 of a file's content, read in blocks."""
    state = xxhash.xxh3_128()
    with open(path, "rb", buffering=0) as file:
        while block := file.read(block_bytes):
            state.update(block)
    return state.hexdigest()


def replace(path: Path, data: bytes) -> None:
    """Write `path` atomically, over what is there: a reader sees the old bytes or the new ones. Raises StorageError."""
    with _temporary(path, data) as temporary:
        os.replace(temporary, path)
    _sync_folder(path.parent)


def publish(path: Path, data: bytes) -> None:
    """Write `path` atomically and only if it does not exist: the first writer wins. Raises FileExistsError, StorageError."""
    with _temporary(path, data) as temporary:
        try:
            os.link(temporary, path)
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            # A file system without hard links: the folder's write lock is what keeps others out.
            if path.exists():
                raise FileExistsError(errno.EEXIST, "exists", str(path)) from None
            os.rename(temporary, path)
    _sync_folder(path.parent)


@contextlib.contextmanager
def write_lock(folder: Path) -> Iterator[None]:
    """Hold `folder` for one writer; the lock dies with the process. What killed writers left under temporary names, in
    it and below, is deleted. Raises BusyCacheError, StorageError."""
    path = folder / ".lock"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise storage_error(path, error, 0) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for left in folder.rglob(f"*{TEMPORARY}*"):
            if left.is_file():
                left.unlink(missing_ok=True)
        yield
    except BlockingIOError:
        raise BusyCacheError(
            where=str(folder),
            found="another process writing it",
            wanted="one writer at a time",
            fix="wait for it to finish, or stop it: what it committed is kept",
        ) from None
    finally:
        os.close(descriptor)


def storage_error(path: Path, error: OSError, size: int) -> StorageError:
    """What a refused write becomes for the person who must act on it."""
    needed = f" while writing {size:,} bytes" if size else ""
    return StorageError(
        where=str(path),
        found=f"{error.strerror or error}{needed}",
        wanted="a writable folder with room",
        fix="make room (or choose another folder) and run the same command again: what is committed is kept",
    )


@contextlib.contextmanager
def _temporary(path: Path, data: bytes) -> Iterator[Path]:
    """`data` in a uniquely named, synced file beside `path`; removed afterwards if it is still there."""
    temporary = path.with_name(f"{path.name}{TEMPORARY}{uuid.uuid4().hex}")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if (written := temporary.stat().st_size) != len(data):
            raise OSError(errno.EIO, f"short write ({written:,} of {len(data):,} bytes)")
        yield temporary
    except FileExistsError:
        raise
    except OSError as error:
        raise storage_error(path, error, len(data)) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise storage_error(folder, error, 0) from error
