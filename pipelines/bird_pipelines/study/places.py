"""Where the runs of a study are made: in processes of this machine, or as tasks of a Ray cluster."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from multiprocessing import active_children, get_context
from typing import Any, Protocol, TypeVar, final

from bird.errors import RunError, UsageError, unknown_name
from bird_pipelines.config import RunConfig
from bird_pipelines.distilling.side_by_side import distill_many, stacks_of
from bird_pipelines.distilling.training import outcome
from bird_pipelines.progress import Interrupted, stop_requests
from bird_pipelines.ray_cluster import ray_cluster, require_ray

__all__ = ["Place", "Train", "place_of", "require_place", "trainer"]

STOP_SECONDS = 60.0
"""so long a task of Ray may need to save where it stands"""
RETRIES = 3
ENGINES = ("local", "ray")
T = TypeVar("T")
Train = Callable[[Sequence[RunConfig]], list[dict[str, Any]]]
"""`distill_many`, or what does the same elsewhere"""


class Place(Protocol):
    """Where calls are made, several at a time."""

    at_once: int

    def submit(self, work: Callable[[T], Any], given: T) -> Future[Any]:
        """Begin `work(given)`."""

    def stop(self) -> None:
        """Let training save where it stands, and end."""


@final
class Processes:
    """Processes of this machine, each with its share of the cores."""

    def __init__(self, pool: ProcessPoolExecutor, count: int) -> None:
        self.pool, self.at_once = pool, count

    def submit(self, work: Callable[[T], Any], given: T) -> Future[Any]:
        """See Place.submit."""
        return self.pool.submit(work, given)

    def stop(self) -> None:
        """See Place.stop."""
        for child in active_children():
            child.terminate()  # the first signal: training saves a checkpoint and stops


@final
class RayTasks:
    """Tasks of a Ray cluster, one processor and one thread each. A task whose node is lost is begun again, and goes on from
    its checkpoints."""

    def __init__(self, ray: Any, count: int) -> None:
        self.ray, self.references = ray, dict[Future[Any], Any]()
        self.at_once = max(count, int(ray.cluster_resources().get("CPU", 1)))
        self.task = ray.remote(num_cpus=1, max_retries=RETRIES)(in_a_task)

    def submit(self, work: Callable[[T], Any], given: T) -> Future[Any]:
        """See Place.submit."""
        reference = self.task.remote(work, given)
        future: Future[Any] = reference.future()
        self.references[future] = reference
        return future

    def stop(self) -> None:
        """See Place.stop."""
        for reference in self.references.values():
            self.ray.cancel(reference)
        wait(self.references, STOP_SECONDS)
        for reference in self.references.values():
            self.ray.cancel(reference, force=True)


def require_place(engine: str, address: str | None) -> None:
    """Raise UsageError, before anything is read, for an engine that there is not."""
    if engine not in ENGINES:
        raise unknown_name("--engine", engine, ENGINES)
    if engine == "ray":
        require_ray(address)
    elif address is not None:
        raise UsageError(where="--address", found=f"--engine {engine}", wanted="--engine ray", fix="leave it out")


@contextmanager
def place_of(engine: str, address: str | None, count: int) -> Iterator[Place]:
    """The processes, or the Ray cluster. Raises UsageError."""
    if engine == "ray":
        with ray_cluster(address, count) as ray:
            yield RayTasks(ray, count)
    else:
        with ProcessPoolExecutor(count, get_context("spawn"), initializer=quiet, initargs=(count,)) as pool:
            yield Processes(pool, count)


@contextmanager
def trainer(engine: str, address: str | None) -> Iterator[Train]:
    """What trains many runs: `distill_many` in this process, or in tasks of Ray."""
    if engine != "ray":
        yield distill_many
        return
    with place_of(engine, address, 1) as place:
        yield lambda configs: distill_at(place, configs)


def distill_at(place: Place, configs: Sequence[RunConfig]) -> list[dict[str, Any]]:
    """`distill_many` with each of its stacks, and each run that is none's, in a task of its own. What is trained together is
    what this process would train together, so that the numbers are the same. Raises what `distill_many` raises."""
    left = [config for config in configs if not (config.place.out / "run.json").exists()]
    with stop_requests() as stop:
        futures = [place.submit(trained, stack) for stack in stacks_of(left)]
        while (waiting := wait(futures, timeout=0.5)).not_done:
            if stop():
                place.stop()
                raise Interrupted
            for future in waiting.done:
                if (error := said_by(future)) is not None:
                    place.stop()
                    raise error
    for future in futures:
        if (error := said_by(future)) is not None:
            raise error
    for config in left:
        if not (config.place.out / "run.json").exists():
            raise RunError(
                where=str(config.place.out),
                found="no run.json here, though a task of Ray says that it wrote one",
                wanted="an --out that all hosts share",
                fix="give a folder that is the same on all hosts",
            )
    return [outcome(config) for config in configs]


def said_by(future: Future[Any]) -> Exception | None:
    """The error of a task, if it had one; also where Ray has lost the task for good."""
    try:
        error: Exception | None = future.result()
    except Exception as lost:  # all of Ray's: ours are values
        return RunError(
            where="a task of Ray",
            found=" ".join(str(lost).split())[:400] or type(lost).__name__,
            wanted="a task that comes to its end",
            fix="see to that; the same command goes on from all checkpoints",
        )
    return error


def trained(configs: Sequence[RunConfig]) -> Exception | None:
    """Train them; the error is a value, for Ray would wrap what is raised."""
    try:
        distill_many(configs)
    except Exception as error:
        return error
    return None


def in_a_task(work: Callable[[T], Any], given: T) -> Any:
    """What Ray calls."""
    import torch

    torch.set_num_threads(1)  # a worker that is used again may have another number
    ignore_torch_script()
    return work(given)


def quiet(jobs: int) -> None:
    """A worker process: its share of the cores, and a process group of its own: Ctrl-C is the parent's to hear."""
    import torch

    ignore_torch_script()
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // jobs))
    os.setpgrp()


def ignore_torch_script() -> None:
    """torch's own forward-mode rules still compile themselves with a function it deprecates."""
    warnings.filterwarnings("ignore", message=".torch.jit.script. is deprecated", category=FutureWarning)
