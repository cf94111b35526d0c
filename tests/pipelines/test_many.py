"""Many runs at once end as the same runs one by one, whatever was done before and whenever they were stopped."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from helpers.shell import ENVIRONMENT, distilled

from bird.errors import RunError, UsageError
from bird.methods import METHODS, Hyperparameters, build_method
from bird.students import load_student
from bird_cache.errors import BusyCacheError
from bird_cache.files import write_lock
from bird_pipelines.config import resolve
from bird_pipelines.distilling.side_by_side import distill_many, groups_of

SHORT = {"epochs": 2, "warmup": 1, "batch_size": 32}
FILES = {"config.json", "checkpoint.json", "curve.jsonl", "metrics-meta.json", "metrics-test.json", "run.json"}
FILES |= {"student.json", "student.safetensors", "predictions-test.npz"}


def config(cache, out, **flags):
    return resolve({"dataset": "digits-s", "student": "adapter", "method": "bird", "cache": cache, "out": out} | flags)


def same_run(one, two):
    """Equal metrics to 1e-4 and weights to rounding; equal names of files, and of fields in them."""
    metrics = [json.loads((run / "metrics-test.json").read_text()) for run in (one, two)]
    for name in ("auroc", "f1_macro", "accuracy", "mean_deo", "max_deo"):
        assert metrics[0][name] == pytest.approx(metrics[1][name], abs=1e-4), name
    states = [load_student(run).state_dict() for run in (one, two)]
    assert max((states[0][name] - states[1][name]).abs().max() for name in states[0]) < 1e-5
    names = [{path.name for path in run.iterdir() if not path.name.startswith("checkpoint-")} for run in (one, two)]
    assert names[0] == names[1] == FILES | {".lock"}
    infos = [
        json.loads((run / "run.json").read_text()) | {"seconds": 0, "time_shares": 0, "models_at_once": 0}
        for run in (one, two)
    ]
    assert infos[0] == infos[1]
    assert (one / "config.json").read_bytes() == (two / "config.json").read_bytes()
    curves = [[json.loads(line) for line in (run / "curve.jsonl").read_text().splitlines()] for run in (one, two)]
    for a, b in zip(*curves, strict=True):
        assert a.keys() == b.keys()
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
        assert a["gate"] == b["gate"]


ADAPTER = [name for name in METHODS if not build_method(name, Hyperparameters(), 2).stages]  # it has no spatial maps


@pytest.mark.parametrize("method", ADAPTER)
def test_together_is_one_by_one(cache, tmp_path, method):
    own = [{"seed": 0}, {"seed": 1, "lambda_": 0.5}, {"seed": 1, "alpha": 0.5, "mu2": 0.1, "lr": 0.01}]
    for number, flags in enumerate(own):
        distilled(cache, tmp_path / f"one{number}", method=method, **SHORT, **flags)
    many = [config(cache, tmp_path / f"many{n}", method=method, **SHORT, **flags) for n, flags in enumerate(own)]
    assert len(groups_of(many)) == 1
    infos = distill_many(many)
    for number, info in enumerate(infos):
        assert info["out"] == str(tmp_path / f"many{number}")
        same_run(tmp_path / f"one{number}", tmp_path / f"many{number}")


def test_what_differs_in_more_is_grouped_and_image_students_go_alone(cache, tmp_path):
    flags = [{"seed": 0}, {"seed": 0, "epochs": 1, "warmup": 0}, {"seed": 1}, {"method": "fitnet"}]
    flags += [{"student": "shufflenetv2", "method": "baseline", "limit": 60, "epochs": 1, "warmup": 0}]
    many = [config(cache, tmp_path / str(n), **SHORT | each) for n, each in enumerate(flags)]
    assert [len(group) for group in groups_of(many)] == [2, 1, 1, 1]
    assert [info["config"]["seed"] for info in distill_many(many)] == [0, 0, 1, 0, 0]


def test_finished_runs_are_left_alone(cache, tmp_path):
    runs = [config(cache, tmp_path / str(seed), seed=seed, **SHORT) for seed in range(3)]
    distill_many(runs[:2])
    before = {
        path: path.stat().st_mtime_ns for run in runs[:2] for path in run.place.out.iterdir() if path.name != ".lock"
    }
    infos = distill_many(runs)
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in before.items())
    assert [info["config"]["seed"] for info in infos] == [0, 1, 2]
    assert distill_many(runs) == infos


def test_folders_are_held_and_belong_to_one_run(cache, tmp_path):
    runs = [config(cache, tmp_path / str(seed), seed=seed, **SHORT) for seed in range(2)]
    with pytest.raises(UsageError, match="more than once"):
        distill_many([runs[0], runs[0]])
    distill_many(runs[:1])
    with pytest.raises(RunError, match="lambda"):
        distill_many([config(cache, tmp_path / "0", **SHORT, lambda_=0.7), runs[1]])
    (tmp_path / "1").mkdir(exist_ok=True)
    with write_lock(tmp_path / "1"), pytest.raises(BusyCacheError):
        distill_many(runs)


PROGRAM = """
import json, sys
from bird_pipelines.config import resolve
from bird_pipelines.distilling.side_by_side import distill_many
distill_many([resolve({**flags, "checkpoint_seconds": 0.01}) for flags in json.loads(sys.argv[1])])
"""


@pytest.mark.slow
@pytest.mark.parametrize("finish", ["together", "apart"])
def test_killed_stacks_resume(cache, tmp_path, finish):
    """Killed at a moment when the runs may stand at different steps; finished as a stack, or each alone."""
    flags = {"dataset": "digits-s", "student": "adapter", "method": "bird", "cache": str(cache)}
    flags |= {"epochs": 3, "warmup": 1, "batch_size": 8}
    whole, killed = (
        [{**flags, "seed": seed, "out": str(tmp_path / name / str(seed))} for seed in range(3)]
        for name in ("whole", "killed")
    )
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, json.dumps(killed)], env=ENVIRONMENT)
    deadline = time.monotonic() + 60
    seen = tmp_path / "killed" / "2" / "checkpoint.json"
    while not (seen.exists() and json.loads(seen.read_text())["epoch"] >= 1) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    (tmp_path / "killed" / "1" / "curve.jsonl.partial-0123").write_bytes(b"{")  # as of a kill amid a write
    distill_many([resolve(each) for each in whole])
    if finish == "together":
        distill_many([resolve(each) for each in killed])
    else:
        for each in killed:
            distill_many([resolve(each)])
    for seed in range(3):
        same_run(tmp_path / "whole" / str(seed), tmp_path / "killed" / str(seed))
