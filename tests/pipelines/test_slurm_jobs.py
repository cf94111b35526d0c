"""`--engine slurm` on a real Slurm, where there is one: Debian's slurm-wlm starts on one machine with a short slurm.conf
(ProctrackType=proctrack/linuxproc, TaskPlugin=task/none, SlurmdParameters=config_overrides), and needs no accounting."""

import shutil
import subprocess

import pytest
from helpers.shell import bird, panel
from helpers.workers import begun, bytes_of, ended, receipts, start, until

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
