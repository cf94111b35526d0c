"""What a cache is kept in: named bytes that are there whole or not at all. Paths inside are relative, with "/".

Folder
├── LocalFolder      a path, or file://...     temporary file, fsync, exclusive link; one writer, by lock
└── ObjectFolder     s3:// gs:// az://         put-if-absent; writers cooperate
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from pathlib import Path

from bird_cache.files import digest

__all__ = ["Folder", "same_bytes", "settle"]


class Folder(ABC):
    """Named bytes that are there whole or not at all."""

    name: str
    """what messages call it, and what `open_folder` opens again"""
    local: Path | None = None
    """the path, where there is one"""

    @abstractmethod
    def exists(self) -> bool:
        """Whether anything is there."""

    @abstractmethod
    def read(self, path: str) -> bytes:
        """A file's bytes. Raises FileNotFoundError, OSError."""

    @abstractmethod
    def view(self, path: str) -> memoryview:
        """A file's bytes without a copy where that is possible. Raises FileNotFoundError, OSError."""

    @abstractmethod
    def size(self, path: str) -> int | None:
        """A file's size in bytes; None where there is no such file."""

    @abstractmethod
    def digest(self, path: str) -> str:
        """xxh3-128 of a file's bytes. Raises FileNotFoundError, OSError."""

    @abstractmethod
    def publish(self, path: str, data: bytes) -> None:
        """Write a file that is not there yet: the first writer wins. Raises FileExistsError, StorageError."""

    @abstractmethod
    def replace(self, path: str, data: bytes) -> None:
        """Write a file over what is there: a reader sees the old bytes or the new ones. Raises StorageError."""

    @abstractmethod
    def remove(self, path: str) -> None:
        """Delete a file, if it is there."""

    @abstractmethod
    def files(self) -> list[str]:
        """The paths of all files, sorted. Temporaries of interrupted writers and the lock are not among them."""

    @abstractmethod
    def lock(self) -> contextlib.AbstractContextManager[None]:
        """Hold the folder for writing, making it if need be. In object storage nobody is kept out, and writers of the same
        plan share the work. Raises BusyCacheError, StorageError."""

    @abstractmethod
    def shares(self) -> bool:
        """Whether several writers of one plan can work here side by side without a lock. Raises StorageError."""

    @abstractmethod
    def tidy(self) -> None:
        """Delete what killed writers of this host left under temporary names."""

    @abstractmethod
    def free(self) -> int | None:
        """Bytes that still fit; None where nobody knows."""

    def __str__(self) -> str:
        return self.name


def same_bytes(folder: Folder, path: str, size: int, xxh3: str) -> bool:
    """Whether a file is there with the recorded size and digest."""
    return folder.size(path) == size and folder.digest(path) == xxh3


def settle(folder: Folder, path: str, data: bytes) -> None:
    """Publish `data`, or accept that the same bytes are there already. Raises FileExistsError where other bytes are there,
    which stay as they are; StorageError."""
    try:
        folder.publish(path, data)
    except FileExistsError:
        if folder.digest(path) != digest(data):
            raise
