"""The command line as a person meets it: a process of its own, with its output and exit code."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from helpers.warm import run

import bird_pipelines

BIRD = [sys.executable, "-c", "from bird_pipelines.cli import main; main()"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}


def bird(*args, code=0):
    """Run `bird ARGS`, expect the exit code, return the finished process."""
    done = run([*map(str, args)], ENVIRONMENT)
    assert done.returncode == code, f"exit {done.returncode} instead of {code}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    return done


def bird_json(*args, code=0):
    """Run `bird ARGS --json` and return the object on stdout."""
    return json.loads(bird(*args, "--json", code=code).stdout)


def panel(done):
    """The error panel's text, unwrapped. There must be just one."""
    assert done.stderr.count("╭") == 1, done.stderr
    return " ".join(line.strip("│ ") for line in done.stderr.splitlines())


def stopped(*args, when, by=signal.SIGKILL):
    """Start `bird ARGS`, send the signal `by` as soon as `when()` holds; returns the exit code."""
    process = subprocess.Popen(
        [*BIRD, *map(str, args)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
        text=True,
    )
    deadline = time.monotonic() + 120
    while process.poll() is None and not when():
        assert time.monotonic() < deadline, "the moment to stop never came"
        time.sleep(0.002)
    if process.poll() is None:
        process.send_signal(by)
    message = process.communicate(timeout=120)[1]
    return process.returncode, message


def exists(pattern):
    """A `when` for `stopped`: some file matches the absolute glob pattern."""
    path = Path(pattern)
    return lambda: any(path.parent.glob(path.name))


def distilled(cache, out, **flags):
    """`bird distill` without a process of its own; returns what it prints as JSON."""
    return bird_pipelines.distill(cache=cache, out=out, **flags)


def stranger(script, *args, cwd=None, flags=()):
    """A Python process that does not know this project."""
    done = subprocess.run(
        [sys.executable, *flags, "-c", script, *map(str, args)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={"PATH": "", "OMP_NUM_THREADS": "1"},
        check=False,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
