"""--engine ray: actors of a Ray cluster, each with one loaded teacher."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, final

from bird.errors import UsageError
from bird_pipelines.config import Engine
from bird_pipelines.precomputing.engines.base import Ended, Order, Silence, Workers, portable
from bird_pipelines.ray_cluster import ray_cluster, require_ray

__all__ = ["RayActors"]

PULSE = "pulse"
PULSE_SECONDS = 5.0
"""between two looks how many signs an actor has given"""


@final
class RemoteWorker:
    """What runs in an actor. Its errors are values: Ray would wrap what is raised."""

    worker: Any = None
    signs = 0

    def open(self, order: Order, number: int, threads: int) -> Exception | None:
        """Open the cache, the data set and the teacher."""
        try:
            from bird_pipelines.precomputing.engines.worker import Worker

            self.worker = Worker(order, number=number, threads=threads, sign=self.sign)
        except Exception as error:
            return portable(error)
        return None

    def write_shards(self, shards: Sequence[int]) -> Exception | None:
        """See `Worker.answer`."""
        return self.worker.answer(shards)  # type: ignore[no-any-return]  # the worker is Any

    def sign(self) -> None:
        """A batch is done."""
        self.signs += 1

    def pulse(self) -> int:
        """How many signs there were. It is answered by a thread of its own, beside the work."""
        return self.signs


@final
@dataclass
class Actor:
    """An actor, and the answer that it owes. `call` is what it is doing; while it opens its teacher it is not `ready`.
    `heard` is when it gave a sign; None: it waits for a place in the cluster."""

    handle: Any
    owes: Any
    pulse: Any
    asked: float
    heard: float | None = None
    signs: int = 0
    ready: bool = False
    call: int | None = None
    began: float = 0.0


@final
class RayActors(Workers):
    """As many actors as asked for. One that is lost is replaced, as soon as the cluster has room."""

    def __init__(self, order: Order) -> None:
        asked, self.calls = order.config.workers, 0
        self.order, self.threads = order, order.config.work.workers or 1
        self.needs = {"num_cpus": self.threads, "num_gpus": asked.gpus_per_actor}
        with ExitStack() as stack:
            self.ray = stack.enter_context(ray_cluster(asked.address, self.threads * (asked.actors or 1)))
            room = self.room()
            alone = asked.address is None and "RAY_ADDRESS" not in os.environ
            if alone and not room:
                raise no_room(self.ray.cluster_resources(), self.needs)
            count = min(asked.actors or max(1, room), len(order.shards))
            self.actors = [self.start(number) for number in range(count)]
            self.stack = stack.pop_all()

    @classmethod
    def require(cls, asked: Engine) -> None:
        """See Workers.require."""
        require_ray(asked.address)

    def room(self) -> int:
        """How many actors the cluster has room for now."""
        there, needed = self.ray.cluster_resources(), {"CPU": self.needs["num_cpus"], "GPU": self.needs["num_gpus"]}
        return int(min(there.get(name, 0) / count for name, count in needed.items() if count))

    def start(self, number: int) -> Actor:
        """A new actor, which opens its teacher."""
        # The coordinator replaces what is lost. Ray would repeat a call without asking what is committed.
        never = {"max_restarts": 0, "max_task_retries": 0}
        handle = self.ray.remote(**never, concurrency_groups={PULSE: 1}, **self.needs)(RemoteWorker).remote()
        owes = handle.open.remote(self.order, number, self.threads)
        return Actor(handle, owes, pulse_of(handle), time.monotonic())

    def free(self) -> int:
        """See Workers.free."""
        return sum(actor.owes is None for actor in self.actors)

    def call(self, shards: Sequence[int]) -> int:
        """See Workers.call."""
        actor = next(actor for actor in self.actors if actor.owes is None)
        self.calls += 1
        actor.call, actor.began = self.calls, time.monotonic()
        actor.heard = actor.began
        actor.owes = actor.handle.write_shards.remote([*shards])
        return actor.call

    def wait(self, seconds: float) -> list[Ended]:
        """See Workers.wait."""
        self.feel_pulses()
        owed = [actor.owes for actor in self.actors if actor.owes is not None]
        if not owed:
            time.sleep(seconds)
            return []
        self.ray.wait(owed, num_returns=1, timeout=seconds)
        done = {*self.ray.wait(owed, num_returns=len(owed), timeout=0)[0]}
        ended = []
        for number, actor in enumerate(self.actors):
            if actor.owes not in done:
                continue
            call, was_ready = actor.call, actor.ready
            try:
                said = self.ray.get(actor.owes)
            except Exception as error:  # all of Ray's: ours are values
                ended.append(Ended(call, lost=" ".join(str(error).split())[:400]))
                self.replace(number)
                continue
            actor.owes, actor.call, actor.ready, actor.heard = None, None, True, time.monotonic()
            if not was_ready and said is not None:
                self.replace(number)
            if was_ready or said is not None:
                ended.append(Ended(call, said, seconds=time.monotonic() - actor.began))
        return ended

    def feel_pulses(self) -> None:
        """Which actors have begun, and which have done a batch since the last look."""
        now = time.monotonic()
        asked = [actor.pulse for actor in self.actors if actor.pulse is not None]
        answered = {*self.ray.wait(asked, num_returns=len(asked), timeout=0)[0]} if asked else ()
        for actor in self.actors:
            if actor.pulse is None and now - actor.asked > PULSE_SECONDS:
                actor.pulse, actor.asked = pulse_of(actor.handle), now
            elif actor.pulse in answered:
                with contextlib.suppress(Exception):  # it is lost: the call that it owes says so
                    signs = self.ray.get(actor.pulse)
                    if actor.heard is None or signs != actor.signs:
                        actor.heard, actor.signs = now, signs
                actor.pulse = None

    def replace(self, number: int) -> None:
        """Another actor in the place of one."""
        self.ray.kill(self.actors[number].handle)
        self.actors[number] = self.start(number)

    def age(self, call: int) -> float:
        """See Workers.age."""
        return time.monotonic() - next(actor.began for actor in self.actors if actor.call == call)

    def silences(self) -> dict[int, Silence]:
        """See Workers.silences."""
        now = time.monotonic()
        return {
            number: Silence(now - actor.heard, actor.signs > 0)
            for number, actor in enumerate(self.actors)
            if actor.owes is not None and actor.heard is not None
        }

    def give_up(self, worker: int) -> int | None:
        """See Workers.give_up."""
        call = self.actors[worker].call
        self.replace(worker)
        return call

    def waits_for(self) -> str:
        """See Workers.waits_for."""
        return f"{len(self.actors)} actors of {self.needs} each; the cluster has {self.ray.cluster_resources()}"

    def close(self) -> None:
        """See Workers.close."""
        for actor in self.actors:
            self.ray.kill(actor.handle)
        self.stack.close()


def pulse_of(handle: Any) -> Any:
    """Ask an actor for its pulse."""
    return handle.pulse.options(concurrency_group=PULSE).remote()


def no_room(there: dict[str, float], needs: dict[str, float]) -> UsageError:
    """The error for workers that this machine cannot hold."""
    return UsageError(
        where="--engine ray",
        found=f"a Ray with {there.get('CPU', 0):g} CPUs and {there.get('GPU', 0):g} GPUs",
        wanted=f"{needs['num_cpus']:g} CPUs and {needs['num_gpus']:g} GPUs for a worker",
        fix="lower --gpus-per-actor or --workers, or give the --address of a larger cluster",
    )
