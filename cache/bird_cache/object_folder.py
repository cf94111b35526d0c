"""A cache in object storage, through obstore. Credentials and endpoints come from the provider's usual environment
variables (AWS_*, GOOGLE_*, AZURE_*)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, final

from bird_cache.errors import StorageError
from bird_cache.files import digest
from bird_cache.folders import Folder

__all__ = ["ObjectFolder"]

RETRY_SECONDS = 60


@final
class ObjectFolder(Folder):
    """A prefix of a bucket. One put makes an object whole; a put with "create" makes it only if it is absent."""

    def __init__(self, url: str) -> None:
        from obstore.store import from_url

        self.name = url.rstrip("/")
        with self._reporting("", 0):
            self._store: Any = from_url(
                self.name, retry_config={"max_retries": 5, "retry_timeout": timedelta(seconds=RETRY_SECONDS)}
            )

    def exists(self) -> bool:
        """See Folder.exists."""
        return bool(self.files())

    def read(self, path: str) -> bytes:
        """See Folder.read."""
        return bytes(self.view(path))

    def view(self, path: str) -> memoryview:
        """See Folder.view: the whole object, downloaded."""
        import obstore

        with self._reporting(path, 0):
            return memoryview(obstore.get(self._store, path).bytes())

    def size(self, path: str) -> int | None:
        """See Folder.size."""
        import obstore

        try:
            with self._reporting(path, 0):
                return int(obstore.head(self._store, path)["size"])
        except FileNotFoundError:
            return None

    def digest(self, path: str) -> str:
        """See Folder.digest."""
        return digest(self.read(path))

    def publish(self, path: str, data: bytes) -> None:
        """See Folder.publish: put-if-absent."""
        self._put(path, data, "create")

    def replace(self, path: str, data: bytes) -> None:
        """See Folder.replace."""
        self._put(path, data, "overwrite")

    def remove(self, path: str) -> None:
        """See Folder.remove."""
        import obstore

        with contextlib.suppress(FileNotFoundError), self._reporting(path, 0):
            obstore.delete(self._store, path)

    def files(self) -> list[str]:
        """See Folder.files."""
        import obstore

        with self._reporting("", 0):
            return sorted(entry["path"] for page in obstore.list(self._store) for entry in page)

    @contextlib.contextmanager
    def lock(self) -> Iterator[bool]:
        """See Folder.lock: nobody is kept out. A lock object would outlive a killed writer."""
        yield False

    def free(self) -> int | None:
        """See Folder.free."""
        return None

    def _put(self, path: str, data: bytes, mode: str) -> None:
        import obstore

        with self._reporting(path, len(data)):
            obstore.put(self._store, path, data, mode=mode, use_multipart=False if mode == "create" else None)

    @contextlib.contextmanager
    def _reporting(self, path: str, size: int) -> Iterator[None]:
        """obstore's errors as ours. FileNotFoundError and FileExistsError pass: callers act on them."""
        from obstore.exceptions import AlreadyExistsError, BaseError

        try:
            yield
        except AlreadyExistsError as error:
            raise FileExistsError(f"{self.name}/{path}") from error
        except FileNotFoundError:
            raise
        except (BaseError, OSError, ValueError) as error:
            writing = f" while writing {size:,} bytes" if size else ""
            raise StorageError(
                where=f"{self.name}/{path}".rstrip("/"),
                found=f"{str(error).splitlines()[0][:300]}{writing}",
                wanted="a bucket that answers",
                fix="check the address, the credentials in the environment and the network; then run the same command again",
            ) from error
