"""--engine slurm: jobs of a Slurm cluster, through submitit. A job loads the teacher and writes a few shards.

Slurm starts the next job wherever a node is free, so that a slow node gets fewer. That a job is lost is seen in the queue;
no accounting is needed.
"""

from __future__ import annotations

import inspect
import math
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from bird.errors import RunError, UsageError
from bird_pipelines.config import Engine
from bird_pipelines.precomputing.engines.base import Ended, Order, Silence, Workers, portable

__all__ = ["SlurmJobs"]

ROUNDS = 4
"""jobs of each task, if all go on equally fast: more balance better, fewer load the teacher less often"""
QUEUE_SECONDS = 5.0
GONE_SECONDS = 15.0
"""so long a result may need to be seen here after its job has left the queue"""
MINUTES = 240


@final
@dataclass
class Job:
    """A job of submitit: since when it runs, since when it is no more in the queue, and when its log was seen to grow."""

    job: Any
    began: float | None = None
    gone: float | None = None
    heard: float = 0.0
    logged: int = 0


@final
class SlurmJobs(Workers):
    """At most `--tasks` jobs at a time."""

    def __init__(self, order: Order) -> None:
        self.order, asked = order, order.config.workers
        self.tasks, self.calls, self.looked = asked.tasks, 0, 0.0
        self.share = max(1, math.ceil(len(order.shards) / (ROUNDS * self.tasks)))
        self.threads = order.config.work.workers or int(asked.set.get("cpus_per_task", 1))
        out = order.config.out
        self.folder = Path(order.folder) / "bird-slurm" if "://" in out else Path(f"{out}-slurm")
        self.executor = executor_of(self.folder, {"time": MINUTES, "job_name": "bird", **asked.set}, self.threads)
        self.jobs: dict[int, Job] = {}

    @classmethod
    def require(cls, asked: Engine) -> None:
        """See Workers.require."""
        require_slurm()

    def free(self) -> int:
        """See Workers.free."""
        return self.tasks - len(self.jobs)

    def call(self, shards: Sequence[int]) -> int:
        """See Workers.call. Raises UsageError where sbatch refuses."""
        self.calls += 1
        try:
            job = self.executor.submit(write_shards, self.order, [*shards], self.threads)
        except Exception as error:
            said = str(error.__cause__ or error).strip().split("\n")[-1]
            raise UsageError(
                where="--engine slurm", found=said, wanted="options that sbatch takes", fix="correct --set NAME=VALUE"
            ) from error
        self.jobs[self.calls] = Job(job)
        return self.calls

    def wait(self, seconds: float) -> list[Ended]:
        """See Workers.wait."""
        time.sleep(seconds)
        self.look_at_queue()
        ended = [end for number, job in self.jobs.items() if (end := ended_of(number, job)) is not None]
        for end in ended:
            assert end.call is not None
            del self.jobs[end.call]
        return ended

    def look_at_queue(self) -> None:
        """Which jobs run, and which are there no more."""
        now = time.monotonic()
        if now - self.looked < QUEUE_SECONDS:
            return
        asked = ["squeue", "--noheader", "--me", "--format=%i %t"]
        answer = subprocess.run(asked, capture_output=True, text=True, check=False)
        if answer.returncode:  # the controller is busy or restarts: nothing is known
            return
        self.looked = now
        states = dict(line.split() for line in answer.stdout.splitlines())
        for job in self.jobs.values():
            state = states.get(job.job.job_id)
            if state == "R":
                job.began = job.began or now
            elif state == "PD":  # again, where it was requeued: it waits, and is not silent
                job.began = None
            job.gone = None if state else job.gone or now
            if (logged := size_of_log(job)) != job.logged:
                job.heard, job.logged = now, logged

    def age(self, call: int) -> float:
        """See Workers.age."""
        began = self.jobs[call].began
        return 0.0 if began is None else time.monotonic() - began

    def silences(self) -> dict[int, Silence]:
        """See Workers.silences. A job is one call, and its number is the call's. Whether it has its teacher is not known."""
        now = time.monotonic()
        running = {number: max(job.began, job.heard) for number, job in self.jobs.items() if job.began is not None}
        return {number: Silence(now - heard, worked=False) for number, heard in running.items()}

    def give_up(self, worker: int) -> int | None:
        """See Workers.give_up."""
        self.jobs.pop(worker).job.cancel(check=False)
        return worker

    def waits_for(self) -> str:
        """See Workers.waits_for."""
        return f"{len(self.jobs)} jobs in Slurm's queue (squeue --me); their logs come to {self.folder}"

    def close(self) -> None:
        """See Workers.close."""
        for job in self.jobs.values():
            job.job.cancel(check=False)


def write_shards(order: Order, shards: Sequence[int], threads: int) -> Exception | None:
    """What a job does. Its error is a value: submitit would keep only the traceback. Its log grows while it works."""
    try:
        from bird_pipelines.precomputing.engines.worker import Worker

        return Worker(order, threads=threads, sign=lambda: print("a batch is done", flush=True)).answer(shards)
    except Exception as error:
        return portable(error)


def size_of_log(job: Job) -> int:
    """Bytes of a job's log: a worker adds to it when a batch is done."""
    try:
        return int(job.job.paths.stdout.stat().st_size)
    except OSError:
        return 0


def ended_of(number: int, job: Job) -> Ended | None:
    """What a job says, once it has ended."""
    now = time.monotonic()
    if job.job.paths.result_pickle.exists():
        try:
            return Ended(number, job.job.result(), seconds=now - (job.began or now))
        except Exception as error:  # before our code was reached
            return Ended(number, lost=" ".join(str(error).split())[-400:])
    if job.gone is not None and now - job.gone > GONE_SECONDS:
        return Ended(
            number, lost=f"job {job.job.job_id} left the queue without a result; {hint_of(job.job.paths.stderr)}"
        )
    return None


def hint_of(log: Path) -> str:
    """Where to look: a node that does not see the folder of the logs leaves none."""
    return f"see {log}" if log.exists() else f"it left no log: cancelled, or a machine that does not see {log.parent}"


def require_slurm() -> Any:
    """The module `submitit`. Raises UsageError where it is not installed, or where Slurm is not."""
    try:
        import submitit
    except ImportError:
        raise UsageError(
            where="--engine slurm",
            found="no package submitit",
            wanted="submitit 1.5 or newer",
            fix='pip install "bird-distill[slurm]"',
        ) from None
    if shutil.which("sbatch") is None or shutil.which("srun") is None:
        raise UsageError(
            where="--engine slurm",
            found="no sbatch on this machine",
            wanted="a machine from which Slurm jobs are submitted",
            fix="run the command there, or use --engine local",
        )
    return submitit


def executor_of(folder: Path, options: Mapping[str, Any], threads: int) -> Any:
    """submitit's executor for jobs with these options of sbatch. Raises UsageError, RunError."""
    submitit = require_slurm()
    from submitit.slurm.slurm import _make_sbatch_string

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        found = error.strerror or str(error)
        raise RunError(
            where=str(folder), found=found, wanted="a folder for the logs of the jobs", fix="choose another --out"
        ) from error
    executor = submitit.SlurmExecutor(folder=folder)
    names = {*inspect.signature(_make_sbatch_string).parameters} - {"mem", "command", "folder"}
    given = {name.replace("-", "_"): value for name, value in options.items()}
    known = {name: value for name, value in given.items() if name in names}
    other = {name.replace("_", "-"): value for name, value in given.items() if name not in names}
    executor.update_parameters(**{"cpus_per_task": threads, **known, "additional_parameters": other})
    return executor
