"""A cache in object storage, through obstore. Credentials and endpoints come from the provider's usual environment
variables (AWS_*, GOOGLE_*, AZURE_*)."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, final

from bird_cache.errors import StorageError
from bird_cache.files import LOCKS, TEMPORARY, busy, digest, is_dead, owned, owner_of, tell, writer_name
from bird_cache.storage import Folder

__all__ = ["ObjectFolder"]

RETRY_SECONDS = 60
OWNER = LOCKS[1]
OWNER_SECONDS = 1.0
"""between putting one's name and looking at it again: so long a put of another writer may be under way"""


@final
class ObjectFolder(Folder):
    """A prefix of a bucket. One put makes an object whole; a put with "create" makes it only if it is absent."""

    def __init__(self, url: str) -> None:
        from obstore.store import from_url

        self.name = url.rstrip("/")
        self._creates = True  # whether put-if-absent is what it says; looked at before anything is written
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
            found = (entry["path"] for page in obstore.list(self._store) for entry in page)
            return sorted(path for path in found if path != OWNER and TEMPORARY not in path)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """See Folder.lock: nobody is kept out, for a lock object would outlive a killed writer. Only a store that lets a
        second put-if-absent pass has one writer at a time, by an object that names it. Raises BusyCacheError."""
        self._creates = self._honours_create()
        if self._creates:
            yield
            return
        tell(self.name, "this store ignores put-if-absent (If-None-Match)", f"one writer at a time, named in {OWNER}")
        with self._owned():
            yield

    def shares(self) -> bool:
        """See Folder.shares: where put-if-absent is what it says."""
        self._creates = self._honours_create()
        return self._creates

    def tidy(self) -> None:
        """See Folder.tidy: an object is there whole or not at all."""

    def free(self) -> int | None:
        """See Folder.free."""
        return None

    def _honours_create(self) -> bool:
        """Whether a second put-if-absent of the same object is refused, by one small object put twice."""
        path = f".probe{TEMPORARY}{uuid.uuid4().hex}"
        try:
            for data in (b"first", b"second"):
                self._put(path, data, "create")
            return False
        except FileExistsError:
            return self.read(path) == b"first"
        except StorageError:
            self._put(path, b"third", "overwrite")  # what can be written without a condition, but not with one
            return False
        finally:
            with contextlib.suppress(StorageError):
                self.remove(path)

    @contextlib.contextmanager
    def _owned(self) -> Iterator[None]:
        """Hold the prefix by an object with this process's name. Of two who find none, the one whose name stays has it."""
        me = writer_name()
        with contextlib.suppress(FileNotFoundError):
            self._refuse_living(self.read(OWNER))
        self.replace(OWNER, me.encode())
        time.sleep(OWNER_SECONDS)
        self._refuse_living(self.read(OWNER), me)
        owned.add(self.name)
        try:
            yield
        finally:
            owned.discard(self.name)
            with contextlib.suppress(StorageError):
                self.remove(OWNER)

    def _refuse_living(self, name: bytes, me: str = "") -> None:
        if name.decode(errors="replace") == me:
            return
        owner = owner_of(name)
        if owner is None or self.name in owned or not is_dead(owner):
            who = f"{OWNER} of process {owner[1]} on {owner[0]}" if owner else OWNER
            fix = f"wait for it to finish; if no process is writing any more, delete {self.name}/{OWNER}"
            raise busy(self.name, f"{who} (this store ignores put-if-absent)", fix)

    def _put(self, path: str, data: bytes, mode: str) -> None:
        import obstore

        if mode == "create" and not self._creates:
            if self.size(path) is not None:
                raise FileExistsError(f"{self.name}/{path}")
            mode = "overwrite"

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
