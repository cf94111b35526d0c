"""bench/gpu.sh, where no GPU is: its stages, small, on the CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
STAGES = ("machine", "tests", "step", "precompute", "grid")


@pytest.mark.slow
def test_every_stage_runs_on_a_cpu(tmp_path):
    environment = {**os.environ, "DEVICE": "cpu", "SMALL": "1", "PYTHON": sys.executable}
    done = subprocess.run(
        ["bash", ROOT / "bench" / "gpu.sh", tmp_path], env=environment, capture_output=True, text=True, check=False
    )
    log = (tmp_path / "log.txt").read_text()
    assert done.returncode == 0, done.stdout + done.stderr + log[-6000:]
    for stage in STAGES:
        assert f"{stage}: done" in done.stdout
        found = json.loads((tmp_path / f"gpu-{stage}.json").read_text())
        assert found["rows"], stage
        assert {name for row in found["rows"] for name in row} <= {*found["columns"]}, "a figure that is not shown"


def test_a_python_without_what_it_wants_is_told(tmp_path):
    """Not in the middle of a stage."""
    done = subprocess.run(
        ["bash", ROOT / "bench" / "gpu.sh", tmp_path],
        env={**os.environ, "PYTHON": "/nonexistent/python"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "nothing could be installed" in done.stdout
