"""Bytes that reach the disk whole or not at all, and the canonical form of what is hashed."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import socket
import time
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path

import xxhash

from bird_cache.errors import BusyCacheError, StorageError

__all__ = [
    "LOCKS",
    "TEMPORARY",
    "busy",
    "canonical_json",
    "clear",
    "digest",
    "digest_of_pieces",
    "file_digest",
    "is_dead",
    "make_room_for",
    "owned",
    "owner_of",
    "publish",
    "remedy",
    "replace",
    "tell",
    "write_lock",
    "writer_name",
]

TEMPORARY = ".partial-"
FORGOTTEN_SECONDS = 86_400.0
"""a temporary of another host that is older than this is nobody's"""
LOCKS = (".lock", ".lock-owner")
NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EIO}  # EIO: rclone mount
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}
NO_FOLDER_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF}
REMEDIES = {
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "a part of the path is a file: check the path",
    errno.EISDIR: "the path is a folder: check the path",
    errno.EACCES: "correct the permissions, or choose another folder",
    errno.EPERM: "correct the permissions, or choose another folder",
    errno.EROFS: "the file system is mounted for reading only: choose another folder",
    errno.ENAMETOOLONG: "choose a shorter path",
    errno.ELOOP: "the links lead in a circle: correct them",
    errno.EMFILE: "allow more open files (ulimit -n), or lower --workers",
    errno.ENFILE: "close other programs: this machine has too many open files",
    errno.ENOLCK: "this mount has no file locks: choose another folder, or mount it with locks",
    errno.EIO: "the disk or its connection fails: check it, then run the same command again: what is committed is kept",
    errno.ESTALE: "the mount was lost: mount it again, then run the same command again: what is committed is kept",
    errno.ENODEV: "this file system lacks what is asked of it: choose another folder",
    errno.ENOTSUP: "this file system lacks what is asked of it: choose another folder",
    errno.ENOSYS: "this file system lacks what is asked of it: choose another folder",
}
log = logging.getLogger("bird_cache")  # without a handler of the caller's, warnings go to stderr
told: set[str] = set()
owned: set[str] = set()
"""the folders that this process holds without a lock of the file system"""


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


def make_room_for(path: Path) -> None:
    """Make the folder of a file that is written later: what would refuse the file refuses before the work, not after it.
    Raises StorageError."""
    try:
        if path.parent.is_file():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not os.access(path.parent, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise storage_error(path, error, 0) from None


def publish(path: Path, data: bytes) -> None:
    """Write `path` atomically and only if it does not exist: the first writer wins. Raises FileExistsError, StorageError."""
    with _temporary(path, data) as temporary:
        try:
            os.link(temporary, path)
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            # A file system without hard links: the folder's write lock is what keeps others out.
            then = "only writers on this machine are kept out. Where several write, give an s3:// (gs://, az://) URL"
            tell(str(path.parent), "this file system has no hard links", then)
            if path.exists():
                raise FileExistsError(errno.EEXIST, "exists", str(path)) from None
            os.rename(temporary, path)
    _sync_folder(path.parent)


@contextlib.contextmanager
def write_lock(folder: Path) -> Iterator[None]:
    """Hold `folder` for one writer; the lock dies with the process. What killed writers left under temporary names, in
    it and below, is deleted. Raises BusyCacheError, StorageError."""
    path = folder / LOCKS[0]
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise storage_error(path, error, 0) from error
    with contextlib.ExitStack() as held:
        held.callback(os.close, descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise busy(str(folder), "another process writing it", "wait for it to finish, or stop it") from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise storage_error(path, error, 0) from error
            held.enter_context(_owned(folder))
        clear(folder)
        yield


def clear(folder: Path) -> None:
    """Delete the temporaries of killed writers. Those of a living one stay, for the lock may not reach it: a process of this
    host is asked for, of other hosts nothing is known for a day."""
    for left in folder.rglob(f"*{TEMPORARY}*"):
        try:
            if left.is_file() and (_is_left(left.name) or time.time() - left.stat().st_mtime > FORGOTTEN_SECONDS):
                left.unlink()
        except FileNotFoundError:  # its writer was quicker
            pass


def _is_left(name: str) -> bool:
    host, _, number = name.rpartition(TEMPORARY)[2].rpartition("-")[0].rpartition("-")
    return not number.isdecimal() or is_dead((host, int(number)))  # without a number: of an earlier version


@contextlib.contextmanager
def _owned(folder: Path) -> Iterator[None]:
    """A lock for file systems without locks: a file that names who writes. One of a dead process of this host is taken over;
    of another host nobody here knows."""
    path, me = folder / LOCKS[1], writer_name()
    real = os.path.realpath(path)
    tell(str(folder), "this file system has no file locks", f"{path.name} keeps other writers out")
    owner: tuple[str, int] | None = None
    for last in (False, True):
        try:
            with open(path, "x", encoding="utf-8") as file:
                file.write(me)
            break
        except FileExistsError:
            with contextlib.suppress(OSError):
                owner = owner_of(path.read_bytes())
            if last or owner is None or real in owned or not is_dead(owner):
                who = f"{path.name} of process {owner[1]} on {owner[0]}" if owner else path.name
                fix = f"wait for it to finish; if no process is writing any more, delete {path}"
                raise busy(str(folder), f"{who} (this mount has no file locks)", fix) from None
            path.unlink(missing_ok=True)
        except OSError as error:
            raise storage_error(path, error, 0) from error
    owned.add(real)
    try:
        yield
    finally:
        owned.discard(real)
        path.unlink(missing_ok=True)


def writer_name() -> str:
    """What a lock says of this process: host and number."""
    return f"{socket.gethostname()} {os.getpid()}"


def owner_of(name: bytes) -> tuple[str, int] | None:
    """Host and process that a lock names; None where it does not say."""
    try:
        host, process = name.decode().rsplit(" ", 1)
        return host, int(process)
    except ValueError:
        return None


def is_dead(owner: tuple[str, int]) -> bool:
    """Whether the process that a lock names is known to be gone: nothing is known of other hosts."""
    host, process = owner
    if host != socket.gethostname():
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except OSError:
        pass
    return process == os.getpid()  # in a container the number comes again; what this process holds is in `owned`


def busy(where: str, found: str, fix: str) -> BusyCacheError:
    """The error for a cache that another process writes."""
    return BusyCacheError(
        where=where, found=found, wanted="one writer at a time", fix=f"{fix}: what it committed is kept"
    )


def tell(where: str, what: str, then: str) -> None:
    """One line, once a process."""
    if what not in told:
        told.add(what)
        log.warning("%s: %s; %s", where, what, then)


def remedy(error: OSError) -> str:
    """What to do about a refusal of the operating system."""
    usual = "make room (or choose another folder) and run the same command again: what is committed is kept"
    return REMEDIES.get(error.errno or 0, usual)


def storage_error(path: Path, error: OSError, size: int) -> StorageError:
    """What a refused write becomes for the person who must act on it."""
    needed = f" while writing {size:,} bytes" if size else ""
    return StorageError(
        where=str(path),
        found=f"{error.strerror or error}{needed}",
        wanted="a writable folder with room",
        fix=remedy(error),
    )


@contextlib.contextmanager
def _temporary(path: Path, data: bytes) -> Iterator[Path]:
    """`data` in a uniquely named, synced file beside `path`; removed afterwards if it is still there."""
    host = socket.gethostname()
    temporary = path.with_name(f"{path.name}{TEMPORARY}{host}-{os.getpid()}-{uuid.uuid4().hex}")
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
        if error.errno not in NO_FOLDER_SYNC:
            raise storage_error(folder, error, 0) from error
        then = "a power cut may lose the last files, which a resumed run writes again"
        tell(str(folder), "this file system has no fsync of folders", then)
