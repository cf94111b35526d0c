"""Who gets which shard, and what is done about workers that are lost, slow or silent.

Only receipts count. A worker that says it is done is believed once its receipt is seen; a shard that another process
committed is done as well.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import final

from bird.errors import BirdError, RunError
from bird_cache.errors import CacheError, StorageError
from bird_cache.writer import FeatureWriter
from bird_pipelines.precomputing.engines.base import Ended, Workers
from bird_pipelines.precomputing.extraction import refuse_too_many
from bird_pipelines.progress import Advance, Interrupted, tell

__all__ = ["Coordinator"]

POLL_SECONDS = 0.1
LOOK_SECONDS = 2.0
"""between two looks for the receipts of shards in the making"""
SEEN_SECONDS = 30.0
"""so long a mount may need to show a receipt that another host says it has written"""
TOLD_SECONDS = 30.0
SLOW = 3.0
"""a shard that takes so many medians is given to a second worker, once half of all shards are done"""
READY_SECONDS, SILENT_SECONDS = 1800.0, 600.0
"""a worker that gives no sign for so long, before and after its first batch, is replaced: nobody else sees it hang"""
TRIES = 3


@final
class Coordinator:
    """Hands out the shards of a writer that have no receipt."""

    def __init__(self, writer: FeatureWriter, workers: Workers, advance: Advance, max_failed: float) -> None:
        self.writer, self.workers, self.advance, self.max_failed = writer, workers, advance, max_failed
        self.left = dict.fromkeys(writer.pending())  # in order
        self.waiting = deque(self.left)
        self.calls: dict[int, Sequence[int]] = {}  # the shards that a worker was given
        self.claimed: dict[int, float] = {}  # a worker says that it is committed, since
        self.failed: Counter[int | None] = Counter()
        self.seconds: list[float] = []  # of each shard that was made here
        self.undecodable = {row: why for receipt in writer.receipts.values() for row, why in receipt.failed.items()}
        self.looked = self.told = time.monotonic()

    def run(self, stop: Callable[[], bool]) -> None:
        """Until every shard has a receipt. Raises Interrupted, what a worker raises, RunError, StorageError."""
        refuse_too_many(self.writer.plan, self.writer.samples, self.undecodable, self.max_failed)
        while self.left:
            if stop():
                raise Interrupted
            self.hand_out()
            for ended in self.workers.wait(POLL_SECONDS):
                self.heed(ended)
            self.look()
            self.give_up_the_silent()
            if not self.seconds and time.monotonic() - self.told > TOLD_SECONDS:
                self.told = time.monotonic()
                tell(f"waiting: {self.workers.waits_for()}")

    def hand_out(self) -> None:
        """Give every free worker a shard without a receipt; where none waits, one that another worker is slow with."""
        for _ in range(self.workers.free()):
            shards = self.next_shards() or self.slow_shards()
            if not shards:
                return
            self.calls[self.workers.call(shards)] = shards

    def next_shards(self) -> list[int]:
        """The next shards that wait, but for those that somebody has committed meanwhile."""
        shards: list[int] = []
        while self.waiting and len(shards) < self.workers.share:
            shard = self.waiting.popleft()
            if shard in self.left and not self.see(shard):
                shards.append(shard)
        return shards

    def slow_shards(self) -> list[int]:
        """What one call has not committed that takes much longer than others did."""
        done = self.writer.plan.shards - len(self.left)
        if not self.seconds or 2 * done < self.writer.plan.shards:
            return []
        given = Counter(shard for each in self.calls.values() for shard in each)
        for call, each in self.calls.items():
            shards = [shard for shard in each if shard in self.left]
            if shards and self.age(call) > SLOW * self.median and all(given[shard] == 1 for shard in shards):
                return shards
        return []

    @property
    def median(self) -> float:
        """Seconds that a shard takes."""
        return statistics.median(self.seconds)

    def age(self, call: int) -> float:
        """How long a call has taken, by shard."""
        return self.workers.age(call) / len(self.calls[call])

    def heed(self, ended: Ended) -> None:
        """What a worker says, or that it is lost."""
        if isinstance(ended.error, BirdError | CacheError):
            raise ended.error  # of ours: it would come again
        shards = () if ended.call is None else self.calls.pop(ended.call)
        if ended.lost or ended.error is not None:
            self.failure(shards, ended.lost or f"{type(ended.error).__name__}: {ended.error}")
            return
        self.seconds += [ended.seconds / len(shards)] * len(shards)
        for shard in shards:
            if shard in self.left and not self.see(shard):
                self.claimed.setdefault(shard, time.monotonic())

    def failure(self, shards: Sequence[int], reason: str) -> None:
        """A worker is lost: what it has not committed goes back. Raises RunError where that was the third time."""
        left = [shard for shard in shards if shard in self.left and not self.see(shard)]
        if shards and not left:
            return
        first = left[0] if left else None  # the one that it was at; None: it had not begun
        self.failed[first] += 1
        if self.failed[first] >= TRIES and (left or not self.calls):
            raise RunError(
                where="a worker that ends before it has begun" if first is None else self.named(first),
                found=f"{TRIES} failures, the last one: {reason}",
                wanted="a worker" if first is None else "a shard that is written",
                fix="see to that; the same command goes on from all that is committed",
            )
        what, then = ("a worker", "another starts") if first is None else (self.named(first), "it is tried again")
        tell(f"note: {what}: {reason[:200]}; {then}")
        elsewhere = {shard for other in self.calls.values() for shard in other}
        self.waiting.extendleft(shard for shard in reversed(left) if shard not in elsewhere)

    def look(self) -> None:
        """Count what is committed by anyone. Raises StorageError for a receipt that never comes."""
        now = time.monotonic()
        if now - self.looked < LOOK_SECONDS:
            return
        self.looked = now
        for shard in {shard for each in self.calls.values() for shard in each} | {*self.claimed}:
            if shard in self.left and not self.see(shard) and now - self.claimed.get(shard, now) > SEEN_SECONDS:
                raise StorageError(
                    where=self.writer.folder.name,
                    found=f"no receipt of {self.named(shard)} here, though a worker says that it wrote one",
                    wanted="one folder that all workers share",
                    fix="give a folder that is the same on all hosts, or an s3://, gs:// or az:// URL",
                )

    def see(self, shard: int) -> bool:
        """Whether a shard has a receipt now; then it is done."""
        receipt = self.writer.committed(shard)
        if receipt is None:
            return False
        self.left.pop(shard, None)
        del self.failed[None]  # workers do begin
        self.claimed.pop(shard, None)
        self.advance(receipt.stop - receipt.start)
        self.undecodable |= receipt.failed
        refuse_too_many(self.writer.plan, self.writer.samples, self.undecodable, self.max_failed)
        return True

    def give_up_the_silent(self) -> None:
        """Replace workers of which nothing has been heard for long."""
        for worker, silence in self.workers.silences().items():
            most = SILENT_SECONDS if silence.worked else READY_SECONDS
            if silence.seconds > most:
                call = self.workers.give_up(worker)
                at = "its next batch" if silence.worked else "its teacher and its first batch"
                self.failure(
                    () if call is None else self.calls.pop(call), f"no sign in {most:,.0f} s from a worker at {at}"
                )

    def named(self, shard: int) -> str:
        """A shard in words."""
        start, stop = self.writer.plan.bounds(shard)
        return f"shard {shard} (rows {start}..{stop - 1})"
