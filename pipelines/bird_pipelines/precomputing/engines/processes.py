"""--engine local: processes of this machine."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import final

from bird_pipelines.config import Engine
from bird_pipelines.precomputing.engines.base import Ended, Order, Silence, Workers, portable
from bird_pipelines.progress import Interrupted

__all__ = ["Processes"]

END_SECONDS = 10.0
"""between asking a process to stop, which it does after a batch, and killing it"""
SIGN = "a batch is done"


@final
@dataclass
class Child:
    """A process and the pipe to it. `call` is what it is doing; `heard` is when it gave a sign, `worked` whether it has done
    a batch."""

    process: BaseProcess
    pipe: Connection
    heard: float
    worked: bool = False
    ready: bool = False
    call: int | None = None
    began: float = 0.0


@final
class Processes(Workers):
    """As many processes as asked for. One that dies is replaced."""

    def __init__(self, order: Order) -> None:
        self.order, self.count, self.calls = order, min(order.config.workers.processes, len(order.shards)), 0
        self.children = [self.start(number) for number in range(self.count)]

    @classmethod
    def require(cls, asked: Engine) -> None:
        """See Workers.require: processes are always there."""

    def start(self, number: int) -> Child:
        """A new process, which opens its teacher."""
        context = get_context("spawn")
        here, there = context.Pipe()
        threads = max(1, self.order.threads // self.count)
        process = context.Process(target=serve, args=(self.order, number, threads, there), daemon=True)
        process.start()
        there.close()
        return Child(process, here, time.monotonic())

    def free(self) -> int:
        """See Workers.free."""
        return sum(child.ready and child.call is None for child in self.children)

    def call(self, shards: Sequence[int]) -> int:
        """See Workers.call."""
        child = next(child for child in self.children if child.ready and child.call is None)
        self.calls += 1
        child.call, child.began = self.calls, time.monotonic()
        child.heard = child.began
        with contextlib.suppress(OSError):  # it has died: `wait` says so
            child.pipe.send([*shards])
        return child.call

    def wait(self, seconds: float) -> list[Ended]:
        """See Workers.wait."""
        ended = []
        ready = wait([child.pipe for child in self.children], seconds)
        for number, child in enumerate(self.children):
            if child.pipe not in ready:
                continue
            try:
                said = child.pipe.recv()
            except (EOFError, OSError):
                child.process.join()
                ended.append(Ended(child.call, lost=f"a process that ended with code {child.process.exitcode}"))
                self.children[number] = self.start(number)
                continue
            child.heard = time.monotonic()
            if said == SIGN:
                child.worked = True
            elif child.ready:
                ended.append(Ended(child.call, said, seconds=time.monotonic() - child.began))
                child.call = None
            elif said is None:
                child.ready = True
            else:
                ended.append(Ended(None, said))
                self.end([child], END_SECONDS)
                self.children[number] = self.start(number)
        return ended

    def age(self, call: int) -> float:
        """See Workers.age."""
        return time.monotonic() - next(child.began for child in self.children if child.call == call)

    def silences(self) -> dict[int, Silence]:
        """See Workers.silences."""
        now = time.monotonic()
        return {
            number: Silence(now - child.heard, child.worked)
            for number, child in enumerate(self.children)
            if child.call is not None or not child.ready
        }

    def give_up(self, worker: int) -> int | None:
        """See Workers.give_up."""
        child = self.children[worker]
        self.end([child], 0.0)
        self.children[worker] = self.start(worker)
        return child.call

    def close(self) -> None:
        """See Workers.close."""
        self.end(self.children, END_SECONDS)

    def end(self, children: Sequence[Child], seconds: float) -> None:
        """Ask processes to stop, and kill those that do not."""
        for child in children:
            child.process.terminate()
        for child in children:
            child.process.join(seconds)
            child.process.kill()
            child.process.join()
            child.pipe.close()


def serve(order: Order, number: int, threads: int, pipe: Connection) -> None:
    """A worker process: does what comes through the pipe until the pipe ends, which it also does when the coordinator
    dies. Ctrl-C is the coordinator's to hear."""
    os.setpgrp()
    stopping, given = threading.Event(), queue.SimpleQueue[list[int] | None]()

    def stop(*_: object) -> None:
        stopping.set()
        given.put(None)

    signal.signal(signal.SIGTERM, stop)

    def listen() -> None:
        try:
            while True:
                given.put(pipe.recv())
        except (EOFError, OSError):
            stop()

    threading.Thread(target=listen, daemon=True).start()
    from bird_pipelines.precomputing.engines.worker import Worker  # torch is not needed to hear a signal

    with contextlib.suppress(Interrupted, BrokenPipeError):
        try:
            worker = Worker(order, number=number, threads=threads, sign=lambda: pipe.send(SIGN))
        except Exception as error:
            pipe.send(portable(error))
            return
        pipe.send(None)
        while (shards := given.get()) is not None:
            pipe.send(worker.answer(shards, stopping.is_set))
