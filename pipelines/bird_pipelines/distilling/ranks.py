"""The processes that torchrun started to train one student together (bird.step.ranks): who they are, which rows are whose,
and what they decide together. Without torchrun it is a world of one, and nothing is sent.

Rank 0 alone writes the run's folder. The others read it: it must be one that all of them see.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed, nn
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from bird.devices import choose_device
from bird.errors import LostRankError, UsageError
from bird.launch import launched
from bird.step.ranks import Ranks
from bird_pipelines.config.run import Place

__all__ = ["ONE", "World", "joined", "refuse_ranks"]

LEAST = 2  # rows a rank: batch norm has no statistics of one


@final
class World:
    """All ranks of a run, as one of them sees them."""

    def __init__(self, rank: int = 0, size: int = 1, device: torch.device | None = None) -> None:
        self.rank, self.size, self.device = rank, size, device
        self.ranks = Ranks(self._all_reduce if size > 1 else None)

    @property
    def first(self) -> bool:
        """Whether this rank writes and speaks for all."""
        return self.rank == 0

    def _all_reduce(self, vector: Tensor) -> Tensor:
        try:
            distributed.all_reduce(vector)
        except RuntimeError as error:
            raise LostRankError(
                where=f"rank {self.rank} of {self.size}",
                found=f"another rank that ended or does not answer ({str(error).splitlines()[0][:120]})",
                wanted="all ranks at work",
                fix="look at what that rank said; the same command resumes from the last checkpoint",
            ) from None
        return vector

    def sum(self, *values: float) -> list[float]:
        """The sum of each value over the ranks."""
        if self.size == 1:
            return [*values]
        (sums,) = self.ranks.sum([torch.tensor(values, dtype=torch.float64, device=self.device)])
        return [*sums.tolist()]

    def wait(self) -> None:
        """Until all ranks have come so far."""
        self.sum(0.0)

    def decide(self, anyone: bool, first: bool) -> tuple[bool, bool]:
        """Whether any rank says the one, and whether rank 0 says the other."""
        one, other = self.sum(float(anyone), float(first and self.first))
        return one > 0, other > 0

    def deal(self, count: int) -> tuple[NDArray[np.int64] | slice, float]:
        """Which of a batch's `count` rows are this rank's, and their share of all. Each rank has two rows at least: where
        they do not suffice, some ranks look at those of rank 0, whose share is then 0 there."""
        if self.size == 1:
            return slice(None), 1.0
        busy = min(self.size, max(1, count // LEAST))
        mine = np.arange(self.rank if self.rank < busy else 0, count, busy)
        return mine, len(mine) / count if self.rank < busy else 0.0

    def threads(self) -> int:
        """torch's threads of a student that computes much. (torchrun sets OMP_NUM_THREADS to 1, on any machine.)"""
        if self.size == 1:
            return torch.get_num_threads()
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return max(1, cores // launched().local_world)

    def same_statistics(self, student: nn.Module) -> None:
        """Give the student rank 0's running statistics, which every rank has of its own rows."""
        if self.size == 1:
            return
        buffers = [each for each in student.buffers() if each.is_floating_point()]
        with torch.no_grad():
            for own, first in zip(buffers, self.ranks.sum([each * float(self.first) for each in buffers]), strict=True):
                own.copy_(first)

    def require_same_start(self, tensors: Iterable[Tensor]) -> None:
        """Raise UsageError for ranks that do not begin with the same weights, rows and checkpoint."""
        if not self.ranks.agree(tensors):
            raise UsageError(
                where=f"{self.size} ranks",
                found="another checkpoint, other rows or other weights on some of them",
                wanted="the same on all ranks",
                fix="give all ranks one --out folder and one --cache, and the same versions of torch",
            )


ONE = World()


@contextmanager
def joined(place: Place) -> Iterator[World]:
    """The world that torchrun made of this process and others. On a GPU they talk by NCCL, else by gloo. Whoever waits for
    longer than `place.rank_seconds` ends with LostRankError."""
    launch = launched()
    if launch.world == 1:
        yield ONE
        return
    device = choose_device(place.device)
    began = not distributed.is_initialized()
    if began:
        if device.type == "cuda":
            torch.cuda.set_device(device)
        backend = "nccl" if device.type == "cuda" else "gloo"
        patience = timedelta(seconds=place.rank_seconds)
        store = store_of_this_attempt(patience)
        distributed.init_process_group(
            backend, store=store, rank=launch.rank, world_size=launch.world, timeout=patience
        )
    yield World(launch.rank, launch.world, device)
    if began:  # after an error the connections stay until this process has said what it is, and ends
        distributed.destroy_process_group()


def store_of_this_attempt(patience: timedelta) -> Store:
    """torchrun's store, as `env://` finds it. All attempts of torchrun have one store (seen in torch 2.14): without names of
    their own, ranks that are started again would look for those that are dead."""
    store, _, _ = next(rendezvous("env://", timeout=patience))
    store.set_timeout(patience)
    return PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def refuse_ranks(world: World, name: str, why: str, batch_size: int, meta_rows: int | None) -> None:
    """Raise UsageError for a method that several ranks cannot train with, which has a reason `why`, and for batches with too
    few rows for all of them."""
    if world.size == 1:
        return
    if why:
        raise UsageError(
            where=f"--method {name}",
            found=f"{world.size} ranks",
            wanted=f"one process: {why}",
            fix="run it without torchrun",
        )
    fewest = LEAST * world.size
    for option, rows in (("--batch-size", batch_size), ("--meta-per-cell", meta_rows)):
        if rows is not None and rows < fewest:
            raise UsageError(
                where=option,
                found=f"{rows} rows a step for {world.size} ranks",
                wanted=f"at least {fewest}, {LEAST} for each rank",
                fix=f"raise {option}, or start fewer ranks",
            )
