"""`--engine slurm` on a real Slurm, where there is one: Debian's slurm-wlm starts on one machine with a short slurm.conf
(ProctrackType=proctrack/linuxproc, TaskPlugin=task/none, SlurmdParameters=config_overrides), and needs no accounting."""

import contextlib
import os
import shutil
import subprocess

import psutil
import pytest
from helpers.shell import bird, panel
from helpers.workers import begun, bytes_of, ended, kill, moved, order_for, receipts, start, until

from bird_pipelines.precomputing.engines import slurm_jobs
from bird_pipelines.precomputing.engines.slurm_jobs import SlurmJobs

there = shutil.which("sinfo") and subprocess.run(["sinfo", "-h"], capture_output=True, timeout=20).returncode == 0
needs_slurm = pytest.mark.skipif(not there, reason="no Slurm answers on this machine (Debian: slurm-wlm, munge)")
SLURM = ("--engine", "slurm", "--tasks", 1, "--set", "time=30")


def jobs():
    asked = ["squeue", "--noheader", "--me", "--states=R", "--format=%i"]
    return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.split()


@needs_slurm
@pytest.mark.slow
def test_jobs_finish_what_a_process_began_even_if_one_is_cancelled(flags, expected, tmp_path):
    pytest.importorskip("submitit", reason="submitit is not installed (pip install bird-distill[slurm])")
    where = tmp_path / "cache"
    begun(flags, where)
    process = start("precompute", *flags, "--out", where, *SLURM)
    assert until(jobs, process), process.communicate()[1]
    subprocess.run(["scancel", *jobs()], check=True)
    ended(process)
    assert bytes_of(where) == expected
    assert receipts(where) == 7


@needs_slurm
@pytest.mark.torture
def test_a_job_is_requeued_and_workers_are_killed(flags, expected, tmp_path, record_property):
    pytest.importorskip("submitit", reason="submitit is not installed (pip install bird-distill[slurm])")
    where = tmp_path / "cache"
    process = start("precompute", *flags, "--out", where, *SLURM)
    assert until(workers, process), process.communicate()[1]
    (requeued,) = jobs()
    subprocess.run(["scontrol", "requeue", requeued], check=True)
    assert until(lambda: not jobs(), process), process.communicate()[1]
    for kills in range(3):  # the third of one shard would end the run; the first is of what Slurm has requeued
        if kills:
            for worker in workers():
                kill(worker)
        before = {*workers()}
        assert until(lambda before=before: {*workers()} - before, process), process.communicate()[1]
    ended(process)
    assert bytes_of(where) == expected
    record_property("35 workers of one cache killed", 2)


def workers():
    """The processes of submitit that Slurm has started."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            line = process.cmdline()
            if line and "python" in line[0] and "submitit.core._submit" in line and "SLURM_JOB_ID" in process.environ():
                found.append(process.pid)
    return found


PROGRAMS = {"sbatch": "echo Submitted batch job 1", "srun": "", "scancel": "", "squeue": 'cat "$QUEUE"'}


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """Programs with the names of Slurm's, that say what Slurm's say; the file that is its queue."""
    pytest.importorskip("submitit", reason="submitit is not installed (pip install bird-distill[slurm])")
    for name, text in PROGRAMS.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("QUEUE", str(tmp_path / "queue"))
    monkeypatch.setattr(slurm_jobs, "QUEUE_SECONDS", 0.0)
    return tmp_path / "queue"


def jobs_for(cache, teacher, where):
    return SlurmJobs(moved(order_for(cache, teacher, engine="slurm", tasks=1), where))


def test_a_job_that_is_requeued_waits_and_is_not_silent(teacher, cache, programs, tmp_path):
    with jobs_for(cache, teacher, tmp_path / "cache") as workers:
        call = workers.call([0])
        for state, waits in (("PD", True), ("R", False), ("CG", False), ("R", False), ("PD", True), ("R", False)):
            programs.write_text(f"1 {state}\n")
            assert workers.wait(0.01) == []
            assert ([*workers.silences()] == []) is waits, state
            assert (workers.age(call) == 0) is waits, state


def test_a_job_without_a_log_says_which_folder_its_machine_may_not_see(teacher, cache, programs, tmp_path, monkeypatch):
    monkeypatch.setattr(slurm_jobs, "GONE_SECONDS", 0.0)
    with jobs_for(cache, teacher, tmp_path / "cache") as workers:
        for log in (False, True):
            call = workers.call([0])
            if log:
                (tmp_path / "cache-slurm" / "1_0_log.err").write_text("slurmstepd: killed")
            programs.write_text("")
            ended = [*workers.wait(0.01), *workers.wait(0.01)]
            assert [each.call for each in ended] == [call]
            assert ("does not see" in ended[0].lost) is not log
            assert f"{tmp_path}/cache-slurm" in ended[0].lost


@needs_slurm
def test_what_sbatch_refuses_is_said(flags, tmp_path):
    pytest.importorskip("submitit", reason="submitit is not installed (pip install bird-distill[slurm])")
    asked = ("precompute", *flags, "--out", tmp_path / "cache", *SLURM, "--set", "partition=nowhere")
    assert "partition" in panel(bird(*asked, code=2))


def test_without_sbatch_it_is_refused(flags, tmp_path, monkeypatch):
    pytest.importorskip("submitit", reason="submitit is not installed (pip install bird-distill[slurm])")
    import bird_pipelines
    from bird.errors import UsageError

    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UsageError, match="no sbatch"):
        bird_pipelines.precompute(teacher="onnx:x", dataset="digits-s", out=tmp_path / "cache", engine="slurm")
    assert not (tmp_path / "cache").exists()
