"""What can go wrong with a cache, as one tree. `exit_code` is what a command line returns for it.

CacheError                    3   the cache is damaged or does not match
├── NotACacheError            2   the path holds no cache (or something else)
├── StaleCacheError           3   it was made from other causes than the caller asks for; names the field
├── IncompleteCacheError      3   its manifest was never finished
├── DamagedCacheError         3   a file is missing, cut, altered, or in the wrong place
├── BusyCacheError            1   another process is writing it
├── RequestError              2   it does not hold what is asked of it, or the place for the answer is taken
├── ImportedVectorsError      2   files of vectors that cannot be taken in
├── MissingCodecError         2   what compresses the cache is not installed
├── FeatureError              4   vectors that must not be stored: NaN, infinite, too large for the dtype
└── StorageError              1   the disk refuses: full, read-only, I/O error
"""

from __future__ import annotations

from functools import partial
from typing import Any, final

__all__ = [
    "BusyCacheError",
    "CacheError",
    "DamagedCacheError",
    "FeatureError",
    "ImportedVectorsError",
    "IncompleteCacheError",
    "MissingCodecError",
    "NotACacheError",
    "RequestError",
    "StaleCacheError",
    "StorageError",
]


class CacheError(Exception):
    """An error that says where it happened, what was found, what was wanted, and what to do about it."""

    exit_code = 3

    def __init__(self, *, where: str, found: str, wanted: str, fix: str) -> None:
        super().__init__(f"{where}: found {found}; wanted {wanted}; {fix}")
        self.where, self.found, self.wanted, self.fix = where, found, wanted, fix

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as a call with keywords: Exception by itself would pass the message alone, which cannot be loaded."""
        fields = {"where": self.where, "found": self.found, "wanted": self.wanted, "fix": self.fix}
        return partial(type(self), **fields), (), self.__dict__


@final
class NotACacheError(CacheError):
    """The path holds no cache, or something else."""

    exit_code = 2


@final
class StaleCacheError(CacheError):
    """The cache was made from other causes than the caller asks for."""


@final
class IncompleteCacheError(CacheError):
    """The cache's manifest was never finished."""


@final
class DamagedCacheError(CacheError):
    """A file is missing, cut, altered, or in the wrong place."""


@final
class BusyCacheError(CacheError):
    """Another process is writing the cache."""

    exit_code = 1


@final
class RequestError(CacheError):
    """The cache does not hold what is asked of it, or the place for the answer is taken."""

    exit_code = 2


@final
class ImportedVectorsError(CacheError):
    """Files of vectors that cannot be taken in."""

    exit_code = 2


@final
class MissingCodecError(CacheError):
    """What compresses the cache is not installed."""

    exit_code = 2


@final
class FeatureError(CacheError):
    """Vectors that must not be stored: NaN, infinite, or too large for the dtype."""

    exit_code = 4


@final
class StorageError(CacheError):
    """The disk refuses."""

    exit_code = 1
