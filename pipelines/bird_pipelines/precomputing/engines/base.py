"""What an engine is to the coordinator: workers that are given shards, and what became of them."""

from __future__ import annotations

import pickle
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from types import TracebackType
from typing import NamedTuple, Self, final

from bird_pipelines.config import Engine, PrecomputeConfig

__all__ = ["Ended", "Order", "Silence", "Workers", "portable"]


@final
@dataclass(frozen=True)
class Order:
    """What a worker is told. All of it can be pickled; the teacher is the text that the command names."""

    packed: bytes
    """the configuration, pickled: it may refer to code of the user's own, and a worker that cannot import it says so"""
    fingerprint: str
    """of the plan (or of the layers that are added) to which the worker's teacher must belong"""
    part: str
    shards: Sequence[int]
    """those without a receipt when the work began"""
    max_failed: float
    threads: int
    """torch's threads in the coordinator"""
    folder: str
    """the coordinator's working folder, which relative paths start from"""

    @cached_property
    def config(self) -> PrecomputeConfig:
        """What the command asks for. Raises UsageError for code of the user's own that is not here."""
        config: PrecomputeConfig = pickle.loads(self.packed)  # noqa: S301 - the coordinator's own words, never a file
        return config


@final
class Ended(NamedTuple):
    """A call that came to its end. `call` is None for a worker that could not begin. `error` is what the worker raised;
    `lost` says in words how it vanished; with neither, it says that its shards are committed."""

    call: int | None
    error: Exception | None = None
    lost: str = ""
    seconds: float = 0.0
    """that the call took"""


@final
class Silence(NamedTuple):
    """For how long a worker has given no sign. A sign is that it begins, has its teacher, is given shards, or has done a
    batch."""

    seconds: float
    worked: bool
    """whether it has done a batch; before that it loads its teacher"""


class Workers(ABC):
    """The workers of one engine. As a context it ends them all, whatever they are doing: what is committed stays."""

    share = 1
    """how many shards are given in one call"""

    @classmethod
    @abstractmethod
    def require(cls, asked: Engine) -> None:
        """Raise UsageError, before anything is read, where the engine is not there."""

    @abstractmethod
    def free(self) -> int:
        """How many calls can be begun now."""

    @abstractmethod
    def call(self, shards: Sequence[int]) -> int:
        """Begin `write_shards(shards)` in a free worker; the call's number."""

    @abstractmethod
    def wait(self, seconds: float) -> list[Ended]:
        """What has ended; waits for the first at most so long."""

    @abstractmethod
    def age(self, call: int) -> float:
        """For how many seconds a worker has been at a call; 0 while the call waits for one."""

    @abstractmethod
    def silences(self) -> dict[int, Silence]:
        """The silence of each worker that loads its teacher or is at a call, by its number. A worker that has not begun,
        because it waits for a place in a cluster, has none."""

    @abstractmethod
    def give_up(self, worker: int) -> int | None:
        """End a worker, whatever it is doing, and put another in its place. The call that it was at, if any: it is reported
        no more."""

    @abstractmethod
    def close(self) -> None:
        """End all workers."""

    def waits_for(self) -> str:
        """Why no worker is there yet, in words."""
        return "the workers load the teacher"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def portable(error: Exception) -> Exception:
    """The error, or another with its words where it cannot travel between processes."""
    try:
        pickle.dumps(error)
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
