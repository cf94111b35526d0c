"""Where a cache lives: a folder of this machine, or a prefix in object storage (bird_cache.object_folder)."""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import final
from urllib.parse import unquote, urlsplit

from bird_cache.errors import NotACacheError
from bird_cache.files import LOCKS, TEMPORARY, clear, file_digest, publish, replace, storage_error, write_lock
from bird_cache.object_folder import ObjectFolder
from bird_cache.storage import Folder

__all__ = ["LocalFolder", "open_folder"]

OBJECT_SCHEMES = {"s3", "s3a", "gs", "az", "abfs", "abfss"}


@final
class LocalFolder(Folder):
    """A folder of this machine's file system."""

    def __init__(self, path: Path) -> None:
        self.local: Path = path
        self.name = str(path)

    def exists(self) -> bool:
        """See Folder.exists."""
        return self.local.exists()

    def read(self, path: str) -> bytes:
        """See Folder.read."""
        return (self.local / path).read_bytes()

    def view(self, path: str) -> memoryview:
        """See Folder.view: a memory map."""
        with open(self.local / path, "rb") as file:
            if (self.local / path).stat().st_size == 0:
                return memoryview(b"")
            try:
                return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
            except OSError:  # a file system that maps no files
                return memoryview(file.read())

    def size(self, path: str) -> int | None:
        """See Folder.size."""
        try:
            return (self.local / path).stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            return None

    def digest(self, path: str) -> str:
        """See Folder.digest."""
        return file_digest(self.local / path)

    def publish(self, path: str, data: bytes) -> None:
        """See Folder.publish."""
        publish(self._parent(path), data)

    def replace(self, path: str, data: bytes) -> None:
        """See Folder.replace."""
        replace(self._parent(path), data)

    def remove(self, path: str) -> None:
        """See Folder.remove."""
        (self.local / path).unlink(missing_ok=True)

    def files(self) -> list[str]:
        """See Folder.files."""
        found = (file.relative_to(self.local).as_posix() for file in self.local.rglob("*") if not file.is_dir())
        return sorted(name for name in found if name not in LOCKS and TEMPORARY not in name)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """See Folder.lock."""
        try:
            self.local.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise storage_error(self.local, error, 0) from error
        with write_lock(self.local):
            yield

    def shares(self) -> bool:
        """See Folder.shares: a file is put only where none is."""
        return True

    def tidy(self) -> None:
        """See Folder.tidy."""
        clear(self.local)

    def free(self) -> int | None:
        """See Folder.free."""
        import shutil

        usage = shutil.disk_usage(self.local)
        return usage.free if usage.total else None  # some network file systems say 0 of 0

    def _parent(self, path: str) -> Path:
        target = self.local / path
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise storage_error(target, error, 0) from error
        return target


def open_folder(where: str | Path) -> Folder:
    """The folder that a path or URL names; it need not exist. Raises NotACacheError for a URL of another kind and for a
    path that cannot be one."""
    scheme = urlsplit(str(where)).scheme if "://" in str(where) else ""
    if scheme in OBJECT_SCHEMES:
        return ObjectFolder(str(where))
    if scheme == "file":
        return _local(Path(unquote(urlsplit(str(where)).path)))
    if scheme:
        raise NotACacheError(
            where=str(where),
            found=f"a URL of kind {scheme}://",
            wanted="a path, file://, s3://, gs:// or az://",
            fix="check the address",
        )
    return _local(Path(where))


def _local(path: Path) -> LocalFolder:
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        pass  # whoever reads or writes says so
    except (OSError, ValueError) as error:  # a name too long, a NUL
        found = getattr(error, "strerror", None) or str(error)
        raise NotACacheError(where=repr(str(path)), found=found, wanted="a path", fix="choose another") from None
    return LocalFolder(path)
